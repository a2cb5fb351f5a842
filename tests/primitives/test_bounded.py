"""Bounded quadratics against SciPy's and against their optimality conditions, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxunlearn.primitives.bounded import bounded_quadratic

pytestmark = pytest.mark.usefixtures("float64", "compiled_in_haste")
K = 12


def problem(seed: int, rank: int):
    rng = np.random.default_rng(seed)
    half = rng.normal(size=(K, rank))
    bound = rng.random(K) * (rng.random(K) > 0.2)  # some of 0
    return half @ half.T, 3 * rng.normal(size=K), bound


@pytest.mark.parametrize("rank", [K, 4], ids=["definite", "singular"])
def test_the_minimum_is_that_of_another_solver(rank):
    for seed in range(8):
        a, b, bound = problem(seed, rank)
        for start in (None, jnp.asarray(bound * np.sign(b))):
            out = bounded_quadratic(*map(jnp.asarray, (a, b, bound)), start=start)
            value = lambda x, a=a, b=b: x @ a @ x / 2 - b @ x
            theirs = scipy.optimize.minimize(
                value,
                np.zeros(K),
                jac=lambda x, a=a, b=b: a @ x - b,
                bounds=list(zip(-bound, bound, strict=True)),
                options={"ftol": 1e-15, "gtol": 1e-10},
            )
            assert (np.abs(out.x) <= bound + 1e-12).all() and out.residual < 1e-6
            np.testing.assert_allclose(value(np.asarray(out.x)), theirs.fun, rtol=1e-7)
            down = np.asarray(b - a @ out.x)
            tight = np.asarray(~out.free)
            np.testing.assert_allclose(down[~tight], 0, atol=1e-6)
            assert (np.asarray(out.x) * down)[tight].min(initial=0) > -1e-6


def test_entries_that_are_alike_share():
    """Equal rows make the matrix singular and the answer not unique; the value is."""
    a = jnp.ones((5, 5))
    out = bounded_quadratic(a, 2.0 * jnp.ones(5), jnp.ones(5))
    np.testing.assert_allclose(out.x.sum(), 2.0, rtol=1e-6)


def test_derivatives_with_the_set_held_fixed():
    a, b, bound = map(jnp.asarray, problem(3, K))
    value = lambda t: jnp.sum(bounded_quadratic(a + t * jnp.eye(K), b, (1 + t) * bound).x ** 2)
    h = 1e-6
    np.testing.assert_allclose(
        jax.grad(value)(0.1), (value(0.1 + h) - value(0.1 - h)) / (2 * h), rtol=1e-6
    )


def test_bad_input():
    with pytest.raises(ValueError, match=r"must have \(2, 2\)"):
        bounded_quadratic(jnp.eye(3), jnp.ones(2), jnp.ones(2))
    with pytest.raises(ValueError, match="steps=0"):
        bounded_quadratic(jnp.eye(2), jnp.ones(2), jnp.ones(2), steps=0)
