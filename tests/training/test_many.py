"""Row m of many trainings is the training with key m and weights m."""

import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import Dataset, TrainConfig, _progress, _threads, data, fit, models, train_many

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

N, M = 40, 5
MODEL = models.mlp(10, hidden=(8,))
CONFIG = TrainConfig(epochs=2, batch_size=8)
KEYS = jax.random.split(jax.random.key(7), M)
EQUAL = jnp.asarray(np.arange(N)[None] % M != np.arange(M)[:, None])  # each leaves out 8 rows
UNEQUAL = jnp.asarray(np.arange(N)[None] >= 7 * np.arange(M)[:, None])  # 5, 5, 4, 3, 2 steps


@pytest.fixture(scope="module")
def rows() -> Dataset:
    train = data.load("digits").train
    return Dataset(train.x[:N], train.y[:N])


@pytest.fixture(scope="module")
def alone(rows):
    """The same trainings one by one."""
    return {
        name: [fit(KEYS[m], MODEL, rows, weights=w[m], config=CONFIG) for m in range(M)]
        for name, w in {"equal": EQUAL, "unequal": UNEQUAL}.items()
    }


def assert_rows(many, singles):
    for m, single in enumerate(singles):
        row = jax.tree.map(lambda leaf, m=m: leaf[m], many)
        chex.assert_trees_all_close(row, single, atol=1e-5)
    with pytest.raises(AssertionError):  # and not by being all alike
        first = jax.tree.map(lambda leaf: leaf[0], many)
        chex.assert_trees_all_close(first, singles[1], atol=1e-3)


@pytest.mark.parametrize(
    "name, chunk",  # 2 leaves a chunk that is not full
    [("equal", 1), ("equal", 2), ("equal", None), ("unequal", 2), ("unequal", None)],
)
def test_equals_single_trainings(rows, alone, name, chunk):
    weights = {"equal": EQUAL, "unequal": UNEQUAL}[name]
    many = train_many(KEYS, weights, MODEL, rows, config=CONFIG, chunk=chunk)
    assert_rows(many, alone[name])


def test_under_jit(rows, alone):
    run = jax.jit(lambda k, w: train_many(k, w, MODEL, rows, config=CONFIG, chunk=2))
    assert_rows(run(KEYS[:4], UNEQUAL[:4]), alone["unequal"][:4])


def test_removed_rows_leave_no_trace(rows):
    other = Dataset(rows.x.at[:7].set(3e38), rows.y)  # in model 0 only
    run = lambda d: train_many(KEYS, UNEQUAL, MODEL, d, config=CONFIG)
    clean, dirty = (jax.tree.map(lambda leaf: leaf[1:], run(d)) for d in (rows, other))
    chex.assert_tree_all_finite(clean)
    chex.assert_trees_all_equal(clean, dirty)


class TestSharedOrder:
    def test_first_model_with_all_rows_is_the_single_training(self, rows):
        """Its order is the common one."""
        ones = jnp.ones((M, N))
        many = train_many(KEYS, ones, MODEL, rows, config=CONFIG, shared_order=True)
        single = fit(KEYS[0], MODEL, rows, config=CONFIG)
        first, second = (jax.tree.map(lambda leaf, m=m: leaf[m], many) for m in (0, 1))
        chex.assert_trees_all_close(first, single, atol=1e-5)
        with pytest.raises(AssertionError):  # other initial parameters
            chex.assert_trees_all_close(second, single, atol=1e-2)

    def test_order_is_common(self, rows):
        """Logistic regression starts at zero, so nothing else is left to differ."""
        ones, model = jnp.ones((M, N)), models.logistic(10)
        many = train_many(KEYS, ones, model, rows, config=CONFIG, shared_order=True)
        for leaf in jax.tree.leaves(many):
            np.testing.assert_allclose(leaf, jnp.broadcast_to(leaf[:1], leaf.shape), atol=1e-6)
        own = train_many(KEYS, ones, model, rows, config=CONFIG)["Dense_0"]["kernel"]
        assert jnp.abs(own[0] - own[1]).max() > 1e-3

    def test_rows_of_weight_zero_count_nothing(self, rows):
        other = Dataset(rows.x.at[:7].set(0.5), rows.y.at[:7].set(3))
        run = lambda d: train_many(
            KEYS, UNEQUAL, MODEL, d, config=CONFIG, shared_order=True, chunk=M
        )
        first, second = run(rows), run(other)
        left_out, kept = (
            [jax.tree.map(lambda leaf, p=part: leaf[p], many) for many in (first, second)]
            for part in (slice(1, None), slice(0, 1))
        )
        chex.assert_trees_all_equal(*left_out)
        with pytest.raises(AssertionError):
            chex.assert_trees_all_close(*kept, atol=1e-4)


@pytest.mark.parametrize(("cores", "chunks"), [(1, 3), (2, 5), (64, 5)])
def test_progress_bar_counts_chunks_and_the_numbers_stay(rows, alone, monkeypatch, cores, chunks):
    """Divided among any number of cores, and never more models at once than the chunk."""
    monkeypatch.setattr(_threads, "cores", lambda: cores)
    config = TrainConfig(epochs=2, batch_size=8, progress=True)
    with _progress.showing() as display:
        assert display is not None
        steps = []
        advance = display.advance
        display.advance = lambda task: (steps.append(display.tasks[0].total), advance(task))
        many = train_many(KEYS, EQUAL, MODEL, rows, config=config, chunk=2)
    assert steps == [chunks] * chunks
    assert_rows(many, alone["equal"])


def test_threads_know_what_the_caller_set(rows, monkeypatch):
    """``enable_x64`` is a thread's own: chunks that others run must not fall back to float32."""
    monkeypatch.setattr(_threads, "cores", lambda: 3)
    wide = lambda leaf: leaf.astype(jnp.float64)
    with jax.enable_x64(True):
        config = TrainConfig(epochs=1, batch_size=8)
        data64 = Dataset(wide(rows.x), rows.y)
        many = train_many(KEYS, EQUAL, MODEL, data64, config=config, chunk=3)
        single = fit(KEYS[4], MODEL, data64, weights=EQUAL[4], config=config)
        for leaf, one in zip(jax.tree.leaves(many), jax.tree.leaves(single), strict=True):
            assert leaf.dtype == one.dtype == jnp.float64
            np.testing.assert_allclose(leaf[4], one, atol=1e-12)


def test_side_by_side():
    """In order, as many at once as asked for, and the first error comes out."""
    both = threading.Barrier(2, timeout=20)
    meet = lambda item: (both.wait(), item)[1]
    assert list(_threads.side_by_side(meet, range(4), 2)) == [0, 1, 2, 3]
    for count in (1, 2):
        with pytest.raises(ZeroDivisionError):
            list(_threads.side_by_side(lambda item: 1 / item, [1, 0, 2], count))


def test_bad_input(rows):
    run = lambda keys, weights, d=rows, **options: train_many(
        keys, weights, MODEL, d, config=CONFIG, **options
    )
    with pytest.raises(ValueError, match=r"weights has shape \(4, 40\), but must be \(5, 40\)"):
        run(KEYS, EQUAL[:4])
    with pytest.raises(ValueError, match=r"weights has shape \(5, 39\), but must be \(5, 40\)"):
        run(KEYS, EQUAL[:, :-1])
    with pytest.raises(ValueError, match="weights is zero for all 40 rows"):
        run(KEYS, EQUAL.at[2].set(False))
    with pytest.raises(ValueError, match="chunk=0 must be an integer >= 1"):
        run(KEYS, EQUAL, chunk=0)
    with pytest.raises(ValueError, match="data.y has labels"):
        run(KEYS, EQUAL, Dataset(rows.x, rows.y + 5))
    with pytest.raises(ValueError, match="data.x has NaN"):
        run(KEYS, EQUAL, Dataset(rows.x.at[0].set(jnp.nan), rows.y))
