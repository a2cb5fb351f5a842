"""Classes and radii against SciPy in float64, and against attempts to violate them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxunlearn_kernels.smooth_quantize import NOISES, laws, pallas, reference, smooth_quantize

BETA, H = 1 / np.sqrt(2), np.sqrt(3)  # of Laplace and uniform noise with standard deviation 1
WIDTHS = {
    "gaussian": (0.0, 1e-5, 1.1e-4, 1e-3, 0.05, 0.3, 0.43, 0.431, 0.5, 0.8, 1.0, 2.0, 5.0, 20.0),
    "laplace": (0.0, 1e-3, 0.05, 0.28, 0.29, 1.0, 5.0, 20.0),
    "uniform": (0.0, 1e-3, 0.05, 0.57, 0.58, 1.0, 5.0),
}
SETTINGS = [(noise, b) for noise in NOISES for b in WIDTHS[noise]]
pytestmark = pytest.mark.usefixtures("compiled_in_haste")


def probabilities(a, b, noise):
    """Of the sign of g, of 0, and of the other sign, for ``a`` of either sign; float64."""
    F = {
        "gaussian": stats.norm,
        "laplace": stats.laplace(0, BETA),
        "uniform": stats.uniform(-H, 2 * H),
    }
    F = F[noise].cdf
    return F(a - b), F(b - a) - F(-b - a), F(-b - a)


def likeliest(a, b, noise):
    """The class, of ``a`` of either sign, with 0 for a tie."""
    same, zero, opposite = probabilities(a, b, noise)
    best = np.maximum(same, opposite)
    return np.where((best <= zero) | (same == opposite), 0, np.where(same > opposite, 1, -1))


def grid(b, sigma=0.1):
    """Sizes to 30 sigma beyond the zone, dense around its edge: in float32, and over sigma."""
    a = np.concatenate([np.geomspace(1e-6, 30 + b, 3000), b * np.linspace(0, 2, 3001)])
    g = (np.sort(a) * sigma).astype(np.float32)
    return g, g.astype(float) / sigma


def run(g, b, noise, sigma=0.1):
    out = smooth_quantize(jnp.asarray(g), sigma=sigma, lam=2 * sigma * b, noise=noise)
    return [np.asarray(x, float) / unit for x, unit in zip(out, (1, sigma, sigma), strict=True)]


def undecided(a, b, noise):
    """Where zero and the same sign are equally likely, up to the rounding of float64."""
    same, zero, _ = probabilities(np.abs(a), b, noise)
    return np.abs(same - zero) < 1e-14


@pytest.mark.parametrize("noise", NOISES)
def test_paper_defaults_are_the_sign(noise):
    g = np.random.default_rng(0).normal(size=1000).astype(np.float32) * 1e-2
    g[:3] = 0.0, -0.0, 1e-30
    out = smooth_quantize(g, sigma=0.1, lam=0.01, noise=noise)
    assert out.q.dtype == jnp.int8 and (out.q == np.sign(g)).all()
    assert (out.radius_exact == np.abs(g)).all()
    if noise == "gaussian":  # Cohen's radius, too, while the other sign is the runner-up
        np.testing.assert_allclose(out.radius, np.abs(g), rtol=2e-7)


@pytest.mark.parametrize(
    "noise, b, expected",
    [("gaussian", 0.43072, 0), ("gaussian", 0.5, 0.186), ("gaussian", 0.6, 0.400)]
    + [("gaussian", 1.0, 0.969), ("gaussian", 2.0, 2.000), ("gaussian", 60.0, 60.0)]
    + [("laplace", BETA * np.log(1.5) - 1e-9, 0), ("uniform", H / 3 - 1e-9, 0)],
)
def test_threshold(noise, b, expected):
    assert laws.threshold(b, noise) == pytest.approx(expected, abs=5e-4)
    if not expected:  # class 0 just begins to win
        assert 0 < laws.threshold(b + 1e-4, noise) < 0.05


@pytest.mark.parametrize("noise, b", SETTINGS)
def test_class_is_the_likeliest(noise, b):
    g, a = grid(b)
    for sign in (-1, 1):
        q, _, exact = run(sign * g, b, noise)
        clear = (exact > 1e-6 * (1 + b)) & ~undecided(a, b, noise)
        assert clear.mean() > 0.3
        np.testing.assert_array_equal(q[clear], likeliest(sign * a, b, noise)[clear])


@pytest.mark.parametrize("noise", NOISES)
def test_class_wins_the_vote(noise):
    rng = np.random.default_rng(1)
    draw = {"gaussian": rng.normal, "laplace": lambda size: rng.laplace(0, BETA, size)}
    draw = draw.get(noise, lambda size: rng.uniform(-H, H, size))
    g = np.linspace(-2, 2, 41).astype(np.float32)
    for lam in (0.2, 1.0, 1.6, 3.0):
        out = smooth_quantize(g, sigma=1.0, lam=lam, noise=noise)
        noisy = g + draw(size=(40_000, 1))
        votes = np.stack([(noisy < -lam / 2).sum(0), (abs(noisy) <= lam / 2).sum(0)])
        votes = np.concatenate([votes, (noisy > lam / 2).sum(0, keepdims=True)])
        clear = np.asarray(out.radius_exact) > 0.05
        clear &= np.diff(np.sort(votes, 0), axis=0)[1] > 1000  # five standard deviations
        assert clear.sum() > 20
        np.testing.assert_array_equal(out.q[clear], votes.argmax(0)[clear] - 1)


def radius_from_probabilities(a, b, noise):
    """The radius that the two largest probabilities certify, in units of sigma; float64."""
    same, zero, opposite = probabilities(a, b, noise)
    if noise == "gaussian":  # by the tail in which the probability is small
        with np.errstate(divide="ignore"):
            middle = np.where(zero < 0.5, stats.norm.ppf(zero), -stats.norm.ppf(same + opposite))
        z = np.sort([a - b, middle, -a - b], axis=0)
        return (z[2] - z[1]) / 2
    p = np.sort([same, zero, opposite], axis=0)
    if noise == "uniform":
        return H * (p[2] - p[1])
    with np.errstate(divide="ignore"):
        ratio = BETA / 2 * np.log(p[2] / p[1])
    return np.maximum(ratio, -2 * BETA * np.log1p(-(p[2] - p[1]) / 2))


@pytest.mark.parametrize("noise, b", SETTINGS)
def test_radius(noise, b):
    g, a = grid(b)
    _, radius, exact = run(g, b, noise)
    theta = laws.threshold(b, noise)
    np.testing.assert_allclose(exact, np.abs(a - theta), rtol=3e-7, atol=2e-7 * theta)
    assert np.isfinite(radius).all() and (radius <= exact).all()
    oracle = radius_from_probabilities(a, b, noise)
    assert (radius <= oracle * (1 + 2e-7)).all()
    # Rounded down by what float32 can resolve: of the probabilities of Laplace noise, and of a - b.
    assert (radius >= oracle * (1 - 1e-5) - 2e-6 * (1 + b)).all()


@pytest.mark.parametrize("noise, b", SETTINGS)
def test_radius_cannot_be_violated(noise, b):
    g, a = grid(b)
    theta = laws.threshold(b, noise)
    q, radius, exact = run(g, b, noise)
    # A thousandth of the radius is more than the rounding of the threshold to float32.
    off = exact > 3e-4 * (1 + b)
    assert off.mean() > 0.3
    for shift in (-0.999, -0.5, 0.5, 0.999):
        for r in (radius, exact):
            moved = a + shift * r
            kept = (likeliest(moved, b, noise) == q) | undecided(moved, b, noise)
            assert kept[off].all()
    # Towards the threshold, and just beyond it.
    beyond = a + np.where(a > theta, -1, 1) * (exact + 1e-5 * (1 + exact))
    changed = (likeliest(beyond, b, noise) != q) | undecided(beyond, b, noise)
    assert changed[off].all() and undecided(beyond, b, noise)[off].mean() < 0.01


def test_far_tails_are_finite():
    a = np.array([5.5, 14.0, 30.0, 1e4])
    for b in (0.05, 0.5, 1.0):
        q, radius, exact = run((a * 0.1).astype(np.float32), b, "gaussian")
        assert (q == 1).all() and (0.99 * (a - b) < radius).all() and (radius <= exact).all()
    # What the formula gives as it stands: the probability rounds to 1, its quantile is infinite.
    assert np.isinf(jax.scipy.stats.norm.ppf(jax.scipy.stats.norm.cdf(jnp.float32(6.0))))


@pytest.mark.parametrize("noise", NOISES)
def test_units_do_not_matter(noise):
    g = np.random.default_rng(2).normal(size=500).astype(np.float32)
    one = smooth_quantize(g, sigma=1.0, lam=1.5, noise=noise)
    for scale in (2.0**-20, 2.0**20):
        other = smooth_quantize(g * scale, sigma=scale, lam=1.5 * scale, noise=noise)
        assert (other.q == one.q).all()
        np.testing.assert_allclose(other.radius / scale, one.radius, rtol=1e-6)


@pytest.mark.parametrize("noise", NOISES)
def test_not_finite(noise):
    g = np.array([np.nan, np.inf, -np.inf, 0.5], np.float32)
    out = smooth_quantize(g, sigma=0.1, lam=0.2, noise=noise)
    assert out.q.tolist() == [0, 1, -1, 1]
    for radius in out[1:]:
        assert np.isnan(radius[0]) and (radius[1:] > 0).all() and np.isfinite(radius[3])


@pytest.mark.parametrize(
    "dtype, shape",
    [("float16", (3, 4)), ("bfloat16", (3, 4)), ("float64", ()), ("float32", (2, 0, 3))],
)
def test_shapes_and_dtypes(dtype, shape):
    with jax.enable_x64(dtype == "float64"), jax.numpy_dtype_promotion("strict"):
        out = smooth_quantize(jnp.full(shape, -0.5, dtype), sigma=0.1, lam=0.2)
        assert [x.shape for x in out] == [shape] * 3
        assert [x.dtype.name for x in out] == ["int8", "float32", "float32"]
        assert (out.q == -1).all()


def test_under_transformations():
    g = np.random.default_rng(3).normal(size=(4, 7)).astype(np.float32)
    f = lambda g: smooth_quantize(g, sigma=1.0, lam=2.0)
    for variant in (jax.jit(f), jax.vmap(f), jax.vmap(f, 1, 1)):
        for a, b in zip(variant(g), f(g), strict=True):
            np.testing.assert_array_equal(a, b)


def test_memory():
    g = jax.ShapeDtypeStruct((100_000,), jnp.float32)
    f = jax.jit(lambda g: smooth_quantize(g, sigma=0.1, lam=0.1))
    assert f.lower(g).compile().memory_analysis().temp_size_in_bytes < 1000


@pytest.mark.parametrize(
    "noise, size", [("gaussian", 1), ("gaussian", 33_001), ("laplace", 5), ("uniform", 5)]
)
def test_pallas_interpreted(noise, size, platform):
    g = np.random.default_rng(4).normal(size=size).astype(np.float32)
    g[0] = np.nan if size > 5 else g[0]
    options = {"sigma": 1.0, "lam": 2.0, "noise": noise}
    out = pallas.smooth_quantize(jnp.asarray(g), **options, platform=platform, interpret=True)
    for a, b in zip(
        out, jax.jit(lambda g: reference.smooth_quantize(g, **options))(g), strict=True
    ):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_pallas_lowers(noise, dtype, platform, lowered):
    f = lambda g: pallas.smooth_quantize(g, sigma=1.0, lam=2.0, noise=noise, platform=platform)
    text = lowered(f, jax.ShapeDtypeStruct((3, 5001), dtype))
    assert {"gpu": "triton", "tpu": "tpu_custom_call"}[platform] in text


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.parametrize("noise", NOISES)
def test_pallas_on_the_device(noise, accelerator):
    g = np.random.default_rng(5).normal(size=(3, 100_001)).astype(np.float32)
    options = {"sigma": 1.0, "lam": 2.0, "noise": noise}
    out = smooth_quantize(g, **options, implementation="pallas")
    expected = smooth_quantize(g, **options, implementation="xla")
    assert (out.q == expected.q).all()
    np.testing.assert_allclose(out.radius_exact, expected.radius_exact, atol=1e-6)
    np.testing.assert_allclose(out.radius, expected.radius, atol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sigma": 0.0}, r"sigma=0.0 must be a finite number > 0"),
        ({"sigma": np.inf}, r"sigma=inf"),
        ({"sigma": None}, r"sigma=None must be a Python number"),
        ({"lam": -1.0}, r"lam=-1.0 must be a finite number >= 0"),
        ({"lam": np.nan}, r"lam=nan"),
        ({"noise": "cauchy"}, r"noise='cauchy' is unknown. Known: gaussian, laplace, uniform"),
        ({"implementation": "cuda"}, r"implementation='cuda' is unknown. Known: xla, pallas"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        smooth_quantize(jnp.ones(3), **({"sigma": 0.1, "lam": 0.1} | options))


def test_bad_input():
    with pytest.raises(ValueError, match="g has dtype int32, but must be floating"):
        smooth_quantize(jnp.ones(3, jnp.int32), sigma=0.1, lam=0.1)
    with pytest.raises(ValueError, match="pass it as a static argument"):
        jax.jit(lambda s: smooth_quantize(jnp.ones(3), sigma=s, lam=0.1))(0.1)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="Pallas is supported here")
def test_named_implementation_fails_loudly():
    with pytest.raises(NotImplementedError, match="runs on a GPU or a TPU, but .* is cpu"):
        smooth_quantize(jnp.ones(3), sigma=0.1, lam=0.1, implementation="pallas")
