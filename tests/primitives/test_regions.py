"""Regions against automatic differentiation, explicit matrices and enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import models
from jaxunlearn.primitives import regions, splits

pytestmark = pytest.mark.usefixtures("compiled_in_haste")


def network(seed=0, sizes=(5, 9, 6, 3), dtype=np.float64):
    rng = np.random.default_rng(seed)
    return [
        (
            jnp.asarray(rng.normal(size=(a, b)) / a**0.5, dtype),
            jnp.asarray(0.3 * rng.normal(size=b), dtype),
        )
        for a, b in zip(sizes, sizes[1:], strict=False)
    ]


@pytest.fixture
def wide():
    with jax.enable_x64(True):
        yield


def test_faces_are_the_jacobian_of_the_preactivations(wide):
    layers = network()
    x = jnp.asarray(np.random.default_rng(1).normal(size=5))
    a, b = regions.linear_region(layers, x)
    z, _ = regions.preactivations(layers, x)
    jacobian = jax.jacobian(lambda v: regions.preactivations(layers, v)[0])(x)
    sign = np.where(z > 0, 1.0, -1.0)
    np.testing.assert_allclose(a, -sign[:, None] * jacobian, atol=1e-14)  # Lemma 1, Eq. 5
    np.testing.assert_allclose(b, sign * (z - jacobian @ x), atol=1e-14)
    assert (a @ x <= b).all()


def test_the_implicit_form_is_the_explicit_one(wide):
    layers, rng = network(), np.random.default_rng(2)
    for x in jnp.asarray(rng.normal(size=(5, 5))):
        a, b = regions.linear_region(layers, x)
        bits = regions.activation_pattern(layers, x)
        others = jnp.asarray(rng.normal(size=(40, 5)))
        implicit = regions.signed_preactivations(layers, jnp.tile(bits[None], (40, 1)), others)
        np.testing.assert_allclose(implicit, b[None] - others @ a.T, atol=1e-13)


def test_inside_means_the_same_bits(wide):
    """The half-spaces hold exactly for the inputs that activate the same neurons."""
    layers, rng = network(sizes=(2, 4, 3, 2)), np.random.default_rng(3)
    x = jnp.asarray(rng.uniform(-1, 1, size=(4000, 2)))
    bits = np.asarray(regions.activation_pattern(layers, x))
    for k in (0, 1, 2):
        tiled = jnp.tile(jnp.asarray(bits[k])[None], (4000, 1))
        inside = (regions.signed_preactivations(layers, tiled, x) >= 0).all(-1)
        np.testing.assert_array_equal(inside, (bits == bits[k]).all(-1))
        assert 1 < inside.sum() < 4000


def test_adjoint_is_the_transpose(wide):
    layers, rng = regions.dense_layers(network()), np.random.default_rng(4)
    active = jnp.asarray(rng.random(15) < 0.5)
    x, z, o = (jnp.asarray(rng.normal(size=n)) for n in (5, 15, 3))
    fz, fo = regions.masked_forward(layers, active, x, bias=False)
    back = regions.masked_adjoint(layers, active, z, o)
    np.testing.assert_allclose(jnp.vdot(fz, z) + jnp.vdot(fo, o), jnp.vdot(x, back), rtol=1e-12)


def test_bits_are_numpys(key):
    flags = np.random.default_rng(5).random((3, 21)) < 0.5
    packed = regions.pack(jnp.asarray(flags))
    np.testing.assert_array_equal(packed, np.packbits(flags, axis=-1, bitorder="little"))
    np.testing.assert_array_equal(regions.unpack(packed, 21), flags)


@pytest.mark.parametrize("make", [models.mlp, models.cnn])
def test_split_of_our_models(make):
    model, x = make(3), jnp.ones((2, 8, 8, 1))
    parts = splits.split(model)
    splits.check_split(parts, model, x)
    params = model.init(jax.random.key(0), x)
    _, logits = regions.preactivations(parts.head(params), parts.features(params, x))
    np.testing.assert_allclose(logits, model.apply(params, x), rtol=1e-5)


def test_models_that_do_not_end_in_relu_layers():
    x = jnp.ones((1, 12, 12, 1))
    with pytest.raises(ValueError, match="hidden ReLU layer.*single region"):
        splits.check_split(splits.split(models.logistic(3)), models.logistic(3), x)
    with pytest.raises(ValueError, match="its logits differ"):  # tanh between
        splits.check_split(splits.split(models.lenet(3)), models.lenet(3), x)
    plain = models.mlp(3)._replace(apply=lambda params, x: x.reshape(x.shape[0], -1)[:, :3])
    with pytest.raises(ValueError, match="no layer Dense_0.*split=Split"):
        splits.check_split(splits.split(plain), plain, x)


def test_bad_stacks():
    with pytest.raises(ValueError, match="layer 1 of params takes 4 inputs, but.*gives 3"):
        regions.dense_layers([(jnp.ones((2, 3)), jnp.ones(3)), (jnp.ones((4, 2)), jnp.ones(2))])
    with pytest.raises(ValueError, match=r"layer 0 of params has a kernel \(2,\)"):
        regions.dense_layers([(jnp.ones(2), jnp.ones(2))])
    with pytest.raises(ValueError, match=r"x has shape \(1, 5\), but must be one input"):
        regions.linear_region(network(dtype=np.float32), jnp.ones((1, 5)))
