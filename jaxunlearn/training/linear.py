"""Adversarial training of linear models to the optimum of their robust loss.

The robust loss is convex, and smooth but for kinks: at ``w_j = 0`` in a box; at ``w = 0`` in an L2
ball; and for ridge regression at every row whose score is in the middle between both ends of its
range, where either end is as bad. The optimum lies on kinks, so each kind has its treatment.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn import _validate
from jaxunlearn.primitives.balls import Ball, L2Ball, LInfBox, norm
from jaxunlearn.primitives.linear import check, middle_and_reach, signed, spread, worst
from jaxunlearn.primitives.solve import CG, conjugate_gradients
from jaxunlearn.types import Array, Dataset


class Optimum(NamedTuple):
    """Where adversarial training ends.

    Attributes:
      w: ``float[d]``.
      gradient: largest entry of the mean (sub-) gradient, or of a row's distance to the kink that
        it is held at; 0 at the optimum.
      steps: Newton steps taken.
      converged: ``bool``, whether ``gradient`` is within the tolerance, and there is an optimum.
      mix: ``float[n]``, which end of its scores is the worst of a row: 1 the highest, -1 the
        lowest. Strictly between them the row is at a kink, and its subgradient in the optimum
        is the mean of both ends' gradients with weights ``(1 + mix) / 2`` and ``(1 - mix) / 2``.
    """

    w: Array
    gradient: Array
    steps: Array
    converged: Array
    mix: Array


def minimise(
    data: Dataset,
    *,
    ball: Ball | None,
    loss: str = "logistic",
    l2: float,
    weights: Array | None = None,
    start: Array | Optimum | None = None,
    tolerance: float = 1e-10,
    steps: int = 200,
) -> Optimum:
    """Adversarial training to the optimum: minimises ``sum_i weights_i max_delta loss_i``.

    Newton's method; directions by conjugate gradients, each step halved until the loss falls.
    In a box, coordinates whose subgradient holds 0 stay at ``w_j = 0`` and the others move within
    their orthant (projected Newton). In an L2 ball ``w = 0`` is tried first; if it is not the
    optimum, Newton's method begins below it. The rows' kinks of ridge regression are the
    constraint ``z_i = x_i . w - y_i`` on the argument of ``(|z_i| + reach_i)^2 / 2``, with a
    multiplier (augmented Lagrangian): a soft threshold puts ``z_i = 0`` on the kinks, and the
    multiplier is the row's share of the subgradient.

    Args:
      data: rows with labels 0 and 1.
      ball: of the perturbations; None trains on clean rows.
      loss: ``logistic`` or ``ridge``.
      l2: regularisation of a row, > 0 for rows that can be separated.
      weights: ``bool`` or ``float[n]``; rows of weight 0 have no influence.
      start: where to begin, for a warm start: ``w``, or an optimum with its kinks.
      tolerance: on the mean gradient; not below ``30 eps`` of the dtype.
      steps: Newton steps at most.

    Returns:
      An :class:`Optimum`; ``converged`` is False if the steps ran out, and where no optimum
      exists: logistic regression with ``l2 = 0`` on rows that the ball leaves separable.

    Cost: a step is a dozen or more products with the rows, O(n d) each.

    Raises:
      ValueError: bad rows, labels, weights, ball or start; ``l2 < 0``; half precision or integers.

    Example:
      >>> data = Dataset(jnp.array([[-1.0], [1.0], [0.5]]), jnp.array([0, 1, 0]))
      >>> out = minimise(data, ball=L2Ball(0.1), l2=0.1, tolerance=1e-6)
      >>> bool(out.converged), bool(out.w[0] > 0)
      (True, True)
    """
    _validate.dataset(data, num_classes=2)
    _validate.not_negative(l2=l2, tolerance=tolerance)
    _validate.whole(steps=steps)
    if data.x.dtype not in (jnp.float32, jnp.float64):
        raise ValueError(f"data.x has dtype {data.x.dtype}: convert it to float32 or float64.")
    n = data.y.shape[0]
    if weights is None:
        weights = jnp.ones(n, data.x.dtype)
    _validate.row_weights(weights, n)
    weights = jnp.asarray(weights, data.x.dtype)
    mix = jnp.zeros(n, data.x.dtype)
    if isinstance(start, Optimum):
        if start.mix.shape != (n,):
            raise ValueError(f"start is the optimum of {start.mix.size} rows, and data has {n}.")
        start, mix = start.w, start.mix
    if start is None:
        start = jnp.zeros(math.prod(data.x.shape[1:]), data.x.dtype)
    check(start, data, ball=ball, loss=loss)
    tolerance = max(tolerance, 30 * float(jnp.finfo(data.x.dtype).eps))
    how = {"ball": ball, "loss": loss, "tolerance": tolerance, "most": steps}
    return _minimise(data, weights, start, mix, l2, **how)


class _Point(NamedTuple):
    """An iterate: the subgradient ``g``, the orthant ``side`` that it points into, multipliers."""

    w: Array
    g: Array
    side: Array
    multipliers: Array
    stiffness: Array  # of the constraints: grows with every change of the multipliers
    size: Array  # of g
    gap: Array  # the largest |x_i . w - y_i - z_i|


@functools.partial(jax.jit, static_argnames=("ball", "loss", "tolerance", "most"))
def _minimise(data, weights, start, mix, l2, *, ball, loss, tolerance, most) -> Optimum:
    y, (x, half) = signed(data, start.dtype), spread(data, ball)
    share = weights / weights.sum()
    eps = float(jnp.finfo(start.dtype).eps)
    box, kinks = isinstance(ball, LInfBox), loss == "ridge" and ball is not None
    scores = lambda w, side: middle_and_reach(w, side, x, half, ball)

    def released(middle, reach, multipliers, stiffness):
        """z: the middle's distance from y where the row's loss, thus stretched, is smallest."""
        shifted = stiffness * (middle - y) + multipliers
        soft = jnp.sign(shifted) * jnp.maximum(jnp.abs(shifted) - reach, 0.0)
        return soft / (1 + stiffness)

    def objective(w, side, multipliers, stiffness):
        middle, reach = scores(w, side)
        rows = worst(loss, middle, reach, y)
        if kinks:
            z = released(middle, reach, multipliers, stiffness)
            apart = middle - y - z
            rows = (jnp.abs(z) + reach) ** 2 / 2 + multipliers * apart + stiffness * apart**2 / 2
        return share @ rows + l2 / 2 * (w @ w)

    gradient = jax.grad(objective)

    def gap(w, side, multipliers, stiffness):
        if not kinks:
            return jnp.zeros((), w.dtype), multipliers
        middle, reach = scores(w, side)
        apart = middle - y - released(middle, reach, multipliers, stiffness)
        return jnp.max(jnp.abs(apart) * (share > 0)), multipliers + stiffness * apart

    def at(w, multipliers, stiffness) -> _Point:
        """The smallest subgradient at w."""
        sign = jnp.sign(w)
        if box:
            turn = lambda s: gradient(w, jnp.where(w == 0, s, sign), multipliers, stiffness)
            right, left = turn(1.0), turn(-1.0)
            at_zero = jnp.where(right < 0, right, jnp.where(left > 0, left, 0.0))
            g = jnp.where(w == 0, at_zero, right)
            sign = jnp.where(w == 0, -jnp.sign(g), sign)
        else:
            g = gradient(w, sign, multipliers, stiffness)
        apart, _ = gap(w, sign, multipliers, stiffness)
        return _Point(w, g, sign, multipliers, stiffness, jnp.abs(g).max(), apart)

    def newton(point: _Point) -> Array:
        w, g, side, multipliers, stiffness, *_ = point
        free = (side != 0).astype(w.dtype) if box else jnp.ones_like(w)
        bend = jax.linearize(lambda w: gradient(w, side, multipliers, stiffness), w)[1]

        def hessian(v):
            # Ridge regression in a box has no curvature where all rows agree: a trace of it.
            return free * (bend(free * v) + 1e-12 * v) + (1 - free) * v

        solver = CG(tol=1e-3, maxiter=60)
        move = -conjugate_gradients(hessian, free * g, solver=solver).x

        def trial(t):
            to = w + t * move
            return jnp.where(jnp.sign(to) == side, to, 0.0) if box else to

        value = lambda w: objective(w, side, multipliers, stiffness)
        here = value(w)

        def worse(t):
            to = trial(t)
            gain = 1e-4 * g @ (to - w)
            return (value(to) > here + gain + 4 * eps * jnp.abs(here)) & (t > 1e-9)

        return trial(jax.lax.while_loop(worse, lambda t: t / 2, jnp.ones((), w.dtype)))

    def step(carry):
        point, count = carry
        point = at(newton(point), *point[3:5])
        if not kinks:
            return point, count + 1
        # Close enough for these multipliers: on to the next, and to stiffer constraints.
        done = point.size <= jnp.maximum(tolerance / 2, 1e-2 * point.gap)
        fresh = gap(point.w, point.side, *point[3:5])[1]
        stiff = jnp.minimum(10 * point.stiffness, eps**-0.3)  # stiffer ones would round
        onward = lambda: at(point.w, fresh, stiff)
        return jax.lax.cond(done, onward, lambda: point), count + 1

    def going(carry):
        point, count = carry
        return (jnp.maximum(point.size, point.gap) > tolerance) & (count < most)

    stiffness, still = jnp.full((), 100.0, start.dtype), jnp.array(False)
    if isinstance(ball, L2Ball):
        # The norm's kink at 0 holds the optimum if 0 is a subgradient there. If not, it catches
        # Newton's method all the same, unless that begins below it.
        slope = share * (y / 2 if loss == "logistic" else y)
        away = slope @ x
        still = norm(away) <= ball.radius * jnp.abs(slope).sum()
        value = lambda w: objective(w, w, 0 * y, stiffness)
        high = value(0 * start)
        too_far = lambda t: (value(t * away) >= high) & (t > eps)
        t = jax.lax.while_loop(too_far, lambda t: t / 2, jnp.ones((), start.dtype))
        start = jnp.where(value(start) < high, start, t * away)
    middle, reach = scores(start, jnp.sign(start))
    first = at(start, mix * (jnp.abs(middle - y) + reach) * kinks, stiffness)
    zero = jax.tree.map(jnp.zeros_like, first)
    first = jax.tree.map(lambda a, b: jnp.where(still, a, b), zero, first)
    (w, _, side, multipliers, stiffness, size, apart), count = jax.lax.while_loop(
        going, step, (first, jnp.int32(0))
    )
    middle, reach = scores(w, side)
    mix = -y
    if kinks:
        z = released(middle, reach, multipliers, stiffness)
        _, held = gap(w, side, multipliers, stiffness)
        inside = jnp.clip(held / jnp.where(reach > 0, reach, 1.0), -1.0, 1.0)
        mix = jnp.where(z == 0, inside, jnp.sign(z))
    residual = jnp.maximum(size, apart)
    converged = residual <= tolerance
    if loss == "logistic":
        # Weights that separate all rows lose less the longer they are, down to no gradient at all.
        separated = jnp.all((y * middle > reach) | (share == 0))
        converged &= (l2 > 0) | ~separated
    return Optimum(w, residual, count, converged, mix)
