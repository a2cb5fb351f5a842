"""A linear model's robust loss around its optimum: what the rows do there, and the kinks.

The robust loss has kinks and its optimum lies on them: in a box wherever ``w_j = 0`` (the box acts
like an L1 penalty), and for ridge regression at rows whose two ends of the ball are equally bad.
There the perturbation is no function of ``w`` and the total Hessian does not exist. What exists is
the loss around the optimum, a quadratic and some absolute values,

    -sum_F g_i . dw + dw . M dw / 2 + sum_k force_k |at_k + normal_k . dw|

and its minimum is the step: kinks hold it where their force suffices, and let go where not. With
no kinks near it is Eq. 10, ``dw = M^-1 sum_F g_i``. Kinks at which the optimum is not, but near,
are *watched*: a removal may end on them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.primitives import linear
from jaxunlearn.primitives.balls import Ball, norm
from jaxunlearn.primitives.bounded import bounded_quadratic
from jaxunlearn.types import Array, Dataset


class Kinks(NamedTuple):
    """Absolute values in the loss, ``force |at + normal . dw|``.

    Attributes:
      normals: ``float[k, s]``: a coordinate's unit vector, or a row.
      at: ``float[k]``, the argument at the original parameters, 0 on the kink.
      force: ``float[k]``, of the rows not removed.
      side: ``float[k]`` in [-1, 1], the slope that the rows' gradients are taken with.
      slack: ``float[k]``, force that the optimum leaves unused there.
      numbers: ``int[k]``, the row's number; -1 for a coordinate.
    """

    normals: Array
    at: Array
    force: Array
    side: Array
    slack: Array
    numbers: Array


class Around(NamedTuple):
    """What rows do around ``w``, on the support.

    Attributes:
      pieces: their Hessians and gradients.
      strength: ``float[n]``, the slope of the loss at the worst end.
      x: ``float[n, s]``, the rows, or the middles of their boxes.
      middle, reach: ``float[n]``, of the scores, the middle counted from the label.
      half: ``float[n, s]``, half the width of their boxes; None for a ball.
    """

    pieces: linear.Pieces
    strength: Array
    x: Array
    middle: Array
    reach: Array
    half: Any


def around(
    w: Array,
    side: Array,
    data: Dataset,
    support: Array,
    *,
    ball: Ball,
    loss: str,
    l2: float,
    mix: Array,
) -> Around:
    """What rows do around ``w``, in the orthant ``side`` and at the end ``mix`` of their scores.

    At ``mix = 1`` and ``-1`` these are the closed forms of ``mode="kkt"`` in
    :mod:`jaxunlearn.primitives.linear`; between them, those of a row at its kink.

    Example:
      >>> from jaxunlearn.primitives.balls import L2Ball
      >>> data, w = Dataset(jnp.array([[1.0, 1.0]]), jnp.array([0])), jnp.array([3.0, -4.0])
      >>> how = {"ball": L2Ball(1.0), "loss": "logistic", "l2": 0.0, "mix": jnp.array([1.0])}
      >>> rows = around(w, jnp.sign(w), data, jnp.arange(2), **how)
      >>> [f"{x:.1f}" for x in rows.pieces.x[0]]  # the row, and a step of length 1 along w
      ['1.6', '0.2']
    """
    y, (x, half) = linear.signed(data, w.dtype), linear.spread(data, ball)
    middle, reach = linear.middle_and_reach(w, jnp.sign(w), x, half, ball)
    if loss == "ridge":
        strength, bend = jnp.abs(middle - y) + reach, jnp.ones_like(reach)
    else:
        strength = jax.nn.sigmoid(reach - y * middle)
        bend = strength * (1 - strength)
    x, w, none = x[:, support], w[support], jnp.zeros_like(reach)
    if half is None:
        length = jnp.maximum(norm(w), jnp.finfo(w.dtype).tiny)
        turn = strength * ball.radius / length
        grown = ball.radius * w[None] / length
    else:
        half, turn = half[:, support], none
        grown = half * side[support][None]
    square = jnp.maximum(w @ w, jnp.finfo(w.dtype).tiny)
    end = mix[:, None] * x + grown
    gradient = strength[:, None] * end + l2 * w[None]
    pieces = linear.Pieces(w, end, bend, none, turn + l2, -turn / square, gradient)
    return Around(pieces, strength, x, middle - y, reach, half)


def at_zeros(w: Array, gradient: Array, force: Array, watch: int) -> tuple[Array, Array, Kinks]:
    """The kinks of a box at ``w_j = 0``: those of weights that are not 0, and those nearest to go.

    Args:
      w: ``float[d]``, the optimum.
      gradient, force: ``float[d]``, of the rows, and of their boxes at ``w_j = 0``.
      watch: weights of 0 that may move.

    Returns:
      ``(support, side, kinks)``: the weights that may move, and the orthant of all.

    Example:
      >>> w, gradient = jnp.array([2.0, 0.0, 0.0]), jnp.array([0.0, 0.1, 0.5])
      >>> support, side, kinks = at_zeros(w, gradient, jnp.ones(3), 1)
      >>> support.tolist(), side.tolist(), kinks.slack.tolist()
      ([0, 2], [1.0, -1.0, -1.0], [0.0, -0.5])
    """
    side = jnp.sign(w)
    # How much of its force the kink needs, and in which direction.
    share = -gradient / jnp.maximum(force, jnp.finfo(w.dtype).tiny)
    share = jnp.where(side == 0, jnp.clip(share, -1, 1), side)
    order = jnp.argsort(-jnp.abs(share), stable=True)
    support = jnp.sort(order[: jnp.sum(side != 0) + watch])
    side = jnp.where(side == 0, jnp.sign(share), side)
    slack = force * (side - share)
    some = w[support], force[support], side[support], slack[support]
    unit = jnp.eye(support.size, dtype=w.dtype)
    return support, side, Kinks(unit, *some, numbers=jnp.full(support.size, -1))


def at_rows(rows: Around, mix: Array, weights: Array, watch: int) -> Kinks:
    """The kinks of ridge regression at rows: those that the optimum is at, and those nearest.

    Args:
      rows: all, around the optimum.
      mix, weights: ``float[n]``, of the optimum and of the rows.
      watch: rows that the optimum is not at.

    Example:
      >>> from jaxunlearn.primitives.balls import L2Ball
      >>> data, w = Dataset(jnp.array([[1.0], [3.0]]), jnp.array([1, 1])), jnp.array([1.0])
      >>> how = {"ball": L2Ball(0.5), "loss": "ridge", "l2": 0.0}
      >>> mix = jnp.array([0.0, 1.0])
      >>> rows = around(w, jnp.sign(w), data, jnp.arange(1), mix=mix, **how)
      >>> at_rows(rows, mix, jnp.ones(2), 0).numbers.tolist()
      [0]
    """
    far = jnp.where(weights > 0, jnp.abs(rows.middle), jnp.inf)
    there = jnp.abs(mix) < 1
    numbers = jnp.argsort(far, stable=True)[: jnp.sum(there & (weights > 0)) + watch]
    some = jnp.where(there, 0.0, rows.middle), weights * rows.reach, mix, jnp.zeros_like(mix)
    return Kinks(rows.x[numbers], *(leaf[numbers] for leaf in some), numbers=numbers)


def held(
    kinks: Kinks, inverse: Callable[[Array], Array], gradient: Array
) -> tuple[Array, Array, Array]:
    """The minimum of the quadratic with kinks.

    Its dual is over the pulls ``p`` of the kinks, ``|p| <= force``: ``dw = M^-1 (b - N^T p)``, and
    ``at + N dw = h - G p`` is 0 where they hold.

    Args:
      kinks: those watched.
      inverse: ``M^-1`` of a vector or of columns.
      gradient: ``float[s]``, the sum over the rows to forget.

    Returns:
      ``(move, moved, settled)``: the step, how many kinks it left or met, and whether the search
      for them ended.

    Example:
      >>> one, zero = jnp.ones(1), jnp.zeros(1)
      >>> kink = Kinks(jnp.eye(1), zero, one, zero, zero, jnp.array([-1]))
      >>> [float(held(kink, lambda b: b, g)[0][0]) for g in (0.5 * one, 3.0 * one)]
      [0.0, 2.0]
    """
    n, force = kinks.normals, kinks.force
    if not n.shape[0]:
        return inverse(gradient), jnp.int32(0), jnp.array(True)
    bent = inverse(n.T)
    before = force * kinks.side - kinks.slack
    b = gradient + before @ n
    free = kinks.at + bent.T @ b  # the arguments, if nothing pulled
    pulls = bounded_quadratic(n @ bent, free, force, start=before)
    moved = jnp.sum((pulls.free != (kinks.at == 0)) & (force > 0))
    rounding = jnp.finfo(free.dtype).eps ** 0.4 * jnp.abs(free).max()
    return inverse(b - pulls.x @ n), moved.astype(jnp.int32), pulls.residual <= rounding
