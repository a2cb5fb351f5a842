import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxunlearn import audit

ALL = [
    audit.correctness,
    audit.loss,
    audit.confidence,
    audit.logit_confidence,
    audit.entropy,
    audit.modified_entropy,
]


def reference(logits, y):
    """The definitions, in float64, on logits mild enough to subtract from 1."""
    logits, rows = np.asarray(logits, np.float64), np.arange(len(y))
    p = special.softmax(logits, axis=1)
    p_y = p[rows, y]
    others = np.ones_like(p, bool)
    others[rows, y] = False
    return {
        audit.correctness: (logits.argmax(1) == y).astype(float),
        audit.loss: -np.log(p_y),
        audit.confidence: p_y,
        audit.logit_confidence: np.log(p_y / (1 - p_y)),
        audit.entropy: -(p * np.log(p)).sum(1),
        audit.modified_entropy: -(1 - p_y) * np.log(p_y) - (p * np.log(1 - p)).sum(1, where=others),
    }


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    return 3 * rng.normal(size=(40, 6)).astype(np.float32), rng.integers(0, 6, 40)


@pytest.mark.parametrize("score", ALL)
def test_scores_follow_their_definition(score, case):
    np.testing.assert_allclose(score(*case), reference(*case)[score], rtol=2e-5, atol=1e-6)


def test_modified_entropy_of_a_hand_made_row():
    logits = jnp.log(jnp.array([[0.7, 0.2, 0.1]]))
    expected = -0.3 * np.log(0.7) - 0.2 * np.log(0.8) - 0.1 * np.log(0.9)
    assert float(audit.modified_entropy(logits, jnp.array([0]))[0]) == pytest.approx(expected)


def test_modified_entropy_of_a_row_ignores_the_labels_of_others(case):
    # The published code fails this: it indexes the label columns of all rows at once.
    logits, y = case
    others = np.r_[y[:1], (y[1:] + 1) % 6]
    changed = audit.modified_entropy(logits, y) != audit.modified_entropy(logits, others)
    np.testing.assert_array_equal(changed, np.arange(40) > 0)


@pytest.mark.parametrize("score", ALL)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_extreme_logits_stay_finite(score, dtype):
    logits = jnp.array([[1e4, 0, -1e4], [1e4, 0, -1e4], [-1e4, 1e4, 1e4]], dtype)
    result = score(logits, jnp.array([0, 2, 1]))
    assert result.dtype == jnp.float32
    assert np.isfinite(result).all()


def test_confident_rows_keep_their_order():
    # 1 - p is 1e-11 and 1e-13: float32 probabilities round to 1, and tie.
    logits, y = jnp.array([[25.0, 0.0], [30.0, 0.0]]), jnp.array([0, 0])
    assert float(jnp.ptp(audit.confidence(logits, y))) == 0
    np.testing.assert_allclose(audit.logit_confidence(logits, y), [25, 30], rtol=1e-6)
    # Surely wrong: -log p_y = 25, and so is -log(1 - p_c) of the other class.
    np.testing.assert_allclose(
        audit.modified_entropy(logits, 1 - y), 2 * np.array([25.0, 30.0]), rtol=1e-6
    )


@pytest.mark.parametrize("score", ALL)
def test_jit_and_vmap_equal_eager(score, case):
    logits, y = case
    many = jnp.stack([logits, -logits])
    mapped = jax.jit(jax.vmap(score, in_axes=(0, None)))(many, y)
    for k in range(2):
        np.testing.assert_allclose(mapped[k], score(many[k], y), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("score", [score for score in ALL if score is not audit.entropy])
def test_labels_are_checked(score):
    with pytest.raises(ValueError, match="labels from 0 to 2"):
        score(jnp.zeros((2, 2)), jnp.array([0, 2]))
