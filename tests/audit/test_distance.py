import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import audit


def tree(seed, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return {
        "dense": {"w": jnp.asarray(rng.normal(size=(7, 3)), dtype), "b": jnp.zeros(3, dtype)},
        "scale": jnp.asarray(rng.normal(), dtype),
    }


def flat(params):
    return np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(params)])


def test_distance_is_the_euclidean_norm_of_the_difference():
    a, b = tree(0), tree(1)
    expected = np.linalg.norm(flat(a) - flat(b))
    assert float(audit.parameter_distance(a, b)) == pytest.approx(expected, rel=1e-6)
    relative = audit.relative_parameter_distance(a, b)
    assert float(relative) == pytest.approx(expected / np.linalg.norm(flat(b)), rel=1e-6)
    assert float(audit.parameter_distance(a, a)) == 0


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_no_overflow_and_no_underflow(size):
    a = jnp.array([3.0, 4.0], jnp.float32) * size
    assert float(audit.parameter_distance(a, jnp.zeros(2))) == pytest.approx(5 * size)


def test_half_precision_is_widened_before_subtracting():
    a, b = tree(0, jnp.bfloat16), tree(1, jnp.bfloat16)
    result = audit.parameter_distance(a, b)
    assert result.dtype == jnp.float32
    assert float(result) == pytest.approx(np.linalg.norm(flat(a) - flat(b)), rel=1e-6)


def test_broken_parameters_show():
    zero = jnp.zeros(2)
    assert np.isnan(audit.parameter_distance(jnp.array([1.0, jnp.nan]), zero))
    assert np.isinf(audit.parameter_distance(jnp.array([1.0, jnp.inf]), zero))


def test_vmap_and_jit_equal_eager():
    many = jax.tree.map(lambda *x: jnp.stack(x), tree(0), tree(1), tree(2))
    mapped = jax.jit(jax.vmap(audit.parameter_distance, in_axes=(0, None)))(many, tree(3))
    expected = [audit.parameter_distance(tree(k), tree(3)) for k in range(3)]
    np.testing.assert_allclose(mapped, expected, rtol=1e-6)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="structure"):
        audit.parameter_distance({"a": jnp.zeros(2)}, {"b": jnp.zeros(2)})
    with pytest.raises(ValueError, match="shapes"):
        audit.parameter_distance({"a": jnp.zeros(2)}, {"a": jnp.zeros((2, 1))})
    with pytest.raises(ValueError, match="no parameters"):
        audit.parameter_distance({}, {})
