"""The inner maximum of adversarial training: where it lies, and how it follows the parameters.

    delta(w) = argmax { loss(w, x + delta) : delta in the ball }

It lies on the boundary of the ball almost always, so its derivative is that of a constrained
maximum (the KKT conditions), not ``-d_dd^-1 d_dw``. :func:`follow` gives ``delta`` that
derivative: then ``jax.jvp`` of the gradient at ``x + delta(w)`` is the total Hessian product.

All functions take ``loss_fn(params, example) -> scalar`` for ONE unbatched row.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn import _sharding, _validate
from jaxunlearn.primitives.balls import Ball, L2Ball, norm, tiny
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


@dataclasses.dataclass(frozen=True)
class PGDConfig:
    """How to search for the inner maximum.

    Attributes:
      steps: projected gradient steps.
      step_size: length of a step; ``2.5 radius / steps`` if None.
      restarts: searches from other random points; the best row by row is kept.
      random_start: begin at a random point of the ball, not at 0.
      refine: Newton steps on the boundary afterwards, see :func:`refine`.
    """

    steps: int = 15
    step_size: float | None = None
    restarts: int = 1
    random_start: bool = True
    refine: int = 0

    def __post_init__(self):
        _validate.whole(steps=self.steps, restarts=self.restarts)
        _validate.whole(0, refine=self.refine)
        if self.step_size is not None:
            _validate.positive(step_size=self.step_size)


def inspect(
    loss_fn: LossFn, params: Params, data: Dataset, delta: Array, *, ball: Ball, chunk: int = 256
) -> Inner:
    """Perturbations found elsewhere as an :class:`Inner`: residual and active constraints.

    Cost: n input gradients.

    Example:
      >>> data = Dataset(jnp.array([[1.0, 0.0]]), jnp.array([1]))
      >>> loss_fn = lambda w, row: -w @ row.x
      >>> w, ball = jnp.array([0.0, 2.0]), L2Ball(0.5)
      >>> found = inspect(loss_fn, w, data, jnp.array([[0.0, 0.5]]), ball=ball)
      >>> found.residual.round(3).tolist()  # the gradient points the other way
      [1.0]
    """
    return _over_rows(_inner, (loss_fn, ball), params, data, delta, chunk=chunk)


def fgsm(loss_fn: LossFn, params: Params, data: Dataset, *, ball: Ball, chunk: int = 256) -> Inner:
    """The fast gradient method: the point of the ball farthest along the gradient at ``x``.

    Goodfellow et al. (2015), Explaining and harnessing adversarial examples. For a linear model
    it is the maximum itself.

    Args:
      loss_fn: loss of one row.
      params: any pytree of floats.
      data: rows.
      ball: where delta may lie.
      chunk: rows computed at once.

    Cost: 2 n input gradients, one of them for the residual.

    Raises:
      ValueError: bad rows.

    Example:
      >>> data = Dataset(jnp.array([[0.5, 0.5]]), jnp.array([1]))
      >>> loss_fn = lambda w, row: -w @ row.x
      >>> from jaxunlearn.primitives.balls import LInfBox
      >>> fgsm(loss_fn, jnp.array([3.0, -4.0]), data, ball=LInfBox(0.25)).delta.tolist()
      [[-0.25, 0.25]]
    """
    return _over_rows(_fgsm, (loss_fn, ball), params, data, chunk=chunk)


def pgd(
    key: Array,
    loss_fn: LossFn,
    params: Params,
    data: Dataset,
    *,
    ball: Ball,
    config: PGDConfig = PGDConfig(),
    chunk: int = 256,
) -> Inner:
    """Projected gradient ascent on the loss of every row, Madry et al. (2018).

    Steps of fixed length along ``g / |g|`` in an L2 ball and along ``sign(g)`` in a box; of all
    points visited and all restarts the one of largest loss is kept. A local maximum: nothing
    tells whether there is a better one, more restarts may.

    Args:
      key: ``jax.random.key`` of the random starts.
      loss_fn: loss of one row.
      params: any pytree of floats.
      data: rows.
      ball: where delta may lie.
      config: steps, restarts, and Newton steps to end with.
      chunk: rows computed at once.

    Cost: ``restarts (steps + 1)`` input gradients a row, and those of :func:`refine`.

    Raises:
      ValueError: bad rows.

    Example:
      >>> data = Dataset(jnp.array([[0.5, 0.5]]), jnp.array([1]))
      >>> loss_fn = lambda w, row: -w @ row.x
      >>> inner = pgd(jax.random.key(0), loss_fn, jnp.array([3.0, -4.0]), data, ball=L2Ball(1.0))
      >>> bool(inner.residual[0] < 0.05)
      True
    """
    keys = jax.random.split(key, data.y.shape[0])
    return _over_rows(_pgd, (loss_fn, ball, config), params, data, keys, chunk=chunk)


def refine(
    loss_fn: LossFn,
    params: Params,
    data: Dataset,
    delta: Array,
    *,
    ball: Ball,
    steps: int = 5,
    cg_steps: int = 50,
    chunk: int = 256,
) -> Inner:
    """Newton's method on the ball from perturbations that an attack found.

    Each step solves ``P (nu I - A) P s = P g`` by conjugate gradients, with g and A the gradient
    and the Hessian in delta, P the projection onto the tangent (the free coordinates of a box)
    and nu the multiplier; where it meets negative curvature it takes that direction. Of the
    step, its fractions, and plain gradient steps the one of largest loss is kept, so the loss
    never falls. PGD leaves residuals of a tenth; a few of these steps leave rounding.

    Args:
      loss_fn: loss of one row, twice differentiable at the maximum: no ReLU kinks.
      params: any pytree of floats.
      data: rows.
      delta: ``float[n, ...]``, in the ball.
      ball: where delta may lie.
      steps: Newton steps.
      cg_steps: products for each.
      chunk: rows computed at once.

    Cost: ``steps (2 cg_steps + 20)`` input gradients a row, at most.

    Example:
      >>> data = Dataset(jnp.array([[1.0, 0.2]]), jnp.array([0]))
      >>> loss_fn = lambda w, row: jnp.sum(jnp.sin(w * row.x))
      >>> w, ball = jnp.array([1.0, 2.0]), L2Ball(0.3)
      >>> rough = pgd(jax.random.key(0), loss_fn, w, data, ball=ball)
      >>> fine = refine(loss_fn, w, data, rough.delta, ball=ball)
      >>> bool(fine.residual[0] < 1e-5)
      True
    """
    _validate.whole(steps=steps, cg_steps=cg_steps)
    static = (loss_fn, ball, steps, cg_steps)
    return _over_rows(_refine, static, params, data, delta, chunk=chunk)


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
    maximum, and infinite where no direction is free. By Lanczos' method, exact when the input
    has at most ``steps`` entries, otherwise an upper bound that a few more steps tighten.

    Cost: ``2 steps`` input gradients a row.

    Example:
      >>> data = Dataset(jnp.array([[0.0, 0.0]]), jnp.array([0]))
      >>> loss_fn = lambda w, row: w @ row.x
      >>> w, ball = jnp.array([3.0, 4.0]), L2Ball(0.5)
      >>> delta = fgsm(loss_fn, w, data, ball=ball).delta
      >>> inner_curvature(loss_fn, w, data, delta, ball=ball).round(3).tolist()  # |g| / r
      [10.0]
    """
    return _over_rows(_least_curvature, (loss_fn, ball, steps), params, data, delta, chunk=chunk)


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
    parameters and ``K = P (nu I - A) P`` (see :func:`refine`). The row itself counts as
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
    gradient = lambda p, d: _input_gradient(loss_fn, p, row, d)
    _, moved = jax.jvp(lambda p: gradient(p, delta), (params,), (tangents[0],))
    project, k = _kkt(gradient, params, row, delta, ball)
    # K is the identity on what P removes, so that the system is definite wherever K is on P.
    system = lambda v: k(v) + v - project(v)
    rhs = jnp.where(trusted, project(moved), 0.0)
    step = project(conjugate_gradients(system, rhs, solver=solver).x)
    return delta, jnp.where(trusted, step, 0.0)


def _kkt(gradient, params, row, delta, ball):
    """P and K of one row, as functions on delta-shaped arrays."""
    g = gradient(params, delta)
    project, nu = ball.tangent(row.x, delta, g)

    def k(v):
        v = project(v)
        bend = jax.jvp(lambda d: gradient(params, d), (delta,), (v,))[1]
        return project(nu * v - bend)

    return project, k


def _input_gradient(loss_fn, params, row, delta) -> Array:
    return jax.grad(lambda d: loss_fn(params, row._replace(x=row.x + d)))(delta)


def _residual(x, delta, g, ball) -> Array:
    # The gradient of a saturated loss is rounding, and no direction.
    scale = ball.radius / (norm(g) + 10 * jnp.finfo(g.dtype).eps)
    return norm(ball.project(x, delta + scale * g) - delta) / ball.radius


def _inner(loss_fn, ball, params, row, delta) -> Inner:
    g = _input_gradient(loss_fn, params, row, delta)
    return Inner(delta, _residual(row.x, delta, g, ball), ball.active(row.x, delta))


def _fgsm(loss_fn, ball, params, row) -> Inner:
    g = _input_gradient(loss_fn, params, row, jnp.zeros_like(row.x))
    return _inner(loss_fn, ball, params, row, ball.extreme(row.x, g))


def _pgd(loss_fn, ball, config: PGDConfig, params, row, key) -> Inner:
    value = lambda d: loss_fn(params, row._replace(x=row.x + d))
    size = 2.5 * ball.radius / config.steps if config.step_size is None else config.step_size

    def ascend(carry, _):
        delta, best, top = carry
        g = jax.grad(value)(delta)
        g = g / jnp.maximum(norm(g), tiny(g)) if isinstance(ball, L2Ball) else jnp.sign(g)
        delta = ball.project(row.x, delta + jnp.asarray(size, g.dtype) * g)
        now = value(delta)
        return (delta, jnp.where(now > top, delta, best), jnp.maximum(now, top)), None

    def search(key):
        start = ball.draw(key, row.x) if config.random_start else jnp.zeros_like(row.x)
        (_, best, top), _ = jax.lax.scan(ascend, (start, start, value(start)), length=config.steps)
        return best, top

    found, tops = jax.lax.map(search, jax.random.split(key, config.restarts))
    delta = found[jnp.argmax(tops)]
    return _refine(loss_fn, ball, config.refine, 50, params, row, delta)


def _refine(loss_fn, ball, steps: int, cg_steps: int, params, row, delta) -> Inner:
    if steps:
        delta = _refined(loss_fn, params, row, delta, ball, steps, cg_steps)
    return _inner(loss_fn, ball, params, row, delta)


def _refined(loss_fn, params, row, delta, ball, steps: int, cg_steps: int) -> Array:
    value = lambda d: loss_fn(params, row._replace(x=row.x + d))
    gradient = lambda p, d: _input_gradient(loss_fn, p, row, d)
    halves = 0.5 ** jnp.arange(6)

    def step(carry):
        delta, left, _ = carry
        g = gradient(params, delta)
        project, k = _kkt(gradient, params, row, delta, ball)
        definite = lambda v, p=project, k=k: k(v) + v - p(v)  # 1 on what P removes
        newton = project(_steihaug(definite, project(g), cg_steps, ball.radius))
        ahead = ball.radius * g / (norm(g) + tiny(g))
        moves = [ball.retract(row.x, delta, t * newton) for t in halves]
        moves += [ball.project(row.x, delta + t * ahead) for t in (2.0, 0.5, 0.1, 0.01)]
        moves = jnp.stack([delta, *moves])
        tops = jax.vmap(value)(moves)
        best = jnp.argmax(tops)
        # Close to the maximum the loss no longer tells points apart, their residuals do.
        residuals = [_residual(row.x, m, gradient(params, m), ball) for m in (delta, moves[1])]
        rounding = 20 * jnp.finfo(tops.dtype).eps * (1 + jnp.abs(tops[0]))
        closer = (residuals[1] < residuals[0]) & (tops[1] >= tops.max() - rounding)
        settled = tops.max() <= tops[0] + rounding
        kept = jnp.where(settled, delta, moves[best])
        delta = jnp.where(closer, moves[1], kept)
        return delta, left - 1, jnp.where(closer, residuals[1], jnp.inf)

    # Rows that have arrived wait for the others of their chunk, not for the last step.
    going = lambda carry: (carry[1] > 0) & (carry[2] > 10 * jnp.finfo(delta.dtype).eps)
    first = _residual(row.x, delta, gradient(params, delta), ball)
    return jax.lax.while_loop(going, step, (delta, jnp.int32(steps), first))[0]


def _steihaug(k, g, steps: int, radius: float) -> Array:
    """``K s = g`` by conjugate gradients; along the first direction of negative curvature."""

    def going(carry):
        _, r, _, i, done = carry
        return (i < steps) & ~done & (norm(r) > 1e-9 * norm(g))

    def step(carry):
        s, r, p, i, _ = carry
        image = k(p)
        bend, square = jnp.vdot(p, image), jnp.vdot(r, r)
        fine = bend > 1e-12 * jnp.vdot(p, p)
        alpha = jnp.where(fine, square / jnp.where(fine, bend, 1.0), 0.0)
        ascent = p * jnp.where(jnp.vdot(p, g) < 0, -1.0, 1.0)
        away = radius * ascent / jnp.maximum(norm(p), tiny(p))
        # With the system all but solved, a curvature of 0 is that of a rounding.
        turn = ~fine & (norm(r) > 1e-5 * norm(g))
        s = jnp.where(turn, away, s + alpha * p)
        new = r - alpha * image
        p = new + jnp.vdot(new, new) / jnp.maximum(square, tiny(g)) * p
        return s, new, p, i + 1, ~fine

    start = (jnp.zeros_like(g), g, g, jnp.int32(0), jnp.array(False))
    return jax.lax.while_loop(going, step, start)[0]


def _least_curvature(loss_fn, ball, steps: int, params, row, delta) -> Array:
    gradient = lambda p, d: _input_gradient(loss_fn, p, row, d)
    project, k = _kkt(gradient, params, row, delta, ball)
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
    least = jnp.linalg.eigvalsh(jnp.where(jnp.isfinite(small), small, 0.0))[0]
    return jnp.where(free, least, jnp.inf)


def _over_rows(one: Callable, static: tuple, params: Params, data: Dataset, *rest, chunk: int):
    """``one(*static, params, row, ...)`` over all rows, ``chunk`` at a time."""
    data = _sharding.automatic(data)
    _validate.rows(data)
    _validate.whole(chunk=chunk)
    return _compiled(params, data, rest, one=one, static=static, chunk=min(chunk, data.y.shape[0]))


@functools.partial(jax.jit, static_argnames=("one", "static", "chunk"))
def _compiled(params, data, rest, *, one, static, chunk):
    return jax.lax.map(lambda a: one(*static, params, *a), (data, *rest), batch_size=chunk)
