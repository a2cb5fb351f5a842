"""Pruning masks against a sort in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.primitives.sparsity import density, magnitude_mask, one_shot

pytestmark = pytest.mark.usefixtures("compiled_in_haste")


def brute_force(params: dict, rate: float) -> dict:
    """One weight after the other: the smallest that is still there, the first of equals."""
    mask = {name: np.ones(leaf.shape) for name, leaf in params.items()}
    kernels = [name for name in sorted(params) if params[name].ndim >= 2]
    size = sum(params[name].size for name in kernels)
    for _ in range(round(rate * size)):
        candidates = [
            (abs(float(params[name][index])), kernels.index(name), index)
            for name in kernels
            for index in np.ndindex(params[name].shape)
            if mask[name][index]
        ]
        _, which, index = min(candidates)
        mask[kernels[which]][index] = 0
    return mask


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.5, 0.95])
@pytest.mark.parametrize("values", ["distinct", "ties", "all equal"])
def test_equals_brute_force(rate, values):
    rng = np.random.default_rng(0)
    draw = {
        "distinct": lambda shape: rng.normal(size=shape),
        "ties": lambda shape: rng.integers(-2, 3, size=shape),
        "all equal": lambda shape: np.ones(shape),
    }[values]
    shapes = {"a": (3, 4), "bias": (5,), "c": (2, 2, 1, 3), "scalar": ()}
    params = {name: np.asarray(draw(shape), np.float32) for name, shape in shapes.items()}
    expected = brute_force(params, rate)
    for run in (magnitude_mask, jax.jit(magnitude_mask, static_argnums=1)):
        mask = run(jax.tree.map(jnp.asarray, params), rate)
        for name in shapes:
            np.testing.assert_array_equal(mask[name], expected[name])
            assert mask[name].dtype == jnp.float32
    np.testing.assert_allclose(density(mask), np.mean(flat(expected)), rtol=1e-6)


def flat(mask: dict) -> np.ndarray:
    return np.concatenate([leaf.ravel() for leaf in mask.values()])


def test_dtype_is_kept():
    mask = magnitude_mask({"w": jnp.ones((2, 2), jnp.bfloat16)}, 0.5)
    assert mask["w"].dtype == jnp.bfloat16


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.5, float("nan")])
def test_bad_rate(rate):
    with pytest.raises(ValueError, match=f"rate={rate} must lie strictly between 0 and 1"):
        magnitude_mask({"w": jnp.ones((2, 2))}, rate)


def test_nothing_to_prune():
    with pytest.raises(ValueError, match="params has no leaf with two or more axes"):
        magnitude_mask({"b": jnp.ones(3)}, 0.5)


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.5, 0.95])
def test_each_layer_by_itself(rate):
    rng = np.random.default_rng(1)
    params = {n: rng.integers(-3, 4, size=s).astype(np.float32) for n, s in SHAPES.items()}
    params["c"] *= 100  # a global ranking would spare it
    mask = magnitude_mask(jax.tree.map(jnp.asarray, params), rate, scope="layer")
    for name in params:
        expected = brute_force({name: params[name]}, rate)[name]
        np.testing.assert_array_equal(mask[name], expected)


SHAPES = {"a": (3, 4), "bias": (5,), "c": (2, 2, 1, 3), "scalar": ()}


def test_the_rate_may_be_traced():
    params = {"w": jnp.arange(12.0).reshape(3, 4)}
    kept = jax.vmap(lambda rate: magnitude_mask(params, rate)["w"].sum())(
        jnp.array([0.0, 0.25, 0.5, 1.0])
    )
    assert kept.tolist() == [12, 9, 6, 0]


def test_one_shot_prunes_and_says_whether_it_lasts():
    params = {"w": jnp.array([[0.1, -3.0], [2.0, 0.2]]), "b": jnp.ones(2)}
    lasting, regrowing = one_shot(params, 0.5), one_shot(params, 0.5, regrow=True)
    for found in (lasting, regrowing):
        assert found.params["w"].tolist() == [[0, -3], [2, 0]] and found.params["b"].all()
    assert lasting.mask["w"].tolist() == [[0, 1], [1, 0]]
    assert regrowing.mask is None
    assert params["w"][0, 0] != 0  # untouched


def test_bad_scope():
    with pytest.raises(ValueError, match="scope='layers' is unknown. Did you mean 'layer'"):
        magnitude_mask({"w": jnp.ones((2, 2))}, 0.5, scope="layers")
