"""MUter for linear models with one score: closed-form maxima, and the kinks of the robust loss.

The three stages on the closed forms, the kinks included: :mod:`jaxunlearn.methods.muter.kinks` says
what they are, and how a step takes them.
"""

import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn import _validate
from jaxunlearn.methods.muter.kinks import Around, Kinks, around, held
from jaxunlearn.primitives import linear
from jaxunlearn.primitives.balls import Ball, LInfBox
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
      ValueError: an optimum that does not exist: ``l2=0`` and rows that stay separable. Of one
        that merely has not converged a warning tells the gradient.

    Example:
      >>> from jaxunlearn.primitives.balls import L2Ball
      >>> from jaxunlearn.training.linear import minimise
      >>> data = Dataset(jnp.array([[-1.0], [1.0], [0.5]]), jnp.array([0, 1, 0]))
      >>> ball = L2Ball(0.1)
      >>> optimum = minimise(data, ball=ball, l2=0.1, tolerance=1e-5)
      >>> prepare(optimum, data, ball=ball, l2=0.1).matrix.shape
      (1, 1)
    """
    if not optimum.converged:
        if l2 == 0:
            raise ValueError(
                f"optimum has a gradient of {float(optimum.gradient):.2g} and is none: with l2=0 "
                "and rows that stay separable in the ball there is no optimum. Give l2 > 0, or "
                "take more steps."
            )
        warnings.warn(
            f"optimum has a gradient of {float(optimum.gradient):.2g} and is none: the step "
            "assumes one. Take more steps.",
            stacklevel=2,
        )
    _validate.whole(0, watch=watch)
    w, n = optimum.w, data.y.shape[0]
    weights = jnp.ones(n) if weights is None else weights
    _validate.row_weights(weights, n)
    weights = jnp.asarray(weights, w.dtype)
    how = {"ball": ball, "loss": loss, "l2": l2, "mix": optimum.mix}
    side, everything = jnp.sign(w), jnp.arange(w.size)
    support, coordinates = everything, everything[:0]
    slack, force = jnp.zeros_like(w), jnp.zeros_like(w)
    if isinstance(ball, LInfBox):
        rows = around(w, side, data, everything, **how)
        force = (weights * rows.strength) @ rows.half
        # How much of its force the kink at w_j = 0 needs, and in which direction.
        share = -(weights @ rows.pieces.gradient) / jnp.maximum(force, jnp.finfo(w.dtype).tiny)
        share = jnp.where(side == 0, jnp.clip(share, -1, 1), side)
        order = jnp.argsort(-jnp.abs(share), stable=True)
        support = coordinates = jnp.sort(order[: jnp.sum(side != 0) + watch])
        side = jnp.where(side == 0, jnp.sign(share), side)
        slack = force * (side - share)
    elif not w.any():  # held there by the kink of the norm
        support = everything[:0]
    rows = around(w, side, data, support, **how)
    numbers = everything[:0]
    if loss == "ridge":
        far = jnp.where(weights > 0, jnp.abs(rows.middle), jnp.inf)
        held = jnp.sum((jnp.abs(optimum.mix) < 1) & (weights > 0))
        numbers = jnp.argsort(far, stable=True)[: held + watch]
    units = (coordinates[:, None] == support[None]).astype(w.dtype)
    both = lambda coordinate, row: jnp.concatenate([coordinate[coordinates], row[numbers]])
    mix = optimum.mix
    kinks = Kinks(
        normals=jnp.concatenate([units, spread(data, ball)[0][numbers][:, support]]),
        at=both(w, jnp.where(jnp.abs(mix) < 1, 0.0, rows.middle)),
        force=both(force, rows.reach),
        side=both(side, mix),
        slack=both(slack, jnp.zeros_like(mix)),
        numbers=jnp.concatenate([jnp.full(coordinates.size, -1), numbers]),
    )
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
        kinks=kinks,
        counts=jax.ops.segment_sum(weights, data.y, 2),
    )


class Step(NamedTuple):
    """What :func:`remove` found.

    Attributes:
      w: ``float[d]``, the parameters without the rows.
      matrix_curvature: the smallest eigenvalue known of the reduced matrix, at most 0 if it is
        indefinite.
      moved: watched kinks that the step left or met.
      status: ``int32``, INDEFINITE, NOT_CONVERGED, NOT_FINITE or OK.
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
      ValueError: no ``numbers`` where rows' kinks are watched.

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
    move, moved = held(after.kinks, inverse, after.gradient)
    pivot = jnp.where(definite, jnp.diagonal(factor).min(initial=jnp.inf) ** 2, -jnp.inf)
    return _stepped(memory, jnp.where(definite, move, 0.0), moved, pivot), after


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
    # (D - L^T T L)^-1 g = D^-1 g + D^-1 L^T (I - T L D^-1 L^T)^-1 T L D^-1 g
    small = jnp.eye(weights.size, dtype=g.dtype) - weights[:, None] * (bent @ turned[:-1].T)
    rest = jnp.linalg.solve(small, weights * (bent @ g))
    move = memory.basis @ (g / spectrum + rest @ bent)
    miss = memory.matrix @ move - linear.product(own, move) - gradient
    good = jnp.linalg.norm(miss) <= jnp.finfo(g.dtype).eps ** 0.5 * jnp.linalg.norm(gradient)
    step = _stepped(memory, move, jnp.int32(0), spectrum.min(initial=jnp.inf))
    status = jnp.where(good | (step.status != Status.OK), step.status, Status.NOT_CONVERGED)
    return step._replace(status=status.astype(jnp.int32))


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
    own = _own(memory, rows, ball, loss, l2, numbers)[0].pieces
    solver = memory.basis / memory.spectrum[None] @ memory.basis.T
    inverse = lambda b: solver @ b
    small = 1e-6 / n  # of a row: no kink lets go for so little
    step = lambda g: held(memory.kinks, inverse, small * g)[0] / small
    full = jnp.zeros((rows.y.shape[0], memory.w.shape[0]), own.gradient.dtype)
    return full.at[:, memory.support].set(-n * jax.vmap(step)(own.gradient))


def _own(memory, rows, ball, loss, l2, numbers) -> tuple[Around, Array]:
    """Rows to forget, and which of the watched kinks they are, ``bool[kinks, k]``."""
    kinks = memory.kinks
    if numbers is None:
        if loss == "ridge":
            raise ValueError(
                "ridge regression has kinks at rows: give numbers, those of the rows to forget "
                "in the data of prepare."
            )
        numbers = jnp.full(rows.y.shape[0], -2)
    same = kinks.numbers[:, None] == numbers[None]
    y = linear.signed(rows, memory.w.dtype)
    mix = -y
    if loss == "ridge":
        middle, _ = middle_and_reach(memory.w, memory.side, *spread(rows, ball), ball)
        mix = jnp.where(same.any(0), kinks.side @ same.astype(y.dtype), jnp.sign(middle - y))
    how = {"ball": ball, "loss": loss, "l2": l2, "mix": mix}
    return around(memory.w, memory.side, rows, memory.support, **how), same


def _stepped(memory: LinearMemory, move, moved, curvature) -> Step:
    w = memory.w.at[memory.support].add(move)
    status = jnp.where(curvature > 0, Status.OK, Status.INDEFINITE)
    status = jnp.where(jnp.isfinite(move).all(), status, Status.NOT_FINITE)
    return Step(w, curvature, moved, status.astype(jnp.int32))
