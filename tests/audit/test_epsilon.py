"""Epsilons of single rows against brute force, known laws and the challenge's own scoring."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from jaxunlearn import audit
from jaxunlearn.audit.epsilon import quality_of

M, DELTA = 24, 0.1


def rng(seed=0):
    return np.random.default_rng(seed)


def brute(u, r, delta, rule):
    """Every threshold or interval between values, one after the other, as the paper writes it."""
    values = np.unique(np.concatenate([u, r]))
    edges = [-np.inf, *((values[1:] + values[:-1]) / 2), np.inf]
    if rule == "single":
        sets = [(low, np.inf) for low in edges] + [(-np.inf, high) for high in edges]
    else:
        sets = [(low, high) for i, low in enumerate(edges) for high in edges[i + 1 :]]
    best = 0.0
    for low, high in sets:
        for a, b in ((u, r), (r, u)):  # a is called by the set, b is not
            fnr = np.mean(~((a > low) & (a < high)))
            fpr = np.mean((b > low) & (b < high))
            if fpr == 0 and fnr == 0:
                return math.inf
            if fpr == 0 or fnr == 0:
                continue
            with np.errstate(invalid="ignore", divide="ignore"):
                both = [
                    np.log(1 - delta - fpr) - np.log(fnr),
                    np.log(1 - delta - fnr) - np.log(fpr),
                ]
            best = max(best, np.nanmax([0.0, *both]))
    return best


@pytest.mark.parametrize("rule", ["single", "double"])
@pytest.mark.parametrize("digits", [8, 1])  # 1 makes ties
def test_brute_force(rule, digits):
    u = rng(1).normal([0, 1, 3, 0], [1, 1, 1, 0.1], (M, 4)).round(digits)
    r = rng(2).normal(0, 1, (M, 4)).round(digits)
    expected = [brute(a, b, DELTA, rule) for a, b in zip(u.T, r.T, strict=True)]
    np.testing.assert_allclose(audit.example_epsilons(u, r, delta=DELTA, rule=rule), expected)


def test_a_narrower_law_is_seen_by_intervals_only():
    u, r = rng(1).normal(0, 0.05, (M, 20)), rng(2).normal(0, 1, (M, 20))
    single, double = (audit.example_epsilons(u, r, rule=rule) for rule in ("single", "double"))
    assert np.median(single) + 0.3 < np.median(double)


def test_an_answer_that_never_varies_is_told_from_one_that_does():
    u, r, null = rng(1).normal(0, 1, (3, M, 4))
    u[:, :3] = r[:, 1] = 0.5  # within the retrained scores; both arms constant in row 1
    r[:2, 2] = 0.5  # a rule of which only one rate is 0: discarded, as all of them
    np.testing.assert_array_equal(audit.example_epsilons(u, r)[:3], [np.inf, 0, 0])
    np.testing.assert_array_equal(audit.example_epsilons(r, u)[:3], [np.inf, 0, 0])
    points = audit.forgetting_quality(u, r, null=null).detail["points"]
    np.testing.assert_array_equal(points[:3], [0, 1, 1])


def test_perfect_separation_is_infinite_and_identity_is_zero():
    u = rng().normal(0, 1, (M, 1))
    assert audit.example_epsilons(u + 100, u)[0] == np.inf
    assert audit.example_epsilons(u, u)[0] == 0


def truth(shift, delta):
    """Balle and Wang 2018, Theorem 8."""
    gap = lambda e: (
        stats.norm.cdf(shift / 2 - e / shift)
        - np.exp(e) * stats.norm.cdf(-shift / 2 - e / shift)
        - delta
    )
    return optimize.brentq(gap, 0, 100)


@pytest.mark.parametrize("size", [128, 600])
@pytest.mark.parametrize("shift", [1.0, 2.0])
def test_lower_bound_keeps_its_level_and_has_power(size, shift):
    draws = 400
    u, r = rng(3).normal(shift, 1, (size, draws)), rng(4).normal(0, 1, (size, draws))
    bounds = audit.epsilon_lower_bound(u, r, delta=DELTA)
    above = (bounds > truth(shift, DELTA)).sum()
    # P(above) <= .05: more than this many would happen once in a thousand.
    assert above <= stats.binom.ppf(0.999, draws, 0.05)
    if size == 600:  # a law that claimed half of this epsilon would be refuted
        assert (bounds > 0.5 * truth(shift, DELTA)).mean() > (0.2 if shift == 1 else 0.6)


@pytest.mark.parametrize("correlation", [-0.95, 0.95])
def test_lower_bound_keeps_its_level_with_keys_shared(correlation):
    r, own = rng(10).normal(0, 1, (2, 512, 400))
    u = 1 + correlation * r + np.sqrt(1 - correlation**2) * own
    bounds = audit.epsilon_lower_bound(u, r, delta=DELTA)
    assert (bounds > truth(1, DELTA)).sum() <= stats.binom.ppf(0.999, 400, 0.05)
    assert (bounds > 0.1).mean() > 0.5


def test_lower_bound_keeps_its_level_with_ties():
    """Equal laws of two values: the truth is 0, and every positive bound is wrong."""
    u, r = rng(5).integers(0, 2, (2, 64, 400)).astype(float)
    above = (audit.epsilon_lower_bound(u, r, delta=0.01) > 0).sum()
    assert above <= stats.binom.ppf(0.999, 400, 0.05)
    told = np.where(rng(6).random((600, 400)) < 0.9, u[:1], 1 - u[:1])  # epsilon log 9
    bounds = audit.epsilon_lower_bound(told, rng(7).integers(0, 2, told.shape), delta=0.01)
    assert (bounds > 0.2).mean() > 0.9


def test_lower_bound_is_exact_where_it_is_tight():
    """Uniform laws, one threshold matters: the bound is the ratio of two exact bounds."""
    level, m = 0.95, 64
    ranks = 2 ** np.arange(6)
    alpha = (1 - level) / (8 * len(ranks))
    r = np.arange(m)[:, None] / m
    u = r + 10.0  # all above every threshold
    upper = [stats.beta.ppf(1 - alpha, k, m - k + 1) for k in ranks]
    lower = alpha ** (1 / m)  # Clopper-Pearson at m of m
    expected = np.log((lower - DELTA) / min(upper))
    np.testing.assert_allclose(audit.epsilon_lower_bound(u, r, delta=DELTA), [expected])


def test_null_epsilon_is_that_of_any_law_and_falls_with_models():
    found = [audit.null_epsilon(m) for m in (8, 16, 32, 64, 128)]
    assert found == sorted(found, reverse=True) and found[-1] < 0.3 < found[0]
    u, r = rng(5).standard_cauchy((2, 32, 600))
    mean = np.minimum(audit.example_epsilons(u, r), 7).mean()
    assert abs(mean - audit.null_epsilon(32)) < 0.12


def test_points_of_the_challenge():
    epsilons = [0, 0.49, 0.5, 0.99, 1.0, 2.3, 4.9, 5.1, np.inf]
    expected = [1, 1, 0.5, 0.5, 0.25, 1 / 16, 2**-9, 2**-10, 0]
    np.testing.assert_allclose(quality_of(epsilons, models=128), expected)
    # The organisers' loop: buckets up to ceil(log(M - 1)) = 5, and nothing beyond.
    paper = [0.0] * len(epsilons)
    for place, value in enumerate(epsilons):
        start, points = 0.0, 1.0
        while start + 0.5 <= math.ceil(math.log(127)):
            if value < start + 0.5:
                paper[place] = points
                break
            start, points = start + 0.5, points / 2
    np.testing.assert_allclose(quality_of(epsilons, models=128, mode="paper"), paper)


def test_quality_of_the_paper_calls_a_collapsed_row_lost():
    u, r, null = rng(6).normal(0, 1, (3, M, 40))
    u[:, :10] *= 1e-4
    u[:, :10] += rng(7).normal(0, 1, (1, 10))
    points = audit.forgetting_quality(u, r, null=null, mode="paper").detail["points"]
    assert (points[:10] == 0).all() and (points[10:] > 0).any()


def test_report_says_what_retraining_scores():
    u, r, null = rng(8).normal(0, 1, (3, 64, 100))
    same, moved = (audit.epsilon_report(a, r, null=null) for a in (u, u + 1.5))
    assert moved.above_null and not same.above_null
    assert same.null == moved.null and same.n_models == 64
    assert moved.value == np.median(audit.example_epsilons(u + 1.5, r))
    half = audit.epsilon_report(u + np.repeat([0.0, 99.0], 50), r, null=null)
    assert half.detail["infinite"] == 0.5 and half.value == 50  # infinity, and not 25 or so
    one = audit.epsilon_report(u[:, :1], r[:, :1], null=null[:, :1])
    assert np.isnan(one.interval.low) and not one.above_null
    quality = audit.forgetting_quality(u + 1.5, r, null=null)
    assert quality.value < quality.null.low and quality.value == quality.detail["points"].mean()
    assert quality.clear_of_null and not quality.above_null  # lower is worse
    assert moved.clear_of_null and not same.clear_of_null and not one.clear_of_null


@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_the_interval_is_over_rows_and_takes_them_for_independent(correlation):
    alarms, generator = 0, rng(9)
    for _ in range(40):
        shared, own = generator.normal(size=(3, 32, 1)), generator.normal(size=(3, 32, 40))
        u, r, null = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own
        alarms += audit.epsilon_report(u, r, null=null).clear_of_null
    assert alarms <= 2 if correlation == 0 else alarms >= 4


@pytest.mark.parametrize(
    "u, r, message",
    [
        (np.zeros((4, 3)), np.ones((4, 3)), r"4 models in each arm, but at least 8 .* epsilon of"),
        (
            np.ones((9, 3)),
            rng().normal(size=(9, 3)),
            "unlearned is 1.0 for every model and .*const",
        ),
        (rng().normal(size=(9, 3)), rng().normal(size=(8, 3)), r"retrained has shape \(8, 3\)"),
        (rng().normal(size=(9, 3)), rng().normal(size=(9, 2)), "the same rows in the same order"),
        (np.full((9, 3), np.nan), rng().normal(size=(9, 3)), "not finite in 9 of 9 models"),
        (np.zeros(9), np.zeros(9), r"unlearned has shape \(9,\), but must be \[M, n\]"),
    ],
)
def test_bad_input(u, r, message):
    for call in (audit.example_epsilons, audit.epsilon_lower_bound):
        with pytest.raises(ValueError, match=message):
            call(u, r)
    with pytest.raises(ValueError, match=message):
        audit.ulira(u, r, null=r)


def test_the_bias_of_few_models_is_in_the_message():
    with pytest.raises(ValueError) as error:
        audit.example_epsilons(rng().normal(size=(6, 2)), rng().normal(size=(6, 2)))
    assert f"epsilon of {audit.null_epsilon(6):.1f}" in str(error.value)
    with pytest.raises(ValueError, match="rule='singel' is unknown"):
        audit.null_epsilon(8, rule="singel")
