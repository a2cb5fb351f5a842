"""MUter for linear models with one score: closed-form maxima, and the kinks of the robust loss.

The three stages on the closed forms, the kinks included: :mod:`jaxunlearn.methods.muter.kinks` says
what they are, and how a step takes them.
"""

import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn import _validate
from jaxunlearn.methods.muter.kinks import Around, Kinks, around, at_rows, at_zeros, held
from jaxunlearn.primitives import linear
from jaxunlearn.primitives.balls import Ball, LInfBox, norm
from jaxunlearn.primitives.linear import middle_and_reach, spread
from jaxunlearn.training.linear import Optimum
from jaxunlearn.types import Array, Dataset, Status


class LinearMemory(NamedTuple):
    """What is kept of a linear model between requests.

    Attributes:
      w: ``float[d]``, the original parameters.
      support: ``int[s]``, the coordinates that may move: all of them in an L2 ball; in a box those
        not 0 and those watched.
      side: ``float[d]``, the orthant that derivatives are taken in.
      matrix: ``float[s, s]``, the total Hessian of the rows not removed, on the support.
      basis, spectrum: its eigenvectors and eigenvalues when it was prepared.
      gradient: ``float[s]``, the sum of the removed rows' gradients.
      kinks: those watched.
      counts: ``float[2]``, the weight of the rows of either class that are not removed.
    """

    w: Array
    support: Array
    side: Array
    matrix: Array
    basis: Array
    spectrum: Array
    gradient: Array
    kinks: Kinks
    counts: Array


def prepare(
    optimum: Optimum,
    data: Dataset,
    *,
    ball: Ball,
    loss: str = "logistic",
    l2: float,
    weights: Array | None = None,
    watch: int = 32,
) -> LinearMemory:
    """The memory of a linear model at its robust optimum.

    Args:
      optimum: from :func:`jaxunlearn.training.linear.minimise`.
      data: rows of labels 0 and 1.
      ball: of the perturbations.
      loss: ``logistic`` or ``ridge``.
      l2: regularisation of a row.
      weights: of the rows, as in the training.
      watch: kinks that the optimum is nearest to without being on them, of each kind.

    Cost: O(n s^2), and 10 s^3 for the eigenvectors, s the size of the support. Not to be
    traced: the support is found.

    Raises:
      ValueError: an optimum of other rows, or of another ball, loss, l2 or weights; one that does
        not exist: logistic regression with ``l2=0`` on rows that stay separable. Of one that
        merely has not converged a warning tells the gradient.

    Example:
      >>> from jaxunlearn.primitives.balls import L2Ball
      >>> from jaxunlearn.training.linear import minimise
      >>> data = Dataset(jnp.array([[-1.0], [1.0], [0.5]]), jnp.array([0, 1, 0]))
      >>> ball = L2Ball(0.1)
      >>> optimum = minimise(data, ball=ball, l2=0.1, tolerance=1e-5)
      >>> prepare(optimum, data, ball=ball, l2=0.1).matrix.shape
      (1, 1)
    """
    if not _validate.known(optimum.w):
        raise ValueError("optimum is traced, but its support has to be known: prepare outside jit.")
    if ball is None:
        raise ValueError("ball=None has no perturbations: give the ball that the model trained in.")
    linear.check(optimum.w, data, ball=ball, loss=loss)
    _validate.dataset(data, num_classes=2)
    _validate.not_negative(l2=l2)
    _validate.whole(0, watch=watch)
    w, mix, n = optimum.w, optimum.mix, data.y.shape[0]
    if mix.shape != (n,):
        raise ValueError(f"optimum is that of {mix.size} rows, but data has {n}.")
    weights = jnp.ones(n) if weights is None else weights
    _validate.row_weights(weights, n)
    weights = jnp.asarray(weights, w.dtype)
    how = {"ball": ball, "loss": loss, "l2": l2, "mix": mix}
    side, support = jnp.sign(w), jnp.arange(w.size)
    rows, found = around(w, side, data, support, **how), []
    gradient, strength = weights @ rows.pieces.gradient, weights * rows.strength
    scale = weights @ jnp.abs(rows.pieces.gradient)
    if isinstance(ball, LInfBox):
        force = strength @ rows.half
        left = jnp.abs(gradient) - jnp.where(w == 0, force, 0.0)
        support, side, zeros = at_zeros(w, gradient, force, watch)
        found = [zeros]
    elif w.any():
        left = jnp.abs(gradient)
    else:  # held there by the kink of the norm
        left, support = norm(gradient)[None] - ball.radius * strength.sum(), support[:0]
    _judge(optimum, left.max() / weights.sum(), scale.max() / weights.sum(), l2, loss)
    rows = around(w, side, data, support, **how)
    found.append(at_rows(rows, mix, weights, watch if loss == "ridge" else 0))
    matrix = linear.matrix(rows.pieces, weights)
    spectrum, basis = jnp.linalg.eigh(matrix)
    return LinearMemory(
        w=w,
        support=support,
        side=side,
        matrix=matrix,
        basis=basis,
        spectrum=spectrum,
        gradient=jnp.zeros(support.shape[0], matrix.dtype),
        kinks=Kinks(*map(jnp.concatenate, zip(*found, strict=True))),
        counts=jax.ops.segment_sum(weights, data.y, 2),
    )


def _judge(optimum: Optimum, gradient: Array, scale: Array, l2: float, loss: str) -> None:
    """Warns of an optimum that has not converged, and refuses one that is not of these rows."""
    claimed = float(optimum.gradient)
    if not optimum.converged:
        said = f"optimum has a gradient of {claimed:.2g} and is none: "
        if l2 == 0 and loss == "logistic":
            raise ValueError(
                f"{said}with l2=0 and rows that stay separable in the ball there is no optimum. "
                "Give l2 > 0, or take more steps."
            )
        warnings.warn(f"{said}the step assumes one. Take more steps.", stacklevel=3)
    if not gradient <= 10 * claimed + jnp.finfo(gradient.dtype).eps ** 0.5 * scale:
        raise ValueError(
            f"optimum claims a gradient of {claimed:.2g}, but with this data it is "
            f"{float(gradient):.2g}: give the data, ball, loss, l2 and weights that minimise had."
        )


class Step(NamedTuple):
    """What :func:`remove` found.

    Attributes:
      w: ``float[d]``, the parameters without the rows.
      matrix_curvature: the smallest eigenvalue known of the reduced matrix, at most 0 if it is
        indefinite.
      moved: watched kinks that the step left or met.
      status: ``int32``, INDEFINITE (``w`` is then the original), NOT_CONVERGED (the search for
        kinks did not end), NOT_FINITE or OK.
    """

    w: Array
    matrix_curvature: Array
    moved: Array
    status: Array


def remove(
    memory: LinearMemory,
    rows: Dataset,
    *,
    ball: Ball,
    loss: str = "logistic",
    l2: float,
    weights: Array | None = None,
    numbers: Array | None = None,
) -> tuple[Step, LinearMemory]:
    """Unlearns ``rows`` (only these are read), in one step from the original parameters.

    ``w_u = w* + [M - sum H_i]^-1 sum g_i``, held by kinks and released by them: see the module.

    Args:
      memory: from :func:`prepare`, or the request before: requests add up.
      rows: ``x: float[k, d]``, the rows to forget; not those of earlier requests.
      ball, loss, l2: as given to :func:`prepare`.
      weights: ``float[k]`` in [0, 1], to remove rows in part.
      numbers: ``int[k]``, their numbers in the data of :func:`prepare`: needed for ridge
        regression, to know which rows' kinks go.

    Returns:
      ``(step, memory)``; the memory is for the next request.

    Cost: O(k s^2 + s^3 / 3), and some systems in the watched kinks where they hold or let go.
    Differentiable where none does.

    Raises:
      ValueError: rows or weights that cannot be; no ``numbers`` where rows' kinks are watched.

    Example:
      >>> from jaxunlearn.primitives.balls import L2Ball
      >>> from jaxunlearn.training.linear import minimise
      >>> data = Dataset(jnp.array([[-1.0], [1.0], [0.5]]), jnp.array([0, 1, 0]))
      >>> ball = L2Ball(0.1)
      >>> optimum = minimise(data, ball=ball, l2=0.1, tolerance=1e-5)
      >>> memory = prepare(optimum, data, ball=ball, l2=0.1)
      >>> odd = Dataset(data.x[2:], data.y[2:])
      >>> bool(remove(memory, odd, ball=ball, l2=0.1)[0].w[0] > optimum.w[0])
      True
    """
    own, same = _own(memory, rows, ball, loss, l2, numbers)
    weights = jnp.ones_like(own.reach) if weights is None else jnp.asarray(weights, own.reach.dtype)
    if weights.shape != own.reach.shape:
        raise ValueError(f"weights has shape {weights.shape}, but must be {own.reach.shape}.")
    if _validate.known(weights) and not ((weights >= 0) & (weights <= 1)).all():
        raise ValueError("weights must be shares of rows within [0, 1].")
    kinks, counts = memory.kinks, jax.ops.segment_sum(weights, rows.y, 2)
    given = same * own.reach[None]  # what the rows give to the kinks' forces
    if own.half is not None:
        given = given + (kinks.numbers < 0)[:, None] * (
            kinks.normals @ (own.strength[:, None] * own.half).T
        )
    after = memory._replace(
        matrix=memory.matrix - linear.matrix(own.pieces, weights),
        gradient=memory.gradient + weights @ own.pieces.gradient,
        kinks=kinks._replace(force=jnp.maximum(kinks.force - given @ weights, 0.0)),
        counts=memory.counts - counts,
    )
    if _validate.known(after.counts) and ((after.counts < 1e-6) & (counts > 0)).any():
        warnings.warn(
            "rows are the last of a class: the remaining problem is another one, far from where "
            "the step is accurate. Retrain instead.",
            stacklevel=2,
        )
    factor = jnp.linalg.cholesky(after.matrix)
    definite = jnp.isfinite(factor).all()
    factor = jnp.where(definite, factor, jnp.eye(factor.shape[0], dtype=factor.dtype))
    inverse = lambda b: jax.scipy.linalg.cho_solve((factor, True), b)
    move, moved, settled = held(after.kinks, inverse, after.gradient)
    pivot = jnp.where(definite, jnp.diagonal(factor).min(initial=jnp.inf) ** 2, -jnp.inf)
    return _stepped(memory, jnp.where(definite, move, 0.0), moved, pivot, settled), after


def remove_quickly(
    memory: LinearMemory, rows: Dataset, *, ball: Ball, loss: str = "logistic", l2: float
) -> Step:
    """:func:`remove` of a few rows by the prepared eigenvectors: O(s^2 k) instead of s^3.

    ``M - sum H_i = Q (Lambda - c I) Q^T - [x, w] T [x, w]^T`` with the rows' shift c, and the
    rest by Woodbury's identity. For the first request; successive ones go through
    :func:`remove`, and here their status is NOT_CONVERGED.

    Raises:
      ValueError: a memory with kinks.

    Example:
      >>> from jaxunlearn.primitives.balls import L2Ball
      >>> from jaxunlearn.training.linear import minimise
      >>> data = Dataset(jnp.array([[-1.0], [1.0], [0.5]]), jnp.array([0, 1, 0]))
      >>> ball = L2Ball(0.1)
      >>> optimum = minimise(data, ball=ball, l2=0.1, tolerance=1e-5)
      >>> memory = prepare(optimum, data, ball=ball, l2=0.1)
      >>> odd = Dataset(data.x[2:], data.y[2:])
      >>> a, b = (f(memory, odd, ball=ball, l2=0.1) for f in (remove_quickly, remove))
      >>> bool(jnp.allclose(a.w, b[0].w, rtol=1e-4))
      True
    """
    if memory.kinks.at.size:
        raise ValueError(f"memory watches {memory.kinks.at.size} kinks: use remove.")
    own = _own(memory, rows, ball, loss, l2, None)[0].pieces
    spectrum = memory.spectrum - own.c.sum()
    gradient = memory.gradient + own.gradient.sum(0)
    low = jnp.concatenate([own.x, own.w[None]])  # kkt has no mixed terms
    weights = jnp.concatenate([own.a, own.e.sum()[None]])
    turned = jnp.concatenate([low, gradient[None]]) @ memory.basis
    bent, g = turned[:-1] / spectrum[None], turned[-1]
    # (D - L^T T L)^-1 g = D^-1 g + D^-1 L^T (T^-1 - L D^-1 L^T)^-1 L D^-1 g, with T = R S R
    root, sign = jnp.sqrt(jnp.abs(weights)), jnp.where(weights < 0, -1.0, 1.0).astype(g.dtype)
    small = jnp.diag(sign) - root[:, None] * (bent @ turned[:-1].T) * root[None]
    rest = root * jnp.linalg.solve(small, root * (bent @ g))
    move = memory.basis @ (g / spectrum + rest @ bent)
    # By Haynsworth's theorem the reduced matrix has as many negative eigenvalues as D has, and as
    # `small` has more than S.
    definite = (jnp.linalg.eigvalsh(small) < 0).sum() == (sign < 0).sum()
    least = jnp.where(definite, spectrum.min(initial=jnp.inf), -jnp.inf)
    miss = memory.matrix @ move - linear.product(own, move) - gradient
    good = jnp.linalg.norm(miss) <= jnp.finfo(g.dtype).eps ** 0.5 * jnp.linalg.norm(gradient)
    move = jnp.where(definite, move, 0.0)
    return _stepped(memory, move, jnp.int32(0), least, good)


def influence(
    memory: LinearMemory,
    rows: Dataset,
    *,
    ball: Ball,
    loss: str = "logistic",
    l2: float,
    n: int,
    numbers: Array | None = None,
) -> Array:
    """Definition 2 of the paper for linear models: ``-[M / n]^-1 g_i``, ``float[k, d]``.

    The sign is that of adding weight to a row; removing row i moves ``w`` by ``-I_i / n``.

    Args:
      memory: from :func:`prepare`; later requests are not counted.
      rows, ball, loss, l2, numbers: as in :func:`remove`.
      n: rows of the training.

    Of a matrix that is singular, so that no influence is defined, a warning tells.

    Example:
      >>> from jaxunlearn.primitives.balls import L2Ball
      >>> from jaxunlearn.training.linear import minimise
      >>> data = Dataset(jnp.array([[-1.0], [1.0], [0.5]]), jnp.array([0, 1, 0]))
      >>> ball = L2Ball(0.1)
      >>> optimum = minimise(data, ball=ball, l2=0.1, tolerance=1e-5)
      >>> memory = prepare(optimum, data, ball=ball, l2=0.1)
      >>> out = influence(memory, data, ball=ball, l2=0.1, n=3)
      >>> out.shape, bool(out[2, 0] < 0)
      ((3, 1), True)
    """
    _validate.whole(n=n)
    own = _own(memory, rows, ball, loss, l2, numbers)[0].pieces
    low, high = memory.spectrum.min(initial=jnp.inf), memory.spectrum.max(initial=0.0)
    rounding = memory.spectrum.size * jnp.finfo(high.dtype).eps
    if _validate.known(low) and not low > rounding * high:
        warnings.warn(
            f"influence: the matrix is singular, its smallest eigenvalue {float(low):.2g}, so what "
            "comes back may point anywhere. Train with l2 > 0.",
            stacklevel=2,
        )
    solver = memory.basis / memory.spectrum[None] @ memory.basis.T
    inverse = lambda b: solver @ b
    small = 1e-6 / n  # of a row: no kink lets go for so little
    step = lambda g: held(memory.kinks, inverse, small * g)[0] / small
    full = jnp.zeros((rows.y.shape[0], memory.w.shape[0]), own.gradient.dtype)
    return full.at[:, memory.support].set(-n * jax.vmap(step)(own.gradient))


def _own(memory, rows, ball, loss, l2, numbers) -> tuple[Around, Array]:
    """Rows to forget, and which of the watched kinks they are, ``bool[kinks, k]``."""
    kinks, k = memory.kinks, rows.y.shape[:1]
    linear.check(memory.w, rows, ball=ball, loss=loss, name="rows")
    _validate.dataset(rows, num_classes=2, name="rows")
    if numbers is None:
        if loss == "ridge":
            raise ValueError(
                "ridge regression has kinks at rows: give numbers, those of the rows to forget "
                "in the data of prepare."
            )
        numbers = jnp.full(k, -2)
    elif jnp.shape(numbers) != k:
        raise ValueError(f"numbers has shape {jnp.shape(numbers)}, but rows.y has {k}.")
    elif _validate.known(numbers) and (jnp.asarray(numbers) < 0).any():
        raise ValueError(f"numbers has {jnp.min(numbers)}, but rows are counted from 0.")
    same = kinks.numbers[:, None] == numbers[None]
    y = linear.signed(rows, memory.w.dtype)
    mix = -y
    if loss == "ridge":
        middle, _ = middle_and_reach(memory.w, memory.side, *spread(rows, ball), ball)
        mix = jnp.where(same.any(0), kinks.side @ same.astype(y.dtype), jnp.sign(middle - y))
    how = {"ball": ball, "loss": loss, "l2": l2, "mix": mix}
    return around(memory.w, memory.side, rows, memory.support, **how), same


def _stepped(memory: LinearMemory, move, moved, curvature, settled) -> Step:
    w = memory.w.at[memory.support].add(move)
    status = jnp.where(settled, Status.OK, Status.NOT_CONVERGED)
    status = jnp.where(curvature > 0, status, Status.INDEFINITE)
    status = jnp.where(jnp.isfinite(move).all(), status, Status.NOT_FINITE)
    return Step(w, curvature, moved, status.astype(jnp.int32))
