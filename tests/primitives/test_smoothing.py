"""The closed form of the smoothed quantizer against sampling, SciPy and finite differences."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxunlearn.primitives.smoothing import (
    NOISES,
    class_probabilities,
    expected_quantize,
    monte_carlo_quantize,
    radius_of_probabilities,
    sample_quantize,
    smooth_quantize,
    ternary_threshold,
)

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

KEY = jax.random.key(0)
LAWS = {
    "gaussian": stats.norm(),
    "laplace": stats.laplace(scale=1 / math.sqrt(2)),
    "uniform": stats.uniform(-math.sqrt(3), 2 * math.sqrt(3)),
}
# (sigma, lam): the paper's default, near the first zero class, in the middle, a wide zone.
SETTINGS = [(0.1, 0.01), (0.3, 0.27), (1.0, 2.0), (0.5, 3.0)]


def probabilities(g, sigma, lam, noise):
    """P(-1), P(0), P(1) in float64."""
    F = LAWS[noise].cdf
    low, high = F((-lam / 2 - g) / sigma), F((g - lam / 2) / sigma)
    return np.stack([low, 1 - low - high, high])


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("sigma, lam", SETTINGS)
def test_classes_and_probabilities(noise, sigma, lam):
    g = np.linspace(-4, 4, 801)[np.newaxis] * max(sigma, lam)
    found = smooth_quantize(jnp.asarray(g, jnp.float32), sigma, lam, noise=noise)
    p = probabilities(g.astype(np.float32).astype(float), sigma, lam, noise)
    ordered = np.sort(p, axis=0)
    clear = ordered[2] - ordered[1] > 1e-5
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(found.q[clear], (p.argmax(0) - 1)[clear])
    np.testing.assert_allclose(found.p_a, ordered[2], atol=2e-6)
    np.testing.assert_allclose(found.p_b, ordered[1], atol=2e-6)
    assert (np.asarray(found.radius) <= np.asarray(found.radius_exact)).all()


@pytest.mark.parametrize("noise", NOISES)
def test_probabilities_against_draws(noise):
    """Not the formula again: real noise, really quantized. The law next to it is rejected."""
    rng, sigma, lam, draws = np.random.default_rng(0), 0.7, 0.9, 400_000
    eps = sigma * LAWS[noise].rvs(draws, random_state=rng)
    for g in (0.0, 0.2, -1.1):
        same, zero, opposite = class_probabilities(jnp.float32(g), sigma, lam, noise=noise)
        sign = np.sign(g) or 1.0
        votes = sign * (g + eps)
        found = np.array([(votes > lam / 2).mean(), (abs(votes) <= lam / 2).mean()])
        found = np.append(found, 1 - found.sum())
        error = np.abs(found - np.array([same, zero, opposite]))
        assert error.max() < 5 * 0.5 / math.sqrt(draws)
        wrong = np.array(class_probabilities(jnp.float32(g), 1.05 * sigma, lam, noise=noise))
        assert np.abs(found - wrong).max() > 5 * 0.5 / math.sqrt(draws)


def test_thresholds():
    for b, expected in {0.5: 0.186, 0.6: 0.400, 1.0: 0.969, 2.0: 2.000}.items():
        assert ternary_threshold(1.0, 2 * b) == pytest.approx(expected, abs=6e-4)
    # Zero is never the likeliest up to a width that depends on the law.
    last = {"gaussian": 0.86145, "laplace": math.sqrt(2) * math.log(1.5), "uniform": 1.1547}
    for noise, width in last.items():
        assert ternary_threshold(0.3, 0.3 * (width - 1e-3), noise) == 0.0
        assert ternary_threshold(0.3, 0.3 * (width + 1e-3), noise) > 0.0
        assert ternary_threshold(0.3, 0.9, noise) == pytest.approx(
            0.3 * ternary_threshold(1.0, 3.0, noise)
        )


@pytest.mark.parametrize("noise", NOISES)
def test_the_papers_default_is_the_sign(noise):
    g = jnp.array([-9.0, -1e-3, -1e-30, 0.0, 1e-30, 1e-3, 9.0])
    found = smooth_quantize(g, 0.1, noise=noise)
    np.testing.assert_array_equal(found.q, np.sign(g))
    np.testing.assert_array_equal(found.radius_exact, np.abs(g))
    assert found.radius[3] == 0
    np.testing.assert_allclose(found.p_a[3], found.p_b[3], rtol=1e-6)


def test_cohens_radius_in_float64_where_it_can_be_computed():
    sigma, lam = 1.0, 1.0
    g = np.linspace(0, 5, 400).astype(np.float32)
    p = np.sort(probabilities(g.astype(float), sigma, lam, "gaussian"), axis=0)
    expected = 0.5 * sigma * (stats.norm.ppf(p[2]) - stats.norm.ppf(p[1]))
    found = np.asarray(smooth_quantize(jnp.asarray(g), sigma, lam).radius, float)
    assert (found <= expected + 1e-7).all()
    np.testing.assert_allclose(found, expected, atol=3e-6)
    far = smooth_quantize(jnp.array([1.4, 5.0, 1e6]), 0.1)
    np.testing.assert_allclose(far.radius, [1.4, 5.0, 1e6], rtol=0.01)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("sigma, lam", SETTINGS)
def test_expected_quantize_and_its_derivatives(noise, sigma, lam):
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        g = jnp.asarray(rng.normal(size=40) * 2 * max(sigma, lam))
        args = g, jnp.float64(sigma), jnp.float64(lam)
        value = lambda g, sigma, lam: expected_quantize(g, sigma, lam, noise=noise)
        p = probabilities(np.asarray(g), sigma, lam, noise)
        np.testing.assert_allclose(value(*args), p[2] - p[0], atol=1e-14)
        h = 1e-6
        for i in range(3):
            step = [h * (i == j) for j in range(3)]
            up, down = (
                value(*(a + s * t for a, t in zip(args, step, strict=True))) for s in (1, -1)
            )
            tangents = tuple(jnp.full_like(a, float(i == j)) for j, a in enumerate(args))
            slope = jax.jvp(value, args, tangents)[1]
            np.testing.assert_allclose(slope, (up - down) / (2 * h), atol=1e-5 / sigma)


def test_expected_quantize_has_the_density_as_slope_at_a_kink():
    slope = jax.grad(lambda g: expected_quantize(g, 1.0, 1.0, noise="laplace"))(0.5)
    density = (1 + math.exp(-math.sqrt(2))) / math.sqrt(2)
    assert float(slope) == pytest.approx(density, rel=1e-6)
    small = jnp.array([1e-6, -1e-7], jnp.float32)  # no cancellation down to the rounding of lam
    np.testing.assert_allclose(expected_quantize(small, 0.1), 7.969 * np.asarray(small), rtol=0.01)


@pytest.mark.parametrize("noise", NOISES)
def test_draws_have_the_law_and_not_the_one_next_to_it(noise):
    sigma, lam, n = 0.7, 0.9, 200_000
    tree = {"a": jnp.full(n, 0.2), "b": jnp.full(n, 0.2)}
    draw = sample_quantize(KEY, tree, sigma, lam, noise=noise)
    counts = np.array([(np.asarray(draw["a"]) == c).sum() for c in (-1, 0, 1)])
    right, wrong = (probabilities(0.2, s * sigma, lam, noise) for s in (1, 1.05))
    assert stats.chisquare(counts, n * right).pvalue > 1e-4
    assert stats.chisquare(counts, n * wrong).pvalue < 1e-6
    both = np.corrcoef(np.asarray(draw["a"], float), np.asarray(draw["b"], float))
    assert abs(both[0, 1]) < 5 / math.sqrt(n)  # leaves have draws of their own


@pytest.mark.parametrize("noise", NOISES)
def test_monte_carlo_agrees_with_the_closed_form(noise):
    sigma, lam, alpha = 0.7, 1.1, 0.05
    g = jnp.linspace(-2, 2, 2001)
    exact = smooth_quantize(g, sigma, lam, noise=noise)
    votes = monte_carlo_quantize(KEY, g, sigma, lam, noise=noise, samples=400, alpha=alpha)
    sure = np.asarray(votes.radius > 0)
    assert sure.mean() > 0.7
    assert votes.radius_exact is None
    # Bounds fail for a share alpha at most, and are not so wide that nothing ever fails.
    held = np.asarray((votes.p_a <= exact.p_a + 1e-6) & (votes.p_b >= exact.p_b - 1e-6))
    assert (~held).mean() <= alpha
    right = np.asarray(votes.q == exact.q)
    assert (~right[sure]).mean() <= alpha
    assert (votes.radius <= exact.radius_exact + 1e-6)[sure & held & right].all()
    tight = monte_carlo_quantize(KEY, g, sigma, lam, noise=noise, samples=400, alpha=0.9)
    assert ((tight.p_a > exact.p_a) | (tight.p_b < exact.p_b)).mean() > 0.05


def test_clopper_pearson():
    found = monte_carlo_quantize(KEY, jnp.full(50, 0.3), 0.5, 0.4, samples=40, alpha=0.03)
    for p_a, q in zip(np.asarray(found.p_a), np.asarray(found.q), strict=True):
        bounds = [
            stats.binomtest(c, 40).proportion_ci(0.99, "exact").low for c in range(41)
        ]  # each of the three classes at .03 / 3
        assert np.abs(np.array(bounds) - p_a).min() < 1e-6 and q in (-1, 0, 1)


def test_radius_of_probabilities():
    for noise, expected in {
        "gaussian": 0.2 * (stats.norm.ppf(0.8) - stats.norm.ppf(0.1)),
        "laplace": 0.4 / math.sqrt(2) * 0.5 * math.log(8),
        "uniform": 0.4 * math.sqrt(3) * 0.7,
    }.items():
        found = radius_of_probabilities(jnp.float32(0.8), jnp.float32(0.1), 0.4, noise=noise)
        assert float(found) == pytest.approx(expected, rel=1e-5)
        assert radius_of_probabilities(jnp.float32(0.3), jnp.float32(0.3), 0.4, noise=noise) == 0


def test_pytrees_and_dtypes():
    g = {"w": jnp.ones((2, 3), jnp.bfloat16), "b": (jnp.zeros(()),)}
    found = jax.jit(lambda g: smooth_quantize(g, 0.1))(g)
    for part, dtype in zip(found, ("int8", *["float32"] * 4), strict=True):
        chex.assert_trees_all_equal_shapes(part, g)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(part)} == {dtype}
    chex.assert_trees_all_equal_shapes_and_dtypes(expected_quantize(g, 0.1), g)


BAD = {
    "sigma": (lambda: smooth_quantize(jnp.ones(1), 0.0), r"sigma=0.0 must be a finite number > 0"),
    "lam": (lambda: smooth_quantize(jnp.ones(1), 1.0, -1.0), r"lam=-1.0 must be .* >= 0"),
    "noise": (lambda: ternary_threshold(1.0, 1.0, "gausian"), r"Did you mean 'gaussian'"),
    "not finite": (
        lambda: smooth_quantize({"w": jnp.array([1.0, jnp.nan])}, 1.0),
        r"g\['w'\] has 1 values of 2 that are NaN or infinite",
    ),
    "integers": (lambda: expected_quantize(jnp.arange(3), 1.0), r"g has dtype int32"),
    "samples": (
        lambda: monte_carlo_quantize(KEY, jnp.ones(1), 1.0, samples=0),
        r"samples=0 must be an integer >= 1",
    ),
    "alpha": (lambda: monte_carlo_quantize(KEY, jnp.ones(1), 1.0, alpha=1.0), r"alpha=1.0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()
