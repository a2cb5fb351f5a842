"""The convolution against XLA's, flax's and a loop written out in NumPy."""

import contextlib
import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import ClosedJaxpr

from jaxunlearn.models import Conv, conv

# (height, width, c_in, kh, kw, c_out, strides, padding)
CASES = [
    (7, 6, 3, 3, 3, 4, 1, "SAME"),
    (7, 6, 3, 3, 3, 4, 2, "SAME"),
    (8, 8, 2, 3, 3, 4, (2, 1), "VALID"),
    (9, 5, 1, 2, 3, 4, 2, "VALID"),
    (5, 8, 2, 3, 2, 3, (1, 2), ((1, 0), (2, 1))),
    (7, 7, 2, 1, 1, 3, 2, "SAME"),
    (8, 8, 1, 3, 3, 4, 2, ((1, 1), (1, 1))),
    (2, 2, 2, 3, 3, 2, 1, ((1, 1), (1, 1))),
    (6, 6, 1, 2, 2, 1, 3, "VALID"),
]


def draw(case, dtype=np.float32, batch=3):
    height, width, c_in, kh, kw, c_out, strides, padding = case
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, height, width, c_in)).astype(dtype)
    kernel = rng.normal(size=(kh, kw, c_in, c_out)).astype(dtype)
    return x, kernel, {"strides": strides, "padding": padding}


def lax_conv(x, kernel, *, strides, padding):
    strides = (strides, strides) if isinstance(strides, int) else strides
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def numpy_conv(x, kernel, *, strides, padding):
    """The defining sum, for explicit padding or VALID."""
    strides = (strides, strides) if isinstance(strides, int) else strides
    pads = ((0, 0), (0, 0)) if padding == "VALID" else padding
    x = np.pad(x.astype(np.float64), ((0, 0), *pads, (0, 0)))
    kh, kw = kernel.shape[:2]
    rows = range(0, x.shape[1] - kh + 1, strides[0])
    columns = range(0, x.shape[2] - kw + 1, strides[1])
    out = np.zeros((x.shape[0], len(rows), len(columns), kernel.shape[-1]))
    for (i, r), (j, c) in itertools.product(enumerate(rows), enumerate(columns)):
        out[:, i, j] = np.tensordot(x[:, r : r + kh, c : c + kw], kernel, 3)
    return out


@pytest.mark.parametrize("implementation", ["slices", "xla"])
@pytest.mark.parametrize("case", [c for c in CASES if c[-1] != "SAME"], ids=str)
def test_is_the_defining_sum(case, implementation):
    x, kernel, options = draw(case)
    convolve = functools.partial(conv, implementation=implementation, **options)
    ours = jax.jit(convolve)(jnp.array(x), jnp.array(kernel))
    np.testing.assert_allclose(ours, numpy_conv(x, kernel, **options), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_are_those_of_lax(case, dtype):
    tolerance = {np.float32: 2e-5, np.float64: 1e-13}[dtype]
    scope = jax.enable_x64(True) if dtype == np.float64 else contextlib.nullcontext()
    with scope:
        x, kernel, options = draw(case, dtype)
        x, kernel = jnp.array(x), jnp.array(kernel)

        def ours(x, kernel):
            return conv(x, kernel, implementation="slices", **options)

        def theirs(x, kernel):
            return lax_conv(x, kernel, **options)

        def value_and_gradients(convolve):
            out, pullback = jax.vjp(convolve, x, kernel)
            cotangent = jnp.cos(jnp.arange(out.size, dtype=dtype)).reshape(out.shape)
            return out, *pullback(cotangent)

        results = jax.jit(lambda: (value_and_gradients(ours), value_and_gradients(theirs)))()
        for a, b in zip(*results, strict=True):
            assert a.dtype == dtype
            np.testing.assert_allclose(a, b, rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("implementation", ["slices", "xla"])
def test_low_precision_accumulates_in_more(dtype, implementation):
    # 4608 ones: a sum kept in bfloat16 stops at 256, in float16 at 2048.
    x, kernel = jnp.ones((1, 3, 3, 512), dtype), jnp.ones((3, 3, 512, 1), dtype)
    out = conv(x, kernel, padding="VALID", implementation=implementation)
    assert out.dtype == dtype
    assert out.item() == 4608


@pytest.mark.parametrize("case", CASES[:5], ids=str)
def test_vmap_over_examples_and_over_kernels(case):
    x, kernel, options = draw(case)
    x, kernel = jnp.array(x), jnp.array(kernel)
    kernels = jnp.stack([kernel, -2 * kernel])

    def ours(x, kernel):
        return conv(x, kernel, implementation="slices", **options)

    each = jax.jit(jax.vmap(lambda row: ours(row[None], kernel)[0]))(x)
    np.testing.assert_allclose(each, lax_conv(x, kernel, **options), atol=2e-4)
    models = jax.jit(jax.vmap(ours, (None, 0)))(x, kernels)
    for i in range(2):
        np.testing.assert_allclose(models[i], lax_conv(x, kernels[i], **options), atol=5e-4)


@pytest.mark.parametrize("implementation", ["slices", "xla"])
def test_per_sample_gradients_are_those_of_single_rows(implementation):
    x, kernel, options = draw(CASES[1])
    x, kernel = jnp.array(x), jnp.array(kernel)

    def loss(kernel, row):
        return (conv(row[None], kernel, implementation=implementation, **options) ** 3).sum()

    def reference(kernel, row):
        return (lax_conv(row[None], kernel, **options) ** 3).sum()

    per_sample = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(kernel, x)
    expect = jax.jit(jax.grad(reference))
    for row, gradient in zip(x, per_sample, strict=True):
        expected = expect(kernel, row)
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())


def test_hessian_vector_product():
    # Forward over reverse: what curvature methods ask of a layer.
    x, kernel, options = draw(CASES[6])
    x, kernel = jnp.array(x), jnp.array(kernel)

    def product(convolve):
        gradient = jax.grad(lambda k: jnp.tanh(convolve(x, k, **options)).sum())
        return jax.jit(lambda k: jax.jvp(gradient, (k,), (jnp.ones_like(k),))[1])(kernel)

    np.testing.assert_allclose(product(conv), product(lax_conv), rtol=1e-3, atol=1e-3)


def test_inside_scan_equals_outside():
    x, kernel, _ = draw((6, 6, 2, 3, 3, 2, 1, "SAME"))
    x, kernel = jnp.array(x), jnp.array(kernel) / 10

    def loss(kernel):
        carry, _ = lax.scan(lambda y, _: (jnp.tanh(conv(y, kernel)), None), x, length=3)
        return carry.sum()

    def unrolled(kernel):
        y = x
        for _ in range(3):
            y = jnp.tanh(lax_conv(y, kernel, strides=1, padding="SAME"))
        return y.sum()

    for a, b in zip(
        jax.jit(jax.value_and_grad(loss))(kernel),
        jax.jit(jax.value_and_grad(unrolled))(kernel),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def primitives(jaxpr):
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for value in equation.params.values():
            if isinstance(value, ClosedJaxpr):
                yield from primitives(value.jaxpr)


@pytest.mark.parametrize(
    ("implementation", "has_conv"), [("slices", False), ("xla", True), (None, None)]
)
def test_which_implementation_is_traced(implementation, has_conv):
    if has_conv is None:  # the default is decided by the platform
        has_conv = jax.default_backend() != "cpu"
    x, kernel, _ = draw(CASES[0])

    def loss(x, kernel):
        return conv(x, kernel, implementation=implementation).sum()

    traced = jax.make_jaxpr(jax.grad(loss, (0, 1)))(jnp.array(x), jnp.array(kernel))
    assert ("conv_general_dilated" in set(primitives(traced.jaxpr))) == has_conv


def test_default_device_decides():
    x, kernel, _ = draw(CASES[0])
    with jax.default_device(jax.devices("cpu")[0]):
        traced = jax.make_jaxpr(conv)(jnp.array(x), jnp.array(kernel))
    assert "conv_general_dilated" not in set(primitives(traced.jaxpr))


@pytest.mark.parametrize("implementation", ["slices", "xla"])
@pytest.mark.parametrize("use_bias", [True, False])
def test_layer_is_flax_conv(implementation, use_bias, key):
    x = jax.random.normal(key, (2, 9, 8, 3))
    options = {"strides": 2, "padding": "SAME", "use_bias": use_bias}
    ours = Conv(5, (3, 3), implementation=implementation, **options)
    theirs = nn.Conv(5, (3, 3), **options)
    mine, other = jax.jit(ours.init)(key, x), jax.jit(theirs.init)(key, x)
    assert jax.tree.structure(mine) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, mine, other)
    if use_bias:
        mine["params"]["bias"] = jnp.arange(5.0)
    np.testing.assert_allclose(
        jax.jit(ours.apply)(mine, x), jax.jit(theirs.apply)(mine, x), atol=1e-5
    )


@pytest.mark.parametrize(
    ("x", "kernel", "options", "message"),
    [
        ((4, 4, 1), (3, 3, 1, 1), {}, r"x has shape \(4, 4, 1\)"),
        ((1, 4, 4, 2), (3, 3, 1, 1), {}, "the same c_in"),
        ((1, 4, 4, 1), (3, 3, 1, 1), {"strides": 0}, "strides=0"),
        ((1, 4, 4, 1), (3, 3, 1, 1), {"padding": "VALLID"}, "Did you mean 'VALID'"),
        ((1, 4, 4, 1), (3, 3, 1, 1), {"padding": ((-1, 0), (0, 0))}, "negative"),
        ((1, 4, 4, 1), (3, 3, 1, 1), {"implementation": "im2col"}, "Known: slices, xla"),
        ((1, 2, 4, 1), (3, 3, 1, 1), {"padding": "VALID"}, "smaller than the kernel"),
    ],
)
def test_bad_input(x, kernel, options, message):
    with pytest.raises(ValueError, match=message):
        conv(jnp.ones(x), jnp.ones(kernel), **options)


def test_bad_dtypes():
    with pytest.raises(ValueError, match="x is bfloat16 and kernel is float32"):
        conv(jnp.ones((1, 4, 4, 1), jnp.bfloat16), jnp.ones((3, 3, 1, 1)))
