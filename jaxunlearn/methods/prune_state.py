"""PRUNE as an unlearner: its patches and certificates in the state, its parameters as they were."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _validate
from jaxunlearn.kernels import region_gate
from jaxunlearn.methods.prune import Outcome, PruneConfig, prune_rows
from jaxunlearn.posthoc import Request, answering
from jaxunlearn.primitives import patches as patching
from jaxunlearn.primitives import regions, splits
from jaxunlearn.primitives.patches import Patches
from jaxunlearn.training.config import TrainConfig
from jaxunlearn.training.fit import fit
from jaxunlearn.types import Array, Dataset, Model, State, Status, Unlearner


class Memory(NamedTuple):
    """What a patched network remembers beside its unchanged parameters.

    Attributes:
      patches: ``capacity`` of them, the first ``count`` in use.
      rows: ``int32[capacity]``, the training row of each; -1 where there is none.
      outcome: ``int32[capacity]``, an :class:`Outcome` each.
      count: ``int32``.
    """

    patches: Patches
    rows: Array
    outcome: Array
    count: Array


def unlearner(
    model: Model,
    train: TrainConfig,
    config: PruneConfig = PruneConfig(),
    *,
    split: splits.Split | None = None,
) -> Unlearner:
    """PRUNE as an unlearner: ``params`` never change, patches come to ``memory``.

    Args:
      model: a network that ends in dense ReLU layers.
      train: how to train it.
      config: how to patch.
      split: where these layers begin; found by :func:`splits.split` if None.

    Raises:
      ValueError: from ``fit``: the network does not end in dense ReLU layers; from
        ``unlearn``: more rows than ``capacity``.

    Example:
      >>> from jaxunlearn import models
      >>> train = Dataset(jnp.array([[0.0], [1.0]]), jnp.array([0, 1]))
      >>> method = unlearner(models.mlp(2, hidden=(4,)), TrainConfig(epochs=50, batch_size=2))
      >>> state = method.fit(jax.random.key(0), train)
      >>> forget = jnp.array([True, False])
      >>> state = method.unlearn(jax.random.key(1), state, train, forget)
      >>> method.predict(state, train.x).argmax(-1).tolist()
      [1, 1]
    """
    parts = splits.split(model) if split is None else split

    def fit_state(key: Array, data: Dataset) -> State:
        check(model, parts, data.x.shape[1:], data.x.dtype.name)
        params = fit(key, model, data, config=train)
        layers, n = regions.dense_layers(parts.head(params)), data.y.shape[0]
        return State(
            params=params,
            removed=jnp.zeros(n, bool),
            memory=_memory(layers, n, config),
            grads=jnp.float32(train.epochs * n),
            status=jnp.int32(Status.OK),
            certificate=_certificate(layers, n, config),
        )

    def answer(key: Array, state: State, data: Dataset, request: Request) -> State:
        layers = regions.dense_layers(parts.head(state.params))
        count = state.memory.rows.shape[0]
        rows, size = requested(request.forget, state.memory.count, count)
        asked = rows < data.y.shape[0]
        at = jnp.minimum(rows, data.y.shape[0] - 1)
        x, y = parts.features(state.params, data.x[at]), data.y[at]
        made = prune_rows(layers, x, y, asked, key, None, config=config)
        memory, into = place(state.memory, made.patches, rows, made.outcome, asked)
        outcome = _outcome(layers, memory, x, y, made.outcome, into, config)
        kept = memory.outcome.at[into].set(outcome, mode="drop")
        memory = memory._replace(outcome=kept)
        status = _status(memory, asked, outcome, into, config)
        lost = request.forget.sum() > rows.shape[0]
        status = jnp.where(lost, jnp.int32(Status.BEYOND_CERTIFICATE), status)
        certificate = state.certificate
        if config.mode == "region":
            dual = made.dual.astype(certificate.dtype)
            certificate = certificate.at[into].set(dual, mode="drop")
        forward = 2 * layers[-1].bias.shape[0] * config.iterations
        each = {"region": forward, "paper": forward * config.clusters / size}.get(config.mode, 1)
        grads = (each * asked.sum() / 3).astype(jnp.float32)
        return state._replace(memory=memory, grads=grads, status=status, certificate=certificate)

    def predict(state: State, x: Array) -> Array:
        base = model.apply(state.params, x)
        z, _ = regions.preactivations(parts.head(state.params), parts.features(state.params, x))
        kept = state.memory.patches
        gates = region_gate(z, kept.bits, care=kept.care, sharpness=config.sharpness)
        return patching.corrected(kept, gates, base)

    return Unlearner(fit_state, answering(model.apply, answer), predict)


@functools.lru_cache
def check(model: Model, parts: splits.Split, shape: tuple[int, ...], dtype: str) -> None:
    """:func:`splits.check_split`, once for each model and shape of inputs.

    Example:
      >>> from jaxunlearn import models
      >>> model = models.mlp(3)
      >>> check(model, splits.split(model), (4,), "float32")
    """
    splits.check_split(parts, model, jax.ShapeDtypeStruct((1, *shape), dtype))


def requested(forget: Array, used: Array, capacity: int) -> tuple[Array, int]:
    """Numbers of the requested rows in places for them, n where a place stays empty.

    Args:
      forget: ``bool[n]``.
      used: patches that there are already.
      capacity: patches that there may be.

    Returns:
      ``int[size]``, and ``size``: as many as are asked for, rounded up to a power of two, or
      the capacity where that is not known.

    Raises:
      ValueError: more than fit.

    Example:
      >>> requested(jnp.array([True, False, True]), jnp.int32(0), 8)[0].tolist()
      [0, 2]
    """
    size = capacity
    if _validate.known(forget) and _validate.known(used):
        asked = int(np.asarray(forget).sum())
        if asked + int(used) > capacity:
            raise ValueError(
                f"forget asks for {asked} patches, and {int(used)} of capacity={capacity} are in "
                "use: make the unlearner with a larger capacity."
            )
        size = min(capacity, 1 << (asked - 1).bit_length())
    (rows,) = jnp.nonzero(forget, size=size, fill_value=forget.shape[0])
    return rows, size


def _memory(layers, n: int, config: PruneConfig) -> Memory:
    count, dtype = min(n, config.capacity), layers[0].kernel.dtype
    neurons = sum(layer.bias.shape[0] for layer in layers[:-1])
    wide = jnp.promote_types(dtype, jnp.float32)
    made = patching.empty(count, neurons, layers[-1].bias.shape[0], wide)
    if config.mode == "paper":
        made = made._replace(group=jnp.arange(count, dtype=jnp.int32))
    nobody = jnp.full(count, -1, jnp.int32)
    return Memory(made, nobody, jnp.full(count, Outcome.EMPTY, jnp.int32), jnp.int32(0))


def _certificate(layers, n: int, config: PruneConfig):
    if config.mode != "region":
        return ()
    neurons = sum(layer.bias.shape[0] for layer in layers[:-1])
    shape = min(n, config.capacity), layers[-1].bias.shape[0], neurons
    return jnp.zeros(shape, layers[0].kernel.dtype)


def place(memory: Memory, new: Patches, rows, outcome, asked) -> tuple[Memory, Array]:
    """The memory with new patches after the old ones, and the place of each (beyond it: none).

    Args:
      memory: has room, or the last of the new ones are lost.
      new: patches.
      rows: ``int[K]`` of the training data, for each.
      outcome: ``int[K]``.
      asked: ``bool[K]``, which of them there are; these come first.

    Example:
      >>> nobody = jnp.full(2, -1, jnp.int32)
      >>> memory = Memory(patching.empty(2, 8, 3), nobody, nobody, jnp.int32(1))
      >>> given = jnp.array([7]), jnp.array([0]), jnp.array([True])
      >>> place(memory, patching.empty(1, 8, 3), *given)[0].rows.tolist()
      [-1, 7]
    """
    capacity = memory.rows.shape[0]
    into = jnp.where(asked, memory.count + jnp.arange(rows.shape[0]), capacity)
    if new.group is not None:
        new = new._replace(group=new.group + memory.count)

    def put(old, leaf) -> Any:
        return None if old is None else old.at[into].set(leaf.astype(old.dtype), mode="drop")

    kept = Patches(*map(put, memory.patches, new))
    if kept.group is None:
        kept = patching.deduplicate(kept).patches
    count = jnp.minimum(memory.count + asked.sum(), capacity).astype(jnp.int32)
    return Memory(kept, put(memory.rows, rows), put(memory.outcome, outcome), count), into


def _outcome(layers, memory: Memory, x, y, outcome, into, config) -> Array:
    """What became of the new rows with all patches: an older one may have the region."""
    z, logits = regions.preactivations(layers, x)
    gates = region_gate(z, memory.patches.bits, sharpness=config.sharpness)
    answer = patching.corrected(memory.patches, gates, logits).argmax(-1)
    live = patching.live(memory.patches)
    own = live.at[into].get(mode="fill", fill_value=False)
    inherited = ((gates >= 1) & live[None]).any(-1) & ~own
    flipped = jnp.where(inherited, Outcome.SHARED, Outcome.FLIPPED)
    stayed = jnp.where(inherited, Outcome.CONFLICT, Outcome.NOT_FLIPPED)
    settled = jnp.where(answer != y, flipped, stayed)
    untouched = (outcome == Outcome.EMPTY) | (outcome == Outcome.OUTSIDE)
    untouched |= outcome == Outcome.ALREADY_WRONG
    return jnp.where(untouched, outcome, settled).astype(jnp.int32)


def _status(memory: Memory, asked, outcome, into, config) -> Array:
    """Whether all that was asked for is done.

    A row in the region of another one with its label as target, and one outside of the box, are
    beyond what can be had; Algorithm 1 did not converge if more than its share is left.
    """
    left = (asked & (outcome == Outcome.NOT_FLIPPED)).sum()
    allowed = (1 - config.share) * asked.sum() if config.mode == "paper" else 0
    cannot = (outcome == Outcome.OUTSIDE) | (outcome == Outcome.CONFLICT)
    beyond = (asked & ((into >= memory.rows.shape[0]) | cannot)).any()
    status = jnp.where(left > allowed, Status.NOT_CONVERGED, Status.OK)
    return jnp.where(beyond, Status.BEYOND_CERTIFICATE, status).astype(jnp.int32)
