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

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn import _validate
from jaxunlearn.kernels import region_gate
from jaxunlearn.methods.prune.config import PruneClassConfig
from jaxunlearn.methods.prune.constants import constant, lead_over, runner_up
from jaxunlearn.methods.prune.multipoint import leaders
from jaxunlearn.primitives import patches as patching
from jaxunlearn.primitives import regions
from jaxunlearn.primitives.bounds import certified_radius, fixed_neurons, inside_box
from jaxunlearn.primitives.patches import Patches
from jaxunlearn.types import Array, Dataset, Params

# Points whose regions are computed at once: those of them that another one covers are wasted.
BLOCK = 16


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
    return cover(layers, x, y, everyone, jnp.int32(0), config=config, capacity=config.capacity)


@functools.partial(jax.jit, static_argnames=("config", "capacity"))
def cover(
    layers, x: Array, y: Array, valid: Array, used: Array, *, config, capacity: int
) -> PrunedClass:
    """:func:`prune_class` without its checks, for the ``valid`` rows, with some patches ``used``.

    Example:
      >>> layers = regions.dense_layers(
      ...     [(jnp.array([[1.0, -1.0]]), jnp.zeros(2)), (jnp.eye(2), jnp.zeros(2))]
      ... )
      >>> x, y, valid = jnp.array([[0.5], [0.9]]), jnp.zeros(2, int), jnp.array([True, False])
      >>> config = PruneClassConfig()
      >>> cover(layers, x, y, valid, jnp.int32(0), config=config, capacity=1).rows.tolist()
      [0]
    """
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
        return more & (left > (1 - config.share) * total) & (count < capacity - used)

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
            use = there[number] & ~covered[row] & (count < capacity - used)
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
    there = rows >= 0
    at = jnp.maximum(rows, 0)
    group = leaders(y[at], there)
    leads = there & (group == jnp.arange(capacity))
    patches = Patches(
        bits=jnp.where(there[:, None], bits[at] & care, 0),
        delta=jnp.where(leads[:, None], delta[y[at]], 0),
        target=jnp.where(there, target[y[at]], 0),
        replace=jnp.zeros(capacity, bool),
        care=care,
        group=group,
    )
    gates = region_gate(z, patches.bits, care=care, sharpness=config.sharpness)
    answer = patching.corrected(patches, gates, logits).argmax(-1)
    return PrunedClass(patches, rows, wanted & (answer != y), count)


def _constants(logits, y, wanted, margin) -> tuple[Array, Array]:
    """For every class the commonest runner-up, and the least constant that flips all its points."""
    classes = logits.shape[-1]
    of_class = jax.nn.one_hot(y, classes, dtype=logits.dtype) * wanted[:, None]
    votes = of_class.T @ jax.nn.one_hot(runner_up(logits, y), classes, dtype=logits.dtype)
    target = votes.argmax(-1).astype(jnp.int32)
    lead = lead_over(logits, target[y]).max(-1)
    lead = jnp.where(of_class > 0, lead[:, None], -jnp.inf).max(0)  # of each class
    everywhere = jnp.broadcast_to(lead[:, None], (classes, classes))
    return target, constant(everywhere, target, margin)


def _kept(layers, x, y, config) -> Array:
    low, high = config.low, config.high
    if config.radius is None:
        radius = config.radius_scale * certified_radius(layers, x, y, low=low, high=high)
    else:
        radius = jnp.full(y.shape, config.radius, x.dtype)
    return fixed_neurons(layers, x, radius, low=low, high=high)
