"""How sure a number is: intervals of shares and means, paired tests.

Host code in NumPy and SciPy, float64. Which one:

- a share of rows of one model (accuracy, efficacy, TPR): :func:`wilson`, or
  :func:`clopper_pearson` where the level must be guaranteed. They hold for the draw of the
  rows; they know nothing of the training seed.
- a metric over seeds: :func:`mean_interval`.
- two methods on the same seeds: :func:`paired_difference`, and :func:`holm` over
  all the comparisons of a table.
- "could this have been a retrained model?": :func:`~jaxunlearn.audit.null_band`.

A difference d of means is seen with 80% power at the 5% level with about
``2 (1.96 + 0.84)^2 s^2 / d^2`` seeds for each, s being the standard deviation over seeds.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import stats

from jaxunlearn import _validate


class Interval(NamedTuple):
    """An estimate between its bounds.

    Attributes:
      estimate: a share, or a mean over seeds.
      low: nan if there is too little to tell, as for a single seed.
      high: likewise.
    """

    estimate: float
    low: float
    high: float


class PairedDifference(NamedTuple):
    """Result of :func:`paired_difference`.

    Attributes:
      estimate: mean of a - b.
      low: lower end of its interval.
      high: upper end.
      p_value: of Wilcoxon's signed-rank test.
    """

    estimate: float
    low: float
    high: float
    p_value: float


def wilson(successes: int, trials: int, *, level: float = 0.95) -> Interval:
    """Wilson score interval of a share; its coverage is near ``level`` on average.

    ``(p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)``, z the normal quantile. Unlike the
    textbook interval ``p +- z sqrt(p(1-p)/n)`` it has width at 0 and 1, where accuracies live.

    Args:
      successes: integer in 0..trials.
      trials: integer >= 1.
      level: strictly between 0 and 1.

    Raises:
      ValueError: successes outside 0..trials, trials < 1, not integers.

    Example:
      >>> [round(v, 3) for v in wilson(95, 100)]
      [0.95, 0.888, 0.978]
    """
    return _share(successes, trials, level, "wilson")


def clopper_pearson(successes: int, trials: int, *, level: float = 0.95) -> Interval:
    """Exact binomial interval of a share: covers with probability >= ``level``, always.

    Wider than :func:`wilson`; use it where a bound is claimed (TPR and FPR of an attack,
    epsilon lower bounds). Arguments and errors are those of :func:`wilson`.

    Example:
      >>> [round(v, 3) for v in clopper_pearson(95, 100)]
      [0.95, 0.887, 0.984]
    """
    return _share(successes, trials, level, "exact")


def mean_interval(values, *, level: float = 0.95) -> Interval:
    """Student-t interval of a mean over seeds.

    ``mean +- t_{n-1} s / sqrt(n)``, s with n - 1. Right for small n if the values are about
    normal. One value has no spread to estimate: its bounds are nan.

    Args:
      values: ``float[n]``, n >= 1. A NaN (a failed run) makes everything nan: it is not dropped.
      level: strictly between 0 and 1.

    Raises:
      ValueError: no values, or not a vector.

    Example:
      >>> [round(v, 3) for v in mean_interval([0.84, 0.86, 0.85])]
      [0.85, 0.825, 0.875]
    """
    values = vector(level, values=values)
    n, mean = len(values), float(values.mean())
    if n == 1:
        return Interval(mean, np.nan, np.nan)
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half, mean + half)


def bootstrap_interval(
    values,
    *,
    statistic: Callable = np.mean,
    level: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> Interval:
    """Bootstrap interval of any statistic (SciPy's BCa): for skewed values and enough of them.

    Below about 20 values it covers less than it says; prefer :func:`mean_interval` there.

    Args:
      values: ``float[n]``, n >= 1. One value, or a NaN, gives nan bounds; equal values
        give an interval of no width.
      statistic: function of an array and ``axis``, as ``np.mean`` or ``np.median``.
      level: strictly between 0 and 1.
      resamples: number of bootstrap samples, memory 8 n bytes each.
      seed: of the resampling; the same seed gives the same interval.

    Raises:
      ValueError: no values, or not a vector; resamples < 1.

    Example:
      >>> interval = bootstrap_interval([0.84, 0.86, 0.85, 0.83, 0.88], resamples=999)
      >>> 0.83 < interval.low < interval.estimate < interval.high < 0.88
      True
    """
    values = vector(level, values=values)
    _validate.whole(resamples=resamples)
    estimate = float(statistic(values, axis=0))
    if len(values) == 1 or np.isnan(values).any():
        return Interval(estimate, np.nan, np.nan)
    if np.ptp(values) == 0:
        return Interval(estimate, estimate, estimate)
    bounds = stats.bootstrap(
        (values,),
        statistic,
        confidence_level=level,
        n_resamples=resamples,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(estimate, float(bounds.low), float(bounds.high))


def paired_difference(a, b, *, level: float = 0.95) -> PairedDifference:
    """Mean of ``a - b`` over the same seeds, with a t interval and Wilcoxon's signed-rank p.

    The interval assumes differences that are about normal, the p-value only that they are
    symmetric about 0 when there is no effect. With n pairs p cannot be below 2 / 2^n:
    five seeds never reach .05 (.0625), six do.

    Args:
      a: ``float[n]``, one value a seed.
      b: ``float[n]``, the other method on the same seeds, in the same order.
      level: strictly between 0 and 1.

    Raises:
      ValueError: no values, not vectors, lengths that differ.

    Example:
      >>> result = paired_difference([0.90, 0.91, 0.93], [0.88, 0.90, 0.90])
      >>> round(result.estimate, 3), result.p_value
      (0.02, 0.25)
    """
    a, b = vector(level, a=a), vector(level, b=b)
    if len(a) != len(b):
        raise ValueError(f"a has {len(a)} values and b has {len(b)}; give one each for a seed.")
    difference = a - b
    # No difference at all is no evidence; SciPy has no answer there.
    p_value = np.asarray(stats.wilcoxon(difference))[1] if difference.any() else 1
    return PairedDifference(*mean_interval(difference, level=level), float(p_value))


def holm(p_values) -> np.ndarray:
    """Holm's adjustment: reject those <= alpha, and P(any false rejection) <= alpha.

    The i-th smallest of m becomes ``max_{j <= i} min(1, (m - j + 1) p_j)``; needs no
    independence, and is never weaker than Bonferroni.

    Args:
      p_values: ``float[m]`` in [0, 1], m >= 1.

    Returns:
      ``float[m]``, adjusted, in the order given.

    Raises:
      ValueError: no values, not a vector, values outside [0, 1] or NaN.

    Example:
      >>> [round(float(p), 4) for p in holm([0.01, 0.04, 0.03])]
      [0.03, 0.06, 0.06]
    """
    p = vector(0.95, p_values=p_values)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p_values={p.tolist()} must lie in [0, 1].")
    order = np.argsort(p)
    steps = np.arange(len(p), 0, -1) * p[order]
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


def vector(level: float, **named) -> np.ndarray:
    """The one named argument as ``float64[n]``; it and the level are checked."""
    _validate.fraction(level=level)
    [(name, values)] = named.items()
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"{name} has shape {values.shape}, but must be [n] with n >= 1 values.")
    return values


def _share(successes: int, trials: int, level: float, method: str) -> Interval:
    _validate.fraction(level=level)
    _validate.whole(trials=trials)
    _validate.whole(0, successes=successes)
    if successes > trials:
        raise ValueError(f"successes={successes!r} must be <= trials={trials!r}.")
    bounds = stats.binomtest(successes, trials).proportion_ci(level, method)
    return Interval(successes / trials, float(bounds.low), float(bounds.high))
