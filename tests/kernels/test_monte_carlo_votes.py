"""The generator, the noise and the votes: the right law, and nearby wrong ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32
from scipy import stats

from jaxunlearn_kernels.monte_carlo_votes import monte_carlo_votes, pallas, reference
from jaxunlearn_kernels.smooth_quantize import smooth_quantize

BETA, H = 1 / np.sqrt(2), np.sqrt(3)
LAWS = {"gaussian": stats.norm(), "laplace": stats.laplace(0, BETA)}
LAWS["uniform"] = stats.uniform(-H, 2 * H)
pytestmark = pytest.mark.usefixtures("compiled_in_haste")


def words(*numbers) -> list[jax.Array]:
    return [jnp.uint32(n) for n in numbers]


@pytest.mark.parametrize(
    "key, counter, expected",  # published with the generator's reference implementation
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((2**32 - 1,) * 2, (2**32 - 1,) * 2, (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_known_answers(key, counter, expected):
    out = reference.threefry(words(*key), *words(*counter))
    assert tuple(map(int, out)) == expected


@pytest.fixture(scope="module")
def bits():
    """Two words of ``[2 keys, 256 entries, 256 counters]``."""
    x, y = np.mgrid[:256, :256].astype(np.uint32)
    draw = jax.jit(lambda k: reference.threefry((k, jnp.uint32(0)), jnp.asarray(x), jnp.asarray(y)))
    return np.stack([np.stack(draw(jnp.uint32(k))) for k in (0, 1)], 1)


def test_generator_is_that_of_jax(bits):
    x, y = np.mgrid[:256, :256].astype(np.uint32)
    count = jnp.concatenate([x.ravel(), y.ravel()])
    for k in (0, 1):
        theirs = threefry_2x32(jnp.array([k, 0], jnp.uint32), count)
        np.testing.assert_array_equal(bits[:, k].ravel(), theirs)


def test_bits_are_uniform(bits):
    uniform = (1 + np.asarray(reference.centred(jnp.asarray(bits)), float)) / 2
    for word in uniform:
        for key in word:
            assert stats.kstest(key.ravel(), "uniform").pvalue > 1e-3
            # Along either counter alone, too.
            sums = [stats.norm.cdf((key.mean(axis) - 0.5) * np.sqrt(12 * 256)) for axis in (0, 1)]
            assert all(stats.kstest(s, "uniform").pvalue > 1e-3 for s in sums)
    assert stats.kstest(uniform.ravel() ** 1.01, "uniform").pvalue < 1e-3


def dependence(x, y) -> float:
    """p value of chi-squared for independence of the leading four bits."""
    joint = np.bincount((x >> 28).ravel() * 16 + (y >> 28).ravel(), minlength=256)
    return stats.chisquare(joint).pvalue


def test_bits_are_independent(bits):
    first, second = bits
    pairs = [
        (first, second),  # the two words of a call
        (first[0], first[1]),  # neighbouring keys
        (first[0, 1:], first[0, :-1]),  # neighbouring entries
        (first[0, :, 1:], first[0, :, :-1]),  # neighbouring samples
        (second[0, :, :-1], first[0, :, 1:]),
        (first[0], first[0].T),  # the two counters exchanged
    ]
    assert min(dependence(x, y) for x, y in pairs[:-1]) > 1e-3
    x, y = pairs[-1]
    off = ~np.eye(256, dtype=bool)
    assert dependence(x[np.triu(off)], y[np.triu(off)]) > 1e-3
    assert dependence(first[0], first[0] ^ (second[0] >> 1)) < 1e-3  # the test can fail


def test_uniform_numbers_are_midpoints():
    ends = reference.centred(jnp.array([0, 2**31 - 1, 2**31, 2**32 - 1], jnp.uint32))
    eps = 2.0**-23
    assert ends.tolist() == [eps - 1, -eps, eps, 1 - eps]


@pytest.mark.parametrize("noise", LAWS)
def test_noise_inverts_the_distribution(noise):
    step = np.unique(np.concatenate([np.arange(300), np.geomspace(300, 2**22, 3000).astype(int)]))
    word = np.concatenate([step, 2**23 - 1 - step]).astype(np.uint32) << 9
    v = np.asarray(reference.centred(jnp.asarray(word)), float)
    ours = jax.jit(lambda w: reference.NOISE[noise](reference.centred(w)))(word)
    # From the nearer tail, where float64 resolves it.
    exact = np.sign(v) * -LAWS[noise].ppf((1 - np.abs(v)) / 2)
    np.testing.assert_allclose(ours, exact, rtol=1e-5)


@pytest.mark.parametrize("noise", LAWS)
def test_votes_by_brute_force(noise):
    rng, sigma, lam, samples = np.random.default_rng(0), 0.3, 0.4, 33
    g = rng.normal(size=(5, 9)).astype(np.float32)
    key = jax.random.key(7)
    # Word s % 2 of the call (entry, s // 2), with jax's own generator.
    entry, pair = np.mgrid[: g.size, : samples // 2 + 1].astype(np.uint32)
    count = jnp.concatenate([entry.ravel(), pair.ravel()])
    bits = np.asarray(threefry_2x32(jax.random.key_data(key), count))
    bits = np.moveaxis(bits.reshape(2, *entry.shape), 0, -1).reshape(g.size, -1)[:, :samples]
    noisy = g.reshape(-1, 1) + sigma * LAWS[noise].ppf(((bits >> 9) + 0.5) / 2**23)
    votes = monte_carlo_votes(g, key, sigma=sigma, lam=lam, noise=noise, samples=samples)
    np.testing.assert_array_equal(votes.plus.ravel(), (noisy > lam / 2).sum(1))
    np.testing.assert_array_equal(votes.minus.ravel(), (noisy < -lam / 2).sum(1))


def fit(votes, g, sigma, lam, noise, samples) -> float:
    """p value of the votes under a law: chi-squared of every count against its binomial."""
    F, g = LAWS[noise].cdf, np.asarray(g, float)
    z = []
    for count, p in zip(votes, (F((g - lam / 2) / sigma), F((-g - lam / 2) / sigma)), strict=True):
        spread = np.sqrt(samples * p * (1 - p))
        many = spread > 4  # where the binomial is nearly normal
        z += [(np.asarray(count) - samples * p)[many] / spread[many]]
    # Sums over entries; the two counts of an entry depend on each other, so each has its own p.
    return 2 * min(stats.chi2.sf(np.sum(one**2), one.size) for one in z)


@pytest.mark.parametrize("noise", LAWS)
def test_votes_follow_the_law(noise, key):
    sigma, lam, samples = 0.5, 0.6, 2000
    g = np.linspace(-1, 1, 1500).astype(np.float32)
    votes = monte_carlo_votes(g, key, sigma=sigma, lam=lam, noise=noise, samples=samples)
    assert fit(votes, g, sigma, lam, noise, samples) > 1e-3
    for wrong in (0.97, 1.03):
        assert fit(votes, g, wrong * sigma, lam, noise, samples) < 1e-6
        assert fit(votes, g, sigma, (1 + 2 * (wrong - 1)) * lam, noise, samples) < 1e-6
    for other in LAWS.keys() - {noise}:
        assert fit(votes, g, sigma, lam, other, samples) < 1e-6
    # Where it is clear, the winner is the class in closed form.
    exact = smooth_quantize(g, sigma=sigma, lam=lam, noise=noise)
    counts = np.stack([votes.minus, samples - votes.plus - votes.minus, votes.plus])
    top = np.sort(counts, 0)
    clear = top[2] - top[1] > 6 * np.sqrt(samples)
    assert clear.sum() > 300
    np.testing.assert_array_equal(exact.q[clear], counts.argmax(0)[clear] - 1)


def test_samples_are_a_prefix(key):
    g = jnp.zeros(200)
    run = lambda samples: monte_carlo_votes(g, key, sigma=1.0, lam=1.0, samples=samples)
    previous = run(1)
    assert set(np.unique(previous.plus + previous.minus)) == {0, 1}
    for samples in (2, 3):
        now = run(samples)
        more = np.stack([a - b for a, b in zip(now, previous, strict=True)])
        assert set(np.unique(more)) == {0, 1} and more.sum(0).max() == 1
        previous = now


def test_keys(key):
    g = jnp.zeros(200)
    run = lambda key: monte_carlo_votes(g, key, sigma=1.0, lam=1.0, samples=20).plus.tolist()
    assert run(key) == run(key)
    assert run(key) != run(jax.random.key(1)) != run(jax.random.fold_in(key, 1))


def test_not_finite(key):
    g = jnp.array([jnp.nan, jnp.inf, -jnp.inf])
    votes = monte_carlo_votes(g, key, sigma=1.0, lam=1.0, samples=5)
    assert votes.plus.tolist() == [0, 5, 0] and votes.minus.tolist() == [0, 0, 5]


@pytest.mark.parametrize(
    "dtype, shape", [("bfloat16", (3, 4)), ("float64", ()), ("float16", (0, 2))]
)
def test_shapes_and_dtypes(dtype, shape):
    with jax.enable_x64(dtype == "float64"), jax.numpy_dtype_promotion("strict"):
        g = jnp.full(shape, -9.0, dtype)
        votes = monte_carlo_votes(g, jax.random.key(0), sigma=1.0, lam=1.0, samples=3)
        assert [v.shape for v in votes] == [shape] * 2
        assert [v.dtype.name for v in votes] == ["int32"] * 2
        assert (votes.minus == 3).all() and (votes.plus == 0).all()


def test_memory_does_not_grow_with_samples():
    size = 10_000
    options = {"sigma": 1.0, "lam": 1.0}
    temp = []
    for samples in (10, 10_000):
        f = jax.jit(lambda g, k, n=samples: monte_carlo_votes(g, k, **options, samples=n))
        compiled = f.lower(jnp.zeros(size), jax.random.key(0)).compile()
        temp.append(compiled.memory_analysis().temp_size_in_bytes)
    assert temp[0] == temp[1] < 8 * 4 * size


@pytest.mark.parametrize("noise, size", [("gaussian", 33_001), ("laplace", 5), ("uniform", 1)])
def test_pallas_interpreted_is_bit_identical(noise, size, platform, key):
    g = jnp.asarray(np.random.default_rng(1).normal(size=size).astype(np.float32))
    options = {"sigma": 1.0, "lam": 1.0, "noise": noise, "samples": 25}
    data = jax.random.key_data(key)
    out = pallas.monte_carlo_votes(g, data, **options, platform=platform, interpret=True)
    expected = monte_carlo_votes(g, key, **options)
    np.testing.assert_array_equal(out.plus, expected.plus)
    np.testing.assert_array_equal(out.minus, expected.minus)


@pytest.mark.parametrize("noise", LAWS)
def test_pallas_lowers(noise, platform, lowered):
    options = {"sigma": 1.0, "lam": 1.0, "noise": noise, "samples": 25, "platform": platform}
    f = lambda g, data: pallas.monte_carlo_votes(g, data, **options)
    data = jax.ShapeDtypeStruct((2,), jnp.uint32)
    text = lowered(f, jax.ShapeDtypeStruct((3, 5001), jnp.float32), data)
    assert {"gpu": "triton", "tpu": "tpu_custom_call"}[platform] in text


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.parametrize("noise", LAWS)
def test_pallas_on_the_device(noise, key, accelerator):
    g = np.random.default_rng(2).normal(size=(3, 10_001)).astype(np.float32)
    options = {"sigma": 1.0, "lam": 1.0, "noise": noise, "samples": 1001}
    out = monte_carlo_votes(g, key, **options, implementation="pallas")
    expected = monte_carlo_votes(g, key, **options, implementation="xla")
    # The same noise but for the rounding of erf_inv and log, so a vote in a million may differ.
    for a, b in zip(out, expected, strict=True):
        assert np.abs(a - b).max() <= 2 and np.abs(a - b).mean() < 0.01


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sigma": -1.0}, r"sigma=-1.0 must be a finite number > 0"),
        ({"lam": -1.0}, r"lam=-1.0 must be a finite number >= 0"),
        ({"noise": "cauchy"}, r"noise='cauchy' is unknown"),
        ({"samples": 0}, r"samples=0 must be an integer from 1 to 2\^31 - 1"),
        ({"samples": 1.5}, r"samples=1.5"),
        ({"samples": 2**31}, r"samples=2147483648"),
    ],
)
def test_bad_options(options, message, key):
    options = {"sigma": 0.1, "lam": 0.1, "samples": 3} | options
    with pytest.raises(ValueError, match=message):
        monte_carlo_votes(jnp.ones(3), key, **options)


def test_bad_input(key):
    options = {"sigma": 0.1, "lam": 0.1, "samples": 3}
    with pytest.raises(ValueError, match="g has dtype int32"):
        monte_carlo_votes(jnp.ones(3, jnp.int32), key, **options)
    wrong = (jax.random.split(key), jax.random.key_data(key), jax.random.key(0, impl="rbg"))
    for bad in wrong:
        with pytest.raises(ValueError, match="must be one key of two words: make it by"):
            monte_carlo_votes(jnp.ones(3), bad, **options)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="Pallas is supported here")
def test_named_implementation_fails_loudly(key):
    with pytest.raises(NotImplementedError, match="runs on a GPU or a TPU, but .* is cpu"):
        options = {"sigma": 0.1, "lam": 0.1, "samples": 3}
        monte_carlo_votes(jnp.ones(3), key, **options, implementation="pallas")
