"""Cross-entropy against its closed form, and as a key of jit's cache."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from jaxunlearn import models
from jaxunlearn.types import Dataset


def identity(params, x):
    return x + params[None, :]


@pytest.mark.parametrize("label", [0, 3])
def test_closed_form(label):
    logits = np.array([2.0, -1.0, 0.5, 30.0], np.float32)
    loss_fn = models.cross_entropy(identity)
    example = Dataset(jnp.array(logits), jnp.array(label))
    value, gradient = jax.value_and_grad(loss_fn)(jnp.zeros(4), example)
    assert value.shape == ()
    np.testing.assert_allclose(value, -log_softmax(logits.astype(float))[label], atol=1e-6)
    np.testing.assert_allclose(gradient, softmax(logits) - np.eye(4)[label], atol=1e-6)


def test_extreme_logits_stay_finite():
    example = Dataset(jnp.array([1e4, -1e4]), jnp.array(1))
    value, gradient = jax.value_and_grad(models.cross_entropy(identity))(jnp.zeros(2), example)
    assert value == 2e4
    np.testing.assert_array_equal(gradient, [1, -1])


def test_low_precision_logits_are_widened():
    example = Dataset(jnp.array([0.0, 1.0], jnp.bfloat16), jnp.array(0))
    value = models.cross_entropy(identity)(jnp.zeros(2, jnp.bfloat16), example)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, np.log1p(np.e), rtol=1e-6)


def test_double_stays_double():
    with jax.enable_x64(True):
        example = Dataset(jnp.array([0.0, 1.0]), jnp.array(0))
        value = models.cross_entropy(identity)(jnp.zeros(2), example)
        np.testing.assert_allclose(value, np.log1p(np.e), rtol=1e-14)


def test_same_model_compiles_once(key):
    traces = 0

    def value(loss_fn, params, data):
        nonlocal traces
        traces += 1
        return jax.vmap(loss_fn, (None, 0))(params, data).mean()

    jitted = jax.jit(value, static_argnums=0)
    x = jax.random.uniform(key, (4, 5))
    params = models.mlp(3).init(key, x)
    for _ in range(3):
        jitted(models.cross_entropy(models.mlp(3).apply), params, Dataset(x, jnp.arange(4) % 3))
    assert traces == 1


class Bias:
    """As an equinox module: callable, and hashed by the arrays that it holds."""

    def __init__(self):
        self.b = jnp.ones(3)

    def __call__(self, params, x):
        return x + (params + self.b)[None]

    def __eq__(self, other):
        return bool((self.b == other.b).all())

    def __hash__(self):
        return hash(self.b)


def test_an_apply_that_cannot_be_hashed_has_to_be_wrapped():
    apply = Bias()
    with pytest.raises(ValueError, match="apply_fn is a Bias that cannot be hashed .*: wrap it in"):
        models.cross_entropy(apply)
    wrapped = models.cross_entropy(lambda params, x: apply(params, x))
    np.testing.assert_allclose(
        wrapped(jnp.zeros(3), Dataset(jnp.zeros(3), jnp.array(1))), np.log(3)
    )


@pytest.mark.skipif(not importlib.util.find_spec("equinox"), reason="needs equinox")
def test_an_equinox_module_is_such_an_apply(key):
    import equinox

    apply = equinox.nn.MLP(2, 2, 4, 1, key=key)
    with pytest.raises(ValueError, match="apply_fn is a MLP that cannot be hashed"):
        models.cross_entropy(apply)
