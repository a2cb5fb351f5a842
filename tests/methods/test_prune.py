"""PRUNE flips what it is asked to, changes nothing else, and says what it could not do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import Dataset, TrainConfig, data, fit, models
from jaxunlearn.certify import patch_audit, patch_check
from jaxunlearn.methods.prune import (
    MODES,
    Outcome,
    PruneClassConfig,
    PruneConfig,
    k_means,
    multipoint,
    prune,
    prune_class,
    runner_up,
)
from jaxunlearn.methods.prune.multipoint import leaders
from jaxunlearn.primitives import patch_files, regions
from jaxunlearn.primitives.patches import apply_patched, gate, live

pytestmark = pytest.mark.usefixtures("compiled_in_haste")
MODEL = models.mlp(10, hidden=(32, 16))
TRAIN = TrainConfig(epochs=10, batch_size=64, learning_rate=0.1)
COUNT = 32
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def trained():
    train = data.load("digits").train
    train = Dataset(train.x[:600].reshape(600, -1), train.y[:600])
    return fit(KEY, MODEL, train, config=TRAIN), train


def config(mode, **more):
    return PruneConfig(mode=mode, low=0.0, high=1.0, iterations=100, capacity=64, **more)


@pytest.fixture(scope="module", params=MODES)
def made(request, trained):
    params, train = trained
    found = prune(params, train.x[:COUNT], train.y[:COUNT], config=config(request.param), key=KEY)
    return request.param, found


def test_all_flip_and_nothing_else_changes(made, trained):
    mode, found = made
    params, train = trained
    base, patched = apply_patched(params, found.patches, train.x)
    base, patched, y = map(np.asarray, (base, patched, train.y))
    done = np.isin(found.outcome, (Outcome.FLIPPED, Outcome.SHARED))
    wrong = base[:COUNT].argmax(-1) != y[:COUNT]
    np.testing.assert_array_equal(np.asarray(found.outcome) == Outcome.ALREADY_WRONG, wrong)
    if mode != "paper":
        assert (done | wrong).all()
    assert done.sum() >= 0.9 * (~wrong).sum() > 10
    assert (patched[:COUNT].argmax(-1) != y[:COUNT])[done].all()
    reached = (np.asarray(gate(params, found.patches, train.x)) * live(found.patches)[None]).any(1)
    np.testing.assert_array_equal(patched[~reached], base[~reached])
    assert reached.sum() < 2 * COUNT
    skipped = np.asarray(~live(found.patches))
    assert skipped[wrong].all()


def test_the_point_constant_is_the_least_that_works(trained):
    params, train = trained
    x, y = train.x[:COUNT], train.y[:COUNT]
    found = prune(params, x, y, config=config("point"))
    base, patched = apply_patched(params, found.patches, x)
    target = runner_up(base, y)
    ok = np.asarray(found.outcome) == Outcome.FLIPPED
    ahead = np.asarray(patched)[np.arange(COUNT), target]
    others = np.where(np.arange(10)[None] == target[:, None], -np.inf, patched).max(1)
    np.testing.assert_allclose((ahead - others)[ok], 0.1, atol=1e-4)
    height = np.abs(np.asarray(found.patches.delta)).max(1)
    lead = np.asarray(base.max(-1)) - np.asarray(base)[np.arange(COUNT), target]
    np.testing.assert_allclose(height[ok], (lead[ok] + 0.1) / 2, rtol=1e-4)


def test_replaced_logits_keep_the_points_own_confidence(trained):
    params, train = trained
    x, y = train.x[:COUNT], train.y[:COUNT]
    found = prune(params, x, y, config=config("replace"))
    base, patched = apply_patched(params, found.patches, x)
    ok = np.asarray(found.outcome) == Outcome.FLIPPED
    # The target's logit is untouched, all others are what they were or just below it.
    target = np.asarray(found.patches.target)
    np.testing.assert_allclose(
        np.asarray(patched)[ok, target[ok]], np.asarray(base)[ok, target[ok]], rtol=1e-5
    )
    assert (np.asarray(patched)[ok] <= np.asarray(base)[ok] + 1e-4).all()


def test_region_mode_is_certified_and_holds_at_random_points_of_the_region(trained):
    params, train = trained
    x, y = train.x[:COUNT], train.y[:COUNT]
    found = prune(params, x, y, config=config("region"))
    file = patch_files.PatchFile(
        found.patches,
        patch_files.model_hash(params),
        1000.0,
        0.1,
        np.arange(COUNT, dtype=np.int32),
        np.zeros(64),
        np.ones(64),
        found.dual,
    )
    checked = patch_check.check(file, regions.dense_layers(params))
    assert len(checked) == int(live(found.patches).sum()) and all(c.valid for c in checked)
    rng, tried = np.random.default_rng(0), 0
    for k in (c.patch for c in checked[:6]):
        steps = rng.normal(size=(2000, 64)) * rng.choice([0.001, 0.01, 0.05], size=(2000, 1))
        near = jnp.asarray(np.clip(np.asarray(x[k])[None] + steps, 0, 1), jnp.float32)
        inside = np.asarray(gate(params, found.patches, near))[:, k] == 1
        _, patched = apply_patched(params, found.patches, near)
        lead = patched - np.asarray(patched)[:, [int(found.patches.target[k])]]
        lead = np.delete(np.asarray(lead), int(found.patches.target[k]), 1)
        assert (lead[inside] <= -0.1 + 1e-3).all()
        tried += inside.sum()
    assert tried > 500
    audit = patch_audit.audit_patches(file, params, train, chunk=256)
    assert audit.passed and audit.outside == [] and len(audit.flipped) == len(checked)


def test_the_audit_fails_what_should_fail(trained):
    params, train = trained
    found = prune(params, train.x[:COUNT], train.y[:COUNT], config=config("point"))
    rows = np.arange(COUNT, dtype=np.int32)
    name = patch_files.model_hash(params)
    file = patch_files.PatchFile(found.patches, name, 1000.0, 0.1, rows)
    good = patch_audit.audit_patches(file, params, train)
    assert good.passed and not any(c.valid for c in good.certificates)
    weak = file._replace(patches=found.patches._replace(delta=0.5 * found.patches.delta))
    assert patch_audit.audit_patches(weak, params, train).not_flipped
    # Patches that are said to be for other rows: what they reach is listed, not hidden.
    moved = patch_audit.audit_patches(file._replace(rows=rows + COUNT), params, train)
    assert {c.row for c in moved.collisions} >= set(good.flipped) and not moved.passed
    with pytest.raises(ValueError, match="names row 632"):
        patch_audit.audit_patches(file._replace(rows=rows + 601), params, train)
    with pytest.raises(ValueError, match="data.x has NaN"):
        patch_audit.audit_patches(file, params, train._replace(x=train.x.at[5].set(jnp.nan)))
    boxed = file._replace(low=np.zeros(64), high=np.full(64, 0.5))
    assert len(patch_audit.audit_patches(boxed, params, train).outside) > 100


def test_two_requests_in_one_region(trained):
    params, train = trained
    right = np.flatnonzero(
        np.asarray(MODEL.apply(params, train.x[:COUNT]).argmax(-1) == train.y[:COUNT])
    )
    x, y = train.x[right[:1]], train.y[right[:1]]
    twice = prune(params, jnp.tile(x, (2, 1)), jnp.tile(y, 2), config=config("point"))
    assert twice.outcome.tolist() == [Outcome.FLIPPED, Outcome.SHARED]
    assert live(twice.patches).tolist() == [True, False]
    # One region, v > 0, with two labels in it: what answers one wrongly answers the other rightly.
    layers = [(jnp.ones((1, 1)), jnp.zeros(1)), (jnp.array([[1.0, 0.0]]), jnp.array([0.0, 1.0]))]
    both = prune(layers, jnp.array([[2.0], [3.0]]), jnp.array([0, 0]))
    assert both.outcome.tolist() == [Outcome.FLIPPED, Outcome.SHARED]  # by the second's constant
    np.testing.assert_allclose(both.patches.delta, [[-1.05, 1.05], [0, 0]], rtol=1e-6)
    pair, labels = jnp.array([[2.0], [0.5]]), jnp.array([0, 1])
    found = prune(layers, pair, labels)
    assert found.outcome.tolist() == [Outcome.FLIPPED, Outcome.CONFLICT]
    other_order = prune(layers, pair[::-1], labels[::-1])
    assert other_order.outcome.tolist() == [Outcome.FLIPPED, Outcome.CONFLICT]


def test_bad_input(trained):
    params, train = trained
    x, y = train.x[:3], train.y[:3]
    with pytest.raises(ValueError, match="mode='region' needs an input box"):
        PruneConfig(mode="region")
    with pytest.raises(ValueError, match="mode='regoin' is unknown. Did you mean 'region'"):
        PruneConfig(mode="regoin")
    with pytest.raises(ValueError, match="x has NaN or infinite values in 1 rows"):
        prune(params, x.at[1].set(jnp.inf), y)
    with pytest.raises(ValueError, match=r"1 points outside of the box.*\[2\]"):
        prune(params, x.at[2].add(2.0), y, config=config("region"))
    with pytest.raises(ValueError, match="target is the label"):
        prune(params, x, y, target=y)
    for target, message in (
        ([0, 0, 99], r"classes from 0 to 99.*0\.\.9"),
        ([0, 0, -1], "classes from -1 to 0"),
        ([1], r"target has shape \(1,\)"),
        ([0.5, 0.5, 0.5], "dtype float32"),
    ):
        with pytest.raises(ValueError, match=message):
            prune(params, x, y, target=jnp.array(target))
    for box in ({"low": 0.0}, {"high": 1.0}):
        with pytest.raises(ValueError, match="an input box needs both"):
            PruneConfig(**box)
    for low, high in ((1.0, 0.0), (float("nan"), 1.0), (0.0, float("inf")), (0.5, 0.5)):
        with pytest.raises(ValueError, match="must be finite, and low < high"):
            PruneConfig(mode="region", low=low, high=high)
    with pytest.raises(ValueError, match="key is None"):
        prune(params, x, y, config=config("paper"))
    with pytest.raises(ValueError, match=r"x has shape \(3, 60\)"):
        prune(params, x[:, :60], y)
    with pytest.raises(ValueError, match="hidden ReLU layer"):
        prune([(jnp.ones((64, 10)), jnp.zeros(10))], x, y)


def test_algorithm_1_stops_at_its_share_of_the_original_request(trained):
    params, train = trained
    x, y = train.x[:100], train.y[:100]
    right = regions.preactivations(params, x)[1].argmax(-1) == y
    layers, how = regions.dense_layers(params), config("paper", clusters=1)
    more = multipoint(layers, x, y, right, KEY, config=how)
    when = np.asarray(more.rounds)
    moved = [(when > 0) & (when <= number) for number in range(when.max() + 1)]
    assert moved[-1].sum() >= 0.97 * right.sum() > moved[-2].sum() and when.max() > 1
    assert not when[~np.asarray(right)].any()
    groups = np.unique(np.asarray(more.patches.group)[np.asarray(live(more.patches))])
    assert len(groups) == when.max()  # one of a round
    # Stopped after its first round, it has moved what it says that this one moved.
    how = config("paper", rounds=1, clusters=1)
    once = multipoint(layers, x, y, right, KEY, config=how)
    changed = apply_patched(params, once.patches, x)[1].argmax(-1) != y
    np.testing.assert_array_equal(changed & right, moved[1])


def test_k_means_against_its_own_objective():
    rng = np.random.default_rng(0)
    true = rng.normal(size=(3, 5)) * 10
    x = np.concatenate([c + rng.normal(size=(30, 5)) for c in true])
    used = np.arange(90) % 10 > 0
    x[~used] = 1e3  # rows that do not count must not pull
    run = lambda key: k_means(key, jnp.asarray(x, jnp.float32), jnp.asarray(used), clusters=3)
    starts, _ = jax.jit(jax.vmap(run))(jax.random.split(KEY, 5))
    best = min(starts, key=lambda centres: _inertia(x[used], centres))
    means = np.array(
        [x[i * 30 : i * 30 + 30][used[i * 30 : i * 30 + 30]].mean(0) for i in range(3)]
    )
    order = [int(np.argmin(((np.asarray(best) - m[None]) ** 2).sum(1))) for m in means]
    np.testing.assert_allclose(best[np.array(order)], means, rtol=1e-4, atol=1e-3)


def _inertia(x, centres):
    return ((x[:, None] - np.asarray(centres)[None]) ** 2).sum(-1).min(1).sum()


def test_leaders():
    cluster, valid = jnp.array([5, 5, 2, 5, 2]), jnp.array([False, True, True, True, True])
    assert leaders(cluster, valid).tolist() == [0, 1, 2, 1, 2]


class TestClass:
    def test_covers_its_share_and_only_wider_regions_generalise(self, trained):
        params, train = trained
        of_class = np.flatnonzero(np.asarray(train.y) == 3)
        half, rest = of_class[:30], of_class[30:]
        others = np.flatnonzero(np.asarray(train.y) != 3)
        share, reach = {}, {}
        for radius in (None, 0.2):  # None: what is certified
            found = prune_class(
                params, train.x[half], train.y[half], config=PruneClassConfig(radius=radius)
            )
            base, patched = map(np.asarray, apply_patched(params, found.patches, train.x))
            right = base[half].argmax(-1) == 3
            assert found.covered.sum() >= 0.97 * right.sum()
            assert (patched[half].argmax(-1) != 3)[np.asarray(found.covered)].all()
            share[radius] = (patched[rest].argmax(-1) != 3).mean()
            reach[radius] = (patched[others] != base[others]).any(1).mean()
            assert int(found.count) <= 30
        assert 0.02 < reach[0.2]
        assert (base[rest].argmax(-1) != 3).mean() < share[None] < share[0.2]

    def test_a_given_radius_and_a_small_capacity(self, trained):
        params, train = trained
        of_class = np.flatnonzero(np.asarray(train.y) == 3)[:30]
        small = PruneClassConfig(radius=1e-6, capacity=5)
        found = prune_class(params, train.x[of_class], train.y[of_class], config=small)
        assert int(found.count) == 5 and found.covered.sum() == 5
        base, patched = map(np.asarray, apply_patched(params, found.patches, train.x))
        others = np.setdiff1d(np.arange(600), of_class[np.asarray(found.covered)])
        assert (patched[others] != base[others]).any(1).mean() < 0.02

    def test_points_outside_of_the_box(self):
        layers = [(jnp.array([[1.0, -1.0]]), jnp.array([-2.05, 1.0])), (jnp.eye(2), jnp.zeros(2))]
        with pytest.raises(ValueError, match=r"x has 1 points outside of the box.*\[1\]"):
            prune_class(layers, jnp.array([[0.5], [3.0]]), jnp.array([1, 0]))

    def test_bad_configurations(self):
        with pytest.raises(ValueError, match="low=1.0 and high=0.5 must be finite"):
            PruneClassConfig(low=1.0, high=0.5)
        with pytest.raises(ValueError, match="radius_scale=0"):
            PruneClassConfig(radius_scale=0)
