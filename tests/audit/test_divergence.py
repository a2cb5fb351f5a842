import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from scipy.spatial.distance import jensenshannon

from jaxunlearn import audit


@pytest.fixture
def logits():
    return np.random.default_rng(0).normal(size=(4, 30, 5)).astype(np.float32) * 2


def softmax(logits):
    return special.softmax(np.asarray(logits, np.float64), axis=-1)


def test_kl_and_jsd_are_those_of_scipy(logits):
    p, q = softmax(logits[0]), softmax(logits[1])
    kl = special.rel_entr(p, q).sum(1)
    np.testing.assert_allclose(audit.kl(logits[0], logits[1]), kl, rtol=1e-5)
    jsd = jensenshannon(p, q, axis=1) ** 2
    np.testing.assert_allclose(audit.jensen_shannon(logits[0], logits[1]), jsd, rtol=1e-5)


def test_kl_has_a_direction_and_jsd_has_none(logits):
    p, q = logits[:2]
    assert not np.allclose(audit.kl(p, q), audit.kl(q, p), rtol=0.01)
    np.testing.assert_allclose(audit.jensen_shannon(p, q), audit.jensen_shannon(q, p), rtol=1e-6)


def test_close_models_have_a_small_jsd_within_the_stated_error(logits):
    p = logits[0]
    q = p + 1e-3 * logits[1]
    expected = jensenshannon(softmax(p), softmax(q), axis=1) ** 2
    np.testing.assert_allclose(audit.jensen_shannon(p, q), expected, atol=2e-7)
    assert (np.asarray(audit.jensen_shannon(p, p)) <= 1e-7).all()
    assert (np.asarray(audit.kl(p, q)) >= 0).all()


def test_extreme_logits_stay_in_range():
    p = jnp.array([[1e4, -1e4, 0.0], [1e4, 1e4, -1e4], [0.0, 0.0, 0.0]])
    jsd = audit.jensen_shannon(p, p[:, ::-1])
    np.testing.assert_allclose(jsd, [np.log(2), np.log(2) / 2, 0], atol=1e-6)
    assert np.isfinite(audit.kl(p, p[:, ::-1])).all()


def pairwise(logits, forget):
    p = softmax(logits)[:, forget]
    return np.mean(jensenshannon(p[:, None], p[None], axis=-1) ** 2, axis=-1)


def test_jsd_to_references_is_the_mean_over_models_and_rows(logits):
    forget = np.arange(30) < 8
    result = audit.jsd_to_references(logits[0], logits[1:], weights=forget)
    assert float(result) == pytest.approx(pairwise(logits, forget)[0, 1:].mean(), rel=1e-5)
    assert np.isnan(audit.jsd_to_references(logits[0], logits[1:], weights=np.zeros(30)))


def test_jsd_null_leaves_each_model_out(logits):
    forget = np.arange(30) % 2 == 0
    expected = pairwise(logits, forget).sum(1) / 3
    np.testing.assert_allclose(audit.jsd_null(logits, weights=forget), expected, rtol=1e-5)


def test_the_null_accepts_a_retrained_model_and_rejects_another():
    rng = np.random.default_rng(1)
    mean = 2 * rng.normal(size=(200, 4))
    references = mean + 0.3 * rng.normal(size=(20, 200, 4))
    band = audit.null_band(audit.jsd_null(references), shared_pairs=True)
    retrained = audit.jsd_to_references(mean + 0.3 * rng.normal(size=(200, 4)), references)
    noisier = audit.jsd_to_references(mean + 0.5 * rng.normal(size=(200, 4)), references)
    assert band.low <= float(retrained) <= band.high < float(noisier)


@pytest.mark.parametrize("count", [3, 5])
def test_the_null_band_of_shared_pairs_holds_one_more_model_in_19_of_20_cases(count):
    """Models of one law that stray by different amounts, many rows: d_ij is about a_i + a_j."""
    rng, trials = np.random.default_rng(2), 2000
    stray = 0.3 * np.sqrt(rng.gamma(9, 1 / 9, (trials, count + 1, 1, 1)))
    logits = jnp.asarray(stray * rng.normal(size=(trials, count + 1, 100, 3)), jnp.float32)
    new, references = logits[:, 0], logits[:, 1:]
    values = np.asarray(jax.vmap(audit.jsd_to_references)(new, references))
    nulls = np.asarray(jax.vmap(audit.jsd_null)(references))

    def coverage(**options):
        bands = np.array([audit.null_band(null, **options) for null in nulls])
        return np.mean((bands[:, 0] <= values) & (values <= bands[:, 1]))

    tolerance = 5 * np.sqrt(0.95 * 0.05 / trials)
    assert abs(coverage(shared_pairs=True) - 0.95) < tolerance
    assert coverage() < 0.95 - tolerance


def test_jit_and_vmap_equal_eager(logits):
    mapped = jax.jit(jax.vmap(audit.jsd_to_references, in_axes=(0, None)))(logits, logits[1:])
    eager = [audit.jsd_to_references(row, logits[1:]) for row in logits]
    np.testing.assert_allclose(mapped, eager, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(
        jax.vmap(audit.jsd_null)(logits[None])[0], audit.jsd_null(logits), rtol=1e-5
    )


def test_bad_input_is_named(logits):
    with pytest.raises(ValueError, match="p_logits has shape .* and q_logits has shape"):
        audit.kl(logits[0], logits[1, :5])
    with pytest.raises(ValueError, match="K >= 2"):
        audit.jsd_null(logits[:1])
    with pytest.raises(ValueError, match="same rows and classes"):
        audit.jsd_to_references(logits[0], logits[:, :7])
    with pytest.raises(ValueError, match="must be floats"):
        audit.jsd_null(jnp.zeros((2, 3, 4), int))
