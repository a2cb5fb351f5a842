"""MUter for linear models with one score: closed-form maxima, and the active set of a box.

In a box the robust loss has a kink wherever ``w_j = 0``, and the optimum lies on most of them
(the box acts like an L1 penalty). There the perturbation of coordinate j is free, the KKT
conditions pin ``dw_j = 0``, and the right step is the direct Hessian's, reduced to the support
``{j : w_j != 0}``. In an L2 ball the support is everything and the total Hessian has a closed form.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _validate
from jaxunlearn.primitives import linear
from jaxunlearn.primitives.balls import Ball, LInfBox
from jaxunlearn.types import Array, Dataset, Status


class LinearMemory(NamedTuple):
    """What is kept of a linear model between requests.

    Attributes:
      w: ``float[d]``, the original parameters.
      support: ``int[s]``, the coordinates that move: all of them in an L2 ball.
      matrix: ``float[s, s]``, the total Hessian of the rows not removed, on the support.
      basis, spectrum: its eigenvectors and eigenvalues when it was prepared.
      gradient: ``float[s]``, the sum of the removed rows' gradients.
    """

    w: Array
    support: Array
    matrix: Array
    basis: Array
    spectrum: Array
    gradient: Array


def prepare(
    optimum: Any,
    data: Dataset,
    *,
    ball: Ball,
    loss: str = "logistic",
    l2: float,
    weights: Array | None = None,
) -> LinearMemory:
    """The memory of a linear model at its robust optimum.

    Args:
      optimum: ``w``, or the :class:`~jaxunlearn.primitives.linear.Optimum` that has it.
      data: rows of labels 0 and 1.
      ball: of the perturbations.
      loss: ``logistic`` or ``ridge``.
      l2: regularisation of a row.
      weights: of the rows, as in the training.

    Cost: O(n s^2), and 10 s^3 for the eigenvectors, s the size of the support.

    Raises:
      ValueError: an optimum that did not converge, with its gradient.

    Example:
      >>> from jaxunlearn.primitives.balls import L2Ball
      >>> data = Dataset(jnp.array([[-1.0], [1.0], [0.5]]), jnp.array([0, 1, 0]))
      >>> ball = L2Ball(0.1)
      >>> optimum = linear.minimise(data, ball=ball, l2=0.1, tolerance=1e-5)
      >>> prepare(optimum, data, ball=ball, l2=0.1).matrix.shape
      (1, 1)
    """
    if isinstance(optimum, linear.Optimum):
        if _validate.known(optimum.converged) and not optimum.converged:
            raise ValueError(
                f"optimum has a gradient of {float(optimum.gradient):.2g} and is none: take more "
                "steps. With l2=0 and rows that stay separable in the ball there is no optimum: "
                "give l2 > 0."
            )
        optimum = optimum.w
    support = jnp.arange(optimum.shape[0])
    if isinstance(ball, LInfBox):
        support = jnp.asarray(np.flatnonzero(np.asarray(optimum)))
    rows = _rows(optimum, data, support, ball, loss, l2)
    matrix = linear.matrix(rows, weights)
    spectrum, basis = jnp.linalg.eigh(matrix)
    zero = jnp.zeros(support.shape[0], matrix.dtype)
    return LinearMemory(optimum, support, matrix, basis, spectrum, zero)


class Step(NamedTuple):
    """What :func:`remove` found.

    Attributes:
      w: ``float[d]``, the parameters without the rows.
      matrix_curvature: the smallest eigenvalue known of the reduced matrix, at most 0 if it is
        indefinite.
      flipped: in a box, the coordinates whose sign the step turned: it left the piece on which
        the loss is smooth, and :func:`~jaxunlearn.primitives.linear.minimise` from ``w`` mends it.
      status: ``int32``, INDEFINITE, NOT_FINITE or OK.
    """

    w: Array
    matrix_curvature: Array
    flipped: Array
    status: Array


def remove(
    memory: LinearMemory,
    rows: Dataset,
    *,
    ball: Ball,
    loss: str = "logistic",
    l2: float,
    weights: Array | None = None,
) -> tuple[Step, LinearMemory]:
    """Unlearns ``rows`` (only these are read), in one step from the original parameters.

    ``w_u = w* + [M - sum H_i]^-1 sum g_i`` on the support, ``w_j = 0`` elsewhere.

    Args:
      memory: from :func:`prepare`, or the request before: requests add up.
      rows: ``x: float[k, d]``, the rows to forget; not those of earlier requests.
      ball, loss, l2: as given to :func:`prepare`.
      weights: ``float[k]`` in (0, 1], to remove rows in part.

    Returns:
      ``(step, memory)``; the memory is for the next request.

    Cost: O(k s^2 + s^3 / 3). Differentiable.

    Example:
      >>> from jaxunlearn.primitives.balls import L2Ball
      >>> data = Dataset(jnp.array([[-1.0], [1.0], [0.5]]), jnp.array([0, 1, 0]))
      >>> ball = L2Ball(0.1)
      >>> optimum = linear.minimise(data, ball=ball, l2=0.1, tolerance=1e-5)
      >>> memory = prepare(optimum, data, ball=ball, l2=0.1)
      >>> odd = Dataset(data.x[2:], data.y[2:])
      >>> bool(remove(memory, odd, ball=ball, l2=0.1)[0].w[0] > optimum.w[0])
      True
    """
    own = _rows(memory.w, rows, memory.support, ball, loss, l2)
    weights = jnp.ones_like(own.a) if weights is None else weights.astype(own.a.dtype)
    matrix = memory.matrix - linear.matrix(own, weights)
    gradient = memory.gradient + weights @ own.gradient
    factor = jnp.linalg.cholesky(matrix)
    definite = jnp.isfinite(factor).all()
    move = jax.scipy.linalg.cho_solve((factor, True), gradient)
    move = jnp.where(definite, move, 0.0)
    after = memory._replace(matrix=matrix, gradient=gradient)
    return _stepped(
        memory, ball, move, jnp.where(definite, jnp.diagonal(factor).min() ** 2, -jnp.inf)
    ), after


def remove_quickly(
    memory: LinearMemory, rows: Dataset, *, ball: Ball, loss: str = "logistic", l2: float
) -> Step:
    """:func:`remove` of a few rows by the prepared eigenvectors: O(s^2 k) instead of s^3.

    ``M - sum H_i = Q (Lambda - c I) Q^T - [x, w] T [x, w]^T`` with the rows' shift c, and the
    rest by Woodbury's identity. For the first request; successive ones go through
    :func:`remove`.

    Example:
      >>> from jaxunlearn.primitives.balls import L2Ball
      >>> data = Dataset(jnp.array([[-1.0], [1.0], [0.5]]), jnp.array([0, 1, 0]))
      >>> ball = L2Ball(0.1)
      >>> optimum = linear.minimise(data, ball=ball, l2=0.1, tolerance=1e-5)
      >>> memory = prepare(optimum, data, ball=ball, l2=0.1)
      >>> odd = Dataset(data.x[2:], data.y[2:])
      >>> a, b = (f(memory, odd, ball=ball, l2=0.1) for f in (remove_quickly, remove))
      >>> bool(jnp.allclose(a.w, b[0].w, rtol=1e-4))
      True
    """
    own = _rows(memory.w, rows, memory.support, ball, loss, l2)
    spectrum = memory.spectrum - own.c.sum()
    gradient = own.gradient.sum(0)
    low = jnp.concatenate([own.x, own.w[None]])  # kkt has no mixed terms
    weights = jnp.concatenate([own.a, own.e.sum()[None]])
    turned = jnp.concatenate([low, gradient[None]]) @ memory.basis
    bent, g = turned[:-1] / spectrum[None], turned[-1]
    # (D - L^T T L)^-1 g = D^-1 g + D^-1 L^T (I - T L D^-1 L^T)^-1 T L D^-1 g
    small = jnp.eye(weights.size, dtype=g.dtype) - weights[:, None] * (bent @ turned[:-1].T)
    rest = jnp.linalg.solve(small, weights * (bent @ g))
    move = memory.basis @ (g / spectrum + rest @ bent)
    return _stepped(memory, ball, move, spectrum.min())


def influence(
    memory: LinearMemory, rows: Dataset, *, ball: Ball, loss: str = "logistic", l2: float, n: int
) -> Array:
    """Definition 2 of the paper for linear models: ``-[M / n]^-1 g_i``, ``float[k, d]``.

    The sign is that of adding weight to a row; removing row i moves ``w`` by ``-I_i / n``.

    Example:
      >>> from jaxunlearn.primitives.balls import L2Ball
      >>> data = Dataset(jnp.array([[-1.0], [1.0], [0.5]]), jnp.array([0, 1, 0]))
      >>> ball = L2Ball(0.1)
      >>> optimum = linear.minimise(data, ball=ball, l2=0.1, tolerance=1e-5)
      >>> memory = prepare(optimum, data, ball=ball, l2=0.1)
      >>> out = influence(memory, data, ball=ball, l2=0.1, n=3)
      >>> out.shape, bool(out[2, 0] < 0)
      ((3, 1), True)
    """
    own = _rows(memory.w, rows, memory.support, ball, loss, l2)
    reduced = -n * ((own.gradient @ memory.basis) / memory.spectrum[None]) @ memory.basis.T
    full = jnp.zeros((rows.y.shape[0], memory.w.shape[0]), reduced.dtype)
    return full.at[:, memory.support].set(reduced)


def _rows(w, data, support, ball, loss, l2) -> linear.Pieces:
    """The KKT Hessians of rows, on the support."""
    delta = linear.maximum(w, data, ball=ball, loss=loss).delta
    rows = linear.pieces(w, data, delta, ball=ball, loss=loss, l2=l2)
    take = lambda leaf: leaf[..., support]
    return rows._replace(w=take(rows.w), x=take(rows.x), gradient=take(rows.gradient))


def _stepped(memory: LinearMemory, ball: Ball, move: Array, curvature: Array) -> Step:
    w = memory.w.at[memory.support].add(move)
    flipped = jnp.sum(jnp.sign(w) != jnp.sign(memory.w)) * isinstance(ball, LInfBox)
    status = jnp.where(curvature > 0, Status.OK, Status.INDEFINITE)
    status = jnp.where(jnp.isfinite(move).all(), status, Status.NOT_FINITE)
    return Step(w, curvature, flipped, status.astype(jnp.int32))
