"""Adversarially trained linear models with one score: closed forms instead of an attack.

The loss of a row is a convex function of its score ``w . x``. Over a ball the score runs through
an interval, so the worst perturbation lies at one of two ends and needs no search, and every
Hessian that a paper proposes has the shape

    H_i = a x x^T + b (x w^T + w x^T) + c I + e w w^T,        x the perturbed row.

Labels are 0 and 1, or -1 and +1 inside. ``l2`` is the paper's: ``l2 / 2 |w|^2`` a row.
:mod:`jaxunlearn.training.linear` trains them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _validate
from jaxunlearn.primitives.balls import Ball, L2Ball, LInfBox, norm
from jaxunlearn.primitives.inner import Inner
from jaxunlearn.types import Array, Dataset

LOSSES = ("logistic", "ridge")
MODES = ("kkt", "direct", "fisher", "paper", "code")


def check(w: Array, data: Dataset, *, ball: Ball | None, loss: str, name: str = "data") -> None:
    """Raises a ValueError for what the functions here do not take.

    Example:
      >>> image = Dataset(jnp.zeros((1, 2, 2)), jnp.array([1]))
      >>> check(jnp.zeros(4), image, ball=None, loss="ridge")
      Traceback (most recent call last):
      ValueError: data.x has shape (1, 2, 2), but must be [n, 4] as w is [4]: flatten the rows.
    """
    _validate.one_of(LOSSES, loss=loss)
    if not (ball is None or isinstance(ball, L2Ball | LInfBox)):
        raise ValueError(f"ball={ball!r} must be an L2Ball, an LInfBox, or None for clean rows.")
    if np.ndim(w) != 1:
        raise ValueError(f"w has shape {np.shape(w)}, but must be [d]: flatten it.")
    if np.ndim(data.x) != 2 or data.x.shape[1] != w.shape[0]:
        raise ValueError(
            f"{name}.x has shape {np.shape(data.x)}, but must be [n, {w.size}] as w is "
            f"[{w.size}]: flatten the rows."
        )


def signed(data: Dataset, dtype) -> Array:
    """Labels -1 and +1.

    Example:
      >>> signed(Dataset(jnp.zeros((2, 1)), jnp.array([0, 1])), jnp.float32).tolist()
      [-1.0, 1.0]
    """
    return 2 * jnp.asarray(data.y, dtype) - 1


def spread(data: Dataset, ball: Ball | None) -> tuple[Array, Array | None]:
    """What the range of a row's score is made of, for :func:`middle_and_reach`.

    Over a box the score of a row runs from ``x . w - h . |w|`` to ``x . w + h . |w|``, with ``x``
    the middle of the box around the row and ``h`` half its width: ``float[n, d]`` both. An L2
    ball, or none, leaves the rows as they are.

    Example:
      >>> data = Dataset(jnp.array([[0.9, 0.5]]), jnp.array([1]))
      >>> x, half = spread(data, LInfBox(0.25))
      >>> f"{x[0, 0]:.3f} {x[0, 1]:.3f}, {half[0, 0]:.3f} {half[0, 1]:.3f}"
      '0.825 0.500, 0.175 0.250'
    """
    if not isinstance(ball, LInfBox):
        return data.x, None
    low, high = ball.bounds(data.x)
    return data.x + (low + high) / 2, (high - low) / 2


def middle_and_reach(w: Array, side: Array, x: Array, half, ball: Ball | None):
    """The middle of every row's scores over the ball, and how far they reach from it.

    Args:
      w: ``float[d]``.
      side: the signs of w; in a box those of the orthant on which the reach is taken, where w
        itself has zeros.
      x, half: from :func:`spread`.
      ball: where the perturbations lie; None for none.

    Example:
      >>> w, x = jnp.array([3.0, -4.0]), jnp.ones((1, 2))
      >>> [leaf.tolist() for leaf in middle_and_reach(w, w, x, None, L2Ball(0.1))]
      [[-1.0], [0.5]]
    """
    middle = x @ w
    if ball is None:
        return middle, jnp.zeros_like(middle)
    if isinstance(ball, L2Ball):
        return middle, ball.radius * norm(w) * jnp.ones_like(middle)
    return middle, half @ (side * w)


def worst(loss: str, middle: Array, reach: Array, y: Array) -> Array:
    """The largest loss over a range of scores: at one end of it, the loss being convex.

    Example:
      >>> worst("ridge", jnp.array([0.25]), jnp.array([0.5]), jnp.array([1.0])).tolist()
      [0.78125]
    """
    if loss == "logistic":
        return jax.nn.softplus(reach - y * middle)
    return 0.5 * (jnp.abs(middle - y) + reach) ** 2


def _slope(loss: str, s: Array, y: Array) -> Array:
    return -y * jax.nn.sigmoid(-y * s) if loss == "logistic" else s - y


def _bend(loss: str, s: Array, y: Array) -> Array:
    if loss == "ridge":
        return jnp.ones_like(s)
    return jax.nn.sigmoid(s) * jax.nn.sigmoid(-s)


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
    check(w, data, ball=ball, loss=loss)
    y = signed(data, w.dtype)
    each = jax.vmap(ball.extreme, in_axes=(0, None))
    middle, _ = middle_and_reach(w, jnp.sign(w), *spread(data, ball), ball)
    up = y < 0 if loss == "logistic" else middle > y
    delta = jnp.where(up[:, None], each(data.x, w), each(data.x, -w))
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
    check(w, data, ball=ball, loss=loss)
    middle, reach = middle_and_reach(w, jnp.sign(w), *spread(data, ball), ball)
    return worst(loss, middle, reach, signed(data, w.dtype)) + l2 / 2 * (w @ w)


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
      coordinates with ``w_j != 0`` (see :mod:`jaxunlearn.methods.muter.linear`).
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
    check(w, data, ball=ball, loss=loss)
    _validate.one_of(MODES, mode=mode)
    if mode == "kkt" and ball is None:
        raise ValueError("mode='kkt' needs the ball in which delta was found: give ball.")
    y = signed(data, w.dtype)
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
