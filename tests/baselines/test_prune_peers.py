"""SISA, amnesiac learning, feature unlearning and the logit mask against what they must equal."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import Dataset, Status, TrainConfig, data, fit, models, registry
from jaxunlearn.baselines import (
    AmnesiacConfig,
    FeatureUnlearningConfig,
    LogitMaskConfig,
    SISAConfig,
    feature_unlearning,
    mask_logits,
    sisa_logits,
)
from jaxunlearn.baselines.amnesiac import batches_with, traced_fit
from jaxunlearn.baselines.feature_unlearning import _step
from jaxunlearn.baselines.sisa import places, slice_epochs

pytestmark = pytest.mark.usefixtures("compiled_in_haste")
KEY = jax.random.key(0)
MODEL = models.mlp(10, hidden=(8,))
TRAIN = TrainConfig(epochs=3, batch_size=16)


@pytest.fixture(scope="module")
def rows():
    train = data.load("digits").train
    return Dataset(train.x[:101], train.y[:101])


def same(a, b, **tolerance):
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, **tolerance), a, b)


class TestAmnesiac:
    def test_trains_as_fit_does(self, rows):
        trace = traced_fit(KEY, MODEL, rows, config=TRAIN, record=True)
        same(trace.params, fit(KEY, MODEL, rows, config=TRAIN), rtol=1e-4, atol=1e-6)
        start = jax.tree.map(lambda p, c: p - c.sum(0), trace.params, trace.changes)
        same(start, MODEL.init(jax.random.split(KEY)[0], rows.x[:1]), atol=1e-5)

    def test_steps_with_a_row(self, rows):
        """A row whose values change changes no step before the first batch that has it."""
        hit = np.asarray(batches_with(KEY, data.forget_indices([7], 101), config=TRAIN))
        assert hit.reshape(3, 7).sum(1).tolist() == [1, 1, 1]
        a = traced_fit(KEY, MODEL, rows, config=TRAIN, record=True).changes
        other = rows._replace(x=rows.x.at[7].set(0.9))
        b = traced_fit(KEY, MODEL, other, config=TRAIN, record=True).changes
        differs = np.stack(
            [
                (np.asarray(u) != np.asarray(v)).reshape(len(hit), -1).any(1)
                for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
            ]
        ).any(0)
        assert differs.argmax() == hit.argmax()

    def test_recorded_and_replayed_agree(self, rows):
        after = []
        for record in (True, False):
            method = registry.make(
                "amnesiac", MODEL, train=TRAIN, config=AmnesiacConfig(record=record)
            )
            state = method.fit(KEY, rows)
            one = method.unlearn(KEY, state, rows, data.forget_indices([7], 101))
            two = method.unlearn(KEY, one, rows, data.forget_indices([8, 9], 101))
            after.append(two)
        same(after[0].params, after[1].params, rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(after[0].memory.taken, after[1].memory.taken)
        assert after[0].memory.taken.sum() > 3

    def test_takes_back_exactly_the_hit_steps(self, rows):
        trace = traced_fit(KEY, MODEL, rows, config=TRAIN, record=True)
        hit = batches_with(KEY, data.forget_indices([7, 30], 101), config=TRAIN)
        total = traced_fit(KEY, MODEL, rows, config=TRAIN, chosen=hit).total
        want = jax.tree.map(lambda c: np.asarray(c)[np.asarray(hit)].sum(0), trace.changes)
        same(total, want, rtol=1e-4, atol=1e-6)


class TestSISA:
    def test_a_request_leaves_other_shards_alone_and_earlier_slices(self, rows):
        method = registry.make("sisa", MODEL, train=TRAIN, config=SISAConfig(shards=4, slices=3))
        state = method.fit(KEY, rows)
        shards = np.asarray(state.memory.rows)
        row = int(shards[2, -3])  # in the last slice of shard 2
        after = method.unlearn(KEY, state, rows, data.forget_indices([row], 101))
        old, new = (np.asarray(jax.tree.leaves(s.memory.checkpoints)[1]) for s in (state, after))
        np.testing.assert_array_equal(old[[0, 1]], new[[0, 1]])
        np.testing.assert_array_equal(old[2, :3], new[2, :3])
        assert (old[2, 3] != new[2, 3]).any() and after.grads < 0.5 * state.grads

    def test_every_row_is_in_one_shard(self, rows):
        method = registry.make("sisa", MODEL, train=TRAIN, config=SISAConfig(shards=4))
        shards = np.asarray(method.fit(KEY, rows).memory.rows)
        real = places(101, 4)[1]
        assert sorted(shards[real]) == list(range(101)) and shards.shape == (4, 26)
        for n in (5, 6, 9, 10, 101):  # none without rows
            assert set(places(n, 5)[1].sum(1)) <= {n // 5, -(-n // 5)}

    def test_removed_rows_leave_no_trace(self, rows):
        """Two histories that differ in the removed rows alone end in the same bits."""
        method = registry.make("sisa", MODEL, train=TRAIN, config=SISAConfig(shards=3, slices=2))
        forget = data.forget_indices([4, 60], 101)
        other = Dataset(rows.x.at[forget].set(0.5), rows.y.at[forget].set(9))
        states = [method.fit(KEY, d) for d in (rows, other)]
        after = [
            method.unlearn(KEY, s, d, forget) for s, d in zip(states, (rows, other), strict=True)
        ]
        bits = [[leaf.tobytes() for leaf in jax.tree.leaves(s.params)] for s in (*states, *after)]
        assert bits[0] != bits[1] and bits[2] == bits[3]
        jax.tree.map(np.testing.assert_array_equal, after[0].memory, after[1].memory)

    def test_one_shard_is_an_ordinary_training(self, rows):
        """Same data, so about the same quality as `fit`."""
        long = TrainConfig(epochs=20, batch_size=16)
        method = registry.make("sisa", MODEL, train=long, config=SISAConfig(shards=1))
        logits = method.predict(method.fit(KEY, rows), rows.x)
        assert (logits.argmax(-1) == rows.y).mean() > 0.9

    def test_votes_and_means(self):
        logits = jnp.array([[[5.0, 0.0, 0.0]], [[0.0, 0.3, 0.0]], [[0.0, 0.3, 0.0]]])
        model = MODEL._replace(apply=lambda params, x: params)
        x = jnp.zeros((1, 1))
        vote = jnp.exp(sisa_logits(model, logits, x))
        np.testing.assert_allclose(vote, [[1 / 3, 2 / 3, 0]], atol=1e-3)
        mean = jnp.exp(sisa_logits(model, logits, x, aggregate="mean"))
        np.testing.assert_allclose(mean[0], jax.nn.softmax(logits).mean((0, 1)), rtol=1e-5)
        assert vote.argmax() == 1 and mean.argmax() == 0

    def test_epochs_of_slices(self):
        assert slice_epochs(20, 1) == [20] and slice_epochs(10, 5) == [3, 3, 4, 3, 3]
        # Rows of the first slice are seen in all, of the last in the last only: E on average.
        for slices in (2, 5, 9):
            counts = slice_epochs(30, slices)
            seen = [sum(counts[j:]) for j in range(slices)]
            assert abs(np.mean(seen) - 30) < 3

    def test_bad_input(self, rows):
        with pytest.raises(ValueError, match="aggregate='votes' is unknown. Did you mean 'vote'"):
            SISAConfig(aggregate="votes")
        with pytest.raises(ValueError, match="shards=200 is more than the 101"):
            registry.make("sisa", MODEL, train=TRAIN, config=SISAConfig(shards=200)).fit(KEY, rows)


class TestFeatureUnlearning:
    @pytest.mark.parametrize(
        "correction", ["remove", pytest.param("relabel", marks=pytest.mark.slow)]
    )
    def test_is_the_damped_newton_step(self, rows, correction):
        """Against a dense Hessian, in float64, with all remaining rows in every product."""
        with jax.enable_x64(True):
            wide = Dataset(rows.x[:40, ::4, ::4].astype(jnp.float64), rows.y[:40] % 3)
            model = models.logistic(3)
            loss_fn = models.cross_entropy(model.apply)
            params = fit(KEY, model, wide, config=TRAIN)
            flat, unravel = jax.flatten_util.ravel_pytree(params)
            forget = data.forget_indices([1, 5], 40)
            config = FeatureUnlearningConfig(
                correction=correction, scale=3.0, damping=0.02, iterations=2000, batch=40
            )
            got = feature_unlearning(KEY, loss_fn, params, wide, forget, config=config)

            def mean(v, keep, labels=wide.y):
                row = lambda x, y: loss_fn(unravel(v), Dataset(x, y))
                return jnp.vdot(keep.astype(float), jax.vmap(row)(wide.x, labels))

            hessian = jax.hessian(lambda v: mean(v, ~forget) / 38)(flat)
            g = jax.grad(mean)(flat, forget) / 40
            if correction == "relabel":
                shift = jax.random.randint(jax.random.split(KEY)[0], (40,), 1, 3)
                g -= jax.grad(mean)(flat, forget, (wide.y + shift) % 3) / 40
            want = flat + jnp.linalg.solve(hessian + 0.06 * jnp.eye(len(flat)), g)
            np.testing.assert_allclose(jax.flatten_util.ravel_pytree(got)[0], want, atol=1e-8)
            assert jnp.abs(want - flat).max() > 1e-3

    def test_relabelling_must_know_the_classes(self, rows):
        loss_fn, params = models.cross_entropy(MODEL.apply), MODEL.init(KEY, rows.x[:1])
        forget = data.forget_indices([1, 5], 101)
        config = FeatureUnlearningConfig(correction="relabel", iterations=1)
        step = lambda y: feature_unlearning(
            KEY, loss_fn, params, rows._replace(y=y), forget, config=config
        )
        with pytest.raises(ValueError, match="num_classes=None, and data.y is traced"):
            jax.eval_shape(step, rows.y)

    def test_first_order(self, rows):
        loss_fn, params = models.cross_entropy(MODEL.apply), fit(KEY, MODEL, rows, config=TRAIN)
        forget = data.forget_indices([1, 5], 101)
        config = FeatureUnlearningConfig(order=1, step=0.01)
        got = feature_unlearning(KEY, loss_fn, params, rows, forget, config=config)
        grads = [jax.grad(loss_fn)(params, Dataset(rows.x[k], rows.y[k])) for k in (1, 5)]
        want = jax.tree.map(lambda p, a, b: p + 0.01 * (a + b), params, *grads)
        same(got, want, rtol=1e-4, atol=1e-6)

    def test_a_series_that_diverges_is_reported(self, rows):
        loss_fn, params = models.cross_entropy(MODEL.apply), fit(KEY, MODEL, rows, config=TRAIN)
        forget = data.forget_indices([1, 5], 101)
        for scale, status in ((0.01, Status.NOT_CONVERGED), (1000.0, Status.OK)):
            config = FeatureUnlearningConfig(scale=scale, iterations=8, batch=32)
            found = _step(
                KEY, params, rows, forget, ~forget, None, loss_fn=loss_fn, classes=10, config=config
            )
            assert found.status == status


class TestLogitMask:
    def test_a_class_is_masked_once_most_of_it_is_gone(self, rows):
        method = registry.make("logit_mask", MODEL, train=TRAIN)
        state = method.fit(KEY, rows)
        of_class = np.flatnonzero(np.asarray(rows.y) == 3)
        part = method.unlearn(KEY, state, rows, data.forget_indices(of_class[:2], 101))
        assert not part.memory.any()
        whole = method.unlearn(KEY, part, rows, data.forget_indices(of_class[2:], 101))
        assert np.flatnonzero(whole.memory).tolist() == [3]
        logits = method.predict(whole, rows.x)
        assert (logits.argmax(-1) != 3).all()
        others = np.arange(10) != 3
        np.testing.assert_array_equal(logits[:, others], method.predict(state, rows.x)[:, others])

    def test_probability_is_nothing(self):
        masked = mask_logits(jnp.array([[50.0, 1.0, 2.0]]), jnp.array([True, False, False]))
        assert jax.nn.softmax(masked)[0, 0] < 1e-30 and jnp.isfinite(masked).all()

    def test_bad_share(self):
        with pytest.raises(ValueError, match="share=1.0 must be"):
            LogitMaskConfig(share=1.0)
