"""PRUNE as unlearners: patches and certificates in the state, its parameters as they were."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.kernels import region_gate
from jaxunlearn.methods.prune.classes import cover
from jaxunlearn.methods.prune.config import PruneClassConfig, PruneConfig
from jaxunlearn.methods.prune.memory import Memory, place, requested, room
from jaxunlearn.methods.prune.points import prune_rows
from jaxunlearn.posthoc import AnswerFn, Request, answering
from jaxunlearn.primitives import patches as patching
from jaxunlearn.primitives import regions, splits
from jaxunlearn.primitives.outcomes import Outcome, settled
from jaxunlearn.training.config import TrainConfig
from jaxunlearn.training.fit import fit
from jaxunlearn.types import Array, Dataset, Model, State, Status, Unlearner


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

    def remember(layers: regions.Layers, n: int) -> tuple[Memory, Any]:
        count = min(n, config.capacity)
        memory = room(layers, count, groups=config.mode == "paper")
        if config.mode != "region":
            return memory, ()
        shape = count, layers[-1].bias.shape[0], regions.neurons(layers)
        return memory, jnp.zeros(shape, layers[0].kernel.dtype)

    def answer(key: Array, state: State, data: Dataset, request: Request) -> State:
        layers, n = regions.dense_layers(parts.head(state.params)), data.y.shape[0]
        capacity = state.memory.rows.shape[0]
        rows, size = requested(request.forget, state.memory.count, capacity)
        asked, at = rows < n, jnp.minimum(rows, n - 1)
        x, y = parts.features(state.params, data.x[at]), data.y[at]
        made = prune_rows(layers, x, y, asked, key, None, config=config)
        memory, into = place(state.memory, made.patches, rows, made.outcome, asked)
        # Again with all patches: an older one may have the region.
        kept, (z, logits) = memory.patches, regions.preactivations(layers, x)
        gates = region_gate(z, kept.bits, sharpness=config.sharpness)
        own = patching.live(kept).at[into].get(mode="fill", fill_value=False)
        inside = made.outcome != Outcome.OUTSIDE
        outcome = settled(kept, gates, logits, y, own=own, inside=inside)
        memory = memory._replace(outcome=memory.outcome.at[into].set(outcome, mode="drop"))
        lost = request.forget.sum() > rows.shape[0]
        lost |= (asked & (into >= capacity)).any()
        certificate = state.certificate
        if config.mode == "region":
            certificate = certificate.at[into].set(made.dual.astype(certificate.dtype), mode="drop")
        forward = 2 * layers[-1].bias.shape[0] * config.iterations
        each = {"region": forward, "paper": forward * config.clusters / size}.get(config.mode, 1)
        return state._replace(
            memory=memory,
            grads=(each * asked.sum() / 3).astype(jnp.float32),
            status=_status(asked, outcome, lost, config=config),
            certificate=certificate,
        )

    return _patched(model, train, parts, config, remember, answer)


def class_unlearner(
    model: Model,
    train: TrainConfig,
    config: PruneClassConfig = PruneClassConfig(),
    *,
    split: splits.Split | None = None,
) -> Unlearner:
    """:func:`prune_class` as an unlearner; rows of several classes get a constant each.

    Args:
      model: a network that ends in dense ReLU layers.
      train: how to train it.
      config: how far to widen.
      split: where these layers begin; found by :func:`splits.split` if None.

    Raises:
      ValueError: from ``fit``: the network does not end in dense ReLU layers.

    Example:
      >>> from jaxunlearn import models
      >>> train = Dataset(jnp.array([[0.0], [1.0]]), jnp.array([0, 1]))
      >>> model = models.mlp(2, hidden=(4,))
      >>> method = class_unlearner(model, TrainConfig(epochs=50, batch_size=2))
      >>> state = method.fit(jax.random.key(0), train)
      >>> forget = jnp.array([True, False])
      >>> state = method.unlearn(jax.random.key(1), state, train, forget)
      >>> method.predict(state, train.x).argmax(-1).tolist()
      [1, 1]
    """
    parts = splits.split(model) if split is None else split

    def remember(layers: regions.Layers, n: int) -> tuple[Memory, Any]:
        return room(layers, min(n, config.capacity), groups=True, care=True), ()

    def answer(key: Array, state: State, data: Dataset, request: Request) -> State:
        layers, n = regions.dense_layers(parts.head(state.params)), data.y.shape[0]
        capacity = state.memory.rows.shape[0]
        rows, _ = requested(request.forget, jnp.int32(0), min(n, config.candidates))
        asked, at = rows < n, jnp.minimum(rows, n - 1)
        x, y = parts.features(state.params, data.x[at]), data.y[at]
        made = cover(layers, x, y, asked, state.memory.count, config=config, capacity=capacity)
        used = made.rows >= 0
        training_rows = jnp.where(used, rows[jnp.maximum(made.rows, 0)], -1)
        outcome = jnp.where(used, Outcome.FLIPPED, Outcome.EMPTY)
        memory, _ = place(state.memory, made.patches, training_rows, outcome, used)
        kept, (z, logits) = memory.patches, regions.preactivations(layers, x)
        gates = region_gate(z, kept.bits, care=kept.care, sharpness=config.sharpness)
        stay = (asked & (patching.corrected(kept, gates, logits).argmax(-1) == y)).sum()
        missed = stay > (1 - config.share) * request.forget.sum()
        missed |= request.forget.sum() > rows.shape[0]
        status = jnp.where(missed, Status.NOT_CONVERGED, Status.OK).astype(jnp.int32)
        # A bound goes through all layers for each of them, 9 times a patch.
        grads = (made.count * 9 * len(layers) + request.forget.sum() / 3).astype(jnp.float32)
        return state._replace(memory=memory, grads=grads, status=status)

    return _patched(model, train, parts, config, remember, answer)


def _patched(
    model: Model,
    train: TrainConfig,
    parts: splits.Split,
    config: PruneConfig | PruneClassConfig,
    remember: Callable[[regions.Layers, int], tuple[Memory, Any]],
    answer: AnswerFn,
) -> Unlearner:
    """An ordinary training with room for patches, and the network with those that it has."""

    def fit_state(key: Array, data: Dataset) -> State:
        check(model, parts, data.x.shape[1:], data.x.dtype.name)
        params, n = fit(key, model, data, config=train), data.y.shape[0]
        memory, certificate = remember(regions.dense_layers(parts.head(params)), n)
        return State(
            params=params,
            removed=jnp.zeros(n, bool),
            memory=memory,
            grads=jnp.float32(train.epochs * n),
            status=jnp.int32(Status.OK),
            certificate=certificate,
        )

    def predict(state: State, x: Array) -> Array:
        base, kept = model.apply(state.params, x), state.memory.patches
        z, _ = regions.preactivations(parts.head(state.params), parts.features(state.params, x))
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


@functools.partial(jax.jit, static_argnames=("config",))
def _status(asked: Array, outcome: Array, lost: Array, *, config: PruneConfig) -> Array:
    """Whether all that was asked for is done.

    A row in the region of another one with its label as target, one outside of the box, and one
    without a place are beyond what can be had; Algorithm 1 did not converge if more than its share
    is left.
    """
    left = (asked & (outcome == Outcome.NOT_FLIPPED)).sum()
    allowed = (1 - config.share) * asked.sum() if config.mode == "paper" else 0
    cannot = asked & ((outcome == Outcome.OUTSIDE) | (outcome == Outcome.CONFLICT))
    status = jnp.where(left > allowed, Status.NOT_CONVERGED, Status.OK)
    return jnp.where(cannot.any() | lost, Status.BEYOND_CERTIFICATE, status).astype(jnp.int32)
