"""An inner maximum of adversarial training: what makes it one, and how it follows the parameters.

    delta(w) = argmax { loss(w, x + delta) : delta in the ball }

It lies on the boundary of the ball almost always, so its derivative is that of a constrained
maximum (the KKT conditions), not ``-d_dd^-1 d_dw``. :func:`follow` gives ``delta`` that
derivative: then ``jax.jvp`` of the gradient at ``x + delta(w)`` is the total Hessian product.

All functions take ``loss_fn(params, example) -> scalar`` for ONE unbatched row.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.primitives._rows import input_gradient, kkt, over_rows, residual
from jaxunlearn.primitives.balls import Ball, norm, tiny
from jaxunlearn.primitives.solve import CG, conjugate_gradients
from jaxunlearn.types import Array, Dataset, LossFn, Params


class Inner(NamedTuple):
    """Inner maxima of n rows.

    Attributes:
      delta: ``float[n, ...]``, like ``data.x``.
      residual: ``float[n]``, how far from stationary: the length of the projected step along the
        gradient, in radii; 0 at a maximum, of order 1 elsewhere.
      active: ``bool[n]`` on the sphere of an L2 ball, ``bool[n, ...]`` at the bounds of a box.
    """

    delta: Array
    residual: Array
    active: Array


def perturbed(data: Dataset, delta: Array) -> Dataset:
    """The rows at their perturbations; works on one row too.

    Example:
      >>> perturbed(Dataset(jnp.zeros(2), jnp.array(1)), jnp.ones(2)).x.tolist()
      [1.0, 1.0]
    """
    return data._replace(x=data.x + delta)


def inspect(
    loss_fn: LossFn, params: Params, data: Dataset, delta: Array, *, ball: Ball, chunk: int = 256
) -> Inner:
    """Perturbations found elsewhere as an :class:`Inner`: residual and active constraints.

    Cost: n input gradients.

    Example:
      >>> from jaxunlearn.primitives.balls import L2Ball
      >>> data = Dataset(jnp.array([[1.0, 0.0]]), jnp.array([1]))
      >>> loss_fn = lambda w, row: -w @ row.x
      >>> w, ball = jnp.array([0.0, 2.0]), L2Ball(0.5)
      >>> found = inspect(loss_fn, w, data, jnp.array([[0.0, 0.5]]), ball=ball)
      >>> found.residual.round(3).tolist()  # the gradient points the other way
      [1.0]
    """
    return over_rows(inspected, (loss_fn, ball), params, data, delta, chunk=chunk)


def inner_curvature(
    loss_fn: LossFn,
    params: Params,
    data: Dataset,
    delta: Array,
    *,
    ball: Ball,
    steps: int = 32,
    chunk: int = 256,
) -> Array:
    """The smallest curvature of the inner maximum in each row, ``float[n]``.

    The smallest eigenvalue of ``K = P (nu I - A) P`` on the tangent: > 0 at a strict local
    maximum, and infinite where no direction is free; 0 if it is within rounding of that. By
    Lanczos' method, exact when the input has at most ``steps`` entries, otherwise an upper bound
    that a few more steps tighten.

    Cost: ``2 steps`` input gradients a row.

    Example:
      >>> from jaxunlearn.primitives.adversarial import fgsm
      >>> from jaxunlearn.primitives.balls import L2Ball
      >>> data = Dataset(jnp.array([[0.0, 0.0]]), jnp.array([0]))
      >>> loss_fn = lambda w, row: w @ row.x
      >>> w, ball = jnp.array([3.0, 4.0]), L2Ball(0.5)
      >>> delta = fgsm(loss_fn, w, data, ball=ball).delta
      >>> inner_curvature(loss_fn, w, data, delta, ball=ball).round(3).tolist()  # |g| / r
      [10.0]
    """
    return over_rows(_least_curvature, (loss_fn, ball, steps), params, data, delta, chunk=chunk)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 5, 6))
def follow(
    loss_fn: LossFn,
    params: Params,
    row: Dataset,
    delta: Array,
    trusted: Array,
    ball: Ball,
    solver: CG,
) -> Array:
    """``delta`` of ONE row as a function of the parameters: the value given, its derivative added.

    ``d delta = P K^+ P C d params`` with ``C`` the derivative of the input gradient in the
    parameters and ``K = P (nu I - A) P`` with
    the multiplier nu. The row itself counts as
    constant.

    Args:
      loss_fn: loss of one row.
      params: any pytree of floats; derivatives are in them.
      row: one unbatched row.
      delta: its inner maximum.
      trusted: ``bool``; False for a row without a strict maximum, whose delta then stays put:
        the direct Hessian.
      ball: where delta lies.
      solver: of the inner system; to rounding, if products are to be symmetric.

    Returns:
      ``delta``.

    Cost: nothing, and one solve for every derivative.

    Example:
      >>> from jaxunlearn.primitives.balls import L2Ball
      >>> loss_fn = lambda w, row: w @ row.x
      >>> row, ball = Dataset(jnp.zeros(2), jnp.array(0)), L2Ball(1.0)
      >>> delta, yes = jnp.array([1.0, 0.0]), jnp.array(True)
      >>> at = lambda w: follow(loss_fn, w, row, delta, yes, ball, CG())
      >>> jax.jvp(at, (jnp.array([2.0, 0.0]),), (jnp.array([1.0, 1.0]),))[1].tolist()
      [0.0, 0.5]
    """
    return delta


@follow.defjvp
def _follow_jvp(loss_fn, ball, solver, primals, tangents):
    params, row, start, trusted = primals
    delta = follow(loss_fn, params, row, start, trusted, ball, solver)
    gradient = lambda p, d: input_gradient(loss_fn, p, row, d)
    _, moved = jax.jvp(lambda p: gradient(p, delta), (params,), (tangents[0],))
    project, k = kkt(gradient, params, row, delta, ball)
    # K is the identity on what P removes, so that the system is definite wherever K is on P.
    system = lambda v: k(v) + v - project(v)
    rhs = jnp.where(trusted, project(moved), 0.0)
    step = project(conjugate_gradients(system, rhs, solver=solver).x)
    return delta, jnp.where(trusted, step, 0.0)


def inspected(loss_fn: LossFn, ball: Ball, params: Params, row: Dataset, delta: Array) -> Inner:
    """:func:`inspect` of ONE row.

    Example:
      >>> from jaxunlearn.primitives.balls import L2Ball
      >>> row, delta = Dataset(jnp.zeros(1), jnp.array(0)), jnp.array([0.5])
      >>> found = inspected(lambda w, row: w @ row.x, L2Ball(0.5), jnp.ones(1), row, delta)
      >>> bool(found.active), float(found.residual)
      (True, 0.0)
    """
    g = input_gradient(loss_fn, params, row, delta)
    return Inner(delta, residual(row.x, delta, g, ball), ball.active(row.x, delta))


def _least_curvature(loss_fn, ball, steps: int, params, row, delta) -> Array:
    gradient = lambda p, d: input_gradient(loss_fn, p, row, d)
    project, k = kkt(gradient, params, row, delta, ball)
    g = gradient(params, delta)
    steps = min(steps, row.x.size)
    start = project(jax.random.normal(jax.random.key(0), row.x.shape, row.x.dtype))
    free = norm(start) > 0
    first = start / jnp.maximum(norm(start), tiny(start))

    def step(carry, i):
        basis, v = carry
        basis = basis.at[i].set(v.ravel())
        image = k(v)
        alpha, rest = jnp.vdot(v, image), image.ravel()
        for _ in range(2):  # once is not enough in floating point
            rest = rest - basis.T @ (basis @ rest)
        rest = project(rest.reshape(v.shape))
        beta = norm(rest)
        alive = beta > 1e3 * jnp.finfo(beta.dtype).eps * (jnp.abs(alpha) + norm(image))
        following = jnp.where(alive, rest / jnp.maximum(beta, tiny(rest)), 0.0)
        return (basis, following), (alpha, jnp.where(alive, beta, 0.0), norm(v) > 0)

    empty = jnp.zeros((steps, row.x.size), row.x.dtype)
    _, (alpha, beta, there) = jax.lax.scan(step, (empty, first), jnp.arange(steps))
    alpha = jnp.where(there, alpha, jnp.where(there, alpha, -jnp.inf).max())
    small = jnp.diag(alpha) + jnp.diag(beta[:-1], 1) + jnp.diag(beta[:-1], -1)
    ritz = jnp.linalg.eigvalsh(jnp.where(jnp.isfinite(small), small, 0.0))
    scale = jnp.maximum(jnp.abs(ritz).max(), norm(g) / ball.radius)
    # Of a coordinate on which the loss does not depend, rounding may have any sign.
    least = jnp.where(jnp.abs(ritz[0]) <= 100 * jnp.finfo(g.dtype).eps * scale, 0.0, ritz[0])
    return jnp.where(free, least, jnp.inf)
