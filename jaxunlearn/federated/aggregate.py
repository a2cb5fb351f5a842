"""How a server makes one update of many, a few clients at a time.

An aggregator adds up stacked updates chunk by chunk, so that a server that needs only their mean
never holds all of them. Updates that are not finite, or not of the right shape, are left out and
named; the round goes on with the others.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _validate
from jaxunlearn.types import Array, PyTree


class Aggregator(NamedTuple):
    """Three pure functions.

    Attributes:
      start: ``start(like, clients) -> sums``; ``like`` has the shapes of one update, ``clients``
        is how many will come.
      add: ``add(sums, updates[c, ...], weights[c]) -> sums``; weight 0 for one to leave out.
      finish: ``finish(sums) -> update``.
    """

    start: Callable[[PyTree, int], Any]
    add: Callable[[Any, PyTree, Array], Any]
    finish: Callable[[Any], PyTree]


def _wide(leaf) -> Any:
    return jnp.promote_types(leaf.dtype, jnp.float32)


def _zeros(like: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, _wide(leaf)), like)


def _add_weighted(sums, updates: PyTree, weights: Array):
    total, weight = sums
    one = lambda t, u: t + jnp.tensordot(weights.astype(t.dtype), u.astype(t.dtype), axes=1)
    return jax.tree.map(one, total, updates), weight + jnp.sum(weights)


@functools.lru_cache
def weighted_mean() -> Aggregator:
    """The mean of the updates, each weighted by its client's rows (FedAvg; FFMU Eq. 14).

    With clients of equal size this is Eq. 14's plain mean. 0 if no client has any weight.

    Example:
      >>> mean = weighted_mean()
      >>> updates, rows = jnp.array([[1.0], [4.0]]), jnp.array([2.0, 1.0])
      >>> sums = mean.add(mean.start(jnp.zeros(1), 2), updates, rows)
      >>> mean.finish(sums).tolist()
      [2.0]
    """

    def finish(sums) -> PyTree:
        total, weight = sums
        return jax.tree.map(lambda t: t / jnp.where(weight > 0, weight, 1.0).astype(t.dtype), total)

    return Aggregator(lambda like, clients: (_zeros(like), jnp.float32(0)), _add_weighted, finish)


@functools.lru_cache
def clipped_mean(norm: float) -> Aggregator:
    """The weighted mean of updates scaled down to an L2 norm of at most ``norm``.

    No client moves the mean by more than its share of ``norm``, whatever it sends.

    Args:
      norm: largest norm of one update.

    Raises:
      ValueError: a norm that is not positive.

    Example:
      >>> mean = clipped_mean(1.0)
      >>> sums = mean.add(mean.start(jnp.zeros(1), 2), jnp.array([[9.0], [0.5]]), jnp.ones(2))
      >>> mean.finish(sums).tolist()
      [0.75]
    """
    _validate.positive(norm=norm)
    plain = weighted_mean()

    def add(sums, updates, weights):
        length = norms(updates)
        scale = jnp.minimum(1.0, norm / jnp.where(length > 0, length, norm))
        shrink = lambda u: u * scale.reshape(-1, *[1] * (u.ndim - 1)).astype(u.dtype)
        return plain.add(sums, jax.tree.map(shrink, updates), weights)

    return Aggregator(plain.start, add, plain.finish)


@functools.lru_cache
def coordinate_median() -> Aggregator:
    """The median of each coordinate over the clients of non-zero weight.

    Robust against a minority of arbitrary updates. Memory: all updates.

    Example:
      >>> median = coordinate_median()
      >>> updates = jnp.array([[1.0], [2.0], [900.0], [0.0]])
      >>> rows = jnp.array([1.0, 1.0, 1.0, 0.0])
      >>> sums = median.add(median.start(jnp.zeros(1), 4), updates, rows)
      >>> median.finish(sums).tolist()
      [2.0]
    """

    def start(like, clients):
        rows = jax.tree.map(
            lambda leaf: jnp.full((clients, *leaf.shape), jnp.nan, _wide(leaf)), like
        )
        return rows, jnp.int32(0)

    def add(sums, updates, weights):
        rows, at = sums

        def put(all_rows, u):
            counts = (weights > 0).reshape(-1, *[1] * (u.ndim - 1))
            some = jnp.where(counts, u.astype(all_rows.dtype), jnp.nan)
            return jax.lax.dynamic_update_slice_in_dim(all_rows, some, at, axis=0)

        return jax.tree.map(put, rows, updates), at + weights.shape[0]

    def finish(sums):
        found = jax.tree.map(lambda rows: jnp.nanmedian(rows, axis=0), sums[0])
        return jax.tree.map(lambda leaf: jnp.where(jnp.isnan(leaf), 0.0, leaf), found)

    return Aggregator(start, add, finish)


def norms(updates: PyTree) -> Array:
    """``float[c]``: the L2 norm of each of the stacked updates.

    Example:
      >>> norms({"w": jnp.array([[3.0], [0.0]]), "b": jnp.array([4.0, 2.0])}).tolist()
      [5.0, 2.0]
    """
    square = lambda u: jnp.sum(jnp.square(u.astype(_wide(u))), axis=tuple(range(1, u.ndim)))
    return jnp.sqrt(sum(jax.tree.leaves(jax.tree.map(square, updates))))


def finite(updates: PyTree) -> Array:
    """``bool[c]``: which of the stacked updates hold no NaN and no infinity.

    Example:
      >>> finite(jnp.array([[1.0, 2.0], [1.0, jnp.inf]])).tolist()
      [True, False]
    """
    one = lambda u: jnp.isfinite(u).all(axis=tuple(range(1, u.ndim)))
    return functools.reduce(jnp.logical_and, jax.tree.leaves(jax.tree.map(one, updates)))


def add_finite(
    aggregator: Aggregator, sums: Any, updates: PyTree, weights: Array
) -> tuple[Any, Array]:
    """Adds the stacked updates that are finite; says which those of some weight are.

    Args:
      aggregator: what ``sums`` is of.
      sums: so far.
      updates: leaves ``[c, ...]``.
      weights: ``float[c]``.

    Returns:
      The sums, and ``bool[c]``: False for an update that was rejected.

    Example:
      >>> mean = weighted_mean()
      >>> sums, good = add_finite(
      ...     mean, mean.start(jnp.zeros(1), 2), jnp.array([[jnp.nan], [4.0]]), jnp.ones(2)
      ... )
      >>> mean.finish(sums).tolist(), good.tolist()
      ([4.0], [False, True])
    """
    good = finite(updates)
    clean = lambda u: jnp.where(good.reshape(-1, *[1] * (u.ndim - 1)), u, 0)
    sums = aggregator.add(sums, jax.tree.map(clean, updates), jnp.where(good, weights, 0))
    return sums, good | (weights == 0)


def fault(update: Any, like: PyTree, weight: float) -> str | None:
    """What is wrong with an update that came from outside, in words; None if nothing is.

    Args:
      update: a pytree that should have the shapes and dtypes of ``like``.
      like: the model's parameters.
      weight: the rows that its client says it has.

    Example:
      >>> fault({"w": np.ones(3)}, {"w": np.ones(2)}, 1.0)
      "['w'] has shape (3,), but must be (2,)"
    """
    if jax.tree.structure(update) != jax.tree.structure(like):
        return f"it has the leaves {jax.tree.structure(update)}, not {jax.tree.structure(like)}"
    if not (np.isfinite(weight) and weight > 0):
        return f"its number of rows is {weight!r}, but must be a number > 0"
    pairs = zip(jax.tree_util.tree_leaves_with_path(update), jax.tree.leaves(like), strict=True)
    for (path, leaf), expected in pairs:
        name, leaf = jax.tree_util.keystr(path), np.asarray(leaf)
        if leaf.shape != np.shape(expected):
            return f"{name} has shape {leaf.shape}, but must be {np.shape(expected)}"
        if leaf.dtype != expected.dtype:
            return f"{name} has dtype {leaf.dtype}, but must be {expected.dtype}"
        bad = leaf.size - int(np.isfinite(leaf).sum())
        if bad:
            return f"{name} has {bad} values of {leaf.size} that are NaN or infinite"
    return None
