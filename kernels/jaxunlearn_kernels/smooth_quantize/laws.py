"""The smoothed ternary quantizer in closed form: what does not depend on the data.

In units of the noise's standard deviation let ``a = |g| / sigma`` and ``b = lam / (2 sigma)``. With
``F`` the distribution function of the noise, ``Q(g + noise)`` is, compared with the sign of ``g``,

    the same      with probability  F(a - b)
    zero                            F(b - a) - F(-b - a)
    the opposite                    F(-b - a)

Everything here runs once, on the host, in float64.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from numpy.polynomial import chebyshev
from scipy import optimize, special, stats

NOISES = ("gaussian", "laplace", "uniform")

# With standard deviation 1.
LAWS = {
    "gaussian": stats.norm(),
    "laplace": stats.laplace(scale=1 / math.sqrt(2)),
    "uniform": stats.uniform(loc=-math.sqrt(3), scale=2 * math.sqrt(3)),
}


@functools.lru_cache
def threshold(half_width: float, noise: str) -> float:
    """The ``a`` below which zero is the likeliest class; 0 if it never is.

    ``half_width`` is ``b``. The likeliest class is then ``sign(g)`` for ``a`` above the threshold.
    """
    F = LAWS[noise].cdf
    excess = lambda a: F(a - half_width) - F(half_width - a) + F(-half_width - a)
    if excess(0.0) >= 0:
        return 0.0
    # At a = b zero and the same sign differ by F(-2b) >= 0; it vanishes for wide zones.
    if excess(half_width) <= 0:
        return half_width
    return _root(excess, half_width)


def _root(function, top: float) -> float:
    return float(optimize.root_scalar(function, bracket=(0.0, top), xtol=1e-15, rtol=1e-14).root)


class Correction(NamedTuple):
    """Cohen's radius in units of sigma, ``|a - b + c(a) / 2|``, by a series for ``c``.

    Attributes:
      start: below this ``a`` the opposite sign is the runner-up, and the radius is ``a``.
      scale: the series is in ``2 t - 1`` with ``t = 1 / (1 + (a - start) / scale)``.
      series: Chebyshev coefficients of ``c(a) / 2``.
      error: how far the radius may be from that, its rounding in float32 at ``a`` = 1 included.
    """

    start: float
    scale: float
    series: tuple[float, ...]
    error: float


def gap(a, half_width: float):
    """``c(a) = b - a - Phi^-1(p_zero)``, what the opposite tail adds; stable in both tails."""
    b, a = half_width, np.asarray(a, float)
    high, low = special.log_ndtr(b - a), special.log_ndtr(-b - a)
    with np.errstate(divide="ignore"):
        log_zero = high + np.log1p(-np.exp(low - high))
    log_rest = np.logaddexp(special.log_ndtr(a - b), low)
    quantile = np.where(
        log_zero > math.log(0.5), -special.ndtri_exp(log_rest), special.ndtri_exp(log_zero)
    )
    return b - a - quantile


@functools.lru_cache
def correction(half_width: float) -> Correction | None:
    """The series that makes Cohen's radius a polynomial of one variable; None for tiny ``b``.

    ``c`` depends on ``b`` alone, so it is fitted once instead of inverting the normal
    distribution at every coordinate. The fit is checked on a grid and its largest error
    is kept, so that a radius can be rounded down by it.
    """
    b = half_width
    if b < 1e-4:  # the series would begin at a > 1 / (4 b), where c is below float32's rounding
        return None
    start = 0.0
    if threshold(b, "gaussian") == 0:
        top = 1.0
        while gap(top, b) > 2 * b:
            top *= 2
        if gap(0.0, b) > 2 * b:
            start = _root(lambda a: gap(a, b) - 2 * b, top)
    # Dense where c moves: near the start, and as far out as it can be told from 0.
    grid = start + np.concatenate([[0.0], np.geomspace(1e-4, 1e5, 4000)])
    truth = np.clip(gap(grid, b) / 2, 0.0, None)
    best = None
    for degree in (8, 12, 16, 24, 32, 48):
        for scale in np.geomspace(0.2, 50.0, 13):
            half_gap = lambda x, s=scale: gap(start + s * (2 / np.maximum(x + 1, 2e-9) - 1), b) / 2
            fitted = chebyshev.chebinterpolate(lambda x, f=half_gap: f(x).clip(0.0), degree)
            x = 2 / (1 + (grid - start) / scale) - 1
            error = float(np.abs(chebyshev.chebval(x, fitted) - truth).max())
            if best is None or error < best.error:
                best = Correction(start, float(scale), tuple(map(float, fitted)), error)
        assert best is not None
        if best.error < 1e-7:
            break
    assert best is not None
    # The series adds up in float32, term by term.
    rounding = 4e-7 * (1 + sum(map(abs, best.series))) + 1.2e-7 * b
    return best._replace(error=best.error + rounding)
