"""The linear programmes of PRUNE solved by SciPy's HiGHS: the oracle, and what it costs.

Nothing in the library needs them. :func:`support` is what each class's lead is at most
in a region, and :func:`robust` is Eq. 7 itself, with an affine map, for small networks:
its optimum is that of a constant, which is why no other patch is made here.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.optimize import linprog


class Region(NamedTuple):
    """A region written out, in float64: ``a v <= b``, and the logits ``f v + f0`` on it.

    Attributes:
      a: ``[N, d]``.
      b: ``[N]``.
      f: ``[L, d]``.
      f0: ``[L]``.
    """

    a: np.ndarray
    b: np.ndarray
    f: np.ndarray
    f0: np.ndarray


def region(layers, active) -> Region:
    """The region of ``active: bool[N]`` by explicit products of matrices.

    Args:
      layers: sequence of ``(kernel[in, out], bias[out])``.
      active: which neurons are.

    Returns:
      :class:`Region`.

    Cost: ``N d`` numbers and a product of matrices for each layer.

    Example:
      >>> layers = [(np.array([[1.0, -1.0]]), np.zeros(2)), (np.eye(2), np.zeros(2))]
      >>> region(layers, np.array([True, False])).a.tolist()
      [[-1.0], [-1.0]]
    """
    matrix, offset = np.eye(np.shape(layers[0][0])[0]), 0.0
    rows, shifts, start = [], [], 0
    for kernel, bias in layers[:-1]:
        kernel, bias = np.asarray(kernel, np.float64), np.asarray(bias, np.float64)
        matrix, offset = (
            kernel.T @ matrix,
            kernel.T @ np.broadcast_to(offset, kernel.shape[0]) + bias,
        )
        on = np.asarray(active[start : start + len(bias)], np.float64)
        sign = 2 * on - 1
        rows.append(-sign[:, None] * matrix)
        shifts.append(sign * offset)
        matrix, offset, start = on[:, None] * matrix, on * offset, start + len(bias)
    kernel, bias = (np.asarray(leaf, np.float64) for leaf in layers[-1])
    a, b = np.concatenate(rows), np.concatenate(shifts)
    return Region(a, b, kernel.T @ matrix, kernel.T @ offset + bias)


def support(found: Region, target: int, low, high) -> np.ndarray:
    """``max (M_l - M_target)`` over the region and the box, for every class: ``[L]``.

    Args:
      found: a region.
      target: class to lead over; its own entry is 0.
      low: least inputs, a number or ``[d]``.
      high: greatest inputs.

    Returns:
      The optima of L - 1 linear programmes; nan where HiGHS finds none.

    Cost: about 1 s each at d = 784, N = 512.

    Example:
      >>> layers = [(np.array([[1.0, -1.0]]), np.zeros(2)), (np.eye(2), np.zeros(2))]
      >>> support(region(layers, np.array([True, False])), 1, -1.0, 2.0).tolist()
      [2.0, 0.0]
    """
    d = found.a.shape[1]
    box = np.stack([np.broadcast_to(side, d) for side in (low, high)], axis=1)
    values = np.zeros(len(found.f0))
    for label in range(len(values)):
        if label == target:
            continue
        lead = found.f[label] - found.f[target]
        answer = linprog(-lead, A_ub=found.a, b_ub=found.b, bounds=box, method="highs")
        shift = found.f0[label] - found.f0[target]
        values[label] = -answer.fun + shift if answer.status == 0 else np.nan
    return values


def constant(values: np.ndarray, margin: float) -> float:
    """``t = max(0, (V + margin) / 2)``: +t for the target and -t for the rest is optimal.

    A map m that makes the target lead by ``margin`` everywhere must change a difference
    of two logits by ``V + margin`` somewhere, hence one of them by half of it, and the
    constant does just that.

    Args:
      values: of :func:`support`.
      margin: epsilon.

    Example:
      >>> constant(np.array([3.0, 0.0]), 1.0)
      2.0
    """
    return max(0.0, (float(values.max()) + margin) / 2)


def robust(found: Region, target: int, margin: float, low, high) -> float:
    """Eq. 7 in full: the least ``max |m(x)|`` of an affine m that repairs the whole region.

    ``min H`` with ``|C x + d| <= H`` and ``(M + m)_target - (M + m)_l >= margin`` for all x of
    the region and the box, l != target: every "for all x" is replaced by its dual, which
    turns the semi-infinite programme into a finite one. For small networks only: 68,000
    variables at MNIST's size.

    Args:
      found: a region.
      target: class to lead.
      margin: epsilon.
      low: least inputs.
      high: greatest inputs.

    Returns:
      The optimum H.

    Raises:
      ValueError: HiGHS does not solve it.

    Example:
      >>> layers = [(np.array([[1.0, -1.0]]), np.zeros(2)), (np.eye(2), np.zeros(2))]
      >>> f"{robust(region(layers, np.array([True, False])), 1, 1.0, -1.0, 2.0):.3f}"
      '1.500'
    """
    d, classes = found.a.shape[1], len(found.f0)
    eye = np.eye(d)
    low, high = (np.broadcast_to(side, d) for side in (low, high))
    faces = np.concatenate([found.a, eye, -eye])  # all constraints on x, a x <= b
    limits = np.concatenate([found.b, high, -low])
    # Each requirement is: p.x + q <= 0 for all x, with p and q affine in the unknowns. Its dual:
    # some y >= 0 with faces^T y = p and limits.y + q <= 0.
    wanted = []  # (coefficients of C, of d, of H, constant part of p, of q)
    for label in range(classes):
        e = np.zeros(classes)
        e[label] = 1
        wanted += [(e, -1.0, np.zeros(d), 0.0), (-e, -1.0, np.zeros(d), 0.0)]
        if label != target:
            e[target] = -1
            p, q = found.f[label] - found.f[target], found.f0[label] - found.f0[target]
            wanted.append((e, 0.0, p, q + margin))
    unknowns, m = classes * d + classes + 1, len(limits)
    equal, equal_to, upper, upper_to = [], [], [], []
    for number, (e, h, p, q) in enumerate(wanted):
        of_c = np.kron(e, eye)
        before, after = m * number, m * (len(wanted) - number - 1)
        y = [sp.csr_matrix((d, before)), sp.csr_matrix(faces.T), sp.csr_matrix((d, after))]
        equal.append(sp.hstack([sp.csr_matrix(-of_c), sp.csr_matrix((d, classes + 1)), *y]))
        equal_to.append(p)
        row = np.zeros(unknowns + m * len(wanted))
        row[classes * d : classes * d + classes], row[unknowns - 1] = e, h
        row[unknowns + before : unknowns + before + m] = limits
        upper.append(sp.csr_matrix(row))
        upper_to.append(-q)
    cost = np.zeros(unknowns + m * len(wanted))
    cost[unknowns - 1] = 1
    bounds = [(None, None)] * (unknowns - 1) + [(0, None)] * (1 + m * len(wanted))
    answer = linprog(
        cost,
        A_ub=sp.vstack(upper, format="csr"),
        b_ub=np.array(upper_to),
        A_eq=sp.vstack(equal, format="csr"),
        b_eq=np.concatenate(equal_to),
        bounds=bounds,
        method="highs",
    )
    if answer.status != 0:
        raise ValueError(f"HiGHS did not solve the robust programme: {answer.message}")
    return float(answer.fun)
