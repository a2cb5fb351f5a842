"""LiRA, U-LiRA and RULI on laws that are known, right and nearly right, and against plain loops."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.neighbors import KernelDensity

from jaxunlearn import audit
from jaxunlearn.audit.references import balanced_halves
from jaxunlearn.audit.roc_curve import rank_auc, tpr_at
from jaxunlearn.audit.ulira import kernel_density, log_density


def rng(seed=0):
    return np.random.default_rng(seed)


class TestULiRA:
    M, N, SHIFT = 128, 200, 1.0

    @pytest.fixture
    def report(self):
        spreads, means = rng(1).uniform(0.5, 3, self.N), rng(2).normal(0, 5, self.N)
        a, b, c = rng(3).normal(means, spreads, (3, self.M, self.N))
        return audit.ulira(a + self.SHIFT * spreads, b, null=c)

    def test_known_law(self, report):
        """The best rule is right with probability Phi(d / 2); laws are fitted to 64 models."""
        right, nearby = stats.norm.cdf(0.5 * self.SHIFT), stats.norm.cdf(0.4 * self.SHIFT)
        assert report.interval.low - 0.012 < right < report.interval.high + 0.012
        assert not report.interval.low < nearby < report.interval.high
        assert abs(report.null.estimate - 0.5) < 0.01 and report.above_null
        auc = stats.norm.cdf(self.SHIFT / np.sqrt(2))
        assert abs(report.detail["auc"] - auc) < 0.03 > abs(report.detail["null_auc"] - 0.5)

    def test_plain_loops(self):
        u, r, null = rng(4).normal(0, 1, (3, 8, 3))
        u += 0.5
        right = []
        for start in (0, 1):
            for row in range(3):
                fit_u, fit_r = u[start::2, row], r[start::2, row]
                law = lambda fit: stats.norm(fit.mean(), fit.std(ddof=1))
                for m in range(1 - start, 8, 2):
                    for arm, value in ((1, u[m, row]), (0, r[m, row])):
                        more = law(fit_u).logpdf(value) > law(fit_r).logpdf(value)
                        right.append(more == bool(arm))
        assert audit.ulira(u, r, null=null).value == pytest.approx(np.mean(right))

    def test_a_difference_of_spread_alone_is_seen(self):
        u, r, null = rng(5).normal(0, 1, (3, 64, 50))
        assert audit.ulira(3 * u, r, null=null).value > 0.7

    def test_kernels_see_a_shape_that_two_moments_do_not(self):
        signs = rng(6).choice([-1, 1], (64, 50))
        u = signs + rng(7).normal(0, 0.2, (64, 50))
        r, null = rng(8).normal(0, np.sqrt(1.04), (2, 64, 50))
        gaussian, kde = (audit.ulira(u, r, null=null, density=d) for d in ("gaussian", "kde"))
        assert kde.value > gaussian.value + 0.1

    def test_a_row_that_is_constant_in_one_arm(self):
        u, r, null = rng(9).normal(0, 1, (3, 16, 4))
        u[:, 0] = 5.0
        report = audit.ulira(u, r, null=null)
        assert report.detail["row_accuracy"][0] == 1 and np.isfinite(report.value)


def test_kernel_density_is_that_of_scikit_learn():
    fit, at = rng(1).normal(0, 1, (20, 2)), rng(2).normal(0, 2, (7, 2))
    for row in range(2):
        theirs = KernelDensity(bandwidth=0.3).fit(fit[:, [row]]).score_samples(at[:, [row]])
        np.testing.assert_allclose(kernel_density(fit, at, 0.3)[:, row], theirs)
    assert np.isfinite(log_density(fit, 1e3 * at, "kde")).all()  # far out in the tails


class TestRULI:
    M, N = 24, 10

    def design(self, seed=0):
        half = rng(seed).permuted(np.tile(np.arange(self.M)[:, None] % 2 == 0, self.N), axis=0)
        return half, rng(seed + 1).normal(0, 1, (2, self.M, self.N))

    def test_plain_loops_with_the_official_bandwidth(self):
        removed, (scores, retrained) = self.design()
        scores = scores + removed
        report = audit.ruli(scores, removed, retrained=retrained, bandwidth=1.0)
        expected = np.empty((self.M, self.N))
        for m in range(self.M):
            others = np.arange(self.M) != m
            for row in range(self.N):
                laws = [
                    KernelDensity(bandwidth=1.0).fit(scores[others & kind, row][:, None])
                    for kind in (removed[:, row], ~removed[:, row])
                ]
                inside, outside = (
                    law.score_samples(scores[[m], [row]][:, None])[0] for law in laws
                )
                expected[m, row] = inside - outside
        np.testing.assert_allclose(report.detail["ratios"], expected, atol=1e-9)
        assert report.value == pytest.approx(roc_auc_score(removed.ravel(), expected.ravel()))

    def test_traces_are_seen_and_only_where_they_are(self):
        removed, (scores, retrained) = self.design(7)
        vulnerable = np.arange(self.N) < 5
        report = audit.ruli(
            scores + 3 * removed * vulnerable, removed, retrained=retrained,
            groups={"vulnerable": vulnerable, "protected": ~vulnerable},
        )  # fmt: skip
        assert report.detail["vulnerable_auc"] > 0.9
        assert abs(report.detail["protected_auc"] - 0.5) < 0.15
        assert abs(report.null.estimate - 0.5) < 0.1 and report.above_null

    def test_bad_input(self):
        removed, (scores, retrained) = self.design()
        with pytest.raises(ValueError, match="needs 4 of both kinds"):
            audit.ruli(scores, np.ones_like(removed), retrained=retrained)
        with pytest.raises(ValueError, match=r"removed has shape \(24, 9\)"):
            audit.ruli(scores, removed[:, 1:], retrained=retrained)
        with pytest.raises(ValueError, match="retrained has shape"):
            audit.ruli(scores, removed, retrained=retrained[1:])
        for bad in (0.0, -1.0, np.nan):
            with pytest.raises(ValueError, match="bandwidth=.* must be a finite number > 0"):
                audit.ruli(scores, removed, retrained=retrained, bandwidth=bad)
        for rows in (np.ones(3, bool), [1, 2], np.zeros(self.N, bool)):
            with pytest.raises(ValueError, match=r"groups\['some'\] has shape .* bool\[10\]"):
                audit.ruli(scores, removed, retrained=retrained, groups={"some": rows})


class TestLiRA:
    M, N, SHIFT = 64, 300, 1.5

    @pytest.fixture
    def drawn(self):
        member = balanced_halves(rng(90), self.M, self.N)
        spreads, means = rng(91).uniform(0.5, 3, self.N), rng(92).normal(0, 5, self.N)
        scores = rng(93).normal(means, spreads, (self.M, self.N)) + self.SHIFT * spreads * member
        return scores, member

    def test_plain_loops(self, drawn):
        scores, member = (value[:10, :20] for value in drawn)
        keep = (member.sum(0) >= 3) & (member.sum(0) <= 7)
        scores, member = scores[:, keep], member[:, keep]
        for mode in ("online", "offline"):
            found = audit.lira(scores, member, mode=mode).detail["ratios"]
            for m in range(10):
                for row in range(scores.shape[1]):
                    others = np.arange(10) != m
                    law = lambda kind, others=others, row=row: stats.norm(
                        scores[others & kind[:, row], row].mean(),
                        scores[others & kind[:, row], row].std(ddof=1),
                    )
                    value, out = scores[m, row], law(~member)
                    expected = (value - out.mean()) / out.std()
                    if mode == "online":
                        expected = law(member).logpdf(value) - out.logpdf(value)
                    assert found[m, row] == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize("mode", ["online", "offline"])
    def test_known_law(self, drawn, mode):
        report = audit.lira(*drawn, mode=mode)
        right, nearby = (stats.norm.cdf(k * self.SHIFT / np.sqrt(2)) for k in (1, 0.85))
        assert abs(report.value - right) < 0.012 < abs(report.value - nearby)
        assert abs(report.null.estimate - 0.5) < 0.02
        assert abs(report.detail["null_tpr_at_1fpr"] - 0.01) < 0.01
        tpr = stats.norm.sf(stats.norm.isf(0.01) - self.SHIFT)
        assert abs(report.detail["tpr_at_1fpr"] - tpr) < 0.05

    def test_one_threshold_for_all_rows_sees_little(self, drawn):
        scores, member = drawn
        assert rank_auc(scores[member], scores[~member]) < 0.7 < audit.lira(*drawn).value

    def test_vulnerability(self, drawn):
        scores, member = drawn
        scores = scores + 10 * member * (np.arange(self.N) == 17)
        found = audit.vulnerability(scores, member)
        assert found.argmax() == 17
        inside, outside = scores[member[:, 5], 5], scores[~member[:, 5], 5]
        gap = inside.mean() - outside.mean()
        spread = np.sqrt((inside.var(ddof=1) + outside.var(ddof=1)) / 2)
        assert found[5] == pytest.approx(gap / spread)

    def test_pooled_variance(self):
        member = rng(1).random((16, 200)) < 0.5
        scores = rng(2).normal(0, 1, (16, 200)) + 2 * member
        row, pooled = (audit.lira(scores, member, variance=v).value for v in ("row", "pooled"))
        assert pooled > row  # one law, few models

    def test_bad_input(self, drawn):
        scores, member = drawn
        with pytest.raises(ValueError, match="needs 3 with it and 3 without"):
            audit.lira(scores, np.zeros_like(member))
        with pytest.raises(ValueError, match=r"member has shape .* and dtype int64"):
            audit.lira(scores, member.astype(int))
        with pytest.raises(ValueError, match="mode='onlien' is unknown. Did you mean 'online'"):
            audit.lira(scores, member, mode="onlien")


class TestROC:
    def test_scikit_learn(self):
        for digits in (8, 1):  # with and without ties
            a, b = rng(1).normal(1, 1, 50).round(digits), rng(2).normal(0, 1, 70).round(digits)
            fpr, tpr, _ = roc_curve(
                np.r_[np.ones(50), np.zeros(70)], np.r_[a, b], drop_intermediate=False
            )
            ours = audit.roc_curve(a, b)
            with pytest.raises(ValueError, match="points=2 must be an integer >= 3"):
                audit.roc_curve(a, b, points=2)
            np.testing.assert_allclose(ours.fpr, fpr)
            np.testing.assert_allclose(ours.tpr, tpr)
            labels = np.r_[np.ones(50), np.zeros(70)]
            assert rank_auc(a, b) == pytest.approx(roc_auc_score(labels, np.r_[a, b]))
            assert tpr_at(a, b, 0.1) == pytest.approx(float(audit.tpr_at_fpr(a, b, fpr=0.1)))

    def test_few_points_lie_on_the_curve(self):
        a, b = rng(1).normal(1, 1, 5000), rng(2).normal(0, 1, 5000)
        few, every = audit.roc_curve(a, b, points=50), audit.roc_curve(a, b, points=10**6)
        assert len(few.fpr) <= 50 and few.fpr[0] == 0 and few.tpr[-1] == 1
        points = set(zip(every.fpr, every.tpr, strict=True))
        assert all(point in points for point in zip(few.fpr, few.tpr, strict=True))
