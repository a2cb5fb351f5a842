"""Symmetric positive definite systems, with what the solver found out about them.

``jax.scipy.sparse.linalg.cg`` returns neither the residual nor the number of iterations, nor a
word when the matrix is indefinite. :func:`conjugate_gradients` runs the same iteration under the
same rule for derivatives (``jax.lax.custom_linear_solve``) and reports all three.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp

from jaxunlearn import _validate
from jaxunlearn.types import Array, PyTree, Status


@dataclasses.dataclass(frozen=True)
class CG:
    """Conjugate gradients.

    Attributes:
      tol: stops at a residual of ``tol`` times the right-hand side.
      maxiter: iterations at most; few of them regularise (the paper's code takes 10).
      damping: added to the matrix, times the identity.
    """

    tol: float = 1e-6
    maxiter: int = 300
    damping: float = 0.0

    def __post_init__(self):
        _validate.not_negative(tol=self.tol, damping=self.damping)
        _validate.whole(maxiter=self.maxiter)


@dataclasses.dataclass(frozen=True)
class Cholesky:
    """A dense factorisation.

    Attributes:
      damping: added to the matrix, times the identity.
    """

    damping: float = 0.0

    def __post_init__(self):
        _validate.not_negative(damping=self.damping)


class Solution(NamedTuple):
    """The answer to a system, and how good it is.

    Attributes:
      x: as the right-hand side.
      residual: ``|A x - b| / |b|``, computed anew and not as the iteration believes.
      iterations: ``int32``; 0 for a factorisation.
      curvature: the smallest ``v.A v / v.v`` met; for a factorisation the smallest eigenvalue
        bound known, the square of the smallest pivot. At most 0 shows that A is indefinite.
      status: ``int32``, :class:`~jaxunlearn.Status`: OK, NOT_CONVERGED, INDEFINITE or
        NOT_FINITE.
    """

    x: PyTree
    residual: Array
    iterations: Array
    curvature: Array
    status: Array


def solve(
    matrix: Array | Callable[[PyTree], PyTree], b: PyTree, *, solver: CG | Cholesky = Cholesky()
) -> Solution:
    """Solves ``(A + damping I) x = b`` for a symmetric positive definite A.

    Args:
      matrix: ``float[p, p]`` over the raveled ``b``, or a function of ``v`` that gives ``A v``;
        a Cholesky factorisation of a function first makes its p columns.
      b: the right-hand side, any pytree.
      solver: how.

    Returns:
      A :class:`Solution`. An indefinite matrix is flagged, always. CG then stops where it met
      the negative curvature and never goes on; a factorisation answers the system as it
      stands, by elimination.

    Cost: CG one product an iteration; Cholesky ``p^3 / 3``. Differentiable in ``b`` and in
    whatever the matrix is made of, by the implicit rule: one more solve, no loop unrolled.

    Raises:
      ValueError: a matrix that is not square over ``b``.

    Example:
      >>> a, b = jnp.array([[4.0, 1.0], [1.0, 3.0]]), jnp.array([1.0, 2.0])
      >>> out = solve(a, b, solver=CG(tol=1e-7))
      >>> [f"{x:.4f}" for x in out.x], int(out.iterations), Status(int(out.status)).name
      (['0.0909', '0.6364'], 2, 'OK')
    """
    if callable(matrix):
        if isinstance(solver, CG):
            return conjugate_gradients(matrix, b, solver=solver)
        matrix = dense(matrix, b)
    flat, unravel = jax.flatten_util.ravel_pytree(b)
    if matrix.shape != (flat.size, flat.size):
        raise ValueError(
            f"matrix has shape {matrix.shape}, but must be {(flat.size, flat.size)}: "
            f"the right-hand side has {flat.size} entries."
        )
    if isinstance(solver, CG):
        out = conjugate_gradients(lambda v: _matvec(matrix, v), flat, solver=solver)
    else:
        out = _factorised(matrix, flat, solver.damping)
    return out._replace(x=unravel(out.x))


def conjugate_gradients(
    product: Callable[[PyTree], PyTree], b: PyTree, *, solver: CG = CG()
) -> Solution:
    """:func:`solve` by conjugate gradients, for ``b`` a pytree and A a function.

    Cost: one product an iteration, and one for the residual. Under ``vmap`` all systems run
    until the last has converged.

    Example:
      >>> out = conjugate_gradients(lambda v: -v, jnp.ones(2))
      >>> Status(int(out.status)).name, float(out.curvature)
      ('INDEFINITE', -1.0)
    """
    damped = lambda v: jax.tree.map(lambda a, u: a + solver.damping * u, product(v), v)
    run = lambda matvec, rhs: _iterate(matvec, rhs, solver)
    x, (iterations, curvature) = jax.lax.custom_linear_solve(
        damped, b, run, symmetric=True, has_aux=True
    )
    # How far it got is a finding about the solve, not a part of its derivative.
    fixed = jax.lax.stop_gradient
    residual = _norm(jax.tree.map(jnp.subtract, damped(fixed(x)), fixed(b)))
    residual = fixed(residual / jnp.maximum(_norm(fixed(b)), jnp.finfo(residual.dtype).tiny))
    residual = jnp.where(_norm(fixed(b)) == 0, 0.0, residual)
    floor = 50 * jnp.finfo(residual.dtype).eps
    good = residual <= jnp.maximum(2 * solver.tol, floor)
    status = jnp.where(good, Status.OK, Status.NOT_CONVERGED)
    return Solution(x, residual, iterations, curvature, _judged(status, curvature, residual))


def solve_block(
    top: Callable[[PyTree], PyTree],
    cross: Callable[[PyTree], PyTree],
    cross_transposed: Callable[[PyTree], PyTree],
    bottom: Callable[[PyTree], PyTree],
    b: PyTree,
    zero: PyTree,
    *,
    solver: CG = CG(),
) -> Solution:
    """``(A - B^T K^-1 B) x = b`` without ``K^-1``, from ``[[A, -B^T], [-B, K]] [x, z] = [b, 0]``.

    The Schur complement trick of MUter's Theorem 2, where it holds: with A the matrix without the
    indirect part of the rows to forget, ``B = P C`` and ``K = P (nu I - d_dd) P > 0`` the block
    matrix is positive definite exactly if the reduced one is, so conjugate gradients apply. The
    paper's block has ``-d_dd`` for K, which is negative: indefinite, and flagged here.

    Args:
      top, cross, cross_transposed, bottom: products with A, B, its transpose and K.
      b: the right-hand side.
      zero: zeros of the shape of z.
      solver: of the block system.

    Returns:
      A :class:`Solution` whose ``x`` is like ``b``; its figures are those of the block system.

    Cost: one of each product an iteration.

    Example:
      >>> two, half = (lambda v: 2 * v), (lambda v: 0.5 * v)
      >>> out = solve_block(two, half, half, two, jnp.ones(1), jnp.zeros(1))
      >>> f"{out.x[0]:.4f}"  # 1 / (2 - 0.5 * 0.5 / 2)
      '0.5333'
    """

    def product(v):
        x, z = v
        return (
            jax.tree.map(jnp.subtract, top(x), cross_transposed(z)),
            jax.tree.map(jnp.subtract, bottom(z), cross(x)),
        )

    out = conjugate_gradients(product, (b, zero), solver=solver)
    return out._replace(x=out.x[0])


def _iterate(matvec, b, solver: CG):
    """Hestenes and Stiefel, 1952. Stops at the first direction of curvature <= 0."""
    size = _dot(b, b)
    tiny = jnp.finfo(size.dtype).tiny

    def going(carry):
        _, _, _, square, k, curvature = carry
        return (square > solver.tol**2 * size) & (k < solver.maxiter) & (curvature > 0)

    def step(carry):
        x, r, p, square, k, curvature = carry
        image = matvec(p)
        bend, length = _dot(p, image), _dot(p, p)
        fine = bend > 0
        curvature = jnp.minimum(curvature, bend / jnp.maximum(length, tiny))
        alpha = jnp.where(fine, square / jnp.where(fine, bend, 1.0), 0.0)
        x, r = _axpy(x, alpha, p), _axpy(r, -alpha, image)
        new = _dot(r, r)
        p = _axpy(r, new / jnp.maximum(square, tiny), p)
        return x, r, p, new, k + 1, curvature

    x = jax.tree.map(jnp.zeros_like, b)
    start = (x, b, b, size, jnp.int32(0), jnp.full_like(size, jnp.inf))
    x, _, _, _, k, curvature = jax.lax.while_loop(going, step, start)
    return x, (k, curvature)


def _factorised(matrix: Array, b: Array, damping) -> Solution:
    matrix = matrix + damping * jnp.eye(b.size, dtype=matrix.dtype)
    fixed = jax.lax.stop_gradient(matrix)
    factor = jnp.linalg.cholesky(fixed)
    definite = jnp.isfinite(jnp.diagonal(factor)).all()

    def by_factor(_, rhs):
        return jax.scipy.linalg.cho_solve((factor, True), rhs)

    def answer(matvec, rhs):
        eliminate = lambda m, r: jnp.linalg.solve(m, r)
        return jax.lax.cond(definite, by_factor, eliminate, fixed, rhs)

    x = jax.lax.custom_linear_solve(lambda v: _matvec(matrix, v), b, answer, symmetric=True)
    size = jnp.linalg.norm(jax.lax.stop_gradient(b))
    residual = jnp.linalg.norm(_matvec(fixed, jax.lax.stop_gradient(x)) - jax.lax.stop_gradient(b))
    residual = jnp.where(size == 0, 0.0, residual / jnp.maximum(size, jnp.finfo(size.dtype).tiny))
    pivot = jnp.where(definite, jnp.diagonal(factor).min() ** 2, -jnp.inf)
    limit = jnp.sqrt(jnp.finfo(residual.dtype).eps)
    status = jnp.where(residual <= limit, Status.OK, Status.NOT_CONVERGED)
    return Solution(x, residual, jnp.int32(0), pivot, _judged(status, pivot, residual))


def _judged(status, curvature, residual) -> Array:
    status = jnp.where(curvature <= 0, Status.INDEFINITE, status)
    return jnp.where(jnp.isfinite(residual), status, Status.NOT_FINITE).astype(jnp.int32)


def dense(product: Callable[[PyTree], PyTree], like: PyTree, *, chunk: int = 64) -> Array:
    """The matrix of a product, ``float[p, p]``: an oracle for small p.

    Args:
      product: linear, ``product(v)`` like ``v``.
      like: a pytree of the shape of ``v``.
      chunk: columns computed at once.

    Cost: p products and p^2 floats.

    Example:
      >>> dense(lambda v: 2.0 * v, jnp.zeros(2)).tolist()
      [[2.0, 0.0], [0.0, 2.0]]
    """
    flat, unravel = jax.flatten_util.ravel_pytree(like)
    column = lambda v: jax.flatten_util.ravel_pytree(product(unravel(v)))[0]
    identity = jnp.eye(flat.size, dtype=flat.dtype)
    out = jax.lax.map(column, identity, batch_size=min(chunk, flat.size))
    return 0.5 * (out + out.T)


def _matvec(matrix: Array, v: Array) -> Array:
    return jnp.matmul(matrix, v, precision=jax.lax.Precision.HIGHEST)


def _dot(a: PyTree, b: PyTree) -> Array:
    wide = lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
    parts = jax.tree.map(lambda u, v: jnp.vdot(wide(u), wide(v)), a, b)
    return jnp.sum(jnp.stack(jax.tree.leaves(parts)))


def _norm(a: PyTree) -> Array:
    return jnp.sqrt(_dot(a, a))


def _axpy(x: PyTree, t, p: PyTree) -> PyTree:
    return jax.tree.map(lambda u, v: u + (t * v).astype(u.dtype), x, p)
