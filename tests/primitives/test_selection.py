"""Scores and selections against NumPy, one row after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import chisquare

from jaxunlearn import Dataset
from jaxunlearn.primitives.selection import (
    Quantile,
    Random,
    Sigma,
    by_rows,
    el2n,
    kept,
    numbered,
    random_order,
    select,
)

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(37, 6)).astype(np.float32), RNG.integers(4, size=37)
W = RNG.normal(size=(6, 4)).astype(np.float32)
DATA = Dataset(jnp.asarray(X), jnp.asarray(Y))
AMONG = RNG.random(37) < 0.6


def linear(params, x):
    return x @ params


def el2n_by_hand(x, y):
    p = softmax(x.astype(np.float64) @ W, axis=-1)
    return np.array(
        [np.sqrt(((row - np.eye(4)[label]) ** 2).sum()) for row, label in zip(p, y, strict=True)]
    )


@pytest.mark.parametrize("chunk", [1, 5, 37, 256])
def test_el2n(chunk):
    found = el2n(linear, jnp.asarray(W), DATA, chunk=chunk)
    np.testing.assert_allclose(found, el2n_by_hand(X, Y), rtol=1e-5)
    some = el2n(linear, jnp.asarray(W), DATA, among=jnp.asarray(AMONG), chunk=chunk)
    np.testing.assert_allclose(some[AMONG], found[AMONG], rtol=1e-6)
    assert np.isnan(some[~AMONG]).all()


def test_el2n_ranges_to_root_two_and_keeps_wide_dtypes():
    sure = Dataset(jnp.array([[1e3, 0.0], [1e3, 0.0]]), jnp.array([0, 1]))
    np.testing.assert_allclose(el2n(lambda p, x: x, None, sure), [0, np.sqrt(2)], rtol=1e-6)
    half = sure._replace(x=sure.x.astype(jnp.bfloat16))
    assert el2n(lambda p, x: x, None, half).dtype == jnp.float32


def scores(kind):
    return {
        "distinct": lambda: RNG.permutation(37).astype(np.float32),
        "ties": lambda: RNG.integers(3, size=37).astype(np.float32),
        "all equal": lambda: np.full(37, 0.5, np.float32),
        "nan": lambda: np.where(RNG.random(37) < 0.2, np.nan, RNG.random(37)).astype(np.float32),
    }[kind]()


def quantile_by_hand(values, low, high, among):
    """The rows by value, then by number; nan last."""
    rows = sorted(np.flatnonzero(among), key=lambda i: (np.isnan(values[i]), values[i], i))
    m = len(rows)
    first = min(round(low * m), m - 1)
    last = max(round(high * m), first + 1) if high > low else 0
    mask = np.zeros(len(values), bool)
    mask[rows[first:last]] = True
    return mask


@pytest.mark.parametrize("kind", ["distinct", "ties", "all equal", "nan"])
@pytest.mark.parametrize(
    "low, high", [(0, 1), (0, 0.3), (0.7, 1), (0.2, 0.6), (0.99, 1), (0.5, 0.5)]
)
def test_quantile(kind, low, high):
    values = scores(kind)
    for among in (np.ones(37, bool), AMONG):
        expected = quantile_by_hand(values, low, high, among)
        for run in (kept, jax.jit(kept)):
            found = run(jnp.asarray(values), Quantile(low, high), among=jnp.asarray(among))
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("low, high", [(0.17, 0.3), (1.0, 0.85), (-0.2, 0.9), (5.0, 5.0)])
def test_sigma(low, high):
    values = RNG.random(37).astype(np.float32)
    for among in (np.ones(37, bool), AMONG):
        mean, std = values[among].mean(), values[among].std()  # the population's, ddof = 0
        expected = np.array(
            [
                a and mean - low * std <= v <= mean + high * std
                for v, a in zip(values, among, strict=True)
            ]
        )
        found = kept(jnp.asarray(values), Sigma(low, high), among=jnp.asarray(among))
        np.testing.assert_array_equal(found, expected)
        assert 0 < expected.sum()


def test_strict_bounds_leave_out_the_bounds():
    values = jnp.array([0.0, 2.0])  # mean 1, deviation 1
    assert kept(values, Sigma(1, 1)).tolist() == [True, True]
    assert kept(values, Sigma(1, 1, strict=True)).tolist() == [False, False]
    assert kept(jnp.ones(5), Sigma(0, 0)).all() and not kept(jnp.ones(5), Sigma(0, 0, True)).any()


def test_sigma_ignores_nan_of_rows_that_are_not_asked():
    values = jnp.array([jnp.nan, 0.0, 1.0, 2.0])
    among = jnp.array([False, True, True, True])
    assert kept(values, Sigma(0.5, 0.5), among=among).tolist() == [False, False, True, False]


def test_random_has_the_right_size_and_law():
    among = jnp.asarray(AMONG)
    m, count = int(AMONG.sum()), round(0.3 * int(AMONG.sum()))
    draw = jax.jit(jax.vmap(lambda key: kept(jnp.zeros(37), Random(0.3), among=among, key=key)))
    drawn = np.asarray(draw(jax.random.split(jax.random.key(0), 2000)))
    assert (drawn.sum(1) == count).all() and not drawn[:, ~AMONG].any()
    times = drawn[:, AMONG].sum(0)
    # Counts without replacement vary less than chi-square allows; a biased draw varies more.
    assert chisquare(times).pvalue > 1e-3
    biased = times + np.linspace(-0.1, 0.1, m) * times.mean()
    assert chisquare(biased * times.sum() / biased.sum()).pvalue < 1e-3
    pairs = drawn[:, AMONG][:, :2].all(1).mean()
    assert pairs == pytest.approx(count * (count - 1) / m / (m - 1), abs=4 * np.sqrt(0.1 / 2000))


def test_at_least_one_row_of_a_positive_fraction_and_none_of_zero():
    for rule in (Random(0.01), Quantile(0.0, 0.01), Quantile(0.995, 1.0)):
        assert kept(jnp.arange(4.0), rule, key=jax.random.key(0)).sum() == 1
    for rule in (Random(0.0), Quantile(0.4, 0.4)):
        assert kept(jnp.arange(4.0), rule, key=jax.random.key(0)).sum() == 0


def test_padded_numbers_and_count():
    values = jnp.asarray(scores("distinct"))
    chosen = select(values, Quantile(0.25, 0.75), among=jnp.asarray(AMONG))
    mask = np.asarray(kept(values, Quantile(0.25, 0.75), among=jnp.asarray(AMONG)))
    count = int(chosen.count)
    np.testing.assert_array_equal(chosen.rows[:count], np.flatnonzero(mask))
    assert (chosen.rows[count:] == 37).all() and chosen.rows.shape == (37,)
    np.testing.assert_array_equal(jnp.zeros(37, bool).at[chosen.rows].set(True), mask)


def test_another_size_compiles_nothing():
    traced = []

    @jax.jit
    def run(values, rule):
        traced.append(1)
        return select(values, rule)

    values = jnp.arange(37.0)
    sizes = [int(run(values, Quantile(0.0, jnp.float32(h))).count) for h in (0.1, 0.5, 1.0)]
    assert sizes == [4, 18, 37] and len(traced) == 1


def test_rules_are_vmapped_over():
    rules = Quantile(jnp.zeros(3), jnp.array([0.1, 0.5, 1.0]))
    many = jax.vmap(lambda rule: kept(jnp.arange(10.0), rule).sum())(rules)
    assert many.tolist() == [1, 5, 10]


@pytest.mark.parametrize("chunk", [1, 4, 10])
def test_only_selected_rows_are_computed(chunk):
    mask = np.zeros(10, bool)
    mask[[1, 4, 5, 9]] = True
    seen = []

    def double(rows):
        jax.debug.callback(lambda r: seen.append(np.array(r)), rows)
        return 2.0 * rows.astype(jnp.float32)

    found = jax.jit(lambda m: by_rows(double, numbered(m), chunk=chunk, fill=-1.0))(
        jnp.asarray(mask)
    )
    jax.effects_barrier()
    np.testing.assert_array_equal(found, np.where(mask, 2.0 * np.arange(10), -1))
    assert len(seen) == -(-4 // chunk)


def test_random_order_puts_the_others_behind():
    order = np.asarray(random_order(jax.random.key(1), jnp.asarray(AMONG)))
    assert sorted(order) == list(range(37))
    assert order[AMONG].max() == AMONG.sum() - 1


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Sigma(-1.0, 0.5), r"low=-1.0 and high=0.5 bound nothing"),
        (lambda: Quantile(0.6, 0.4), r"low=0.6 and high=0.4 must be fractions"),
        (lambda: Quantile(0, 1.5), r"must be fractions with 0 <= low <= high <= 1"),
        (lambda: Random(1.5), r"fraction=1.5 must lie in \[0, 1\]"),
        (lambda: Random(float("nan")), r"fraction=nan must lie in"),
        (lambda: kept(jnp.zeros(3), Random(0.5)), "key is None, but a random selection needs"),
        (lambda: kept(jnp.zeros(3), "top"), "rule='top' must be a Sigma, a Quantile or a Random"),
        (lambda: kept(jnp.zeros((3, 2)), Sigma()), r"scores has shape \(3, 2\), but must be \[n\]"),
        (lambda: kept(jnp.zeros(3), Sigma(), among=jnp.zeros(2, bool)), r"among has shape \(2,\)"),
        (
            lambda: kept(jnp.zeros(3), Sigma(), among=jnp.array([True, False, False])),
            "among names 1 rows, but a mean and a standard deviation of scores need two",
        ),
        (lambda: el2n(linear, jnp.asarray(W), DATA, chunk=0), "chunk=0 must be an integer >= 1"),
        (lambda: el2n(linear, W, Dataset(DATA.x, DATA.y[:3])), "data.x has shape"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
