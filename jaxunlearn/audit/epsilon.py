"""Epsilon of single rows: how well the unlearned can be told from the retrained models by a row.

An unlearner is (epsilon, delta)-indistinguishable from retraining on a row if for every set S
of outputs ``P(unlearned in S) <= e^epsilon P(retrained in S) + delta``, and with the two
exchanged. Every rule that decides between the two therefore *bounds epsilon from below*: with
false-positive rate FPR and false-negative rate FNR,

    epsilon >= max{ log((1 - delta - FPR) / FNR), log((1 - delta - FNR) / FPR) }.

With M models an arm the rates are multiples of 1 / M, so nothing above about log(M) can be seen,
and the best of many rules is too good: retraining against itself scores more than 0. So each
number comes with that null; :func:`null_epsilon` says what to expect. Host code, float64.
"""

import functools
import math

import numpy as np
from scipy import stats

from jaxunlearn import _validate
from jaxunlearn.audit.intervals import Interval, bootstrap_interval
from jaxunlearn.audit.report import AuditReport, arms

RULES = ("single", "double")
MODES = ("default", "paper")
# Of the organisers' code: delta, and epsilon of a perfect separation.
PAPER_DELTA, PAPER_CAP = 1e-5, 50.0


def example_epsilons(
    unlearned, retrained, *, delta: float = 0.1, rule: str = "single"
) -> np.ndarray:
    """Epsilon of each row by the best rule on its score: an estimate, biased upwards.

    The recipe of the NeurIPS 2023 unlearning challenge (Triantafillou et al. 2024, arXiv
    2406.09073, and their code): the largest epsilon over all thresholds; infinite where a rule
    makes no error; rules of which only one rate is 0 are discarded, since that is what too few
    samples look like.

    Deviation: thresholds at the scores themselves, which are all that there are, instead of a grid
    of .01. ``delta`` = .1 by default, as with the challenge's 1e-5 the null is far from 0 for any
    number of models that one can afford (``docs/audit.md`` has both). A row that is constant in one
    arm, as a patched or masked answer may be, is tried with ``double`` rules too: thresholds that
    find all models of one arm would be discarded, and it would look forgotten.

    Args:
      unlearned: ``float[M, n]``, a score of n rows under M unlearned models, for example
        :func:`~jaxunlearn.audit.logit_confidence`.
      retrained: ``float[M, n]`` of M retrained models.
      delta: in (0, 1).
      rule: ``single`` thresholds in both directions, or ``double``: inside or outside of an
        interval too, which sees a distribution that is only narrower.

    Returns:
      ``float64[n]`` >= 0, possibly ``inf``.

    Cost: O(n M log M); ``double`` O(n M^2).

    Raises:
      ValueError: shapes that differ, fewer than 8 models, constant or non-finite scores.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> retrained, shifted = rng.normal(0, 1, (128, 2)), rng.normal([0, 2], 1, (128, 2))
      >>> same, other = example_epsilons(shifted, retrained)
      >>> bool(same < 0.5), bool(other > 2)
      (True, True)
    """
    unlearned, retrained = arms(unlearned=unlearned, retrained=retrained)
    _validate.fraction(delta=delta)
    _validate.one_of(RULES, rule=rule)
    return _epsilons(unlearned, retrained, delta, rule)


def _epsilons(unlearned, retrained, delta, rule) -> np.ndarray:
    return np.array([_epsilon(u, r, delta, rule) for u, r in zip(unlearned.T, retrained.T)])  # noqa: B905


def _epsilon(u: np.ndarray, r: np.ndarray, delta: float, rule: str) -> float:
    """The best rule for one row; every set is a run of the pooled, sorted scores."""
    m = len(u)
    if np.ptp(u) == 0 or np.ptp(r) == 0:
        rule = "double"
    pooled = np.concatenate([u, r])
    order = np.argsort(pooled, kind="stable")
    values = pooled[order]
    below = np.concatenate([[0], np.cumsum(order < m)]) / m  # share of u before each cut
    others = np.concatenate([[0], np.cumsum(order >= m)]) / m
    cuts = np.concatenate([[True], np.diff(values) > 0, [True]])  # not between ties
    below, others = below[cuts], others[cuts]
    if rule == "single":  # the upper side of a threshold; the lower is its complement
        tpr, fpr = 1 - below, 1 - others
    else:
        i, j = np.triu_indices(len(below), 1)
        tpr, fpr = below[j] - below[i], others[j] - others[i]
    # u inside and r outside, then the two exchanged.
    return max(_best(fpr, 1 - tpr, delta, m), _best(tpr, 1 - fpr, delta, m))


def _best(fpr: np.ndarray, fnr: np.ndarray, delta: float, m: int) -> float:
    slack = 0.5 / m  # rates are multiples of 1 / M up to rounding
    no_fp, no_fn = fpr < slack, fnr < slack
    if (no_fp & no_fn).any():
        return math.inf
    keep = ~(no_fp | no_fn)
    fpr, fnr = fpr[keep], fnr[keep]
    if not keep.any():
        return 0.0
    ratios = np.concatenate([(1 - delta - fpr) / fnr, (1 - delta - fnr) / fpr])
    return max(0.0, float(np.log(max(ratios.max(), 1.0))))


@functools.cache
def null_epsilon(models: int, *, delta: float = 0.1, rule: str = "single") -> float:
    """Mean of :func:`example_epsilons` where nothing differs: its bias at so many models.

    Simulated with 400 rows, whose law does not matter (only the order of scores counts);
    infinite values count as 7.

    Args:
      models: M, in each arm.
      delta: in (0, 1).
      rule: as there.

    Raises:
      ValueError: fewer than 2 models, a bad delta or rule.

    Example:
      >>> null_epsilon(8) > 5 * null_epsilon(128)
      True
    """
    _validate.whole(2, models=models)
    _validate.fraction(delta=delta)
    _validate.one_of(RULES, rule=rule)
    rng = np.random.default_rng(0)
    u, r = rng.random((2, models, 400))
    return float(np.minimum(_epsilons(u, r, delta, rule), 7.0).mean())


def epsilon_lower_bound(
    unlearned, retrained, *, delta: float = 0.1, level: float = 0.95
) -> np.ndarray:
    """A bound below the epsilon of each row that holds with probability ``level``, exactly.

    Thresholds are put at the 1st, 2nd, 4th, 8th ... largest score of one arm, where the rate of
    that arm has a beta law whatever its distribution, and the other arm's rate has the
    Clopper-Pearson bound; both arms and both directions, with Bonferroni's correction for all of
    them. A set is what lies strictly above its threshold, so that ties, of which a share of right
    answers or a saturated confidence is full, keep the beta law an upper bound. Valid for any law,
    for each row (not for all rows at once).

    Guarantee: ``P(bound <= epsilon) >= level`` for scores that are independent over models and
    between the arms. Arms that share their keys are not quite: simulated normal arms with
    correlation .95 or -.95 kept the level all the same.

    Args:
      unlearned: ``float[M, n]``; see :func:`example_epsilons`.
      retrained: ``float[M, n]``.
      delta: in (0, 1).
      level: in (0, 1).

    Returns:
      ``float64[n]`` >= 0. It reaches about a third of the truth at M = 128 and two thirds at
      M = 2,000 for normal laws two standard deviations apart (``python -m benchmarks.audit``).

    Raises:
      ValueError: as :func:`example_epsilons`.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> bound = epsilon_lower_bound(rng.normal(2, 1, (2000, 1)), rng.normal(0, 1, (2000, 1)))
      >>> 2 < float(bound[0]) < 3.82  # the truth is 3.81
      True
    """
    unlearned, retrained = arms(unlearned=unlearned, retrained=retrained)
    _validate.fraction(delta=delta, level=level)
    m = len(unlearned)
    ranks = 2 ** np.arange(int(math.log2(m)))
    alpha = (1 - level) / (2 * 4 * len(ranks))  # two rates, two arms, two directions
    upper = stats.beta.ppf(1 - alpha, ranks, m - ranks + 1)
    hits = np.arange(m + 1)
    lower = np.where(hits > 0, stats.beta.ppf(alpha, np.maximum(hits, 1), m - hits + 1), 0.0)
    best = np.zeros(unlearned.shape[1])
    for a, b in ((unlearned, retrained), (retrained, unlearned)):
        for sign in (1, -1):
            thresholds = -np.sort(-sign * b, axis=0)[ranks - 1]  # [ranks, n]
            for threshold, bound in zip(thresholds, upper, strict=True):
                rate = lower[(sign * a > threshold).sum(0)]
                ratio = np.maximum(rate - delta, 1e-300) / bound
                best = np.maximum(best, np.log(ratio))
    return best


def epsilon_report(
    unlearned, retrained, *, null, delta: float = 0.1, rule: str = "single"
) -> AuditReport:
    """Median epsilon of the rows, with the null of retraining against retraining.

    Args:
      unlearned: ``float[M, n]``; see :func:`example_epsilons`.
      retrained: ``float[M, n]``.
      null: ``float[M, n]`` of M further retrained models.
      delta: in (0, 1).
      rule: see there.

    Returns:
      :class:`AuditReport`: the median over rows, infinity counted as 50, with a bootstrap interval
      over rows (nan for a single row). It takes rows for independent: where nothing differs it is
      clear of the null in 1% of cases if they are, and in a quarter if they correlate by .6 over
      models, as the rows of one class may; then rely on :func:`~jaxunlearn.audit.ulira`, whose
      interval is over models. ``detail``:
      ``epsilons``, ``lower`` (95% bounds), ``infinite`` (share of rows told apart without an
      error), and the same of the null as ``null_epsilons`` and ``null_infinite``.

    Raises:
      ValueError: as :func:`example_epsilons`.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> a, b, c = rng.normal(0, 1, (3, 64, 50))
      >>> epsilon_report(a + 1, b, null=c).above_null
      True
    """
    unlearned, retrained, null = arms(unlearned=unlearned, retrained=retrained, null=null)
    found = example_epsilons(unlearned, retrained, delta=delta, rule=rule)
    nothing = example_epsilons(null, retrained, delta=delta, rule=rule)
    interval = _median(found)
    return AuditReport(
        name="epsilon, median of the rows",
        value=interval.estimate,
        interval=interval,
        null=_median(nothing),
        n_models=len(unlearned),
        detail={
            "epsilons": found,
            "lower": epsilon_lower_bound(unlearned, retrained, delta=delta),
            "infinite": float(np.isinf(found).mean()),
            "null_epsilons": nothing,
            "null_infinite": float(np.isinf(nothing).mean()),
        },
    )


def _median(epsilons: np.ndarray) -> Interval:
    # Capped last: between a number and infinity lies infinity, not the mean with the cap.
    median = lambda values: np.minimum(np.median(values, axis=-1), PAPER_CAP)
    if len(epsilons) == 1:
        return Interval(float(median(epsilons)), np.nan, np.nan)
    drawn = np.random.default_rng(0).integers(len(epsilons), size=(2000, len(epsilons)))
    medians = median(epsilons[drawn])
    low = np.quantile(medians, 0.025, method="lower")
    high = np.quantile(medians, 0.975, method="higher")
    return Interval(float(median(epsilons)), float(low), float(high))


def quality_of(epsilons, *, models: int, mode: str = "default") -> np.ndarray:
    """Points of each row, ``2 / 2^bin`` with bins of width one half: 1 for epsilon < .5.

    Args:
      epsilons: ``float[n]``.
      models: M. In mode ``paper`` a row with epsilon beyond ``ceil(log(M - 1))`` gets nothing, as
        in the organisers' code; by default the points go on halving, and infinity gets 0.
      mode: ``default`` or ``paper``.

    Example:
      >>> quality_of([0.2, 0.6, 1.2, np.inf], models=128).tolist()
      [1.0, 0.5, 0.25, 0.0]
    """
    _validate.one_of(MODES, mode=mode)
    epsilons = np.asarray(epsilons, np.float64)
    points = np.exp2(-np.floor(np.minimum(epsilons, 500) / 0.5))
    points = np.where(np.isinf(epsilons), 0.0, points)
    if mode == "paper":
        points = np.where(epsilons < math.ceil(math.log(models - 1)), points, 0.0)
    return points


def forgetting_quality(unlearned, retrained, *, null, mode: str = "default") -> AuditReport:
    """The forgetting quality of the NeurIPS 2023 unlearning challenge: mean of 2 / 2^bin.

    ``F = mean_s 2 / 2^n(s)``, n(s) the number of the bin, of width one half, that the epsilon of
    row s falls into (Triantafillou et al. 2024, arXiv 2406.09073). 1 is the best. The challenge
    multiplied it by the accuracies on retained and test rows relative to retraining; we report
    those apart.

    Args:
      unlearned: ``float[M, n]`` logit confidences of the forgotten rows.
      retrained: ``float[M, n]`` of M retrained models.
      null: ``float[M, n]`` of M further retrained models.
      mode: ``default``: single thresholds and delta = .1. ``paper``: the organisers' code: single
        and double thresholds, delta = 1e-5, no points beyond ``ceil(log(M - 1))``, and epsilon 50
        for a row whose scores range less than a hundredth as far in one arm as in the other.

    Returns:
      :class:`AuditReport`: the mean over rows, with a bootstrap interval over rows, which takes
      them for independent as that of :func:`epsilon_report` does.

    Raises:
      ValueError: as :func:`example_epsilons`.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> a, b, c = rng.normal(0, 1, (3, 64, 50))
      >>> quality = forgetting_quality(a + 2, b, null=c)
      >>> bool(quality.value < 0.3 < quality.null.low)
      True
    """
    _validate.one_of(MODES, mode=mode)
    unlearned, retrained, null = arms(unlearned=unlearned, retrained=retrained, null=null)
    points = _points(unlearned, retrained, mode)
    interval = bootstrap_interval(points)
    return AuditReport(
        name="forgetting quality",
        value=interval.estimate,
        interval=interval,
        null=bootstrap_interval(_points(null, retrained, mode)),
        n_models=len(unlearned),
        detail={"points": points},
    )


def _points(u: np.ndarray, r: np.ndarray, mode: str) -> np.ndarray:
    if mode == "default":
        return quality_of(_epsilons(u, r, 0.1, "single"), models=len(u))
    epsilons = np.minimum(_epsilons(u, r, PAPER_DELTA, "double"), PAPER_CAP)
    ranges = np.sort(np.stack([np.ptp(u, axis=0), np.ptp(r, axis=0)]), axis=0)
    narrow = ranges[0] < 0.01 * ranges[1]
    return quality_of(np.where(narrow, PAPER_CAP, epsilons), models=len(u), mode=mode)
