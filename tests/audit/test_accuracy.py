import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import audit


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(57, 5)), jnp.float32), jnp.asarray(rng.integers(0, 5, 57))


def test_accuracy_is_the_share_of_right_answers(case):
    logits, y = case
    expected = np.mean(np.argmax(np.asarray(logits), 1) == np.asarray(y))
    assert float(audit.accuracy(logits, y)) == pytest.approx(expected)
    assert float(audit.error(logits, y)) == pytest.approx(1 - expected)


def test_a_mask_gives_what_subsetting_gives(case):
    logits, y = case
    forget = jnp.arange(57) % 3 == 0
    groups = audit.group_accuracies(logits, y, forget)
    hits = np.argmax(np.asarray(logits), 1) == np.asarray(y)
    assert float(groups.acc_retain) == pytest.approx(hits[~forget].mean())
    assert float(groups.acc_forget) == pytest.approx(hits[forget].mean())


def test_float_weights_count_rows_repeatedly(case):
    logits, y = case
    counts = np.random.default_rng(1).integers(0, 4, 57)
    hits = np.argmax(np.asarray(logits), 1) == np.asarray(y)
    weighted = audit.accuracy(logits, y, weights=jnp.asarray(counts, jnp.float32))
    assert float(weighted) == pytest.approx(np.repeat(hits, counts).mean())


def test_nan_logits_are_wrong_and_not_class_zero():
    logits = jnp.full((4, 3), jnp.nan)
    assert float(audit.accuracy(logits, jnp.zeros(4, int))) == 0


def test_an_empty_group_is_nan(case):
    logits, y = case
    assert np.isnan(audit.accuracy(logits, y, weights=jnp.zeros(57, bool)))
    assert np.isnan(audit.group_accuracies(logits, y, jnp.zeros(57, bool)).acc_forget)


def test_half_precision_counts_in_float32():
    # bfloat16 cannot count beyond 256.
    logits = jnp.tile(jnp.array([[1.0, 0.0]], jnp.bfloat16), (1000, 1))
    y = (jnp.arange(1000) < 3).astype(int)
    result = audit.accuracy(logits, y)
    assert result.dtype == jnp.float32
    assert float(result) == pytest.approx(0.997)


def test_jit_and_vmap_equal_eager(case):
    logits, y = case
    forget = jnp.arange(57) < 20
    many = jnp.stack([logits, -logits, 2 * logits])
    mapped = jax.jit(jax.vmap(audit.group_accuracies, in_axes=(0, None, None)))(many, y, forget)
    for k in range(3):
        one = audit.group_accuracies(many[k], y, forget)
        np.testing.assert_allclose(mapped.acc_retain[k], one.acc_retain, rtol=1e-6)
        np.testing.assert_allclose(mapped.acc_forget[k], one.acc_forget, rtol=1e-6)


@pytest.mark.parametrize(
    ("logits", "y", "weights", "message"),
    [
        (jnp.zeros(3), jnp.zeros(3, int), None, r"logits has shape \(3,\)"),
        (jnp.zeros((0, 3)), jnp.zeros(0, int), None, r"logits has shape \(0, 3\)"),
        (jnp.zeros((3, 1)), jnp.zeros(3, int), None, "C >= 2"),
        (jnp.zeros((3, 2), int), jnp.zeros(3, int), None, "must be floats"),
        (jnp.zeros((3, 2)), jnp.zeros(2, int), None, r"y has shape \(2,\)"),
        (jnp.zeros((3, 2)), jnp.zeros(3), None, "must be integers"),
        (jnp.zeros((3, 2)), jnp.full(3, 2), None, "labels from 2 to 2"),
        (jnp.zeros((3, 2)), jnp.full(3, -1), None, "labels from -1"),
        (jnp.zeros((3, 2)), jnp.zeros(3, int), jnp.ones(2), r"weights has shape \(2,\)"),
        (jnp.zeros((3, 2)), jnp.zeros(3, int), -jnp.ones(3), "negative"),
    ],
)
def test_bad_input_is_named(logits, y, weights, message):
    with pytest.raises(ValueError, match=message):
        audit.accuracy(logits, y, weights=weights)


@pytest.mark.parametrize("forget", [jnp.zeros(3, int), jnp.zeros(4, bool), jnp.ones(3, bool)])
def test_bad_requests_are_refused(forget):
    with pytest.raises(ValueError, match="forget"):
        audit.group_accuracies(jnp.zeros((3, 2)), jnp.zeros(3, int), forget)
