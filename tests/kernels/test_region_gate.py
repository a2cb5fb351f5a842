"""The gate against Lemma 2 written out in float64, in every implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.kernels import region_gate
from jaxunlearn_kernels.region_gate import pallas

pytestmark = pytest.mark.usefixtures("compiled_in_haste")
INTERPRETED = jax.jit(
    lambda z, bits, care=None, sharpness=1000.0: pallas.region_gate(
        z, bits, care, sharpness=sharpness, platform="gpu", interpret=True
    )
)
IMPLEMENTATIONS = [
    pytest.param(region_gate, id="xla"),
    pytest.param(INTERPRETED, id="pallas interpreted"),
]


def lemma2(z, bits, care, sharpness):
    """Eq. 6, one neuron at a time, with its difference of ReLUs."""
    z = np.asarray(z, np.float64)
    on = np.unpackbits(np.asarray(bits), axis=1, count=z.shape[1], bitorder="little").astype(bool)
    kept = np.ones_like(on)
    if care is not None:
        kept = np.unpackbits(care, axis=1, count=z.shape[1], bitorder="little").astype(bool)
    inside = np.where(on[None], z[:, None], -z[:, None])  # [B, K, N]
    relu = lambda v: np.maximum(v, 0)
    step = relu(sharpness * inside + 1) - relu(sharpness * inside)
    return relu((step * kept[None]).sum(-1) - kept.sum(-1)[None] + 1)


def case(rows=70, regions=9, neurons=45, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(rows, neurons)).astype(np.float32)
    bits = np.packbits(z[:regions] > 0, axis=-1, bitorder="little")
    care = rng.integers(0, 256, bits.shape).astype(np.uint8)
    return jnp.asarray(z), jnp.asarray(bits), care


@pytest.mark.parametrize("gate", IMPLEMENTATIONS)
@pytest.mark.parametrize("sharpness", [0.01, 0.3, 1000.0])
@pytest.mark.parametrize("cared", [False, True])
def test_is_lemma_2(gate, sharpness, cared):
    z, bits, care = case()
    care = care if cared else None
    given = {} if care is None else {"care": jnp.asarray(care)}
    got = gate(z, bits, sharpness=sharpness, **given)
    assert got.shape == (70, 9) and got.dtype == jnp.float32
    want = lemma2(z, bits, care, sharpness)
    np.testing.assert_allclose(got, want, atol=1e-5 * 45)
    assert 0 < (want > 0).mean() < 1 or sharpness == 0.01


@pytest.mark.parametrize("gate", IMPLEMENTATIONS)
def test_exactly_one_inside_and_zero_outside(gate):
    z, bits, _ = case(rows=130, regions=70, neurons=512)
    got = np.asarray(gate(z, bits))
    np.testing.assert_array_equal(got[:70], np.eye(70))
    assert not got[70:].any()
    tiny = z.at[0].multiply(1e-12)  # far into every collar, but of the right signs
    assert gate(tiny, bits)[0, 0] == 1


def test_derivative():
    z, bits, care = case(rows=4, regions=3, neurons=10)
    with jax.enable_x64(True):
        wide = jnp.asarray(z, jnp.float64)
        total = lambda z: region_gate(z, bits, sharpness=0.05).sum()
        along = np.random.default_rng(1).normal(size=z.shape)
        numeric = (total(wide + 1e-6 * along) - total(wide - 1e-6 * along)) / 2e-6
        np.testing.assert_allclose(jnp.vdot(jax.grad(total)(wide), along), numeric, rtol=1e-6)
        assert region_gate(wide, bits).dtype == jnp.float64


def test_low_precision_is_widened():
    z, bits, _ = case()
    assert region_gate(z.astype(jnp.bfloat16), bits).dtype == jnp.float32


def test_lowers_for_accelerators(platform, lowered):
    """As far as it can be checked without one: the kernel's own compiler takes it."""
    run = lambda z, bits: pallas.region_gate(z, bits, None, sharpness=1000.0, platform=platform)
    shapes = jax.ShapeDtypeStruct((100, 500), jnp.float32), jax.ShapeDtypeStruct((9, 63), jnp.uint8)
    assert {"gpu": "triton", "tpu": "tpu_custom_call"}[platform] in lowered(run, *shapes)


def test_bad_input():
    z, bits, care = case()
    with pytest.raises(ValueError, match=r"bits has shape \(9, 5\).*uint8\[K, 6\] for 45"):
        region_gate(z, bits[:, :5])
    with pytest.raises(ValueError, match="care has shape"):
        region_gate(z, bits, care=jnp.asarray(care)[:2])
    with pytest.raises(ValueError, match="sharpness=0"):
        region_gate(z, bits, sharpness=0)
    with pytest.raises(ValueError, match="'cuda' is unknown. Known: xla, pallas"):
        region_gate(z, bits, implementation="cuda")
    with pytest.raises(ValueError, match="dtype int32"):
        region_gate(z.astype(jnp.int32), bits)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="only a CPU has no Pallas kernels")
def test_a_named_implementation_fails_loudly():
    z, bits, _ = case()
    with pytest.raises(NotImplementedError, match="GPU or a TPU, but the default device is cpu"):
        region_gate(z, bits, implementation="pallas")
