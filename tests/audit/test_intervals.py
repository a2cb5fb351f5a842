import itertools
import json

import numpy as np
import pytest
from scipy import stats

from jaxunlearn import audit


def coverage(intervals, p):
    """Exact probability that the interval of k ~ Binomial(n, p) holds p, for every p."""
    n = len(intervals) - 1
    low, high = np.array([(i.low, i.high) for i in intervals]).T
    inside = (low[:, None] <= p) & (p <= high[:, None])
    return (stats.binom.pmf(np.arange(n + 1)[:, None], n, p) * inside).sum(0)


def wald(k, n):
    half = stats.norm.ppf(0.975) * np.sqrt(k / n * (1 - k / n) / n)
    return audit.Interval(k / n, k / n - half, k / n + half)


@pytest.mark.parametrize("n", [20, 50])
def test_coverage_of_a_share_by_enumeration(n):
    p = np.linspace(0.005, 0.995, 397)
    exact = coverage([audit.clopper_pearson(k, n) for k in range(n + 1)], p)
    wilson = coverage([audit.wilson(k, n) for k in range(n + 1)], p)
    wrong = coverage([wald(k, n) for k in range(n + 1)], p)
    assert exact.min() >= 0.95
    assert abs(wilson.mean() - 0.95) < 0.01 and wilson.min() > 0.82
    assert wrong.mean() < 0.93 and wrong.min() < 0.3


def test_shares_in_closed_form():
    k, n, z = 37, 41, stats.norm.ppf(0.95)
    p = k / n
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert audit.wilson(k, n, level=0.9) == pytest.approx((p, middle - half, middle + half))
    bounds = stats.beta.ppf([0.05, 0.95], [k, k + 1], [n - k + 1, n - k])
    assert audit.clopper_pearson(k, n, level=0.9) == pytest.approx((p, *bounds))


@pytest.mark.parametrize("interval", [audit.wilson, audit.clopper_pearson])
def test_shares_at_the_ends(interval):
    none, all_ = interval(0, 30), interval(30, 30)
    assert none.low == pytest.approx(0, abs=1e-12) and 0.05 < none.high < 0.2
    assert all_.high == pytest.approx(1, abs=1e-12) and 0.8 < all_.low < 0.95
    assert interval(1, 1).low > 0
    # Cheap for a whole test set, and narrow.
    assert interval(59_000, 60_000).high - interval(59_000, 60_000).low < 0.003


def test_mean_interval_covers_where_the_normal_quantile_does_not():
    rng = np.random.default_rng(0)
    draws = rng.normal(1, 2, (3000, 5))
    hits = [i.low <= 1 <= i.high for i in map(audit.mean_interval, draws)]
    # Four standard errors of a share of .95 in 3,000 draws.
    assert abs(np.mean(hits) - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 3000)
    half = 1.96 * draws.std(1, ddof=1) / np.sqrt(5)
    assert np.mean(np.abs(draws.mean(1) - 1) <= half) < 0.90


def test_mean_interval_of_one_or_equal_values():
    one = audit.mean_interval([0.5])
    assert one.estimate == 0.5 and np.isnan(one.low) and np.isnan(one.high)
    assert audit.mean_interval([0.5, 0.5]) == (0.5, 0.5, 0.5)
    assert np.isnan(audit.mean_interval([0.5, np.nan])).all()


def test_null_band_covers_one_more_value_where_quantiles_do_not():
    rng = np.random.default_rng(1)
    draws = rng.normal(1, 2, (3000, 6))
    seen, new = draws[:, :5], draws[:, 5]
    bands = np.array([audit.null_band(row) for row in seen])
    assert abs(np.mean((bands[:, 0] <= new) & (new <= bands[:, 1])) - 0.95) < 0.016
    low, high = np.quantile(seen, [0.025, 0.975], axis=1)
    assert np.mean((low <= new) & (new <= high)) < 0.75


def test_bootstrap_interval():
    rng = np.random.default_rng(0)
    normal, skewed = rng.normal(size=200), rng.exponential(size=60)
    near = audit.mean_interval(normal)
    boot = audit.bootstrap_interval(normal)
    assert boot == audit.bootstrap_interval(normal)
    assert boot == pytest.approx(near, abs=0.02)
    assert boot != audit.bootstrap_interval(normal, seed=1)
    interval = audit.bootstrap_interval(skewed)
    assert interval.high - interval.estimate > 1.05 * (interval.estimate - interval.low)
    median = audit.bootstrap_interval(normal, statistic=np.median, resamples=999)
    assert median.low < np.median(normal) == median.estimate < median.high


def test_bootstrap_of_one_or_equal_values():
    assert np.isnan(audit.bootstrap_interval([0.5])[1:]).all()
    assert np.isnan(audit.bootstrap_interval([0.5, np.nan, 1.0])[1:]).all()
    assert audit.bootstrap_interval([0.5] * 4) == (0.5, 0.5, 0.5)


def test_paired_difference_is_the_paired_t_interval_and_the_exact_signed_rank_test():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.3, 1, 7), rng.normal(0, 1, 7)
    result = audit.paired_difference(a, b)
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert result[:3] == pytest.approx(((a - b).mean(), expected.low, expected.high))
    # All 2^7 signs of the ranks are equally likely without an effect.
    ranks = stats.rankdata(np.abs(a - b))
    sums = np.array([np.dot(s, ranks) for s in itertools.product([-1, 1], repeat=7)])
    observed = abs(np.dot(np.sign(a - b), ranks))
    assert result.p_value == pytest.approx(np.mean(np.abs(sums) >= observed))


def test_pairing_uses_what_the_seeds_share():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=10)
    a, b = shared + 0.1 + 0.02 * rng.normal(size=10), shared + 0.02 * rng.normal(size=10)
    result = audit.paired_difference(a, b)
    assert 0 < result.low < 0.1 < result.high < 0.2
    assert result.p_value < 0.01
    unpaired = audit.paired_difference(a, np.roll(b, 1))
    assert unpaired.low < 0


def test_paired_difference_of_ties_equal_runs_and_few_seeds():
    a = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    assert audit.paired_difference(a, a) == (0, 0, 0, 1)
    # The smallest p that five seeds can give.
    assert audit.paired_difference(a, np.zeros(5)).p_value == pytest.approx(2 / 2**5)
    assert audit.paired_difference(a + np.array([1, 1, 1, 0, 0]), a).p_value >= 0.2
    assert np.isnan(audit.paired_difference([1.0], [0.5]).low)


@pytest.mark.parametrize("seed", range(4))
def test_holm_is_the_step_down_procedure(seed):
    p = np.random.default_rng(seed).uniform(0, 0.1, 8)
    adjusted = audit.holm(p)
    for alpha in (0.01, 0.05, 0.1, 0.3):
        rejected = np.zeros(8, bool)
        for step, index in enumerate(np.argsort(p)):
            if p[index] > alpha / (8 - step):
                break
            rejected[index] = True
        np.testing.assert_array_equal(adjusted <= alpha, rejected)
    assert (adjusted >= p).all() and (adjusted <= np.minimum(8 * p, 1)).all()


def test_holm_keeps_false_rejections_rare_where_raw_p_values_do_not():
    p = np.random.default_rng(0).uniform(size=(2000, 10))
    assert np.mean([(audit.holm(row) <= 0.05).any() for row in p]) < 0.07
    assert np.mean((p <= 0.05).any(1)) > 0.3


def test_results_are_plain_floats():
    results = [
        audit.wilson(3, 7),
        audit.clopper_pearson(3, 7),
        audit.mean_interval([1, 2]),
        audit.bootstrap_interval([1, 2, 4], resamples=99),
        audit.paired_difference([1, 2], [2, 2]),
        audit.null_band([1, 2]),
    ]
    for result in results:
        assert all(type(value) is float for value in result)
        json.dumps(result._asdict())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: audit.wilson(8, 7), "successes=8"),
        (lambda: audit.wilson(-1, 7), "successes=-1"),
        (lambda: audit.clopper_pearson(0, 0), "trials=0"),
        (lambda: audit.wilson(0.5, 7), "successes=0.5"),
        (lambda: audit.wilson(1, 7, level=95), "level=95"),
        (lambda: audit.mean_interval([]), "values has shape"),
        (lambda: audit.mean_interval(3.0), "values has shape"),
        (lambda: audit.bootstrap_interval([1, 2], resamples=0), "resamples=0"),
        (lambda: audit.paired_difference([1, 2], [1]), "a has 2 values and b has 1"),
        (lambda: audit.holm([0.1, 1.1]), "must lie in"),
        (lambda: audit.holm([0.1, np.nan]), "must lie in"),
        (lambda: audit.null_band([1.0]), ">= 2 models"),
        (lambda: audit.null_band([1.0, 2.0], shared_pairs=True), ">= 3 models"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
