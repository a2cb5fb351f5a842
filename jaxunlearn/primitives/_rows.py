"""What functions of the inner maximum share: a row's input gradient, and a loop over all rows."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxunlearn import _sharding, _validate
from jaxunlearn.primitives.balls import norm
from jaxunlearn.types import Array, Dataset, Params, PyTree


def kkt(gradient, params, row, delta, ball):
    """P and K of one row, as functions on delta-shaped arrays."""
    g = gradient(params, delta)
    project, nu = ball.tangent(row.x, delta, g)

    def k(v):
        v = project(v)
        bend = jax.jvp(lambda d: gradient(params, d), (delta,), (v,))[1]
        return project(nu * v - bend)

    return project, k


def input_gradient(loss_fn, params, row, delta) -> Array:
    return jax.grad(lambda d: loss_fn(params, row._replace(x=row.x + d)))(delta)


def residual(x, delta, g, ball) -> Array:
    # The gradient of a saturated loss is rounding, and no direction.
    scale = ball.radius / (norm(g) + 10 * jnp.finfo(g.dtype).eps)
    return norm(ball.project(x, delta + scale * g) - delta) / ball.radius


def over_rows(one: Callable, static: tuple, params: Params, data: Dataset, *rest, chunk: int):
    """``one(*static, params, row, ...)`` over all rows, ``chunk`` at a time."""
    data = _sharding.automatic(data)
    _validate.rows(data)
    _validate.whole(chunk=chunk)
    return _compiled(params, data, rest, one=one, static=static, chunk=min(chunk, data.y.shape[0]))


@functools.partial(jax.jit, static_argnames=("one", "static", "chunk"))
def _compiled(params, data, rest, *, one, static, chunk):
    return jax.lax.map(lambda a: one(*static, params, *a), (data, *rest), batch_size=chunk)


def scan_chunks(part, total: PyTree, arrays: tuple, chunk: int) -> PyTree:
    """Folds ``part(total, some) -> (total, None)`` over chunks of rows; weights come first.

    Rows of weight 0 come last and chunks of them are skipped: a request costs its own rows. The
    last chunk is filled with rows of weight 0.
    """
    n = arrays[0].shape[0]
    if chunk == n:
        return part(total, arrays)[0]
    count = -(-n // chunk)
    order = jnp.argsort(arrays[0] == 0, stable=True)
    numbers = jnp.arange(count * chunk).reshape(count, chunk)

    def body(total, places):
        rows = jnp.take(order, places, mode="clip")
        weights, *rest = jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=0), arrays)
        weights = jnp.where(places < n, weights, 0)
        some = lambda total: part(total, (weights, *rest))[0]
        return jax.lax.cond((weights != 0).any(), some, lambda total: total, total), None

    return jax.lax.scan(body, total, numbers)[0]
