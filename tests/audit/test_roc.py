import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from jaxunlearn import audit


def tied_scores(seed, m=60, n=45, levels=12):
    rng = np.random.default_rng(seed)
    positive = rng.integers(2, levels + 2, m) / levels
    negative = rng.integers(0, levels, n) / levels
    return positive.astype(np.float32), negative.astype(np.float32)


def stacked(positive, negative):
    truth = np.r_[np.ones(len(positive)), np.zeros(len(negative))]
    return truth, np.r_[positive, negative]


def best_tpr(positive, negative, fpr, weights=None):
    truth, scores = stacked(positive, negative)
    false, true, _ = roc_curve(truth, scores, sample_weight=weights, drop_intermediate=False)
    return true[false <= fpr + 1e-12].max()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", [3, 12, 10**6])
def test_auc_is_that_of_sklearn(seed, levels):
    positive, negative = tied_scores(seed, levels=levels)
    expected = roc_auc_score(*stacked(positive, negative))
    assert float(audit.auc(positive, negative)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fpr", [0.001, 0.01, 1 / 45, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("levels", [3, 12, 10**6])
def test_tpr_at_fpr_is_that_of_the_empirical_curve(seed, fpr, levels):
    positive, negative = tied_scores(seed, levels=levels)
    result = audit.tpr_at_fpr(positive, negative, fpr=fpr)
    assert float(result) == pytest.approx(best_tpr(positive, negative, fpr), abs=1e-6)


@pytest.mark.parametrize("n", [100, 300, 10_000])
def test_a_false_positive_rate_of_exactly_fpr_is_allowed(n):
    # k / n <= fpr must survive float32, and k + 1 must not slip in.
    negative = jnp.arange(n, dtype=jnp.float32)
    allowed = n // 100
    positive = negative[-allowed - 2 :]
    result = jax.jit(audit.tpr_at_fpr)(positive, negative)
    # Above the allowed false positives lies everything but the threshold and the row below it.
    assert float(result) == pytest.approx(allowed / (allowed + 2))


def test_known_curves():
    low, high = np.arange(45.0), np.arange(60.0) + 1000
    assert float(audit.auc(high, low)) == pytest.approx(1)
    assert float(audit.auc(-high, low)) == 0
    assert float(audit.auc(np.ones(60), np.ones(45))) == pytest.approx(0.5)
    assert float(audit.tpr_at_fpr(high, low)) == pytest.approx(1)
    assert float(audit.tpr_at_fpr(-high, low)) == 0
    # All tied: no threshold between "all" and "none".
    assert float(audit.tpr_at_fpr(np.ones(60), np.ones(45), fpr=0.9)) == 0


def test_infinite_scores_are_scores():
    positive, negative = tied_scores(0)
    positive[:3], negative[:3] = [np.inf, -np.inf, np.inf], [-np.inf, np.inf, -np.inf]
    wins = positive[:, None] > negative[None]
    ties = positive[:, None] == negative[None]
    expected = (wins + ties / 2).mean()
    assert float(audit.auc(positive, negative)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("levels", [4, 10**6])
def test_masks_give_what_subsetting_gives(levels):
    positive, negative = tied_scores(7, levels=levels)
    rng = np.random.default_rng(1)
    keep_p, keep_n = rng.random(60) < 0.5, rng.random(45) < 0.5
    masks = {"positive_weights": keep_p, "negative_weights": keep_n}
    subset = positive[keep_p], negative[keep_n]
    auc, tpr = roc_auc_score(*stacked(*subset)), best_tpr(*subset, 0.3)
    for hidden in (0.5, np.nan):  # what is masked out may hold anything
        positive[~keep_p], negative[~keep_n] = hidden, hidden
        result = audit.auc(positive, negative, **masks)
        assert float(result) == pytest.approx(auc, abs=1e-6)
        result = audit.tpr_at_fpr(positive, negative, fpr=0.3, **masks)
        assert float(result) == pytest.approx(tpr, abs=1e-6)


def test_float_weights_are_those_of_sklearn():
    positive, negative = tied_scores(3)
    rng = np.random.default_rng(2)
    wp, wn = rng.random(60).astype(np.float32), rng.random(45).astype(np.float32)
    weights = {"positive_weights": wp, "negative_weights": wn}
    both = np.r_[wp, wn]
    expected = roc_auc_score(*stacked(positive, negative), sample_weight=both)
    assert float(audit.auc(positive, negative, **weights)) == pytest.approx(expected, abs=1e-6)
    result = audit.tpr_at_fpr(positive, negative, fpr=0.2, **weights)
    expected = best_tpr(positive, negative, 0.2, both)
    assert float(result) == pytest.approx(expected, abs=1e-6)


def test_auc_of_equal_laws_is_a_half_and_of_shifted_laws_is_not():
    # Sd of the Mann-Whitney AUC under the null: sqrt((m + n + 1) / (12 m n)).
    rng = np.random.default_rng(0)
    m, n = 4000, 5000
    positive, negative = rng.normal(size=m), rng.normal(size=n)
    sd = np.sqrt((m + n + 1) / (12 * m * n))
    assert abs(float(audit.auc(positive, negative)) - 0.5) < 4 * sd
    shifted = float(audit.auc(positive + 0.2, negative))
    assert shifted - 0.5 > 4 * sd


def test_many_rows_take_no_pairwise_memory():
    # 40 billion pairs would not fit; ranks do.
    n = 200_000
    score = jnp.arange(n, dtype=jnp.float32)
    assert float(audit.auc(score + 0.5, score)) == pytest.approx(0.5 + 0.5 / n, abs=1e-6)


@pytest.mark.parametrize("score", [audit.auc, audit.tpr_at_fpr])
def test_no_weight_or_nan_gives_nan(score):
    positive, negative = tied_scores(0)
    assert np.isnan(score(positive, negative, positive_weights=np.zeros(60)))
    assert np.isnan(score(positive, negative, negative_weights=np.zeros(45)))
    assert np.isnan(score(np.where(positive == positive.max(), np.nan, positive), negative))
    assert np.isnan(score(positive, np.where(negative == negative.max(), np.nan, negative)))


@pytest.mark.parametrize("score", [audit.auc, audit.tpr_at_fpr])
def test_jit_and_vmap_equal_eager(score):
    many = jnp.asarray(np.random.default_rng(0).normal(size=(3, 60)), jnp.float32)
    negative = jnp.linspace(-2, 1, 45)
    mapped = jax.jit(jax.vmap(score, in_axes=(0, None)))(many, negative)
    np.testing.assert_allclose(mapped, [score(row, negative) for row in many], rtol=1e-6)


@pytest.mark.parametrize("score", [audit.auc, audit.tpr_at_fpr])
def test_bad_input_is_named(score):
    good = jnp.arange(3.0)
    with pytest.raises(ValueError, match=r"positive has shape \(0,\)"):
        score(jnp.zeros(0), good)
    with pytest.raises(ValueError, match=r"negative has shape \(3, 1\)"):
        score(good, good[:, None])
    with pytest.raises(ValueError, match="negative_weights has shape"):
        score(good, good, negative_weights=jnp.ones(2))


@pytest.mark.parametrize("fpr", [0, 1, 1.5])
def test_fpr_is_a_fraction(fpr):
    with pytest.raises(ValueError, match="fpr"):
        audit.tpr_at_fpr(jnp.arange(3.0), jnp.arange(3.0), fpr=fpr)
