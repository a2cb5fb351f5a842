"""Attacks by one threshold, relearn time, interclass confusion, and jax-privacy's bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from sklearn.metrics import roc_auc_score

from jaxunlearn import Dataset, audit, models

M = 10


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def logits():
    y = rng(1).integers(0, 3, 40)
    return 3 * rng(2).normal(0, 1, (M, 40, 3)) + 2 * np.eye(3)[y], y


@pytest.mark.parametrize("score", ["loss", "confidence", "entropy", "modified_entropy"])
def test_member_scores(logits, score):
    values, y = logits
    p = special.softmax(values, -1)
    own = p[:, np.arange(40), y]
    rest = np.eye(3)[y] == 0
    expected = {
        "loss": np.log(own),
        "confidence": np.log(own / (1 - own)),
        "entropy": (p * np.log(p)).sum(-1),
        "modified_entropy": (1 - own) * np.log(own) + (rest * p * np.log(1 - p)).sum(-1),
    }[score]
    found = audit.member_scores(values.astype(np.float32), y, score=score)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4)


def test_population_attack_is_the_mean_over_models():
    forget, test, a, b = rng(3).normal(0, 1, (4, M, 60))
    forget += 0.7
    report = audit.population_attack(forget, test, null=(a, b))
    labels = np.r_[np.ones(60), np.zeros(60)]
    each = [roc_auc_score(labels, np.r_[f, t]) for f, t in zip(forget, test, strict=True)]
    assert report.value == pytest.approx(np.mean(each))
    assert report.interval == audit.mean_interval(each)
    assert report.above_null and report.null.low < 0.5 < report.null.high
    found = [(f > np.sort(t)[-1]).mean() for f, t in zip(forget, test, strict=True)]
    assert report.detail["tpr_at_01fpr"] == pytest.approx(np.mean(found))


def test_population_attack_refuses():
    forget, test = rng().normal(0, 1, (2, M, 20))
    with pytest.raises(ValueError, match=r"null\[0\] has shape \(9, 20\)"):
        audit.population_attack(forget, test, null=(forget[1:], test))
    with pytest.raises(ValueError, match="constant scores"):
        audit.population_attack(np.ones((M, 20)), test, null=(forget, test))
    with pytest.raises(ValueError, match="score='los' is unknown"):
        audit.member_scores(np.zeros((1, 1, 2)), np.zeros(1, int), score="los")
    with pytest.raises(ValueError, match=r"y has shape \(4,\), but must be \(3,\)"):
        audit.member_scores(np.zeros((2, 3, 2)), np.zeros(4, int))
    for null in (None, (forget,), forget):
        with pytest.raises(ValueError, match="null must be a pair"):
            audit.population_attack(forget, test, null=null)


class TestRelearn:
    @pytest.fixture
    def rows(self):
        x = rng(1).normal(0, 1, (30, 4)).astype(np.float32)
        y = (x @ rng(2).normal(0, 1, (4, 3))).argmax(-1)
        return Dataset(jnp.asarray(x), jnp.asarray(y))

    def test_plain_loop(self, rows):
        """Momentum descent in NumPy, counted by hand."""
        model = models.logistic(3)
        x, y = np.asarray(rows.x, float), np.asarray(rows.y)
        w, b, v, c = np.zeros((4, 3)), np.zeros(3), 0, 0
        accuracies = []
        for _ in range(40):
            p = special.softmax(x @ w + b, -1)
            accuracies.append(((x @ w + b).argmax(-1) == y).mean())
            gap = (p - np.eye(3)[y]) / 30
            v, c = 0.9 * v + x.T @ gap, 0.9 * c + gap.sum(0)
            w, b = w - 0.05 * v, b - 0.05 * c
        params = model.init(jax.random.key(0), rows.x)
        for target in (0.6, 0.9):
            expected = next(k for k, a in enumerate(accuracies) if a >= target)
            assert 0 < expected < 40
            found = audit.relearn_steps(model.apply, params, rows, target=target, steps=40)
            assert int(found) == expected
        capped = audit.relearn_steps(model.apply, params, rows, target=1.0, steps=3)
        assert int(capped) == 3

    def test_report(self):
        report = audit.relearn_report([1, 2] * 5, [9, 50] * 5, null=[10, 50] * 5, steps=50)
        assert report.value == 1.5 and report.null.estimate == 30
        assert report.detail == {"at_cap": 0.0, "null_at_cap": 0.5, "retrained": 29.5}
        with pytest.raises(ValueError, match="same number of models"):
            audit.relearn_report([1] * 9, [1] * 8, null=[1] * 8, steps=50)
        with pytest.raises(ValueError, match="3 models in each arm"):
            audit.relearn_report([1] * 3, [1] * 3, null=[1] * 3, steps=50)
        for bad in (-1, 51, np.nan):  # -1: not measured
            with pytest.raises(ValueError, match=r"retrained has 1 of 8 .* lie in \[0, 50\]"):
                audit.relearn_report([1] * 8, [1] * 7 + [bad], null=[1] * 8, steps=50)

    @pytest.mark.parametrize("change", [{"target": 0}, {"target": 1.1}, {"steps": 0}])
    def test_bad_input(self, rows, change):
        options = {"target": 0.9, "steps": 5} | change
        params = models.logistic(3).init(jax.random.key(0), rows.x)
        with pytest.raises(ValueError, match=next(iter(change))):
            audit.relearn_steps(models.logistic(3).apply, params, rows, **options)


def test_interclass_error_is_a_count(logits):
    values, y = logits
    answer = values[0].argmax(-1)
    wrong = sum((t, a) in ((0, 2), (2, 0)) for t, a in zip(y, answer, strict=True))
    expected = wrong / np.isin(y, (0, 2)).sum()
    found = audit.interclass_error(jnp.asarray(values[0]), jnp.asarray(y), (0, 2))
    assert float(found) == pytest.approx(expected) and wrong > 0
    half = np.arange(40) < 20
    part = audit.interclass_error(
        jnp.asarray(values[0]), jnp.asarray(y), (0, 2), weights=jnp.asarray(half)
    )
    again = sum((t, a) in ((0, 2), (2, 0)) for t, a in zip(y[half], answer[half], strict=True))
    assert float(part) == pytest.approx(again / np.isin(y[half], (0, 2)).sum())
    for classes in ((1, 3), (1, 1), (-1, 0), (0, 1, 2)):
        with pytest.raises(ValueError, match="two different ones below 3"):
            audit.interclass_error(jnp.asarray(values[0]), jnp.asarray(y), classes)
    diverged = jnp.asarray(values[0]).at[np.flatnonzero(y == 2)[0], 1].set(jnp.nan)
    assert np.isnan(audit.interclass_error(diverged, jnp.asarray(y), (0, 2)))
    assert np.isfinite(audit.interclass_error(diverged, jnp.asarray(y), (0, 1)))
    with pytest.raises(ValueError, match="null has 1 of 8 values"):
        audit.confusion_report([0.4] * 8, null=[0.1] * 7 + [np.nan])
    report = audit.confusion_report([0.4, 0.5] * 4, null=[0.1, 0.2] * 4)
    assert report.value == pytest.approx(0.45) and report.above_null


class TestPrivacyBounds:
    """Their code; here only that it is called with the right sides and levels."""

    def test_without_it_the_message_says_how(self, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "jax_privacy", None)
        with pytest.raises(ModuleNotFoundError, match=r'pip install "jaxunlearn\[audit\]"'):
            audit.privacy_bounds([1.0] * 20, [0.0] * 20, null=([1.0] * 20, [0.0] * 20))

    @pytest.mark.parametrize("bound", ["clopper_pearson", "one_run", "bootstrap"])
    def test_known_law(self, bound):
        pytest.importorskip("jax_privacy", reason="the audit extra is not installed")
        epsilon = 1.0  # randomised response: scores 1 or 0, with probability e / (1 + e)
        n, p = 4000, np.exp(epsilon) / (1 + np.exp(epsilon))
        noise = 1e-6 * rng(9).normal(size=(4, n))
        inside, outside = (rng(1).random(n) < p) * 1.0, (rng(2).random(n) < 1 - p) * 1.0
        a, b = rng(3).integers(0, 2, (2, n)) * 1.0
        report = audit.privacy_bounds(
            inside + noise[0], outside + noise[1], null=(a + noise[2], b + noise[3]),
            bound=bound, delta=1e-6,
        )  # fmt: skip
        assert report.null.estimate < 0.5 < report.value
        assert report.value < (1.0 if bound != "bootstrap" else 1.25)

    def test_refuses(self):
        pytest.importorskip("jax_privacy", reason="the audit extra is not installed")
        same = np.ones(30)
        with pytest.raises(ValueError, match="constant scores"):
            audit.privacy_bounds(same, same, null=(same, same))
        with pytest.raises(ValueError, match="n >= 20 finite scores"):
            audit.privacy_bounds(same[:5], same, null=(same, same))
        with pytest.raises(ValueError, match="null must be a pair"):
            audit.privacy_bounds(rng().normal(size=30), same, null=same)
        with pytest.raises(ValueError, match="bound='boot' is unknown"):
            audit.privacy_bounds(same, same, null=(same, same), bound="boot")
