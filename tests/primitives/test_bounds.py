"""Bounds against brute force: nothing leaves them, and on a tiny net they are known by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.primitives import bounds, regions

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

ABS = [(jnp.array([[1.0, -1.0]]), jnp.zeros(2)), (jnp.ones((2, 1)), jnp.zeros(1))]


def network(seed, sizes):
    rng = np.random.default_rng(seed)
    return [
        (jnp.asarray(rng.normal(size=(a, b)) / a**0.5), jnp.asarray(0.3 * rng.normal(size=b)))
        for a, b in zip(sizes, sizes[1:], strict=False)
    ]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("half", [0.05, 1.0])
def test_no_input_leaves_the_bounds(seed, half):
    with jax.enable_x64(True):
        layers, rng = network(seed, (3, 8, 6, 7, 4)), np.random.default_rng(seed)
        low = jnp.asarray(rng.normal(size=3))
        high = low + half * jnp.asarray(rng.random(3))
        target = jnp.asarray(rng.normal(size=(2, 4)))
        corners = np.array(np.meshgrid(*[[0, 1]] * 3)).reshape(3, -1).T
        t = jnp.asarray(np.concatenate([rng.random((20000, 3)), corners]))
        z, logits = regions.preactivations(layers, low[None] + t * (high - low)[None])
        interval = bounds.interval_bounds(layers, low, high)
        crown = bounds.crown_bounds(layers, low, high)
        aimed = bounds.crown_bounds(layers, low, high, target=target)
        for found in (interval, crown):
            assert (z >= found.low[None] - 1e-12).all() and (z <= found.high[None] + 1e-12).all()
            assert (logits >= found.logits_low[None] - 1e-12).all()
            assert (logits <= found.logits_high[None] + 1e-12).all()
        projected = logits @ target.T
        assert (projected >= aimed.logits_low[None] - 1e-12).all()
        assert (projected <= aimed.logits_high[None] + 1e-12).all()
        # Never looser, and somewhere tighter.
        assert (crown.low >= interval.low - 1e-12).all()
        assert (crown.logits_high <= interval.logits_high + 1e-12).all()
        assert (crown.logits_high < interval.logits_high - 1e-3).any()


def test_by_hand():
    """|v| on [-1, 2]: by intervals 2 + 1; by CROWN's lines, which meet at a corner, 2."""
    low, high = jnp.array([-1.0]), jnp.array([2.0])
    assert bounds.interval_bounds(ABS, low, high).logits_high.tolist() == [3.0]
    crown = bounds.crown_bounds(ABS, low, high)
    # 2/3 (v + 1) + 1/3 (2 - v) is largest at v = 2: 2.
    np.testing.assert_allclose(crown.logits_high, [2.0], rtol=1e-6)


def test_affine_inside_one_region():
    """Where no neuron changes its sign, CROWN is exact."""
    layers, x = network(7, (3, 8, 6, 4)), jnp.array([0.3, -0.2, 0.4])
    radius = 1e-4
    found = bounds.crown_bounds(layers, x - radius, x + radius)
    assert ((found.low > 0) | (found.high < 0)).all()
    jacobian = jax.jacobian(lambda v: regions.preactivations(layers, v)[1])(x)
    _, logits = regions.preactivations(layers, x)
    np.testing.assert_allclose(found.logits_high, logits + radius * jnp.abs(jacobian).sum(1), 1e-5)


def test_certified_radius_and_fixed_neurons():
    layers, rng = network(8, (2, 8, 6, 3)), np.random.default_rng(8)
    x = jnp.asarray(rng.uniform(-1, 1, (6, 2)), jnp.float32)
    _, logits = regions.preactivations(layers, x)
    y = logits.argmax(-1)
    radius = bounds.certified_radius(layers, x, y, low=-1.0, high=1.0, largest=1.0)
    assert (radius > 0).any()
    fixed = bounds.fixed_neurons(layers, x, radius, low=-1.0, high=1.0)
    for k in range(6):
        t = jnp.asarray(rng.uniform(-1, 1, (4000, 2)), jnp.float32)
        near = jnp.clip(x[k][None] + radius[k] * t, -1, 1)
        z, logits = regions.preactivations(layers, near)
        assert (logits.argmax(-1) == y[k]).all()
        signs = (z > 1e-6).any(0) & (z < -1e-6).any(0)
        assert not (signs & fixed[k]).any()
    # Of another class nothing is proved.
    assert not bounds.certified_radius(layers, x, (y + 1) % 3, low=-1.0, high=1.0).any()


def test_boxes_must_match():
    with pytest.raises(ValueError, match=r"low has shape \(1,\) and high \(2,\)"):
        bounds.crown_bounds(ABS, jnp.zeros(1), jnp.zeros(2))


def test_a_point_outside_of_the_box():
    layers = [(jnp.array([[1.0, -1.0]]), jnp.array([-2.05, 1.0])), (jnp.eye(2), jnp.zeros(2))]
    x = jnp.array([[2.0]])
    for find in (
        lambda: bounds.fixed_neurons(layers, x, jnp.array([0.1]), low=0.0, high=1.0),
        lambda: bounds.certified_radius(layers, x, jnp.array([0]), low=0.0, high=1.0),
    ):
        with pytest.raises(ValueError, match="x has 1 points outside of the box"):
            find()
    with pytest.raises(ValueError, match="this box is empty"):
        bounds.interval_bounds(layers, jnp.ones(1), jnp.zeros(1))
