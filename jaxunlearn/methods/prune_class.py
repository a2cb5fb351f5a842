"""PRUNE for a class (Algorithm 2): patches whose regions are widened until they cover it.

A linear region holds one point and no other: patches of them unlearn no class. So the
neurons whose sign is not fixed in a ball around the point are dropped from its region
(CROWN says which), and what remains covers neighbours of the point too. Points that are
covered need no patch of their own.

How far this reaches is all in the radius, and it changes sharply: at the radius that
CROWN certifies for the answer little is covered that is not in the request, at four times
of it everything is, the other classes included. Masking the class's logit
(:mod:`jaxunlearn.baselines.logit_mask`) does what Table V asks for better, at no cost; it
is the row to compare with.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn import _validate
from jaxunlearn.kernels import region_gate
from jaxunlearn.methods.prune import Outcome, leaders, runner_up
from jaxunlearn.methods.prune_state import Memory, check, place, requested
from jaxunlearn.posthoc import Request, answering
from jaxunlearn.primitives import patches as patching
from jaxunlearn.primitives import regions, splits
from jaxunlearn.primitives.bounds import certified_radius, fixed_neurons, inside_box
from jaxunlearn.primitives.patches import SHARPNESS, Patches
from jaxunlearn.training.config import TrainConfig
from jaxunlearn.training.fit import fit
from jaxunlearn.types import Array, Dataset, Model, Params, State, Status, Unlearner

# Points whose regions are computed at once: those of them that another one covers are wasted.
BLOCK = 16


@dataclasses.dataclass(frozen=True)
class PruneClassConfig:
    """How to widen, and when to stop.

    Attributes:
      radius_scale: times the radius that CROWN certifies for each point's label; 1 generalises
        little and changes nothing else, 2 is near the paper's Table V, 4 breaks the network.
      radius: the same l_inf radius for all points instead.
      margin: epsilon, by which the target leads at every requested point.
      sharpness: lambda of the gate.
      low: least value of an input of the dense layers: of a feature, where there is an extractor.
        Points outside of the box are not covered.
      high: greatest one.
      share: delta: ends when this share of the requested points is covered.
      capacity: patches that a state can hold.
      candidates: requested points that are looked at, at most.
    """

    radius_scale: float = 1.0
    radius: float | None = None
    margin: float = 0.1
    sharpness: float = SHARPNESS
    low: float = 0.0
    high: float = 1.0
    share: float = 0.97
    capacity: int = 500
    candidates: int = 6000

    def __post_init__(self):
        _validate.positive(
            radius_scale=self.radius_scale, margin=self.margin, sharpness=self.sharpness
        )
        if self.radius is not None:
            _validate.positive(radius=self.radius)
        if not self.low < self.high:
            raise ValueError(f"low={self.low!r} must be below high={self.high!r}.")
        _validate.fraction(share=self.share)
        _validate.whole(capacity=self.capacity, candidates=self.candidates)


class PrunedClass(NamedTuple):
    """Result of :func:`prune_class`.

    Attributes:
      patches: ``capacity`` places, one group a class; the first ``count`` are in use.
      rows: ``int32[capacity]``, the point of each; -1 where there is none.
      covered: ``bool[n]``: the answer at the point has changed.
      count: ``int32``.
    """

    patches: Patches
    rows: Array
    covered: Array
    count: Array


def prune_class(
    params: Params, x: Array, y: Array, *, config: PruneClassConfig = PruneClassConfig()
) -> PrunedClass:
    """Algorithm 2: one constant for a class, and widened regions until they cover its points.

    The constant answers the class's commonest runner-up, and flips every point of ``x`` where
    its gate is 1. The regions come one after the other from points that none covers yet.

    Deviations: a region keeps the neurons that CROWN proves to be fixed in the ball. (Of
    another reading, neurons of equal sign at its two corners, 500 of 512 remain and nothing
    generalises.) The paper takes a random class, and a constant from the mean's region. The
    points are covered greedily, where the paper makes a patch for each.

    Args:
      params: dense ReLU layers, M_c.
      x: ``float[n, d]``, the points to unlearn, of one class or more.
      y: ``int[n]`` their labels.
      config: how far to widen.

    Returns:
      :class:`PrunedClass`.

    Guarantee: the answer changes at every ``covered`` point (evaluated). None about other
    points of the class or of other classes: dropping neurons leaves no linear region.

    Cost: 9 times CROWN a patch, of some 8 ms each at 784-256-256-10 on a CPU.

    Raises:
      ValueError: shapes, labels, NaN, a point outside of the box.

    Example:
      >>> layers = [(jnp.array([[1.0, -1.0]]), jnp.zeros(2)), (jnp.eye(2), jnp.zeros(2))]
      >>> x, y = jnp.array([[0.5], [0.6]]), jnp.array([0, 0])
      >>> found = prune_class(layers, x, y)
      >>> int(found.count), found.covered.tolist()
      (1, [True, True])
    """
    layers = regions.dense_layers(params)
    x, y = jnp.asarray(x), jnp.asarray(y)
    regions.finite_rows("x", x, layers[0].kernel.shape[0])
    _validate.dataset(Dataset(x, y), num_classes=layers[-1].bias.shape[0])
    inside_box("x", x, config.low, config.high)
    everyone = jnp.ones(y.shape[0], bool)
    return _cover(layers, x, y, everyone, jnp.int32(0), config=config, capacity=config.capacity)


@functools.partial(jax.jit, static_argnames=("config", "capacity"))
def _cover(layers, x, y, valid, room, *, config, capacity) -> PrunedClass:
    """Patches until ``capacity - room`` of them, or enough of the ``valid`` points, are there."""
    n, block = y.shape[0], min(BLOCK, y.shape[0])
    z, logits = regions.preactivations(layers, x)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    bits = regions.pack(z > 0)
    inside = ((x >= config.low) & (x <= config.high)).all(-1)  # no ball around others
    wanted = valid & (logits.argmax(-1) == y) & inside
    total = wanted.sum()
    target, delta = _constants(logits, y, wanted, config.margin)

    def unfinished(carry):
        _, covered, tried, count, _ = carry
        left = (wanted & ~covered).sum()
        more = (wanted & ~covered & ~tried).any()
        return more & (left > (1 - config.share) * total) & (count < capacity - room)

    def add(carry):
        made, covered, tried, count, rows = carry
        (some,) = jnp.nonzero(wanted & ~covered & ~tried, size=block, fill_value=n)
        there, at = some < n, jnp.minimum(some, n - 1)
        kept = _kept(layers, x[at], y[at], config)
        care = regions.pack(kept)
        gates = region_gate(z, bits[at] & care, care=care, sharpness=config.sharpness)
        reached = (gates >= 1) & (y[:, None] == y[at][None]) & wanted[:, None]

        def take(number, carry):
            made, covered, count, rows = carry
            row = at[number]
            use = there[number] & ~covered[row] & (count < capacity - room)
            into = jnp.where(use, count, capacity)
            made = made.at[into].set(care[number], mode="drop")
            rows = rows.at[into].set(row.astype(rows.dtype), mode="drop")
            covered = covered | (use & reached[:, number])
            return made, covered, count + use, rows

        made, covered, count, rows = jax.lax.fori_loop(0, block, take, (made, covered, count, rows))
        return made, covered, tried.at[some].set(True, mode="drop"), count, rows

    nobody = jnp.zeros(n, bool)
    made = jnp.zeros((capacity, bits.shape[1]), jnp.uint8)
    rows = jnp.full(capacity, -1, jnp.int32)
    start = made, nobody, nobody, jnp.int32(0), rows
    care, covered, _, count, rows = jax.lax.while_loop(unfinished, add, start)
    used = rows >= 0
    at = jnp.maximum(rows, 0)
    group = leaders(y[at], used)
    leads = used & (group == jnp.arange(capacity))
    patches = Patches(
        bits=jnp.where(used[:, None], bits[at] & care, 0),
        delta=jnp.where(leads[:, None], delta[y[at]], 0),
        target=jnp.where(used, target[y[at]], 0),
        replace=jnp.zeros(capacity, bool),
        care=care,
        group=group,
    )
    gates = region_gate(z, patches.bits, care=care, sharpness=config.sharpness)
    answer = patching.corrected(patches, gates * used[None], logits).argmax(-1)
    return PrunedClass(patches, rows, wanted & (answer != y), count)


def _constants(logits, y, wanted, margin) -> tuple[Array, Array]:
    """For every class the commonest runner-up, and the least constant that flips all its points."""
    classes = logits.shape[-1]
    of_class = jax.nn.one_hot(y, classes, dtype=logits.dtype) * wanted[:, None]
    votes = of_class.T @ jax.nn.one_hot(runner_up(logits, y), classes, dtype=logits.dtype)
    target = votes.argmax(-1).astype(jnp.int32)
    own = jnp.take_along_axis(logits, target[y][:, None], axis=1)
    lead = (logits - own).max(-1)
    lead = jnp.where(of_class > 0, lead[:, None], -jnp.inf).max(0)  # of each class
    t = jax.nn.relu((lead + margin) / 2)
    return target, t[:, None] * (2 * jax.nn.one_hot(target, classes, dtype=logits.dtype) - 1)


def _kept(layers, x, y, config) -> Array:
    low, high = config.low, config.high
    if config.radius is None:
        radius = config.radius_scale * certified_radius(layers, x, y, low=low, high=high)
    else:
        radius = jnp.full(y.shape, config.radius, x.dtype)
    return fixed_neurons(layers, x, radius, low=low, high=high)


def unlearner(
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
        count, wide = min(n, config.capacity), jnp.promote_types(data.x.dtype, jnp.float32)
        neurons = sum(layer.bias.shape[0] for layer in layers[:-1])
        made = patching.empty(count, neurons, layers[-1].bias.shape[0], wide)
        made = made._replace(
            care=jnp.zeros_like(made.bits), group=jnp.arange(count, dtype=jnp.int32)
        )
        nobody = jnp.full(count, -1, jnp.int32)
        return State(
            params=params,
            removed=jnp.zeros(n, bool),
            memory=Memory(made, nobody, jnp.full(count, Outcome.EMPTY, jnp.int32), jnp.int32(0)),
            grads=jnp.float32(train.epochs * n),
            status=jnp.int32(Status.OK),
            certificate=(),
        )

    def answer(key: Array, state: State, data: Dataset, request: Request) -> State:
        layers, n = regions.dense_layers(parts.head(state.params)), data.y.shape[0]
        capacity = state.memory.rows.shape[0]
        rows, _ = requested(request.forget, jnp.int32(0), min(n, config.candidates))
        at = jnp.minimum(rows, n - 1)
        x, y = parts.features(state.params, data.x[at]), data.y[at]
        made = _cover(layers, x, y, rows < n, state.memory.count, config=config, capacity=capacity)
        used = made.rows >= 0
        training_rows = jnp.where(used, rows[jnp.maximum(made.rows, 0)], -1)
        outcome = jnp.where(used, Outcome.FLIPPED, Outcome.EMPTY)
        memory, _ = place(state.memory, made.patches, training_rows, outcome, used)
        z, logits = regions.preactivations(layers, x)
        kept = memory.patches
        gates = region_gate(z, kept.bits, care=kept.care, sharpness=config.sharpness)
        now = patching.corrected(kept, gates * patching.live(kept)[None], logits).argmax(-1)
        stay = ((rows < n) & (now == y)).sum()
        missed = stay > (1 - config.share) * request.forget.sum()
        missed |= request.forget.sum() > rows.shape[0]
        status = jnp.where(missed, Status.NOT_CONVERGED, Status.OK).astype(jnp.int32)
        # A bound goes through all layers for each of them, 9 times a patch.
        grads = (made.count * 9 * len(layers) + request.forget.sum() / 3).astype(jnp.float32)
        return state._replace(memory=memory, grads=grads, status=status)

    def predict(state: State, x: Array) -> Array:
        base = model.apply(state.params, x)
        z, _ = regions.preactivations(parts.head(state.params), parts.features(state.params, x))
        kept = state.memory.patches
        gates = region_gate(z, kept.bits, care=kept.care, sharpness=config.sharpness)
        return patching.corrected(kept, gates, base)

    return Unlearner(fit_state, answering(model.apply, answer), predict)
