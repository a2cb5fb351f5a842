"""Bounds between smoothed models: total variation of two normal laws, reached and not beaten."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from jaxunlearn.certify import federated as module
from jaxunlearn.certify.federated import (
    client_certificate,
    diameter,
    ffmu_paper_bound,
    function_gap_bound,
    leaving_certificate,
    linear_gap_bound,
    removal_certificate,
)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("distance", [0.0, 0.01, 0.5, 2.0])
def test_it_is_the_total_variation(distance, sigma):
    """Half the integral of the difference of two normal densities, by quadrature."""
    gap = lambda t: abs(stats.norm.pdf(t, 0, sigma) - stats.norm.pdf(t, distance, sigma))
    middle = distance / 2
    ends = [middle - 12 * sigma - distance, middle, middle + 12 * sigma + distance]
    exact = sum(
        integrate.quad(gap, a, b, limit=200)[0] for a, b in zip(ends, ends[1:], strict=False)
    )
    exact /= 2
    found = float(function_gap_bound(distance, sigma))
    assert exact - 1e-9 <= found <= exact * (1 + 5e-5) + 1e-9  # rounded up, and by little
    assert found <= float(linear_gap_bound(distance, sigma)) * (1 + 1e-4)


def gradients(seed=0, T=30):
    rng = np.random.default_rng(seed)
    return rng.normal(size=T), rng.normal(size=T) / 10


def test_a_function_reaches_the_bound_and_a_smaller_bound_is_beaten():
    """The best test between the two laws is a step along their difference; by Monte Carlo."""
    g, shift = gradients()
    sigma, draws = 0.5, 200_000
    direction = shift / np.linalg.norm(shift)
    border = direction @ (g + shift / 2)
    noise = np.random.default_rng(1).normal(size=draws) * sigma  # along the direction
    share = lambda at: np.mean(direction @ at + noise > border)
    gap = share(g + shift) - share(g)
    distance = float(np.linalg.norm(shift))
    bound = float(function_gap_bound(distance, sigma))
    error = 4 / np.sqrt(draws)
    assert abs(gap - bound) < error
    # Nearby wrong laws: sigma, or the factor 2 in the argument, off by a tenth.
    for wrong in (
        function_gap_bound(distance, 1.1 * sigma),
        function_gap_bound(0.9 * distance, sigma),
    ):
        assert gap - float(wrong) > error


def test_no_function_of_a_quantized_gradient_beats_it():
    """Random networks on Q(G + e), for a quantizer with jumps, which has no Lipschitz constant."""
    g, shift = gradients(2)
    sigma, draws = 0.2, 20_000
    rng = np.random.default_rng(3)
    e = rng.normal(size=(draws, g.size)) * sigma
    quantize = lambda t: np.sign(t) * (np.abs(t) > 0.3)
    bound = float(function_gap_bound(float(np.linalg.norm(shift)), sigma))
    largest = 0.0
    for _ in range(60):
        w = rng.normal(size=(g.size, 5)) * 3
        out = lambda at, w=w: 1 / (1 + np.exp(-quantize(at + e) @ w))
        difference = out(g + shift) - out(g)
        gap = np.abs(difference.mean(0)) - 5 * difference.std(0) / np.sqrt(draws)
        largest = max(largest, gap.max())
    assert 0.1 * bound < largest <= bound


UPDATES = {"w": jnp.asarray(np.random.default_rng(5).normal(size=(6, 4, 2)), jnp.float32)}
FLAT = np.asarray(UPDATES["w"], float).reshape(6, -1)
COUNTS = np.array([3.0, 1, 2, 5, 1, 4])


def test_clients_against_the_server():
    mean = {"w": jnp.asarray(FLAT.mean(0).reshape(4, 2), jnp.float32)}
    found = client_certificate(UPDATES, mean, 2.0)
    expected = np.linalg.norm(FLAT - FLAT.mean(0), axis=1)
    np.testing.assert_allclose(found.distance, expected, rtol=1e-4)
    assert (np.asarray(found.distance) >= expected).all()
    np.testing.assert_allclose(found.bound, 2 * stats.norm.cdf(expected / 4) - 1, rtol=1e-4)
    d = max(np.linalg.norm(a - b) for a in FLAT for b in FLAT)
    np.testing.assert_allclose(diameter(UPDATES), d, rtol=1e-4)
    np.testing.assert_allclose(found.paper, 5 * d / (np.sqrt(2 * np.pi) * 6 * 2), rtol=1e-4)
    # With plain averaging and C = 1 the paper's is never below the provable one.
    assert (np.asarray(found.bound) <= float(found.paper)).all()


def test_a_client_that_leaves_moves_the_mean_by_its_share():
    total = np.average(FLAT, axis=0, weights=COUNTS)
    mean = {"w": jnp.asarray(total.reshape(4, 2), jnp.float32)}
    found = leaving_certificate(client_certificate(UPDATES, mean, 1.0), jnp.asarray(COUNTS), 1.0)
    for k in range(6):
        without = np.average(np.delete(FLAT, k, 0), axis=0, weights=np.delete(COUNTS, k))
        expected = np.linalg.norm(total - without)
        np.testing.assert_allclose(found.distance[k], expected, rtol=1e-4)
        after = {"w": jnp.asarray(without.reshape(4, 2), jnp.float32)}
        direct = removal_certificate(mean, after, 1.0)
        np.testing.assert_allclose(direct.bound, found.bound[k], rtol=1e-3)


def test_a_client_that_was_alone_leaves_nothing():
    found = client_certificate(UPDATES, {"w": UPDATES["w"][0]}, 1.0)
    alone = leaving_certificate(found, jnp.array([4.0, 0, 0, 0, 0, 0]), 1.0)
    assert alone.bound[0] == 1 and alone.vacuous[0]
    assert alone.bound[1:].tolist() == [0.0] * 5


@pytest.mark.parametrize("how", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_a_client_that_was_left_out_counts_for_nothing_when_another_leaves(how):
    """The server leaves out what is not finite: the others' shares are larger without it."""
    updates = {"w": UPDATES["w"].at[2, 1, 0].set(jnp.nan)}
    rest, counts = np.delete(FLAT, 2, 0), np.delete(COUNTS, 2)
    total = np.average(rest, axis=0, weights=counts)
    mean = {"w": jnp.asarray(total.reshape(4, 2), jnp.float32)}
    each = how(lambda u: client_certificate(u, mean, 1.0))(updates)
    found = how(lambda c: leaving_certificate(c, jnp.asarray(COUNTS), 1.0))(each)
    for certificate in (each, found):
        assert certificate.bound[2] == 1 and certificate.vacuous[2] and certificate.paper_vacuous
    for i, k in enumerate((0, 1, 3, 4, 5)):
        without = np.average(np.delete(rest, i, 0), axis=0, weights=np.delete(counts, i))
        expected = np.linalg.norm(total - without)
        np.testing.assert_allclose(found.distance[k], expected, rtol=1e-4)
        assert found.distance[k] >= expected


def test_numpy_updates_and_derivatives():
    """What a server of its own has; and a derivative where a client is the mean itself."""
    mean = np.asarray(UPDATES["w"][0])
    found = client_certificate({"w": np.asarray(UPDATES["w"])}, {"w": mean}, 1.0)
    np.testing.assert_array_equal(found.bound, client_certificate(UPDATES, {"w": mean}, 1.0).bound)
    both = lambda u: (lambda c: c.bound.sum() + c.paper)(client_certificate(u, mean, 2.0))
    slope = jax.grad(both)(UPDATES["w"])
    step = 1e-2 * jnp.asarray(np.random.default_rng(1).normal(size=slope.shape)).at[0].set(0.0)
    expected = both(UPDATES["w"] + step) - both(UPDATES["w"] - step)
    np.testing.assert_allclose(2 * jnp.vdot(slope, step), expected, rtol=1e-2)


def test_vacuous_bounds_say_so():
    mean = {"w": UPDATES["w"].mean(0)}
    assert client_certificate(UPDATES, mean, 0.1).vacuous.all()
    wide = client_certificate(UPDATES, mean, 50.0)
    assert not wide.vacuous.any() and not wide.paper_vacuous
    strange = jax.jit(lambda u: removal_certificate(u, jnp.ones(2), 1.0))(jnp.array([jnp.nan, 0]))
    assert strange.bound == 1 and strange.vacuous


def test_bounds_hold_in_float32_far_out():
    """Where float32 rounds: never below float64's."""
    for distance in np.geomspace(1e-6, 40, 60):
        exact = 2 * stats.norm.cdf(distance / 2) - 1
        assert float(function_gap_bound(distance, 1.0)) >= min(exact, 1.0) * (1 - 1e-12)
    assert module.VACUOUS < 1


BAD = {
    "sigma 0": (lambda: function_gap_bound(1.0, 0.0), "sigma=0.0 must be a finite number > 0"),
    "sigma below": (lambda: linear_gap_bound(1.0, -1.0), "sigma=-1.0"),
    "sigma NaN": (lambda: removal_certificate(jnp.ones(2), jnp.ones(2), float("nan")), "sigma=nan"),
    "K = 1": (lambda: ffmu_paper_bound(1, 1.0, 1.0), "clients=1 must be at least 2"),
    "one client": (
        lambda: client_certificate(jnp.ones((1, 3)), jnp.ones(3), 1.0),
        "clients=1 must be at least 2",
    ),
    "distance": (lambda: function_gap_bound(-1.0, 1.0), "distance=-1.0 must be finite and >= 0"),
    "shapes": (  # which broadcast to a distance of 0
        lambda: removal_certificate(jnp.ones((2, 1)), jnp.ones((1, 2)), 1.0),
        r"shapes \[\(2, 1\)\].*\[\(1, 2\)\]",
    ),
    "leaves": (lambda: client_certificate({"w": jnp.ones((3, 2))}, jnp.ones(2), 1.0), "leaves"),
    "few weights": (
        lambda: leaving_certificate(client_certificate(jnp.eye(3), jnp.ones(3), 1.0), [1, 1], 1.0),
        r"weights has shape \(2,\), but must be \(3,\)",
    ),
    "weights below 0": (
        lambda: leaving_certificate(
            client_certificate(jnp.eye(3), jnp.ones(3), 1.0), [-1, 5, 1], 1.0
        ),
        r"weights=\[-1.0, 5.0, 1.0\] must be finite and >= 0",
    ),
    "C": (lambda: ffmu_paper_bound(2, 1.0, 1.0, lipschitz=0.0), "lipschitz=0.0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()
