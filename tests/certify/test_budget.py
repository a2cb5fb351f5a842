"""Budgets against brute force: every subset of rows is removed and nothing certified changes."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from jaxunlearn import Dataset
from jaxunlearn.certify.budget import (
    exact_budget,
    gaussian_removal_budget,
    gaussian_unlearning_epsilon,
    random_flip_probability,
    removal_certificate,
    step_certificate,
    verify_clip,
)
from jaxunlearn.primitives.gradients import gradient_range

ROWS, COORDINATES = 9, 60


def rows(seed: int) -> np.ndarray:
    """Gradients with coordinates of many kinds: far from zero, near it, constant, absent."""
    rng = np.random.default_rng(seed)
    v = rng.normal(size=(ROWS, COORDINATES)) + rng.normal(size=COORDINATES)
    v[:, 0], v[:, 1], v[:, 2] = 0.0, 0.7, np.r_[5.0, np.zeros(ROWS - 1)]
    return v


def classes(mean, theta):
    return np.sign(mean) * (np.abs(mean) > theta)


def brute_force(v, theta, fixed):
    """For each coordinate the largest k that no removal of up to k rows changes."""
    n = len(v)
    before, best = classes(v.mean(0), theta), np.full(v.shape[1], n - 1)
    for k in range(n - 1, 0, -1):
        for gone in itertools.combinations(range(n), k):
            left = np.delete(v, gone, axis=0).sum(0) / (n if fixed else n - k)
            best = np.where(classes(left, theta) != before, np.minimum(best, k - 1), best)
    return best


@pytest.mark.parametrize("theta", [0.0, 0.4])
@pytest.mark.parametrize("denominator", ["remaining", "fixed"])
def test_budgets_against_every_subset(theta, denominator):
    with jax.enable_x64(True):
        v = rows(1)
        truth = brute_force(v, theta, denominator == "fixed")
        how = {"threshold": theta, "denominator": denominator}
        assert len(set(truth.tolist())) > 4  # the case is not trivial
        exact = exact_budget(v, **how)
        np.testing.assert_array_equal(exact, truth)
        g, low, high = (jnp.asarray(a) for a in (v.mean(0), v.min(0), v.max(0)))
        bounds = removal_certificate(g, ROWS, 1, clip=(low, high), **how)
        assert (np.asarray(bounds.k_max) <= truth).all()
        # One removal: the bounds are attained, so the answer is exact.
        np.testing.assert_array_equal(bounds.certified, truth >= 1)
        clip = float(np.abs(v).max())
        coarse = removal_certificate(g, ROWS, 1, clip=clip, **how)
        assert (np.asarray(coarse.k_max) <= np.asarray(bounds.k_max)).all()
        assert bool(coarse.certified.any())
        # A bound that is too small is unsound: the certificate depends on it.
        unsound = removal_certificate(g, ROWS, 1, clip=(g - 0.1, g + 0.1), **how)
        assert (np.asarray(unsound.k_max) > truth).any()


@pytest.mark.parametrize("theta", [0.0, 0.1])
def test_float32_over_many_rows_certifies_nothing_too_much(theta):
    """Coordinates a few rows away from a change, 60,000 rows, the sums in float32."""
    n, m = 60_000, 60
    rng = np.random.default_rng(0)
    v = rng.normal(0.3, 1.0, (n, m)).astype(np.float32)
    # Few rows away from the threshold, by an offset that is the same for all of them.
    target = theta + rng.uniform(0, 3e-4, m)
    v += (target - v.astype(np.float64).mean(0)).astype(np.float32)
    rows = Dataset(jnp.asarray(v), jnp.zeros(n, jnp.int32))
    loss_fn = lambda params, row: params @ row.x
    found = gradient_range(loss_fn, jnp.zeros(m), rows, chunk=64)
    np.testing.assert_allclose(found.mean, v.astype(np.float64).mean(0), atol=1e-6)
    bounds = removal_certificate(found.mean, n, 1, clip=(found.low, found.high), threshold=theta)
    exact = np.asarray(exact_budget(v, threshold=theta))
    # The truth in float64, without the library.
    excess = -np.sort(-(v.astype(np.float64) - theta), axis=0).cumsum(0)
    truth = (excess < (v.astype(np.float64) - theta).sum(0)).argmin(0)
    positive = v.astype(np.float64).mean(0) > theta
    assert positive.mean() > 0.9
    np.testing.assert_array_equal(exact[positive], truth[positive])
    assert (np.asarray(bounds.k_max) <= exact)[positive].all()
    assert (np.asarray(bounds.k_max)[positive] >= 1).mean() > 0.5  # and it certifies something


def test_without_bounds_on_a_coordinate_nothing_is_certified():
    g = jnp.array([1.0, jnp.nan])
    found = jax.jit(lambda g: removal_certificate(g, 10, 1, clip=2.0))(g)
    assert found.k_max.tolist() == [4, -1] and found.certified.tolist() == [True, False]


def test_step_certificate_sums_up():
    found = step_certificate({"a": jnp.array([3, 0]), "b": jnp.array([[9], [2]])}, jnp.int32(2))
    assert float(found.fraction) == 0.75 and int(found.budget) == 0
    assert found.certified["a"].tolist() == [True, False]


def test_random_flips_against_removals_and_not_without_the_finite_population():
    n, k, draws = 400, 200, 3000
    rng = np.random.default_rng(0)
    v = rng.normal(size=(n, 8)) + np.linspace(-0.12, 0.12, 8)
    g, sd = v.mean(0), v.std(0, ddof=1)
    theta = 0.05
    flips = np.zeros(8)
    for _ in range(draws):
        left = v[rng.permutation(n)[k:]].mean(0)
        flips += classes(left, theta) != classes(g, theta)
    spread = 4 * np.sqrt(0.25 / draws)
    found = random_flip_probability(jnp.asarray(g), jnp.asarray(sd), n, k, threshold=theta)
    np.testing.assert_allclose(found, flips / draws, atol=spread)
    replaced = random_flip_probability(
        jnp.asarray(g), jnp.asarray(sd * math.sqrt(2)), n, k, threshold=theta
    )  # as if the n - k rows were drawn anew
    assert np.abs(np.asarray(replaced) - flips / draws).max() > 2 * spread
    assert float(random_flip_probability(jnp.zeros(1), jnp.zeros(1), n, k)[0]) == 0


def hockey_stick(epsilon, mu):
    """delta of N(0, 1) against N(mu, 1), by quadrature."""
    p, q = stats.norm(0, 1).pdf, stats.norm(mu, 1).pdf
    gain = lambda z: max(p(z) - math.exp(epsilon) * q(z), 0.0)
    edge = mu / 2 - epsilon / mu  # where the gain ends
    return integrate.quad(gain, edge - 12, edge, epsabs=1e-13, limit=200)[0]


@pytest.mark.parametrize("k, visits", [(1, 120), (5, 10), (10, 120)])
def test_epsilon_against_quadrature(k, visits):
    how = {"n": 500, "clip": 1.0, "sigma": 0.1, "visits": visits}
    epsilon = gaussian_unlearning_epsilon(k, **how, delta=1e-5)
    mu = math.sqrt(visits) * k / 50
    assert hockey_stick(epsilon, mu) == pytest.approx(1e-5, rel=1e-3)
    assert hockey_stick(0.9 * epsilon, mu) > 1.2e-5
    rho = mu**2 / 2  # zero-concentrated privacy is looser, never tighter
    assert epsilon < rho + 2 * math.sqrt(rho * math.log(1e5))


def test_epsilon_and_budget_are_inverse():
    how = {"n": 500, "clip": 1.0, "sigma": 0.3, "visits": 30}
    assert gaussian_unlearning_epsilon(0, **how) == 0
    for epsilon in (0.01, 0.5, 3.0, 50.0):
        k = gaussian_removal_budget(epsilon, **how)
        assert gaussian_unlearning_epsilon(k, **how) <= epsilon
        assert gaussian_unlearning_epsilon(k + 1, **how) > epsilon


@pytest.mark.parametrize("seed", range(3))
def test_two_normal_laws_are_as_distinguishable_as_epsilon_says(seed):
    """The best test between the two laws of one noisy coordinate, on draws."""
    rng = np.random.default_rng(seed)
    n, k, sigma, delta, draws = 50, 3, 0.05, 0.01, 400_000
    mu = k / (n * sigma)
    epsilon = gaussian_unlearning_epsilon(k, n=n, clip=1.0, sigma=sigma, visits=1, delta=delta)
    a, b = rng.normal(0, 1, draws), rng.normal(mu, 1, draws)
    cuts = np.linspace(-3, 3, 61)
    worst = max((a < c).mean() - math.exp(epsilon) * (b < c).mean() for c in cuts)
    assert worst <= delta + 4 * math.sqrt(0.25 / draws) * math.exp(epsilon)
    assert worst > 0.5 * delta  # the bound is used up


def test_no_cancellation_and_no_overflow():
    g, sd, n = jnp.array([2e-7]), jnp.array([1.0]), 10_000_000
    flip = random_flip_probability(g, sd, n, 1)
    assert float(flip[0]) == pytest.approx(stats.norm.sf(2.0), rel=1e-3)
    assert gaussian_unlearning_epsilon(1, n=1, clip=1.0, sigma=1e-300, visits=1) == math.inf


BAD = {
    "dtype": (
        lambda: removal_certificate(jnp.ones(2, jnp.bfloat16), 5, 1, clip=2.0),
        r"g has dtype bfloat16",
    ),
    "no leaves": (lambda: removal_certificate({}, 5, 1, clip=2.0), r"g has no leaves"),
    "a list": (lambda: removal_certificate(jnp.ones(2), 5, 1, clip=[1.0, 2.0]), r"must be one num"),
    "NaN": (lambda: exact_budget(jnp.array([[jnp.nan], [1.0]])), r"per_sample_g has 1 values of 2"),
    "k": (lambda: removal_certificate(jnp.ones(2), 5, 5, clip=2.0), r"k=5 must lie in 0..4"),
    "n": (lambda: removal_certificate(jnp.ones(2), 1, 0, clip=2.0), r"n=1 must be an integer >= 2"),
    "clip": (
        lambda: removal_certificate(jnp.array([0.5, -0.9]), 5, 1, clip=0.6),
        r"clip=0.6 is no bound of the single gradients: their mean exceeds it by 0.3",
    ),
    "clip of rows": (
        lambda: verify_clip({"w": jnp.array([[0.1], [0.9]])}, 0.6),
        r"clip=0.6 is exceeded by 0.3 \(row 1, and 1 of 2 rows in all\)",
    ),
    "clip of NaN": (lambda: verify_clip(jnp.array([[jnp.nan]]), 1.0), r"row 0, and 1 of 1"),
    "denominator": (
        lambda: removal_certificate(jnp.ones(2), 5, 1, clip=2.0, denominator="n"),
        r"denominator='n' is unknown",
    ),
    "random k": (lambda: random_flip_probability(jnp.ones(1), jnp.ones(1), 5, 7), r"k=7 must lie"),
    "sigma": (
        lambda: gaussian_unlearning_epsilon(1, n=5, clip=1.0, sigma=0.0, visits=1),
        r"sigma=0.0 must be",
    ),
    "delta": (
        lambda: gaussian_unlearning_epsilon(1, n=5, clip=1.0, sigma=1.0, visits=1, delta=0.0),
        r"delta=0.0 must lie",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()
