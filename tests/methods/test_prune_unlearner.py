"""PRUNE as an unlearner: requests one after the other, and what an auditor is handed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import Dataset, Model, Status, TrainConfig, data, fit, models, registry
from jaxunlearn.certify import patch_audit, patch_check
from jaxunlearn.methods.prune import (
    Outcome,
    PruneClassConfig,
    PruneConfig,
    hand_over,
    patch_file,
    unlearner,
)
from jaxunlearn.primitives import patch_files, regions, splits
from jaxunlearn.primitives.patches import apply_patched, live

pytestmark = pytest.mark.usefixtures("compiled_in_haste")
MODEL = models.mlp(10, hidden=(32, 16))
TRAIN = TrainConfig(epochs=10, batch_size=64, learning_rate=0.1)
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def trained():
    train = data.load("digits").train
    train = Dataset(train.x[:600].reshape(600, -1), train.y[:600])
    return fit(KEY, MODEL, train, config=TRAIN), train


def config(mode, **more):
    return PruneConfig(mode=mode, low=0.0, high=1.0, iterations=100, capacity=64, **more)


def test_more_rows_than_capacity(trained):
    _, train = trained
    small = registry.make("prune", MODEL, train=TRAIN, config=PruneConfig(capacity=4))
    state = small.fit(KEY, train)
    forget = data.forget_indices(range(6), 600)
    with pytest.raises(ValueError, match="asks for 6 patches, and 0 of capacity=4"):
        small.unlearn(KEY, state, train, forget)
    after = jax.jit(small.unlearn)(KEY, state, train, forget)
    assert after.status == Status.BEYOND_CERTIFICATE


def test_a_later_request_in_the_region_of_an_earlier_one():
    """One region with two labels: the second row is answered by its label, and that is said."""
    params = [(jnp.ones((1, 1)), jnp.zeros(1)), (jnp.eye(1, 2), jnp.array([0.0, 1.0]))]
    model = Model(lambda key, x: params, lambda params, x: regions.preactivations(params, x)[1])
    rows = Dataset(jnp.array([[2.0], [0.5], [1.5], [-1.0]]), jnp.array([0, 1, 0, 1]))
    still = TrainConfig(epochs=1, batch_size=3, learning_rate=1e-9)
    parts = splits.Split(lambda params, x: x, lambda params: params)
    method = unlearner(model, still, split=parts)
    state = method.fit(KEY, rows)
    for row, outcome, status in (
        (0, Outcome.FLIPPED, Status.OK),
        (2, Outcome.SHARED, Status.OK),
        (1, Outcome.CONFLICT, Status.BEYOND_CERTIFICATE),
    ):
        state = method.unlearn(KEY, state, rows, data.forget_indices([row], 4))
        at = int(state.memory.count) - 1
        assert (state.memory.outcome[at], state.status) == (outcome, status)
    assert method.predict(state, rows.x).argmax(-1).tolist() == [1, 1, 1, 1]


def test_rows_outside_of_the_box(trained):
    _, train = trained
    boxed = PruneConfig(low=0.0, high=0.5, capacity=8)
    method = registry.make("prune", MODEL, train=TRAIN, config=boxed)
    state = method.fit(KEY, train)
    after = method.unlearn(KEY, state, train, data.forget_indices([0, 1], 600))
    assert after.status == Status.BEYOND_CERTIFICATE
    assert (after.memory.outcome[:2] == Outcome.OUTSIDE).any()


@pytest.mark.parametrize("mode", ["region", pytest.param("paper", marks=pytest.mark.slow)])
def test_modes_with_a_memory_of_their_own(trained, mode, tmp_path):
    _, train = trained
    method = registry.make("prune", MODEL, train=TRAIN, config=config(mode))
    state = method.fit(KEY, train)
    once = method.unlearn(KEY, state, train, data.forget_indices(range(20), 600))
    twice = method.unlearn(KEY, once, train, data.forget_indices(range(10, 40), 600))
    assert twice.memory.count == 40 and twice.memory.rows[:40].tolist() == list(range(40))
    logits = method.predict(twice, train.x[:40])
    right = method.predict(state, train.x[:40]).argmax(-1) == train.y[:40]
    still = (logits.argmax(-1) == train.y[:40]) & right
    assert still.sum() <= (0 if mode == "region" else 2)
    if mode == "region":
        assert twice.certificate.shape == (64, 10, 48)
        assert (twice.certificate[:40] >= 0).all() and twice.certificate[:40].any()

    # What an auditor gets says the same, and holds.
    file = hand_over(tmp_path, MODEL, twice, train, config=config(mode))
    assert file.requests.tolist() == list(range(40)) and bool(live(file.patches).all())
    changed = np.isin(file.outcome, (Outcome.FLIPPED, Outcome.SHARED))
    np.testing.assert_array_equal(changed, right & (logits.argmax(-1) != train.y[:40]))
    np.testing.assert_array_equal(file.outcome == Outcome.ALREADY_WRONG, ~right)
    _, patched = apply_patched(state.params, file.patches, train.x[:40])
    np.testing.assert_allclose(patched, logits, rtol=1e-5, atol=1e-4)
    read = patch_files.load_patches(tmp_path / "patches.npz")
    network = patch_files.load_network(tmp_path / "network.npz")
    rows = patch_files.load_data(tmp_path / "rows.npz")
    found = patch_audit.audit_patches(read, network, rows, requests=range(40))
    assert found.passed == (still.sum() == 0) and found.misstated == []
    assert all(c.valid == (mode == "region") for c in found.certificates)


def test_a_class_is_handed_over_too(trained, tmp_path):
    _, train = trained
    how = PruneClassConfig(capacity=24)
    method = registry.make("prune_class", MODEL, train=TRAIN, config=how)
    state = method.fit(KEY, train)
    asked = np.flatnonzero(np.asarray(train.y) == 3)[:24]
    with pytest.raises(ValueError, match="state has no requests"):
        patch_file(MODEL, state, train, config=how)
    for some in (asked[:12], asked[12:]):  # two groups
        state = method.unlearn(KEY, state, train, data.forget_indices(some, 600))
    file = hand_over(tmp_path, MODEL, state, train, config=how)
    assert file.requests.tolist() == asked.tolist() and file.rows.size == state.memory.count
    logits = method.predict(state, train.x[asked])
    changed = np.isin(file.outcome, (Outcome.FLIPPED, Outcome.SHARED))
    base = MODEL.apply(state.params, train.x[asked]).argmax(-1)
    wrong = np.asarray(logits.argmax(-1) != train.y[asked])
    np.testing.assert_array_equal(changed, wrong & np.asarray(base == train.y[asked]))
    assert changed.sum() > file.rows.size > 1
    found = patch_audit.audit_patches(file, state.params, train)
    assert found.misstated == found.misplaced == found.not_flipped == []
    assert found.passed == (found.changed_elsewhere == [])
    assert patch_check.Claim.WIDER in {c.claim for c in found.certificates}


@pytest.mark.slow
def test_behind_a_convolutional_network(tmp_path):
    splits = data.load("digits")
    train = Dataset(splits.train.x[:200], splits.train.y[:200])
    method = registry.make("prune", models.cnn(10), train=TrainConfig(epochs=8, batch_size=20))
    state = method.fit(KEY, train)
    forget = data.forget_indices(range(5), 200)
    after = method.unlearn(KEY, state, train, forget)
    base, logits = (np.asarray(method.predict(s, train.x)) for s in (state, after))
    right = base.argmax(-1) == np.asarray(train.y)
    assert right[:5].any() and (logits.argmax(-1) != train.y)[:5].all()
    changed = (logits != base).any(1)  # one compiled program for both
    assert changed[:5][right[:5]].all() and changed[5:].mean() < 0.02
    # The auditor's network is the dense layers, and the rows are features.
    hand_over(tmp_path, models.cnn(10), after, train, config=PruneConfig())
    file = patch_files.load_patches(tmp_path / "patches.npz")
    network = patch_files.load_network(tmp_path / "network.npz")
    features = patch_files.load_data(tmp_path / "rows.npz")
    found = patch_audit.audit_patches(file, network, features, requests=range(5))
    assert found.passed and found.flipped == np.flatnonzero(right[:5]).tolist()
