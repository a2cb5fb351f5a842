"""Adversarially trained linear models with one score: closed forms instead of an attack.

The loss of a row is a convex function of its score ``w . x``. Over a ball the score runs through
an interval, so the worst perturbation lies at one of two ends and needs no search, and every
Hessian that a paper proposes has the shape

    H_i = a x x^T + b (x w^T + w x^T) + c I + e w w^T,        x the perturbed row.

Labels are 0 and 1, or -1 and +1 inside. ``l2`` is the paper's: ``l2 / 2 |w|^2`` a row.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _validate
from jaxunlearn.primitives.adversarial import Inner
from jaxunlearn.primitives.balls import Ball, L2Ball, LInfBox, norm
from jaxunlearn.primitives.solve import CG, conjugate_gradients
from jaxunlearn.types import Array, Dataset

LOSSES = ("logistic", "ridge")
MODES = ("kkt", "direct", "fisher", "paper", "code")


def _value(loss: str, s: Array, y: Array) -> Array:
    return jax.nn.softplus(-y * s) if loss == "logistic" else 0.5 * (s - y) ** 2


def _slope(loss: str, s: Array, y: Array) -> Array:
    return -y * jax.nn.sigmoid(-y * s) if loss == "logistic" else s - y


def _bend(loss: str, s: Array, y: Array) -> Array:
    if loss == "ridge":
        return jnp.ones_like(s)
    return jax.nn.sigmoid(s) * jax.nn.sigmoid(-s)


def _signed(data: Dataset, dtype) -> Array:
    return 2 * jnp.asarray(data.y, dtype) - 1


def maximum(w: Array, data: Dataset, *, ball: Ball, loss: str = "logistic") -> Inner:
    """The worst perturbation of every row, in closed form.

    ``delta = t r w / |w|`` in an L2 ball, the corner on the side of ``t w`` in a box, with
    ``t = +1`` or ``-1`` whichever raises the loss more. Where ``w_j = 0`` in a box any value is
    worst; 0 is given.

    Args:
      w: ``float[d]``.
      data: ``x: float[n, d]``, ``y: int[n]`` in {0, 1}.
      ball: where the perturbation may lie.
      loss: ``logistic`` or ``ridge`` (least squares to -1 and +1).

    Returns:
      An :class:`Inner` of residual 0.

    Cost: two scores a row.

    Raises:
      ValueError: shapes that do not match, labels beyond 0 and 1, an unknown loss.

    Example:
      >>> data = Dataset(jnp.array([[1.0, 1.0]]), jnp.array([1]))
      >>> maximum(jnp.array([3.0, -4.0]), data, ball=L2Ball(1.0)).delta.tolist()
      [[-0.6000000238418579, 0.800000011920929]]
    """
    _checked(w, data, loss)
    y = _signed(data, w.dtype)
    each = jax.vmap(ball.extreme, in_axes=(0, None))
    ends = each(data.x, -w), each(data.x, w)
    low, high = (_value(loss, (data.x + end) @ w, y) for end in ends)
    delta = jnp.where((high > low)[:, None], ends[1], ends[0])
    active = jax.vmap(ball.active)(data.x, delta)
    return Inner(delta, jnp.zeros(delta.shape[0], delta.dtype), active)


def losses(
    w: Array, data: Dataset, *, ball: Ball | None, loss: str = "logistic", l2: float = 0.0
) -> Array:
    """The loss of every row under its worst perturbation, ``float[n]``; clean if no ball.

    Its second derivative, where it has one, is the total Hessian: that of the row's own
    perturbation included.

    Example:
      >>> data = Dataset(jnp.array([[1.0, 1.0]]), jnp.array([1]))
      >>> w = jnp.array([3.0, -4.0])
      >>> f"{losses(w, data, ball=L2Ball(1.0))[0]:.4f}"  # log(1 + exp(1 + 5))
      '6.0025'
    """
    _checked(w, data, loss)
    return _losses(w, jnp.sign(w), data, ball, loss) + l2 / 2 * (w @ w)


def _losses(w: Array, side: Array, data: Dataset, ball: Ball | None, loss: str) -> Array:
    """:func:`losses` on the piece of the box where the signs of w are ``side``, without l2."""
    y = _signed(data, w.dtype)
    if ball is None:
        return _value(loss, data.x @ w, y)
    low, high = (_value(loss, s, y) for s in _range(w, side, data.x, _corners(data.x, ball), ball))
    return jnp.maximum(low, high)


def _corners(x: Array, ball: Ball | None) -> tuple[Array, ...]:
    """The two extreme corners of a box around every row."""
    if not isinstance(ball, LInfBox):
        return ()
    return tuple(x + bound for bound in ball.bounds(x))


def _range(w: Array, side: Array, x: Array, corners: tuple[Array, ...], ball: Ball):
    """The smallest and the largest score of every row, on the piece where w has signs ``side``."""
    if isinstance(ball, L2Ball):
        s, reach = x @ w, ball.radius * norm(w)
        return s - reach, s + reach
    # Positive and negative weights apart: the range is linear in them.
    least, most = corners
    up, down = jnp.where(side > 0, w, 0), jnp.where(side < 0, -w, 0)
    return least @ up - most @ down, most @ up - least @ down


class Pieces(NamedTuple):
    """Hessians of rows, ``H_i = a x x^T + b (x w^T + w x^T) + c I + e w w^T``.

    Attributes:
      w: ``float[d]``.
      x: ``float[n, d]``, the perturbed rows.
      a, b, c, e: ``float[n]``.
      gradient: ``float[n, d]``, the gradients of the rows, ``l2 w`` included.
    """

    w: Array
    x: Array
    a: Array
    b: Array
    c: Array
    e: Array
    gradient: Array


def pieces(
    w: Array,
    data: Dataset,
    delta: Array,
    *,
    ball: Ball | None,
    mode: str = "kkt",
    loss: str = "logistic",
    l2: float = 0.0,
    terms: int = 3,
) -> Pieces:
    """The Hessian of every row at its perturbation, in closed form.

    With ``f``, ``f'`` and ``f''`` the derivatives of the loss in the score:

    - ``direct``: ``f'' x x^T + l2 I``, the perturbation held fixed.
    - ``kkt``: the total Hessian on the sphere, direct
      ``+ |f'| r / |w| (I - w w^T / |w|^2)``; in a box direct, to be reduced to the
      coordinates with ``w_j != 0`` (see :mod:`jaxunlearn.methods.muter_linear`).
    - ``paper``: Eq. 16 of Liu et al. (2023), direct ``- C^T N C`` with
      ``N = sum_{j < terms} (I - f'' w w^T)^j`` and ``C = f'' w x^T + f' I``.
    - ``code``: the same as their code has it, ``N = (1 / f'') sum_j (I - w w^T)^j``.
    - ``fisher``: the gradient's outer product, ``l2 w`` inside it.

    Args:
      w: ``float[d]``.
      data: rows.
      delta: ``float[n, d]``, zero for the clean Hessian.
      ball: where delta lies; only ``kkt`` asks for it.
      mode: see above.
      loss: ``logistic`` or ``ridge``.
      l2: regularisation of a row.
      terms: of the Neumann series.

    Cost: O(n d).

    Raises:
      ValueError: an unknown mode or loss, ``kkt`` without a ball.

    Example:
      >>> data = Dataset(jnp.array([[1.0, 1.0]]), jnp.array([1]))
      >>> w, ball = jnp.array([3.0, -4.0]), L2Ball(1.0)
      >>> delta = maximum(w, data, ball=ball).delta
      >>> total = matrix(pieces(w, data, delta, ball=ball))
      >>> by_autodiff = jax.hessian(lambda w: losses(w, data, ball=ball).sum())(w)
      >>> bool(jnp.allclose(total, by_autodiff, atol=1e-5))
      True
    """
    _checked(w, data, loss)
    _validate.one_of(MODES, mode=mode)
    if mode == "kkt" and ball is None:
        raise ValueError("mode='kkt' needs the ball in which delta was found: give ball.")
    y = _signed(data, w.dtype)
    x = data.x + delta
    s = x @ w
    slope, bend, none = _slope(loss, s, y), _bend(loss, s, y), jnp.zeros_like(s)
    gradient = slope[:, None] * x + l2 * w[None]
    square = jnp.maximum(w @ w, jnp.finfo(w.dtype).tiny)
    a, b, c, e = bend, none, none + l2, none
    if mode == "fisher":
        a, b, c, e = slope**2, l2 * slope, none, none + l2**2
    elif mode == "kkt" and isinstance(ball, L2Ball):
        around = jnp.abs(slope) * ball.radius / jnp.sqrt(square)
        c, e = c + around, -around / square
    elif mode in ("paper", "code"):
        # N = k on the complement of w, q along w.
        ratio, scale = (bend * square, 1.0) if mode == "paper" else (none + square, 1 / bend)
        k = terms * scale * jnp.ones_like(s)
        q = sum((1 - ratio) ** j for j in range(terms)) * scale
        a, b = a - bend**2 * q * square, -slope * bend * q
        c, e = c - slope**2 * k, -(slope**2) * (q - k) / square
    return Pieces(w, x, a, b, c, e, gradient)


def matrix(rows: Pieces, weights: Array | None = None) -> Array:
    """``sum_i weights_i H_i``, ``float[d, d]``. Cost: O(n d^2), one product of matrices.

    Example:
      >>> none, w = jnp.zeros(1), jnp.zeros(2)
      >>> rows = Pieces(w, jnp.ones((1, 2)), none + 1, none, none + 3, none, jnp.ones((1, 2)))
      >>> matrix(rows).tolist()
      [[4.0, 1.0], [1.0, 4.0]]
    """
    weights = jnp.ones_like(rows.a) if weights is None else weights.astype(rows.a.dtype)
    high = jax.lax.Precision.HIGHEST
    across = jnp.matmul((weights * rows.b)[None], rows.x, precision=high)[0]
    mixed = jnp.outer(across, rows.w)
    out = jnp.matmul((rows.x * (weights * rows.a)[:, None]).T, rows.x, precision=high)
    out = out + mixed + mixed.T + (weights @ rows.e) * jnp.outer(rows.w, rows.w)
    return out + (weights @ rows.c) * jnp.eye(rows.w.shape[0], dtype=out.dtype)


def product(rows: Pieces, v: Array, weights: Array | None = None) -> Array:
    """``sum_i weights_i H_i v`` for ``v: float[d]``, without the matrix. Cost: O(n d).

    Example:
      >>> none, w = jnp.zeros(1), jnp.zeros(2)
      >>> rows = Pieces(w, jnp.ones((1, 2)), none + 1, none, none + 3, none, jnp.ones((1, 2)))
      >>> product(rows, jnp.array([1.0, 0.0])).tolist()
      [4.0, 1.0]
    """
    weights = jnp.ones_like(rows.a) if weights is None else weights.astype(rows.a.dtype)
    along, w = rows.w @ v, rows.w
    s = rows.x @ v
    out = (weights * (rows.a * s + rows.b * along)) @ rows.x
    return out + (weights * rows.b) @ s * w + (weights @ rows.e) * along * w + weights @ rows.c * v


class Optimum(NamedTuple):
    """Where adversarial training ends.

    Attributes:
      w: ``float[d]``.
      gradient: largest entry of the mean (in a box: smallest sub-) gradient; 0 at the optimum.
      steps: Newton steps taken.
      converged: ``bool``, whether ``gradient`` is within the tolerance.
    """

    w: Array
    gradient: Array
    steps: Array
    converged: Array


def minimise(
    data: Dataset,
    *,
    ball: Ball | None,
    loss: str = "logistic",
    l2: float,
    weights: Array | None = None,
    start: Array | None = None,
    tolerance: float = 1e-10,
    steps: int = 100,
) -> Optimum:
    """Adversarial training to the optimum: minimises ``sum_i weights_i max_delta loss_i``.

    The robust loss is convex. In an L2 ball it is smooth away from 0 and Newton's method takes
    its total Hessian. In a box it has a kink wherever ``w_j = 0``: coordinates whose
    subgradient holds 0 stay there, the others move within their orthant (projected Newton).
    Each direction is found by conjugate gradients, each step halved until the loss falls.
    Ridge regression in a ball has further kinks, at every residual of 0, and its optimum lies on
    some of them: there the steps stall, and ``converged`` says so.

    Args:
      data: rows with labels 0 and 1.
      ball: of the perturbations; None trains on clean rows.
      loss: ``logistic`` or ``ridge``.
      l2: regularisation of a row, > 0 for rows that can be separated.
      weights: ``bool`` or ``float[n]``; rows of weight 0 have no influence.
      start: where to begin, for a warm start.
      tolerance: on the mean gradient; not below ``30 eps`` of the dtype.
      steps: Newton steps at most.

    Returns:
      An :class:`Optimum`; ``converged`` is False if the steps ran out, as they do where no
      optimum exists (``l2 = 0`` on rows that the ball leaves separable).

    Cost: a step is a dozen or more products with the rows, O(n d) each.

    Raises:
      ValueError: bad rows, labels, weights; ``l2 < 0``.

    Example:
      >>> data = Dataset(jnp.array([[-1.0], [1.0], [0.5]]), jnp.array([0, 1, 0]))
      >>> out = minimise(data, ball=L2Ball(0.1), l2=0.1, tolerance=1e-6)
      >>> bool(out.converged), bool(out.w[0] > 0)
      (True, True)
    """
    _validate.dataset(data, num_classes=2)
    _validate.not_negative(l2=l2)
    _validate.one_of(LOSSES, loss=loss)
    n, d = data.x.shape
    if weights is None:
        weights = jnp.ones(n, data.x.dtype)
    _validate.row_weights(weights, n)
    weights = jnp.asarray(weights, data.x.dtype)
    if start is None:
        start = jnp.zeros(d, data.x.dtype)
        if not isinstance(ball, LInfBox):  # the norm has its kink at 0
            y = _signed(data, data.x.dtype)
            start = 1e-2 * ((weights * y) @ data.x) / jnp.maximum(weights.sum(), 1)
    tolerance = max(tolerance, 30 * float(jnp.finfo(data.x.dtype).eps))
    return _minimise(
        data, weights, start, l2, ball=ball, loss=loss, tolerance=tolerance, most=steps
    )


@functools.partial(jax.jit, static_argnames=("ball", "loss", "tolerance", "most"))
def _minimise(data, weights, start, l2, *, ball, loss, tolerance, most) -> Optimum:
    total = weights.sum()
    eps = jnp.finfo(start.dtype).eps
    box = isinstance(ball, LInfBox)

    y, corners = _signed(data, start.dtype), _corners(data.x, ball)

    def objective(w, side):
        if ball is None:
            worst = _value(loss, data.x @ w, y)
        else:
            ends = _range(w, side, data.x, corners, ball)
            worst = jnp.maximum(*(_value(loss, s, y) for s in ends))
        return weights @ worst / total + l2 / 2 * (w @ w)

    gradient = jax.grad(objective)

    def direction(w):
        """The smallest subgradient, and the orthant that it points into."""
        if not box:
            return gradient(w, w), w
        sign = jnp.sign(w)
        right, left = (gradient(w, jnp.where(w == 0, s, sign)) for s in (1.0, -1.0))
        at_zero = jnp.where(right < 0, right, jnp.where(left > 0, left, 0.0))
        g = jnp.where(w == 0, at_zero, right)
        return g, jnp.where(w == 0, -jnp.sign(g), sign)

    def step(carry):
        w, g, side, count, _ = carry
        free = (side != 0).astype(w.dtype) if box else jnp.ones_like(w)
        if box:  # one perturbed row each, where the range has two
            low, high = (_value(loss, s, y) for s in _range(w, side, data.x, corners, ball))
            up = (high > low)[:, None] == (side > 0)[None]
            x = jnp.where(side[None] == 0, data.x, jnp.where(up, corners[1], corners[0]))
            a = weights * _bend(loss, x @ w, y) / total
            bend = lambda v: (a * (x @ v)) @ x + l2 * v
        else:
            bend = jax.linearize(lambda w: gradient(w, side), w)[1]

        def hessian(v):
            # Ridge regression in a box has no curvature where all rows agree: a trace of it.
            return free * (bend(free * v) + 1e-12 * v) + (1 - free) * v

        solver = CG(tol=1e-3, maxiter=60)
        move = -conjugate_gradients(hessian, free * g, solver=solver).x

        def trial(t):
            to = w + t * move
            return jnp.where(jnp.sign(to) == side, to, 0.0) if box else to

        here = objective(w, side)

        def worse(t):
            to = trial(t)
            gain = 1e-4 * g @ (to - w)
            return (objective(to, side) > here + gain + 4 * eps * jnp.abs(here)) & (t > 1e-9)

        t = jax.lax.while_loop(worse, lambda t: t / 2, jnp.ones((), w.dtype))
        to = trial(t)
        g, side = direction(to)
        return to, g, side, count + 1, jnp.abs(g).max()

    def going(carry):
        *_, count, size = carry
        return (size > tolerance) & (count < most)

    g, side = direction(start)
    carry = (start, g, side, jnp.int32(0), jnp.abs(g).max())
    w, _, _, count, size = jax.lax.while_loop(going, step, carry)
    return Optimum(w, size, count, size <= tolerance)


def _checked(w: Array, data: Dataset, loss: str) -> None:
    _validate.one_of(LOSSES, loss=loss)
    if np.ndim(w) != 1 or np.ndim(data.x) != 2 or data.x.shape[1] != w.shape[0]:
        raise ValueError(
            f"data.x has shape {np.shape(data.x)} and w {np.shape(w)}; "
            "they must be [n, d] and [d] with the same d: flatten the rows."
        )
