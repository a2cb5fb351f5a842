"""Pooling against flax's, odd sizes and ties included."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.models import avg_pool, max_pool

PAIRS = {
    "max": (max_pool, lambda x: nn.max_pool(x, (2, 2), (2, 2))),
    "avg": (avg_pool, lambda x: nn.avg_pool(x, (2, 2), (2, 2))),
}
SIZES = [(4, 4), (7, 6), (5, 9), (2, 3)]


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values_and_gradients_are_flax(name, size, key):
    ours, theirs = PAIRS[name]
    x = jax.random.normal(key, (3, *size, 2))  # no ties
    out, pullback = jax.vjp(ours, x)
    expected, expected_pullback = jax.vjp(theirs, x)
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    cotangent = jnp.cos(jnp.arange(out.size, dtype=x.dtype)).reshape(out.shape)
    np.testing.assert_allclose(pullback(cotangent)[0], expected_pullback(cotangent)[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("window", "share"),
    [
        ([[1, 1], [1, 1]], [[0.25, 0.25], [0.25, 0.25]]),
        ([[1, 0], [1, 0]], [[0.5, 0], [0.5, 0]]),
        ([[1, 1], [1, 0]], [[0.25, 0.25], [0.5, 0]]),
        ([[0, 0], [0, 1]], [[0, 0], [0, 1]]),
    ],
)
def test_ties_share_the_gradient(window, share):
    x = jnp.array(window, jnp.float32).reshape(1, 2, 2, 1)
    gradient = jax.grad(lambda x: max_pool(x).sum())(x)
    np.testing.assert_array_equal(gradient.reshape(2, 2), share)


@pytest.mark.parametrize("name", PAIRS)
def test_vmap_over_single_images(name, key):
    x = jax.random.normal(key, (3, 6, 6, 2))
    pool, _ = PAIRS[name]
    np.testing.assert_array_equal(jax.vmap(lambda row: pool(row[None])[0])(x), pool(x))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_mean_is_rounded_once(dtype):
    # In half precision the sum of four such pixels overflows or loses the ones.
    pixels = {jnp.float16: [40000, 40000, 40000, 40000], jnp.bfloat16: [256, 1, 1, 2]}[dtype]
    out = avg_pool(jnp.array(pixels, dtype).reshape(1, 2, 2, 1))
    assert out.dtype == dtype
    assert out.item() == sum(pixels) / 4


@pytest.mark.parametrize("name", PAIRS)
def test_too_small(name):
    with pytest.raises(ValueError, match=r"x has shape \(1, 1, 4, 1\)"):
        PAIRS[name][0](jnp.ones((1, 1, 4, 1)))
