"""Power against simulation, corrected tests against SciPy."""

import numpy as np
import pytest
from scipy import stats

from jaxunlearn import audit


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("effect", [0.5, 1.0, 2.0])
def test_seeds_needed_have_the_power_and_one_less_has_not(effect, paired):
    n = audit.seeds_needed(effect, 1.0, paired=paired)
    rng = np.random.default_rng(0)

    def power(n):
        a, b = rng.normal(effect, 1, (20000, n)), rng.normal(0, 1, (20000, n))
        test = stats.ttest_1samp(a, 0, axis=1) if paired else stats.ttest_ind(a, b, axis=1)
        return (test.pvalue < 0.05).mean()

    assert power(n) > 0.79
    if n > 3:
        assert power(n - 1) < 0.81


def test_seeds_needed_by_the_table_of_the_findings():
    """The normal approximation has 6, 23 and 142; the t test needs one more or so."""
    assert [audit.seeds_needed(d, 0.06) for d in (0.10, 0.05, 0.02)] == [7, 24, 143]
    assert audit.seeds_needed(0.1, 0.06, comparisons=10) > audit.seeds_needed(0.1, 0.06)
    assert audit.seeds_needed(1e3, 1.0) == 2


@pytest.mark.parametrize("change", [{"effect": 0}, {"spread": -1}, {"power": 1}, {"level": 0}])
def test_bad_power(change):
    options = {"effect": 0.1, "spread": 0.1, "power": 0.8, "level": 0.05} | change
    with pytest.raises(ValueError, match=next(iter(change))):
        audit.seeds_needed(options.pop("effect"), options.pop("spread"), **options)


def test_compare_with_is_wilcoxon_with_holm():
    rng = np.random.default_rng(1)
    base = rng.normal(0, 1, 12)
    values = {"noop": base, "a": base + rng.normal(1, 0.3, 12), "b": base + rng.normal(0, 1, 12)}
    found = audit.compare_with(values, "noop")
    p = {name: stats.wilcoxon(values[name] - base).pvalue for name in "ab"}
    first, second = sorted(p, key=p.__getitem__)
    assert found[first].p_value == pytest.approx(2 * p[first])
    assert found[second].p_value == pytest.approx(max(2 * p[first], p[second]))
    assert found["a"].estimate == pytest.approx((values["a"] - base).mean())
    with pytest.raises(ValueError, match="reference='retrain' is unknown"):
        audit.compare_with(values, "retrain")
    with pytest.raises(ValueError, match=r"values\['b'\] has 1 values that are not finite"):
        audit.compare_with(values | {"b": np.append(base[1:], np.nan)}, "noop")


@pytest.mark.parametrize("law, bootstrap, student", [("normal", 0.82, 0.95), ("exp", 0.81, 0.89)])
def test_coverage_with_five_seeds_is_what_the_docstring_says(law, bootstrap, student):
    rng, draws, hits = np.random.default_rng(3), 400, np.zeros(2)
    for _ in range(draws):
        a = rng.normal(1, 1, 5) if law == "normal" else rng.exponential(1, 5)
        intervals = audit.paired_bootstrap(a, 0 * a, resamples=499), audit.mean_interval(a)
        hits += [found.low < 1 < found.high for found in intervals]
    expected = np.array([bootstrap, student])
    spread = np.sqrt(expected * (1 - expected) / draws)
    assert (np.abs(hits / draws - expected) < 3.3 * spread + 0.005).all()


def test_paired_bootstrap_covers():
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(120):
        shared = rng.normal(0, 5, 100)  # which pairing takes out
        a, b = shared + rng.exponential(1, 100), shared + rng.normal(0, 0.5, 100)
        found = audit.paired_bootstrap(a, b, resamples=499)
        hits += found.low < 1.0 < found.high
        assert found.high - found.low < 0.8
    assert hits >= 120 * 0.95 - 3 * np.sqrt(120 * 0.05 * 0.95)
    with pytest.raises(ValueError, match="a has 2 values and b has 3"):
        audit.paired_bootstrap([1.0, 2.0], [1.0, 2.0, 3.0])
