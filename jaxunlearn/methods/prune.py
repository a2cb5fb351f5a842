"""PRUNE: patches that make a trained network wrong at the points that asked to be forgotten.

Li et al., PRUNE: A Patching Based Repair Framework for Certifiable Unlearning of Neural
Networks, 2025. The network is left as it is, and a constant is added to its logits in
the linear region of each point (:mod:`jaxunlearn.primitives.patches`). What that is
not: the point's influence on the weights remains, and without the patch everything is
as it was.

Eq. 7 asks for the affine map of least maximum that changes the answer in all of the
region. A constant is always among the optima: whatever the map, some difference of two
logits must change by ``V + margin`` somewhere, hence one of them by half of that, and
the constant ``t = (V + margin) / 2``, added to the target and taken from the rest, does it.
"""

import dataclasses
import enum
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _validate
from jaxunlearn.certify.region_bound import region_bound
from jaxunlearn.kernels import region_gate
from jaxunlearn.primitives import patches as patching
from jaxunlearn.primitives import regions
from jaxunlearn.primitives.patches import SHARPNESS, Patches
from jaxunlearn.types import Array, Dataset, Params

MODES = ("point", "region", "replace", "paper")


class Outcome(enum.IntEnum):
    """What became of one requested point.

    Example:
      >>> Outcome(1).name
      'ALREADY_WRONG'
    """

    # The answer at the point has changed.
    FLIPPED = 0
    # The network did not know its label in the first place; there is no patch.
    ALREADY_WRONG = 1
    # An earlier patch has the same region and flips it too.
    SHARED = 2
    # An earlier patch has the same region and does not flip it: its target is this point's label,
    # or its constant too small.
    CONFLICT = 3
    # The answer is still the label (Algorithm 1 stops at its share).
    NOT_FLIPPED = 4
    # Outside of the input box, where no certificate holds; there is no patch.
    OUTSIDE = 5
    # No point: a place that the request did not need.
    EMPTY = 6


class Pruned(NamedTuple):
    """Result of :func:`prune`.

    Attributes:
      patches: one for each point, empty where ``outcome`` says so.
      outcome: ``int32[K]``, an :class:`Outcome` each.
      dual: ``float[K, L, N]``, multipliers that certify the regions; None unless in mode
        ``region``.
    """

    patches: Patches
    outcome: Array
    dual: Array | None


@dataclasses.dataclass(frozen=True)
class PruneConfig:
    """How to patch.

    Attributes:
      mode: ``point``: the least constant that flips the point itself. ``region``: the least
        one that is proved to flip all of its region. ``replace``: in the region the logits
        are replaced by those of the point with its label put second, which flips all of it
        without any proof, and without a suspicious loss. ``paper``: Algorithm 1.
      margin: epsilon, by which the target leads.
      sharpness: lambda of the gate.
      low: least value of an input of the dense layers, for ``region`` and ``paper``.
      high: greatest one.
      iterations: of the bound.
      capacity: patches that a state can hold; the memory is for so many from the start.
      clusters: K of Algorithm 1.
      share: delta of Algorithm 1: it ends when this share of the points is flipped.
      rounds: of Algorithm 1, at most.
    """

    mode: str = "point"
    margin: float = 0.1
    sharpness: float = SHARPNESS
    low: float | None = None
    high: float | None = None
    iterations: int = 200
    capacity: int = 1000
    clusters: int = 4
    share: float = 0.97
    rounds: int = 20

    def __post_init__(self):
        _validate.one_of(MODES, mode=self.mode)
        _validate.positive(margin=self.margin, sharpness=self.sharpness)
        _validate.whole(
            iterations=self.iterations,
            capacity=self.capacity,
            clusters=self.clusters,
            rounds=self.rounds,
        )
        _validate.fraction(share=self.share)
        if self.low is not None and self.high is not None:
            if not (math.isfinite(self.low) and self.low < self.high < math.inf):
                raise ValueError(
                    f"low={self.low!r} and high={self.high!r} must be finite, and low < high."
                )
        elif self.mode not in ("region", "paper") and (self.low, self.high) != (None, None):
            raise ValueError(
                f"low={self.low!r} and high={self.high!r}: an input box needs both, or neither."
            )
        if self.mode in ("region", "paper") and (self.low is None or self.high is None):
            raise ValueError(
                f"mode={self.mode!r} needs an input box, but low={self.low!r} and "
                f"high={self.high!r}: a region may be unbounded, and then nothing flips all of "
                "it. Give the range of the inputs, low=0.0 and high=1.0 for images."
            )


def prune(
    params: Params,
    x: Array,
    y: Array,
    *,
    config: PruneConfig = PruneConfig(),
    key: Array | None = None,
    target: Array | None = None,
) -> Pruned:
    """One patch for each point, Eq. 7 and 8 in closed form, or Algorithm 1.

    ``t = max(0, (V + margin) / 2)`` with V the lead of any class over the target: at the point
    (``point``), or bounded over all of its region and the box (``region``); the constant is
    ``+t`` for the target and ``-t`` for all others.

    Deviations: the target is the runner-up and not a random class, which needs a smaller
    constant (by 37% at the point on MNIST, median). ``mode="paper"`` is Algorithm 1
    with random targets, whose share is of the original request (the listing reassigns the set
    that it divides by). Its constants are proved on the region of the cluster's centre, where
    no point of the data lies; each point is tested, none is certified.

    Args:
      params: dense ReLU layers (see :mod:`jaxunlearn.primitives.regions`), M_c.
      x: ``float[K, d]`` inputs of these layers, M_p(x_u).
      y: ``int[K]`` labels.
      config: what to do.
      key: ``jax.random.key`` for ``mode="paper"``.
      target: ``int[K]``, classes to answer instead of the runner-up.

    Returns:
      :class:`Pruned`.

    Guarantee: none that the point is forgotten. The answer at every ``FLIPPED`` or ``SHARED``
    point changes (evaluated, all patches together). Certified in mode ``region``: the target
    of every patch leads in all of its region within the box, in exact arithmetic, as
    :mod:`jaxunlearn.certify.patch_check` verifies. Outputs change nowhere else than in the
    regions and a collar around them. Nothing is said of points with other outcomes.

    Cost: a forward pass a point; ``region``: ``2 L iterations`` of them.

    Raises:
      ValueError: shapes, labels, NaN, a point outside of the box, a target that is the
        label, no ``key`` for the paper's algorithm.

    Example:
      >>> layers = [(jnp.array([[1.0, -1.0]]), jnp.zeros(2)), (jnp.eye(2), jnp.zeros(2))]
      >>> x, y = jnp.array([[2.0], [-1.0]]), jnp.array([0, 1])
      >>> found = prune(layers, x, y)
      >>> patching.apply_patched(layers, found.patches, x)[1].argmax(-1).tolist()
      [1, 0]
    """
    layers = regions.dense_layers(params)
    x, y = jnp.asarray(x), jnp.asarray(y)
    classes = layers[-1].bias.shape[0]
    regions.finite_rows("x", x, layers[0].kernel.shape[0])
    _validate.dataset(Dataset(x, y), num_classes=classes)
    if target is not None:
        _check_target(target, y, classes)
    if config.mode == "paper" and key is None:
        raise ValueError("key is None, but mode='paper' draws its targets: give a jax.random.key.")
    if config.low is not None and _validate.known(x):
        values = np.asarray(x)
        outside = np.flatnonzero(((values < config.low) | (values > config.high)).any(1))
        if outside.size:
            raise ValueError(
                f"x has {outside.size} points outside of the box from low={config.low} to "
                f"high={config.high} (first: {outside[:5].tolist()}): widen it."
            )
    everyone = jnp.ones(y.shape[0], bool)
    return prune_rows(layers, x, y, everyone, key, target, config=config)


def _check_target(target, y, classes: int) -> None:
    if jnp.shape(target) != y.shape or not jnp.issubdtype(jnp.result_type(target), jnp.integer):
        raise ValueError(
            f"target has shape {jnp.shape(target)} and dtype {jnp.result_type(target)}, but must "
            f"be a whole number for each of the {y.shape[0]} points."
        )
    if not _validate.known(target):
        return
    values = np.asarray(target)
    if ((values < 0) | (values >= classes)).any():
        raise ValueError(
            f"target has classes from {values.min()} to {values.max()}, but the network has "
            f"0..{classes - 1}."
        )
    if _validate.known(y) and (values == np.asarray(y)).any():
        raise ValueError("target is the label of some points: to answer that is no change.")


@functools.partial(jax.jit, static_argnames=("config",))
def prune_rows(layers, x, y, valid, key, target, *, config) -> Pruned:
    """:func:`prune` without its checks, for the rows that are ``valid`` only.

    Example:
      >>> layers = regions.dense_layers(
      ...     [(jnp.array([[1.0, -1.0]]), jnp.zeros(2)), (jnp.eye(2), jnp.zeros(2))]
      ... )
      >>> valid = jnp.array([True, False])
      >>> rows = jnp.ones((2, 1)), jnp.zeros(2, int)
      >>> found = prune_rows(layers, *rows, valid, None, None, config=PruneConfig())
      >>> [Outcome(int(code)).name for code in found.outcome]
      ['FLIPPED', 'EMPTY']
    """
    z, logits = regions.preactivations(layers, x)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    known = logits.argmax(-1) == y
    inside = jnp.ones_like(valid)
    if config.low is not None:
        inside = ((x >= config.low) & (x <= config.high)).all(-1)
    wanted = valid & known & inside
    bits = regions.pack(z > 0)
    if config.mode == "paper":
        found, dual = _multipoint(layers, x, y, bits, logits, wanted, key, config), None
    else:
        if target is None:
            target = runner_up(logits, y)
        found, dual = _each(layers, bits, y, logits, wanted, target, config)
    gates = region_gate(z, found.bits, sharpness=config.sharpness)
    answer = patching.corrected(found, gates, logits).argmax(-1)
    own = patching.live(found)
    inherited = ((gates >= 1) & own[None]).any(-1) & ~own
    flipped = jnp.where(inherited, Outcome.SHARED, Outcome.FLIPPED)
    stayed = jnp.where(inherited, Outcome.CONFLICT, Outcome.NOT_FLIPPED)
    outcome = jnp.where(answer != y, flipped, stayed)
    for case, code in (
        (inside, Outcome.OUTSIDE),
        (known, Outcome.ALREADY_WRONG),
        (valid, Outcome.EMPTY),
    ):
        outcome = jnp.where(case, outcome, code)
    return Pruned(found, outcome.astype(jnp.int32), dual)


def runner_up(logits: Array, y: Array) -> Array:
    """The best class that is not the label: ``int32[K]``.

    Example:
      >>> runner_up(jnp.array([[3.0, 1.0, 2.0]]), jnp.array([0])).tolist()
      [2]
    """
    label = jnp.arange(logits.shape[-1])[None] == y[:, None]
    return jnp.where(label, -jnp.inf, logits).argmax(-1).astype(jnp.int32)


def constant(lead: Array, target: Array, margin: float) -> Array:
    """The optimal constant of Eq. 7 for ``lead[K, L]``, the classes' lead over the target.

    Example:
      >>> constant(jnp.array([[3.0, 0.0]]), jnp.array([1]), 1.0).tolist()
      [[-2.0, 2.0]]
    """
    t = jax.nn.relu((lead.max(-1) + margin) / 2)
    return t[:, None] * (2 * jax.nn.one_hot(target, lead.shape[-1], dtype=lead.dtype) - 1)


def _each(layers, bits, y, logits, wanted, target, config):
    """Modes ``point``, ``region`` and ``replace``."""
    of_target = jnp.take_along_axis(logits, target[:, None], axis=1)
    own, dual = jnp.arange(logits.shape[-1])[None] == target[:, None], None
    if config.mode == "replace":
        # What the network says at the point, with its label second: no outlier for an attack.
        # Some roundings lower, so that the margin is whole in exact arithmetic too.
        below = config.margin + 4 * jnp.finfo(logits.dtype).eps * (
            jnp.abs(of_target) + config.margin
        )
        delta = jnp.where(own, logits, jnp.minimum(logits, of_target - below))
    elif config.mode == "region":
        found = region_bound(
            layers, bits, target, low=config.low, high=config.high, iterations=config.iterations
        )
        delta, dual = constant(found.bound, target, config.margin), found.dual
        dual = jnp.where(wanted[:, None, None], dual, 0)
    else:
        delta = constant(logits - of_target, target, config.margin)
    made = Patches(
        bits=jnp.where(wanted[:, None], bits, 0),
        delta=jnp.where(wanted[:, None], delta, 0),
        target=jnp.where(wanted, target, 0).astype(jnp.int32),
        replace=wanted & (config.mode == "replace"),
    )
    return patching.deduplicate(made).patches, dual


def _multipoint(layers, x, y, bits, logits, wanted, key, config) -> Patches:
    """Algorithm 1: clusters, a constant for each, points that it flips gated by their regions."""
    count, classes, k = y.shape[0], logits.shape[-1], config.clusters
    total = wanted.sum()
    dtype = logits.dtype

    def unfinished(carry):
        number, left, *_ = carry
        # The share of the original request, which the listing loses sight of.
        return (number < config.rounds) & (left.sum() > (1 - config.share) * total)

    def round_(carry):
        number, left, cluster, delta, target = carry
        cluster_key, target_key = jax.random.split(jax.random.fold_in(key, number))
        centres, nearest = k_means(cluster_key, x, left, clusters=k)
        there, of_centre = regions.preactivations(layers, centres)
        shift = jax.random.randint(target_key, (k,), 1, classes)
        goal = (of_centre.argmax(-1) + shift) % classes
        bound = region_bound(
            layers,
            regions.pack(there > 0),
            goal,
            low=config.low,
            high=config.high,
            iterations=config.iterations,
            chunk=k,
        ).bound
        made = constant(bound.astype(dtype), goal, config.margin)[nearest]
        moved = left & ((logits + made).argmax(-1) != y)
        pick = lambda new, old: jnp.where(moved.reshape((-1,) + (1,) * (old.ndim - 1)), new, old)
        return (
            number + 1,
            left & ~moved,
            pick(number * k + nearest, cluster),
            pick(made, delta),
            pick(goal[nearest].astype(jnp.int32), target),
        )

    nobody = jnp.full(count, -1)
    start = jnp.int32(0), wanted, nobody, jnp.zeros_like(logits), jnp.zeros(count, jnp.int32)
    _, left, cluster, delta, target = jax.lax.while_loop(unfinished, round_, start)
    moved = wanted & ~left
    group = leaders(cluster, moved)
    leads = moved & (group == jnp.arange(count))
    return Patches(
        bits=jnp.where(moved[:, None], bits, 0),
        delta=jnp.where(leads[:, None], delta, 0),
        target=jnp.where(moved, target, 0),
        replace=jnp.zeros(count, bool),
        group=group,
    )


def leaders(cluster: Array, valid: Array) -> Array:
    """The first member of everyone's cluster, oneself where not ``valid``: ``int32[K]``.

    Example:
      >>> leaders(jnp.array([7, 3, 7]), jnp.array([True, True, True])).tolist()
      [0, 1, 0]
    """
    same = (cluster[:, None] == cluster[None]) & valid[None]
    own = jnp.arange(cluster.shape[0])
    return jnp.where(valid, same.argmax(-1), own).astype(jnp.int32)


def k_means(
    key: Array, x: Array, used: Array, *, clusters: int, steps: int = 15
) -> tuple[Array, Array]:
    """Lloyd's algorithm (Eq. 9) on the rows that are ``used``, from random ones of them.

    Args:
      key: ``jax.random.key`` for the start.
      x: ``float[n, d]``.
      used: ``bool[n]``.
      clusters: K.
      steps: assignments and means.

    Returns:
      Centres ``[K, d]``, the means, and for every row the number of the nearest.

    Cost: ``steps n K d`` multiplications.

    Example:
      >>> x = jnp.array([[0.0], [0.1], [5.0], [5.1]])
      >>> centres, nearest = k_means(jax.random.key(0), x, jnp.ones(4, bool), clusters=2)
      >>> bool(nearest[0] == nearest[1] != nearest[2] == nearest[3])
      True
    """
    draw = jnp.where(used, jax.random.uniform(key, used.shape), -1)
    rows = jnp.argsort(-draw)[: min(clusters, x.shape[0])]
    rows = rows[jnp.arange(clusters) % jnp.maximum(1, jnp.minimum(used.sum(), rows.shape[0]))]

    def nearest(centres):
        product = jnp.matmul(x, centres.T, precision=regions.HIGHEST)
        return ((centres**2).sum(-1)[None] - 2 * product).argmin(-1)

    def step(_, centres):
        member = jax.nn.one_hot(nearest(centres), clusters, dtype=x.dtype) * used[:, None]
        size = member.sum(0)[:, None]
        means = jnp.matmul(member.T, x, precision=regions.HIGHEST) / jnp.maximum(size, 1)
        return jnp.where(size > 0, means, centres)

    centres = jax.lax.fori_loop(0, steps, step, x[rows])
    return centres, nearest(centres)
