"""Algorithm 1 of PRUNE: a constant for each cluster of the points, round after round."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.certify.region_bound import region_bound
from jaxunlearn.methods.prune.config import PruneConfig
from jaxunlearn.methods.prune.constants import constant
from jaxunlearn.primitives import regions
from jaxunlearn.primitives.patches import Patches
from jaxunlearn.types import Array


class Multipoint(NamedTuple):
    """Result of :func:`multipoint`.

    Attributes:
      patches: one for each point that moved, in groups of one constant.
      rounds: ``int32[n]``, the round that moved each, from 1; 0 for those that stayed.
    """

    patches: Patches
    rounds: Array


def multipoint(
    layers, x: Array, y: Array, wanted: Array, key: Array, *, config: PruneConfig
) -> Multipoint:
    """Clusters, a constant for each; the points that it moves are gated by their own regions.

    Args:
      layers: from :func:`~jaxunlearn.primitives.regions.dense_layers`.
      x: ``float[n, d]``.
      y: ``int[n]``.
      wanted: ``bool[n]``, the points to move, all answered by their label.
      key: ``jax.random.key``.
      config: ``clusters`` K, ``share`` delta, ``rounds`` at most, the box and the margin.

    Returns:
      :class:`Multipoint`.

    Cost: a round takes K region bounds, ``2 L iterations`` forward passes each.

    Example:
      >>> layers = regions.dense_layers(
      ...     [(jnp.array([[1.0, -1.0]]), jnp.zeros(2)), (jnp.eye(2), jnp.zeros(2))]
      ... )
      >>> config = PruneConfig(mode="paper", low=-1.0, high=1.0, clusters=2)
      >>> x, y, key = jnp.array([[0.5], [-0.5]]), jnp.array([0, 1]), jax.random.key(0)
      >>> multipoint(layers, x, y, jnp.ones(2, bool), key, config=config).rounds.tolist()
      [1, 1]
    """
    z, logits = regions.preactivations(layers, x)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
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
    patches = Patches(
        bits=jnp.where(moved[:, None], regions.pack(z > 0), 0),
        delta=jnp.where(leads[:, None], delta, 0),
        target=jnp.where(moved, target, 0),
        replace=jnp.zeros(count, bool),
        group=group,
    )
    return Multipoint(patches, jnp.where(moved, 1 + cluster // k, 0))


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
