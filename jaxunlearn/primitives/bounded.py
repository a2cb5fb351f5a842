"""Small quadratic problems with bounds: which kinks hold, and how hard they pull."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn import _validate
from jaxunlearn.types import Array


class Bounded(NamedTuple):
    """The minimum within bounds.

    Attributes:
      x: ``float[k]``.
      free: ``bool[k]``, entries not held at a bound.
      residual: largest entry of the gradient that the bounds do not hold.
    """

    x: Array
    free: Array
    residual: Array


def bounded_quadratic(
    matrix: Array, b: Array, bound: Array, *, start: Array | None = None, steps: int = 200
) -> Bounded:
    """``min x . A x / 2 - b . x`` with ``|x_k| <= bound_k``, by an active set.

    Each step solves for the entries that no bound holds and goes there, or to the first bound in
    the way, which then holds; at the end of a full step the entry that its bound holds most wrongly
    is set free. The value falls with every step, so no set comes twice. Of
    several minima (equal rows) it is the one nearest to the start.

    Args:
      matrix: ``float[k, k]``, symmetric positive semidefinite.
      b: ``float[k]``.
      bound: ``float[k]``, >= 0; an entry of bound 0 stays 0.
      start: ``float[k]``, where to begin: a good one spares steps. 0 by default.
      steps: at most.

    Returns:
      A :class:`Bounded`. Differentiable in all arguments, the set of free entries held fixed. Its
      residual is not small if the steps ran out.

    Cost: a factorisation of the matrix for each step, and for the derivative one more.

    Raises:
      ValueError: shapes that do not match.

    Example:
      >>> out = bounded_quadratic(jnp.eye(2), jnp.array([3.0, 0.5]), jnp.ones(2))
      >>> out.x.tolist(), out.free.tolist()
      ([1.0, 0.5], [False, True])
    """
    _validate.whole(steps=steps)
    k = jnp.shape(b)[0]
    if jnp.shape(matrix) != (k, k) or jnp.shape(bound) != (k,):
        raise ValueError(
            f"matrix has shape {jnp.shape(matrix)} and bound {jnp.shape(bound)}, but must have "
            f"{(k, k)} and {(k,)}, as b has {k} entries."
        )
    eye = jnp.eye(k, dtype=b.dtype)
    start = jnp.zeros_like(b) if start is None else start
    little = jnp.finfo(b.dtype).eps ** 0.6 * jnp.diagonal(matrix).max()
    near, to = matrix + little * eye, b + little * start
    free, sign = _search(*map(jax.lax.stop_gradient, (near, to, bound, start)), steps=steps)
    x = _solved(near, to, sign * bound, free)
    x = _solved(near, b + little * x, x, free)  # little counts no more
    miss = jax.lax.stop_gradient(b - matrix @ x)
    wrong = (~free & (sign * miss < 0)) | (free & (jnp.abs(x) > bound * (1 + 1e-6)))
    return Bounded(x, free, jnp.abs(jnp.where(wrong | free, miss, 0.0)).max())


def _solved(matrix, b, x, free) -> Array:
    """The minimum over the free entries, the others given."""
    rest = jnp.where(free, 0.0, x)
    system = jnp.where(free[:, None] & free[None], matrix, jnp.eye(b.size, dtype=b.dtype))
    return rest + jnp.linalg.solve(system, jnp.where(free, b - matrix @ rest, 0.0))


@functools.partial(jax.jit, static_argnames="steps")
def _search(matrix, b, bound, start, *, steps) -> tuple[Array, Array]:
    unit = jnp.maximum(jnp.diagonal(matrix), jnp.finfo(b.dtype).tiny) ** -0.5

    def step(carry):
        x, free, _, count = carry
        move = jnp.where(free, _solved(matrix, b, x, free) - x, 0.0)
        room = jnp.where(move > 0, bound - x, -bound - x) / jnp.where(move == 0, 1.0, move)
        room = jnp.where(move == 0, jnp.inf, jnp.maximum(room, 0.0))
        first, t = jnp.argmin(room), jnp.minimum(room.min(), 1.0)
        hits = t < 1
        x = jnp.clip(x + t * move, -bound, bound)
        x = jnp.where(hits, x.at[first].set(jnp.sign(move[first]) * bound[first]), x)
        inwards = jnp.where(~free & (bound > 0), -jnp.sign(x) * (b - matrix @ x) * unit, 0.0)
        worst = jnp.argmax(inwards)
        releases = ~hits & (inwards[worst] > 100 * jnp.finfo(b.dtype).eps * jnp.abs(b * unit).max())
        free = jnp.where(hits, free.at[first].set(False), free)
        free = jnp.where(releases, free.at[worst].set(True), free)
        return x, free, hits | releases, count + 1

    def sides(x):
        """Which bound each entry would go to, or 0: its own step, held by nothing else."""
        to = x + unit**2 * (b - matrix @ x)
        return jnp.where(jnp.abs(to) < bound, 0, jnp.where(to < 0, -1, 1))

    def guess(carry):
        """All entries at once take the side that their gradient says: nearly always near."""
        x, side, _, count = carry
        x = jnp.clip(_solved(matrix, b, side * bound, side == 0), -2 * bound, 2 * bound)
        onward = sides(x)
        wrong = (onward != side).any() | (jnp.abs(x) > bound).any()
        return x, onward, wrong, count + 1

    carry = start, sides(start), jnp.array(True), jnp.int32(0)
    start, _, wrong, _ = jax.lax.while_loop(lambda c: c[2] & (c[3] < 10), guess, carry)
    start = jnp.clip(start, -bound, bound)
    # Sides that confirm themselves are those of the minimum: no step is left to take.
    carry = start, jnp.abs(start) < bound, wrong, jnp.int32(0)
    x, free, *_ = jax.lax.while_loop(lambda c: c[2] & (c[3] < steps), step, carry)
    return free, jnp.sign(x)
