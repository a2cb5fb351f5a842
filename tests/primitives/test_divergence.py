"""Divergences against SciPy, both ways and at other temperatures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax
from scipy.stats import entropy

from jaxunlearn.primitives.divergence import (
    jensen_shannon,
    jensen_shannon_of_logs,
    kl,
    kl_of_logs,
)

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

RNG = np.random.default_rng(0)
P, Q = RNG.normal(size=(2, 3, 4, 5))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
def test_both_directions_against_scipy(temperature):
    p, q = (softmax(v / temperature, axis=-1) for v in (P, Q))
    with jax.enable_x64(True):
        one, other = (
            kl(jnp.asarray(a), jnp.asarray(b), temperature=temperature) for a, b in ((P, Q), (Q, P))
        )
        js = jensen_shannon(jnp.asarray(P), jnp.asarray(Q), temperature=temperature)
    np.testing.assert_allclose(one, entropy(p, q, axis=-1), rtol=1e-10)
    np.testing.assert_allclose(other, entropy(q, p, axis=-1), rtol=1e-10)
    np.testing.assert_allclose(js, jensenshannon(p, q, axis=-1) ** 2, rtol=1e-10)
    assert np.abs(one - other).max() > 0.03  # it does matter which comes first


def test_direction_and_temperature_by_hand():
    p, q = jnp.log(jnp.array([0.9, 0.1])), jnp.log(jnp.array([0.5, 0.5]))
    assert float(kl(p, q)) == pytest.approx(0.9 * np.log(1.8) + 0.1 * np.log(0.2), rel=1e-5)
    assert float(kl(q, p)) == pytest.approx(0.5 * np.log(5 / 9) + 0.5 * np.log(5), rel=1e-5)
    softened = 0.75  # of 9 : 1 at temperature 2 is 3 : 1
    expected = softened * np.log(2 * softened) + 0.25 * np.log(0.5)
    assert float(kl(p, q, temperature=2.0)) == pytest.approx(expected, rel=1e-5)


def test_gradient_in_the_second_argument_is_the_difference_of_probabilities():
    """d KL(p || q) / d logits of q = (q - p) / T, with no factor T^2 anywhere."""
    p, q = jnp.asarray(P[0, 0], jnp.float32), jnp.asarray(Q[0, 0], jnp.float32)
    for temperature in (1.0, 2.0):
        found = jax.grad(lambda v, t=temperature: kl(p, v, temperature=t))(q)
        expected = (softmax(q / temperature) - softmax(p / temperature)) / temperature
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_curvature_where_they_agree_is_the_fisher_matrix():
    logits, temperature = jnp.asarray(P[0, 0], jnp.float32), 2.0
    found = jax.hessian(lambda q: kl(logits, q, temperature=temperature))(logits)
    q = softmax(P[0, 0] / temperature)
    np.testing.assert_allclose(found, (np.diag(q) - np.outer(q, q)) / temperature**2, atol=1e-6)


def test_extremes():
    sure = jnp.array([1e4, 0.0, 0.0])
    assert float(kl(sure, sure)) == 0 == float(jensen_shannon(sure, sure))
    assert float(jensen_shannon(sure, sure[::-1])) == pytest.approx(np.log(2))
    assert np.isfinite(kl(sure, sure[::-1]))
    logs = jax.nn.log_softmax(jnp.asarray(P)), jax.nn.log_softmax(jnp.asarray(Q))
    np.testing.assert_allclose(kl_of_logs(*logs), kl(P, Q), rtol=1e-5)
    np.testing.assert_allclose(jensen_shannon_of_logs(*logs), jensen_shannon(P, Q), rtol=1e-5)


def test_temperature_may_be_traced():
    many = jax.vmap(lambda t: kl(P[0], Q[0], temperature=t))(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(many[1], kl(P[0], Q[0], temperature=2.0), rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_temperature(temperature):
    with pytest.raises(ValueError, match="temperature=.* must be a finite number > 0"):
        kl(P, Q, temperature=temperature)


def test_bad_shapes():
    with pytest.raises(ValueError, match=r"p_logits has shape .* must be the outputs of two"):
        jensen_shannon(P, Q[0])
