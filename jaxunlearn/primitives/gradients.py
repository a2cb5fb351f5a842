"""Per-sample gradients and their reductions, in bounded memory.

``jax.vmap(jax.grad(loss_fn))`` holds one gradient per row: n times the parameters.
Everything here takes ``chunk``, the rows held at once, so that norms, clipped
sums and sums need ``chunk`` times the parameters whatever n is.

All functions take ``loss_fn(params, example) -> scalar`` for ONE unbatched row. They are
compiled: the same function object and the same shapes compile once.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint

from jaxunlearn import _sharding, _validate
from jaxunlearn._platform import platform
from jaxunlearn.types import Array, Dataset, LossFn, Params, PyTree


def per_sample_gradients(
    loss_fn: LossFn, params: Params, data: Dataset, *, chunk: int | None = None
) -> PyTree:
    """The gradient of every row: leaves ``[n, *leaf.shape]``, dtypes of ``params``.

    Memory: the result is n times the parameters; ``chunk`` bounds the activations
    beside it. Prefer :func:`per_sample_norms` or :func:`clipped_sum` where they do.
    Cost: n sample gradients.

    Args:
      loss_fn: loss of one row.
      params: any pytree of floats.
      data: rows.
      chunk: rows computed at once; all by default.

    Raises:
      ValueError: rows that do not match, ``chunk`` below 1.

    Example:
      >>> data = Dataset(jnp.array([[1.0], [2.0]]), jnp.array([0, 0]))
      >>> loss_fn = lambda params, row: 0.5 * jnp.sum((params - row.x) ** 2)
      >>> per_sample_gradients(loss_fn, jnp.zeros(1), data).tolist()
      [[-1.0], [-2.0]]
    """
    data = _sharding.automatic(data)
    return _gradients(params, data, loss_fn=loss_fn, chunk=_checked_chunk(data, chunk))


def per_sample_norms(
    loss_fn: LossFn, params: Params, data: Dataset, *, chunk: int | None = None
) -> Array:
    """The L2 norm of every row's gradient over all parameters: ``float32[n]`` (or wider).

    Memory: ``chunk`` gradients. By default 32 on a CPU, whose caches hold so many of a
    small network (more than twice as fast as all at once), and all n elsewhere.
    Cost: n sample gradients. Arguments and errors as :func:`per_sample_gradients`.

    Example:
      >>> data = Dataset(jnp.array([[3.0, 4.0]]), jnp.array([0]))
      >>> loss_fn = lambda params, row: params @ row.x
      >>> per_sample_norms(loss_fn, jnp.zeros(2), data).tolist()
      [5.0]
    """
    data = _sharding.automatic(data)
    chunk = _checked_chunk(data, chunk, _cached_rows())
    return _norms(params, data, loss_fn=loss_fn, chunk=chunk)


def gradient_sum(
    loss_fn: LossFn,
    params: Params,
    data: Dataset,
    *,
    weights: Array | None = None,
    chunk: int | None = None,
) -> PyTree:
    """``sum_i weights_i * gradient_i``, without holding any single gradient.

    Args:
      weights: ``bool`` or ``float[n]``; all ones by default.
      chunk: rows whose activations are held at once; all by default.

    Returns:
      A pytree like ``params``, in its dtypes; sums over chunks are float32 or wider.

    Cost: n sample gradients, rows of weight zero included.

    Example:
      >>> data = Dataset(jnp.array([[1.0], [2.0]]), jnp.array([0, 0]))
      >>> loss_fn = lambda params, row: jnp.sum(params * row.x)
      >>> gradient_sum(loss_fn, jnp.zeros(1), data, weights=jnp.array([0.0, 2.0])).tolist()
      [4.0]
    """

    data = _sharding.automatic(data)
    weights, chunk = _checked_weights(data, weights), _checked_chunk(data, chunk)
    return _sum(params, data, weights, loss_fn=loss_fn, chunk=chunk)


def clipped_sum(
    loss_fn: LossFn,
    params: Params,
    data: Dataset,
    *,
    clip: float,
    weights: Array | None = None,
    chunk: int | None = None,
) -> PyTree:
    """``sum_i weights_i * gradient_i * min(1, clip / |gradient_i|)``.

    One row changes the result by at most ``clip`` in L2 norm (with weights in
    [0, 1], up to rounding): the bounded sensitivity that differential privacy and
    the removal certificates rest on. So that it holds for every row, one whose gradient is
    not finite adds nothing.

    Args:
      clip: largest norm of one row's gradient, > 0.
      weights: as in :func:`gradient_sum`.
      chunk: as in :func:`per_sample_norms`; memory is ``chunk`` gradients.

    Raises:
      ValueError: ``clip`` not above 0, rows or weights that do not match.

    Example:
      >>> data = Dataset(jnp.array([[3.0], [0.5]]), jnp.array([0, 0]))
      >>> loss_fn = lambda params, row: jnp.sum(params * row.x)
      >>> clipped_sum(loss_fn, jnp.zeros(1), data, clip=1.0).tolist()
      [1.5]
    """
    if _validate.known(clip):
        _validate.positive(clip=clip)

    data = _sharding.automatic(data)
    weights = _checked_weights(data, weights)
    chunk = _checked_chunk(data, chunk, _cached_rows())
    return _clipped(params, data, weights, clip, loss_fn=loss_fn, chunk=chunk)


class GradientRange(NamedTuple):
    """What the gradients of all rows have in common, coordinate by coordinate.

    Attributes:
      mean: over the rows; like all of these a pytree like the parameters, float32 or wider.
      sd: standard deviation over the rows, divided by n - 1.
      low: smallest.
      high: largest.
    """

    mean: PyTree
    sd: PyTree
    low: PyTree
    high: PyTree


def gradient_range(
    loss_fn: LossFn, params: Params, data: Dataset, *, chunk: int | None = None
) -> GradientRange:
    """Mean, spread and extremes of the gradients of the rows, in one pass.

    Args:
      loss_fn: loss of one row.
      params: any pytree of floats.
      data: rows, at least two.
      chunk: rows computed at once; as in :func:`per_sample_norms`.

    Returns:
      A :class:`GradientRange`. Sums are taken around the first row and compensated, so that
      the mean of many rows is right to some ten roundings of the largest gradient: what
      :func:`jaxunlearn.certify.budget.removal_certificate` counts on.

    Memory: ``chunk + 5`` gradients. Cost: n sample gradients.

    Raises:
      ValueError: fewer than two rows, rows that do not match, ``chunk`` below 1.

    Example:
      >>> data = Dataset(jnp.array([[1.0], [2.0], [6.0]]), jnp.array([0, 0, 0]))
      >>> loss_fn = lambda params, row: jnp.sum(params * row.x)
      >>> [float(v[0]) for v in gradient_range(loss_fn, jnp.zeros(1), data)]
      [3.0, 2.6457512378692627, 1.0, 6.0]
    """
    data = _sharding.automatic(data)
    chunk = _checked_chunk(data, chunk, _cached_rows())
    _validate.whole(2, **{"rows of data": data.y.shape[0]})
    return _range(params, data, loss_fn=loss_fn, chunk=chunk)


@functools.partial(jax.jit, static_argnames=("loss_fn", "chunk"))
def _range(params, data, *, loss_fn, chunk):
    n = data.y.shape[0]
    count = -(-n // chunk)
    # The last chunk is filled with the first row, which counts once.
    index = jnp.arange(count * chunk).reshape(count, chunk)
    wide = lambda tree: jax.tree.map(
        lambda p: p.astype(jnp.promote_types(p.dtype, jnp.float32)), tree
    )
    gradient = lambda row: wide(_gradient(loss_fn, params, row))
    first = gradient(jax.tree.map(lambda leaf: leaf[0], data))

    def part(carry, rows):
        here = rows < n
        some = jax.tree.map(lambda leaf: leaf[jnp.where(here, rows, 0)], data)
        grads = jax.vmap(gradient)(some)

        def reduce(carry, v, v0):
            total, lost, squares, low, high = carry
            off = (v - v0[None]) * here.astype(v.dtype).reshape(-1, *[1] * v0.ndim)
            some = off.sum(0) - lost  # Kahan: the error of the sum so far comes off the next
            after = total + some
            return (
                after,
                (after - total) - some,
                squares + jnp.square(off).sum(0),
                jnp.minimum(low, v.min(0)),
                jnp.maximum(high, v.max(0)),
            )

        return list(map(reduce, carry, jax.tree.leaves(grads), jax.tree.leaves(first))), None

    leaves, structure = jax.tree.flatten(first)
    start = [(*[jnp.zeros_like(v)] * 3, v, v) for v in leaves]
    sums, _ = jax.lax.scan(part, start, index)

    def finish(sums, v0):
        total, _, squares, low, high = sums
        variance = (squares - jnp.square(total) / n) / (n - 1)
        return v0 + total / n, jnp.sqrt(jnp.maximum(variance, 0.0)), low, high

    parts = zip(*map(finish, sums, leaves), strict=True)
    return GradientRange(*(jax.tree.unflatten(structure, part) for part in parts))


@functools.partial(jax.jit, static_argnames=("loss_fn", "chunk"))
def _gradients(params, data, *, loss_fn, chunk):
    return _map_rows(lambda row: _gradient(loss_fn, params, row), data, chunk)


@functools.partial(jax.jit, static_argnames=("loss_fn", "chunk"))
def _norms(params, data, *, loss_fn, chunk):
    return _map_rows(lambda row: _norm(_gradient(loss_fn, params, row)), data, chunk)


@functools.partial(jax.jit, static_argnames=("loss_fn", "chunk"))
def _sum(params, data, weights, *, loss_fn, chunk):
    def part(rows, w):
        losses = lambda p: jnp.vdot(w, jax.vmap(loss_fn, in_axes=(None, 0))(p, rows))
        return jax.grad(losses)(params)

    return _sum_chunks(part, params, data, weights, chunk)


@functools.partial(jax.jit, static_argnames=("loss_fn", "chunk"))
def _clipped(params, data, weights, clip, *, loss_fn, chunk):
    def part(rows, w):
        grads = jax.vmap(lambda row: _gradient(loss_fn, params, row))(rows)
        norms = jax.vmap(_norm)(grads)
        # min(1, clip / norm) without the division by zero at a zero gradient.
        scale = w * clip / jnp.maximum(norms, clip)
        counts = (w > 0) & jnp.isfinite(norms)  # zero times NaN is NaN

        def total(g):
            here = counts.reshape(-1, *[1] * (g.ndim - 1))
            bounded = jnp.where(here, g, 0).astype(scale.dtype)
            return jnp.tensordot(jnp.where(counts, scale, 0), bounded, 1).astype(g.dtype)

        return jax.tree.map(total, grads)

    return _sum_chunks(part, params, data, weights, chunk)


def _gradient(loss_fn: LossFn, params: Params, row: Dataset) -> PyTree:
    """The gradient of one row, its leaves in row-major order on a CPU.

    Left to itself XLA-CPU computes those of dense layers transposed and copies them,
    which takes as long again as everything else.
    """
    grads = jax.grad(loss_fn)(params, row)
    if platform() != "cpu":
        return grads
    row_major = lambda leaf: with_layout_constraint(
        leaf, Layout(major_to_minor=tuple(range(leaf.ndim)))
    )
    return jax.tree.map(row_major, grads)


def _norm(gradient: PyTree) -> Array:
    """L2 norm over all leaves, accumulated in float32 or wider."""
    squares = []
    for leaf in jax.tree.leaves(gradient):
        wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        squares.append(jnp.sum(wide * wide))
    return jnp.sqrt(sum(squares))


def _checked_chunk(data: Dataset, chunk: int | None, default: int | None = None) -> int:
    """The rows held at once: ``chunk``, or ``default``, or all."""
    _validate.rows(data)
    n = data.y.shape[0]
    chunk = default if chunk is None else chunk
    if chunk is None:
        return n
    _validate.whole(chunk=chunk)
    return min(chunk, n)


def _cached_rows() -> int | None:
    """Gradients held at once by default: on a CPU a few, which its caches can hold."""
    return 32 if platform() == "cpu" else None


def _checked_weights(data: Dataset, weights: Array | None) -> Array:
    n = np.shape(data.y)[0]
    if weights is None:
        return jnp.ones(n, jnp.float32)
    if np.shape(weights) != (n,):
        raise ValueError(f"weights has shape {np.shape(weights)}, but must be ({n},), one a row.")
    return _validate.as_weights(weights)


def _map_rows(one_row: Callable, data: Dataset, chunk: int) -> PyTree:
    """``one_row`` over the rows, ``chunk`` at a time."""
    if chunk == data.y.shape[0]:
        return jax.vmap(one_row)(data)
    return jax.lax.map(one_row, data, batch_size=chunk)


def _sum_chunks(
    part: Callable, params: Params, data: Dataset, weights: Array, chunk: int
) -> PyTree:
    """Sum of ``part(rows, weights)`` over chunks; the last is filled with rows of weight 0."""
    n = data.y.shape[0]
    if chunk == n:
        return part(data, weights)
    count = -(-n // chunk)
    rows = jnp.arange(count * chunk).reshape(count, chunk)

    def add(total, rows):
        take = lambda leaf: jnp.take(leaf, rows, axis=0, mode="clip")
        w = jnp.where(rows < n, take(weights), 0.0)
        some = part(jax.tree.map(take, data), w)
        return jax.tree.map(lambda t, g: t + g.astype(t.dtype), total, some), None

    wide = lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32))
    total, _ = jax.lax.scan(add, jax.tree.map(wide, params), rows)
    return jax.tree.map(lambda t, p: t.astype(p.dtype), total, params)
