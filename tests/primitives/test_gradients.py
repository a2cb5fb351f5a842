"""Per-sample gradients against a loop of jax.grad, and their reductions against NumPy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn import Dataset, data, models
from jaxunlearn.primitives.gradients import (
    clipped_sum,
    gradient_sum,
    per_sample_gradients,
    per_sample_norms,
)

N = 10
MODEL = models.mlp(10, hidden=(8,))
LOSS = models.cross_entropy(MODEL.apply)
CHUNKS = [None, 4]  # which does not divide 10

pytestmark = pytest.mark.usefixtures("compiled_in_haste")


@pytest.fixture(scope="module", autouse=True)
def strict_dtypes():
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="module")
def rows() -> Dataset:
    train = data.load("digits").train
    return Dataset(train.x[:N], train.y[:N])


@pytest.fixture(scope="module")
def params(rows):
    return MODEL.init(jax.random.key(0), rows.x)


@pytest.fixture(scope="module")
def singles(params, rows) -> np.ndarray:
    """``float64[n, P]``: one gradient after the other, all leaves in a row."""
    one = jax.jit(jax.grad(LOSS))
    grads = [one(params, Dataset(rows.x[i], rows.y[i])) for i in range(N)]
    return np.stack([flat(grad) for grad in grads])


def flat(tree) -> np.ndarray:
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


@pytest.mark.parametrize("chunk", CHUNKS)
def test_per_sample_gradients(params, rows, singles, chunk):
    grads = jax.jit(lambda p: per_sample_gradients(LOSS, p, rows, chunk=chunk))(params)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        grads, jax.tree.map(lambda p: jnp.zeros((N, *p.shape), p.dtype), params)
    )
    for i in range(N):
        row = flat(jax.tree.map(lambda g, i=i: g[i], grads))
        np.testing.assert_allclose(row, singles[i], atol=1e-6)
    assert np.abs(singles[0] - singles[1]).max() > 1e-2


@pytest.mark.parametrize("chunk", [*CHUNKS, 1, 99])
def test_per_sample_norms(params, rows, singles, chunk):
    norms = jax.jit(lambda p: per_sample_norms(LOSS, p, rows, chunk=chunk))(params)
    np.testing.assert_allclose(norms, np.linalg.norm(singles, axis=1), rtol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_sums(params, rows, singles, chunk, weighted):
    weights = np.arange(N) % 3 * 0.5 if weighted else np.ones(N)
    given = jnp.asarray(weights, jnp.float32) if weighted else None
    total = jax.jit(lambda p: gradient_sum(LOSS, p, rows, weights=given, chunk=chunk))(params)
    np.testing.assert_allclose(flat(total), weights @ singles, atol=1e-5)
    norms = np.linalg.norm(singles, axis=1)
    clip = float(np.median(norms))  # half of the rows are clipped
    clipped = jax.jit(lambda p: clipped_sum(LOSS, p, rows, clip=clip, weights=given, chunk=chunk))(
        params
    )
    expected = (weights * np.minimum(1, clip / norms)) @ singles
    np.testing.assert_allclose(flat(clipped), expected, atol=1e-5)
    assert np.abs(flat(clipped) - flat(total)).max() > 1e-2


def test_boolean_weights_select(params, rows, singles):
    keep = np.arange(N) < 3
    total = gradient_sum(LOSS, params, rows, weights=jnp.asarray(keep), chunk=4)
    np.testing.assert_allclose(flat(total), singles[:3].sum(0), atol=1e-5)


def linear(params, row):
    """The gradient of a row is the row itself, over two leaves."""
    return params["a"] @ row.x[:2] + params["b"] @ row.x[2:]


ZERO = {"a": jnp.zeros(2), "b": jnp.zeros(3)}
entries = st.floats(-1e4, 1e4, width=32)
vectors = st.lists(entries, min_size=5, max_size=5)


@jax.jit
def clipped_linear(x, weights, clip):
    some = Dataset(x, jnp.zeros(6, jnp.int32))
    return clipped_sum(linear, ZERO, some, clip=clip, weights=weights, chunk=4)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    x=st.lists(vectors, min_size=6, max_size=6),
    other=vectors,
    row=st.integers(0, 5),
    clip=st.sampled_from([1e-3, 1.0, 100.0]),
)
def test_sensitivity(x, other, row, clip):
    """Leaving a row out moves the sum by at most clip, replacing it by at most 2 clip."""
    x, ones = np.array(x, np.float32), jnp.ones(6)
    clip = jnp.float32(clip)
    whole = flat(clipped_linear(x, ones, clip))
    without = flat(clipped_linear(x, ones.at[row].set(0), clip))
    slack = 1e-5 * 6 * float(clip)  # rounding of a sum of six
    assert np.linalg.norm(whole - without) <= clip + slack
    replaced = x.copy()
    replaced[row] = other
    swapped = flat(clipped_linear(replaced, ones, clip))
    assert np.linalg.norm(whole - swapped) <= 2 * clip + slack


def test_sensitivity_bound_is_reached():
    """A bound that nothing comes near would be no test of clipping."""
    x = np.zeros((6, 5), np.float32)
    x[0] = 7.0
    whole = flat(clipped_linear(x, jnp.ones(6), jnp.float32(2.0)))
    np.testing.assert_allclose(np.linalg.norm(whole), 2.0, rtol=1e-6)


@pytest.mark.parametrize("chunk", [None, 2])
def test_zero_gradients_stay_finite(chunk):
    some = Dataset(jnp.zeros((3, 5)).at[0, 0].set(3.0), jnp.zeros(3, jnp.int32))
    np.testing.assert_array_equal(per_sample_norms(linear, ZERO, some, chunk=chunk), [3, 0, 0])
    out = clipped_sum(linear, ZERO, some, clip=1.0, chunk=chunk)
    np.testing.assert_allclose(flat(out), [1, 0, 0, 0, 0], rtol=1e-6)


@jax.numpy_dtype_promotion("standard")  # strict forbids promote_types, which widens
def test_low_precision_is_accumulated_in_float32():
    """In bfloat16, 256 + 1 is 256 again: sums and squares of many ones would stall there."""
    n, low = 1024, jnp.bfloat16
    ones = Dataset(jnp.ones((n, 5), low), jnp.zeros(n, jnp.int32))
    zero = jax.tree.map(lambda leaf: leaf.astype(low), ZERO)
    total = gradient_sum(linear, zero, ones, chunk=1)
    assert total["a"].dtype == low
    np.testing.assert_array_equal(flat(total), np.full(5, 1024.0))
    wide = lambda params, row: jnp.vdot(params, row.x)
    many = Dataset(jnp.ones((2, n), low), jnp.zeros(2, jnp.int32))
    norms = per_sample_norms(wide, jnp.zeros(n, low), many)
    assert norms.dtype == jnp.float32
    np.testing.assert_allclose(norms, 32.0)


@pytest.fixture
def compiled_in_full():
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.mark.parametrize("reduce", ["norms", "clipped"])
def test_chunks_bound_the_memory(reduce, compiled_in_full):
    """What the compiler sets aside for temporaries, on a network of 5 k parameters."""
    some = Dataset(jnp.zeros((256, 8, 8, 1)), jnp.zeros(256, jnp.int32))
    model = models.mlp(10)
    loss_fn = models.cross_entropy(model.apply)
    start = model.init(jax.random.key(0), some.x)

    def temporaries(chunk):
        if reduce == "norms":
            run = lambda p, d: per_sample_norms(loss_fn, p, d, chunk=chunk)
        else:
            run = lambda p, d: clipped_sum(loss_fn, p, d, clip=1.0, chunk=chunk)
        return jax.jit(run).lower(start, some).compile().memory_analysis().temp_size_in_bytes

    whole = temporaries(256)
    assert whole > 256 * 5000 * 4 / 2  # all gradients at once, or the bound would be idle
    assert temporaries(32) <= whole / 4


def test_jit_vmap_and_grad(params, rows):
    """They compose: over models, and differentiated again."""
    stacked = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), params)
    many = jax.jit(jax.vmap(lambda p: per_sample_norms(LOSS, p, rows, chunk=4)))(stacked)
    for scale, norms in zip((1, 2), many, strict=True):
        grads = jax.jit(jax.vmap(jax.grad(LOSS), (None, 0)))(
            jax.tree.map(lambda p, s=scale: s * p, params), rows
        )
        each = [flat(jax.tree.map(lambda g, i=i: g[i], grads)) for i in range(N)]
        expected = np.linalg.norm(each, axis=1)
        np.testing.assert_allclose(norms, expected, rtol=1e-5)
    quadratic = lambda p, row: 0.5 * jnp.sum((p - row.x) ** 2)
    some = Dataset(jnp.array([[1.0, 2.0], [3.0, 6.0]]), jnp.zeros(2, jnp.int32))
    squared = lambda p: jnp.sum(per_sample_norms(quadratic, p, some) ** 2)
    np.testing.assert_allclose(jax.grad(squared)(jnp.zeros(2)), [-8.0, -16.0], rtol=1e-6)


def test_bad_input(params, rows):
    for function in (per_sample_gradients, per_sample_norms, gradient_sum):
        with pytest.raises(ValueError, match="chunk=0 must be an integer >= 1"):
            function(LOSS, params, rows, chunk=0)
        with pytest.raises(ValueError, match=r"data.x has shape \(9, 8, 8, 1\)"):
            function(LOSS, params, Dataset(rows.x[:-1], rows.y))
    for clip in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"clip={clip} must be a finite number > 0"):
            clipped_sum(LOSS, params, rows, clip=clip)
    with pytest.raises(ValueError, match=r"weights has shape \(3,\), but must be \(10,\)"):
        clipped_sum(LOSS, params, rows, clip=1.0, weights=jnp.ones(3))


def test_eager_calls_compile_once():
    """One function object, one shape: the loss is traced no second time."""
    traces = []

    def loss_fn(params, row):
        traces.append(1)
        return jnp.sum((params - row.x) ** 2)

    some = Dataset(jnp.ones((6, 3)), jnp.zeros(6, jnp.int32))
    for run in (
        lambda p, clip: per_sample_gradients(loss_fn, p, some, chunk=4),
        lambda p, clip: per_sample_norms(loss_fn, p, some, chunk=4),
        lambda p, clip: gradient_sum(loss_fn, p, some, chunk=4),
        lambda p, clip: clipped_sum(loss_fn, p, some, clip=clip, chunk=4),
    ):
        run(jnp.zeros(3), 1.0)
        before = len(traces)
        run(jnp.ones(3), 2.0)
        assert len(traces) == before > 0
