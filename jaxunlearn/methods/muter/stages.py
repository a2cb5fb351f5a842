"""The three stages of MUter: the memory of a model, the step, and the memory after it."""

import dataclasses
import functools
import warnings
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp

from jaxunlearn import _validate, tree
from jaxunlearn.primitives.balls import Ball
from jaxunlearn.primitives.curvature import total_matrix, total_product
from jaxunlearn.primitives.gradients import gradient_sum
from jaxunlearn.primitives.inner import Inner, inner_curvature, inspect, perturbed
from jaxunlearn.primitives.solve import CG, Cholesky, solve
from jaxunlearn.training.adversarial import floor
from jaxunlearn.types import Array, Dataset, LossFn, Params, Status

# A row whose inner maximum is worse than this keeps the direct Hessian.
WORST_RESIDUAL = 1e-2
# Rows whose activations are held at once.
CHUNK = 64
LOST_CLASS = (
    "forget removes the last row of a class: the remaining problem is another one, far from where "
    "the step is accurate. Retrain instead."
)


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which of the paper's seven methods.

    Attributes:
      mode: the Hessian of a row, see :mod:`jaxunlearn.primitives.curvature`.
      clean: gradients and Hessians at the rows themselves, not at their perturbations.
      downdate: whether the Hessians of the rows now asked for leave the matrix before the solve.
    """

    mode: str = "kkt"
    clean: bool = False
    downdate: bool = True


RULES = {
    "muter": Rule(),
    "muter_paper": Rule("paper"),
    "muter_newton": Rule("direct", clean=True),
    "muter_newton_delta": Rule("direct"),
    "muter_fisher": Rule("fisher", clean=True),
    "muter_fisher_delta": Rule("fisher"),
    "muter_influence": Rule("direct", clean=True, downdate=False),
    "muter_influence_delta": Rule("direct", downdate=False),
}


class Diagnostics(NamedTuple):
    """What is known about the last step, all scalars.

    Attributes:
      optimality: largest entry of the mean gradient at the original parameters: the step starts
        from an optimum only if it is near 0.
      inner_residual: the largest residual of the inner maxima, 0 at a maximum.
      inner_curvature: their smallest curvature; no maximum if not above 0, the largest float where
        no direction is free, or no row was looked at (methods without ``kkt``).
      fallback: rows that got the direct Hessian because they have no strict maximum.
      residual, iterations, curvature: of the linear system, see ``solve.Solution``.
      decrease: by how much the quadratic model falls, ``b . step / 2``.
      lost_class: whether the last row of some class was removed, no part of it remaining.
    """

    optimality: Array
    inner_residual: Array
    inner_curvature: Array
    fallback: Array
    residual: Array
    iterations: Array
    curvature: Array
    decrease: Array
    lost_class: Array


class Memory(NamedTuple):
    """What is kept between requests.

    Attributes:
      params: the original parameters ``w*``; steps always start here.
      delta: ``float[n, ...]``, the inner maxima at ``w*`` (zeros for the clean methods).
      trusted: ``bool[n]``, rows whose total Hessian counts.
      removed: ``bool[n]``, or ``float[n]`` in [0, 1] once rows were removed in part.
      matrix: ``float[p, p]``, the sum of the Hessians of the rows not removed; ``()`` if
        matrix-free.
      gradient: like ``params``, the sum of the removed rows' gradients.
      diagnostics: of the last step.
      status: ``int32``, :class:`~jaxunlearn.Status` of the last step.
    """

    params: Params
    delta: Array
    trusted: Array
    removed: Array
    matrix: Any
    gradient: Params
    diagnostics: Diagnostics
    status: Array


def prepare(
    loss_fn: LossFn,
    params: Params,
    data: Dataset,
    delta: Array,
    *,
    ball: Ball,
    rule: Rule = Rule(),
    removed: Array | None = None,
    dense: bool = True,
    terms: int = 3,
    tolerance: float = 1e-8,
) -> Memory:
    """Stage I: the memory of a model at the optimum of its adversarial loss.

    Args:
      loss_fn: loss of one row, regularisation included.
      params: the optimum; all of it is unlearned, so pass what was trained (a last layer).
      data: all rows.
      delta: ``float[n, ...]``, their inner maxima, refined: see
        :func:`~jaxunlearn.primitives.adversarial.refine`.
      ball: where delta lies.
      rule: which method.
      removed: ``bool[n]``, rows that were not in the training.
      dense: keep the matrix; if not, every solve passes over the data.
      terms: of the Neumann series in ``mode="paper"``.
      tolerance: of the mean gradient; a larger one is warned of.

    Returns:
      A :class:`Memory`. Rows without a strict inner maximum count with their direct Hessian, are
      counted in ``diagnostics.fallback`` and warned of.

    Cost: 34 input gradients a row to check the maxima, and one :func:`total_matrix` if dense.
    Memory: ``p^2`` floats if dense, and ``delta``.

    Raises:
      ValueError: bad rows; a delta of another shape.

    Example:
      >>> data = Dataset(jnp.array([[1.0], [3.0]]), jnp.array([0, 0]))
      >>> loss_fn = lambda w, row: 0.5 * jnp.sum((w - row.x) ** 2)
      >>> from jaxunlearn.primitives.balls import L2Ball
      >>> delta = jnp.array([[-0.5], [0.5]])  # away from w, as far as the ball allows
      >>> memory = prepare(loss_fn, jnp.array([2.0]), data, delta, ball=L2Ball(0.5))
      >>> memory.matrix.tolist(), float(memory.diagnostics.optimality)
      ([[2.0]], 0.0)
    """
    _validate.rows(data)
    if delta.shape != data.x.shape:
        raise ValueError(f"delta has shape {delta.shape}, but must be that of data.x.")
    n = data.y.shape[0]
    removed = jnp.zeros(n, bool) if removed is None else removed
    _validate.forget_mask(removed, n, name="removed")
    kept = ~removed
    if rule.mode == "kkt":
        inner = inspect(loss_fn, params, data, delta, ball=ball, chunk=CHUNK)
        # Lanczos keeps 32 vectors like a row for each.
        curvature = inner_curvature(loss_fn, params, data, delta, ball=ball, chunk=CHUNK)
    else:
        inner = Inner(delta, jnp.zeros(n, delta.dtype), removed)
        curvature = jnp.full(n, jnp.inf, delta.dtype)
    trusted = (curvature > 0) & (inner.residual < WORST_RESIDUAL)
    gradient = gradient_sum(
        loss_fn, params, perturbed(data, delta), weights=kept, chunk=min(CHUNK, n)
    )
    size = jnp.stack([jnp.abs(g).max() for g in jax.tree.leaves(gradient)]).max()
    optimality = size / jnp.maximum(kept.sum(), 1)
    fallback = jnp.sum(kept & ~trusted).astype(jnp.int32)
    if _validate.known(fallback) and fallback:
        warnings.warn(
            f"{fallback} of {kept.sum()} rows have no strict inner maximum at their delta (largest "
            f"residual {inner.residual.max():.2g}, smallest curvature {curvature.min():.2g}): they "
            "count with their direct Hessian. Search longer, or refine.",
            stacklevel=2,
        )
    if _validate.known(optimality) and not optimality <= floor(tolerance, optimality):
        warnings.warn(
            f"params is no optimum: its mean gradient reaches {float(optimality):.2g}, above "
            f"tolerance={tolerance:.2g}. The step assumes one: train further.",
            stacklevel=2,
        )
    if rule.clean:
        delta = jnp.zeros_like(delta)
    matrix = ()
    if dense:
        how = {"ball": ball, "mode": rule.mode, "terms": terms}
        matrix = total_matrix(loss_fn, params, data, delta, trusted=trusted, weights=kept, **how)
    least = lambda v, worst: jnp.where(kept, v, worst)
    zero = jnp.zeros((), optimality.dtype)
    diagnostics = Diagnostics(
        optimality=optimality,
        inner_residual=least(inner.residual, 0.0).max(),
        # A finite number, as a record is to hold it.
        inner_curvature=jnp.minimum(
            least(curvature, jnp.inf).min(), jnp.finfo(curvature.dtype).max
        ),
        fallback=fallback,
        residual=zero,
        iterations=jnp.int32(0),
        curvature=zero + jnp.inf,
        decrease=zero,
        lost_class=jnp.array(False),
    )
    nothing = jax.tree.map(jnp.zeros_like, params)
    status = jnp.int32(Status.OK)
    return Memory(params, delta, trusted, removed, matrix, nothing, diagnostics, status)


def remove(
    loss_fn: LossFn,
    memory: Memory,
    data: Dataset,
    forget: Array,
    *,
    ball: Ball,
    rule: Rule = Rule(),
    solver: CG | Cholesky = Cholesky(),
    terms: int = 3,
) -> tuple[Params, Memory]:
    """Stages II and III: the parameters without the rows ``forget``, and the memory after.

    Eq. 11 to 13 of the paper. All terms are taken at the original parameters, so removing rows
    one by one, in any order, ends where removing them at once does.

    Guarantee: none. At an optimum with strict inner maxima the error is of second order in the
    number of rows.

    Args:
      loss_fn, ball, rule, terms: as given to :func:`prepare`.
      memory: from :func:`prepare` or the request before.
      data: all rows, those removed included.
      forget: ``bool[n]``, or ``float[n]`` in [0, 1] to remove rows in part; rows removed before
        are ignored.
      solver: of the linear system. A memory without a matrix asks for :class:`CG`.

    Returns:
      ``(params, memory)``. ``memory.status`` is INDEFINITE if the matrix is, as the paper's own
      often is, NOT_CONVERGED if CG stopped early; ``memory.diagnostics`` has the figures.

    Cost: the Hessians of the rows and ``p^3 / 3`` if dense; otherwise one pass over the remaining
    rows for each iteration. Differentiable in the parameters, ``forget`` (rows of weight 0
    excepted) and what the loss is made of.

    Raises:
      ValueError: a mask of another length; Cholesky without a matrix.

    Example:
      >>> data = Dataset(jnp.array([[1.0], [3.0]]), jnp.array([0, 0]))
      >>> loss_fn = lambda w, row: 0.5 * jnp.sum((w - row.x) ** 2)
      >>> from jaxunlearn.primitives.balls import L2Ball
      >>> delta, ball = jnp.array([[-0.5], [0.5]]), L2Ball(0.5)
      >>> memory = prepare(loss_fn, jnp.array([2.0]), data, delta, ball=ball)
      >>> forget = jnp.array([False, True])
      >>> remove(loss_fn, memory, data, forget, ball=ball)[0].tolist()  # 0.5 below the one left
      [0.5]
    """
    n = data.y.shape[0]
    if jnp.shape(forget) != (n,):
        raise ValueError(f"forget has shape {jnp.shape(forget)}, but must be ({n},).")
    forget = jnp.asarray(forget)
    if _validate.known(forget) and not ((forget >= 0) & (forget <= 1)).all():
        raise ValueError("forget must be a mask, or shares of rows within [0, 1].")
    if isinstance(memory.matrix, tuple) and not isinstance(solver, CG):
        raise ValueError(f"solver={solver!r} needs the matrix: prepare(dense=True), or give CG().")
    how = {"ball": ball, "mode": rule.mode, "terms": terms}
    asked = jnp.where(memory.removed > 0, 0, _validate.as_weights(forget))
    at, chunk = perturbed(data, memory.delta), min(CHUNK, n)
    b = gradient_sum(loss_fn, memory.params, at, weights=asked, chunk=chunk)
    b = tree.add_scaled(memory.gradient, 1, b)
    if isinstance(memory.matrix, tuple):
        answer = functools.partial(_by_products, loss_fn=loss_fn, solver=solver, **how)
        params, memory = answer(memory, data, forget, asked, b, rule.downdate)
    else:
        given = loss_fn, memory.params, data, memory.delta
        own = total_matrix(*given, weights=asked, trusted=memory.trusted, **how)
        given = memory, data, forget, asked, b, own, rule.downdate
        params, memory = _by_matrix(*given, solver=solver)
    lost = memory.diagnostics.lost_class
    if _validate.known(lost) and lost:
        warnings.warn(LOST_CLASS, stacklevel=2)
    return params, memory


@functools.partial(jax.jit, static_argnames="solver")
def _by_matrix(memory: Memory, data, forget, asked, b, own, downdate, *, solver):
    out = solve(memory.matrix - downdate * own, b, solver=solver)
    return _stepped(memory._replace(matrix=memory.matrix - own), data, forget, asked, b, out)


@functools.partial(jax.jit, static_argnames=("loss_fn", "ball", "mode", "solver", "terms"))
def _by_products(memory: Memory, data, forget, asked, b, downdate, *, loss_fn, solver, **how):
    kept = 1 - _validate.as_weights(memory.removed) - asked * downdate
    how |= {"weights": kept, "trusted": memory.trusted, "chunk": CHUNK}
    product = lambda v: total_product(loss_fn, memory.params, data, memory.delta, v, **how)
    return _stepped(memory, data, forget, asked, b, solve(product, b, solver=solver))


def _stepped(memory: Memory, data, forget, asked, b, out) -> tuple[Params, Memory]:
    """The parameters after the solve, and the memory for the next request."""
    whole = memory.removed.dtype == bool and forget.dtype == bool
    # A row removed in part remains in part.
    removed = memory.removed | forget if whole else memory.removed + asked
    decrease = jnp.sum(jnp.stack(jax.tree.leaves(jax.tree.map(jnp.vdot, b, out.x)))) / 2
    diagnostics = memory.diagnostics._replace(
        residual=out.residual,
        iterations=out.iterations,
        curvature=out.curvature.astype(out.residual.dtype),
        decrease=decrease.astype(out.residual.dtype),
        lost_class=_lost_class(data.y, memory.removed >= 1, removed >= 1),
    )
    memory = memory._replace(
        removed=removed, gradient=b, diagnostics=diagnostics, status=out.status
    )
    return tree.add_scaled(memory.params, 1, out.x), memory


def _lost_class(y, before, after) -> Array:
    # Whether a row now removed has no companion left: pairs of rows, without naming classes.
    if y.shape[0] > 2**13:  # by sorting, where pairs would be many
        order = jnp.argsort(y)
        alike = jnp.cumsum(jnp.diff(y[order], prepend=y[order][:1]) != 0)
        kept = jax.ops.segment_sum((~after)[order].astype(jnp.int32), alike, y.shape[0])
        return jnp.any((kept[alike] == 0) & (after & ~before)[order])
    kept = jnp.any((y[:, None] == y[None]) & ~after[None], 1)
    return jnp.any(after & ~before & ~kept)
