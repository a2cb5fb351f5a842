"""The search for the inner maximum of adversarial training, ``max { loss(w, x + delta) }``.

Attacks by gradient steps, and Newton's method on the ball, which ends where they only come near.
:mod:`jaxunlearn.primitives.inner` says whether a maximum was found, and
:mod:`jaxunlearn.primitives.linear` has it in closed form for linear models.

All functions take ``loss_fn(params, example) -> scalar`` for ONE unbatched row.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxunlearn import _validate
from jaxunlearn.primitives._rows import input_gradient, kkt, over_rows, residual
from jaxunlearn.primitives.balls import Ball, L2Ball, norm, tiny
from jaxunlearn.primitives.inner import Inner, inspected
from jaxunlearn.types import Array, Dataset, LossFn, Params


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
    return over_rows(_fgsm, (loss_fn, ball), params, data, chunk=chunk)


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
    return over_rows(_pgd, (loss_fn, ball, config), params, data, keys, chunk=chunk)


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
    # Numbers of steps are arguments, so that all share one program.
    counts = jnp.tile(jnp.array([steps, cg_steps], jnp.int32), (data.y.shape[0], 1))
    return over_rows(_refine, (loss_fn, ball), params, data, delta, counts, chunk=chunk)


def _fgsm(loss_fn, ball, params, row) -> Inner:
    g = input_gradient(loss_fn, params, row, jnp.zeros_like(row.x))
    return inspected(loss_fn, ball, params, row, ball.extreme(row.x, g))


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
    if config.refine:
        return _refine(loss_fn, ball, params, row, delta, jnp.array([config.refine, 50]))
    return inspected(loss_fn, ball, params, row, delta)


def _refine(loss_fn, ball, params, row, delta, counts) -> Inner:
    steps, cg_steps = counts
    value = lambda d: loss_fn(params, row._replace(x=row.x + d))
    gradient = lambda p, d: input_gradient(loss_fn, p, row, d)
    halves = 0.5 ** jnp.arange(6)

    def step(carry):
        delta, left, _ = carry
        g = gradient(params, delta)
        project, k = kkt(gradient, params, row, delta, ball)
        definite = lambda v, p=project, k=k: k(v) + v - p(v)  # 1 on what P removes
        newton = project(_steihaug(definite, project(g), cg_steps, ball.radius))
        ahead = ball.radius * g / (norm(g) + tiny(g))
        moves = [ball.retract(row.x, delta, t * newton) for t in halves]
        moves += [ball.project(row.x, delta + t * ahead) for t in (2.0, 0.5, 0.1, 0.01)]
        moves = jnp.stack([delta, *moves])
        tops = jax.vmap(value)(moves)
        best = jnp.argmax(tops)
        # Close to the maximum the loss no longer tells points apart, their residuals do.
        residuals = [residual(row.x, m, gradient(params, m), ball) for m in (delta, moves[1])]
        rounding = 20 * jnp.finfo(tops.dtype).eps * (1 + jnp.abs(tops[0]))
        closer = (residuals[1] < residuals[0]) & (tops[1] >= tops.max() - rounding)
        settled = tops.max() <= tops[0] + rounding
        kept = jnp.where(settled, delta, moves[best])
        delta = jnp.where(closer, moves[1], kept)
        return delta, left - 1, jnp.where(closer, residuals[1], jnp.inf)

    # Rows that have arrived wait for the others of their chunk, not for the last step.
    going = lambda carry: (carry[1] > 0) & (carry[2] > 10 * jnp.finfo(delta.dtype).eps)
    first = residual(row.x, delta, gradient(params, delta), ball)
    delta = jax.lax.while_loop(going, step, (delta, steps, first))[0]
    return inspected(loss_fn, ball, params, row, delta)


def _steihaug(k, g, steps: Array, radius: float) -> Array:
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
