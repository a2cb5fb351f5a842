"""The bound is sound for any multipliers, near HiGHS for ours, and a checker catches forgeries."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.certify import highs, patch_check
from jaxunlearn.certify.region_bound import region_bound
from jaxunlearn.methods.prune import PruneConfig, prune
from jaxunlearn.primitives import patch_files, regions
from jaxunlearn.primitives.patches import apply_patched, empty

pytestmark = pytest.mark.usefixtures("compiled_in_haste")
SIZES, COUNT = (12, 14, 10, 4), 6


def network(seed=0, sizes=SIZES):
    rng = np.random.default_rng(seed)
    return [
        (
            jnp.asarray(1.5 * rng.normal(size=(a, b)) / a**0.5, jnp.float32),
            jnp.asarray(0.3 * rng.normal(size=b), jnp.float32),
        )
        for a, b in zip(sizes, sizes[1:], strict=False)
    ]


LAYERS = network()
X = jnp.asarray(np.random.default_rng(1).random((COUNT, 12)), jnp.float32)
LOGITS = regions.preactivations(LAYERS, X)[1]
Y, TARGET = (np.argsort(LOGITS, -1)[:, -k].astype(np.int32) for k in (1, 2))
BITS = regions.activation_pattern(LAYERS, X)
NEURONS = 24


def explicit(k):
    active = np.unpackbits(np.asarray(BITS[k]), count=NEURONS, bitorder="little").astype(bool)
    return active, highs.region(LAYERS, active)


@pytest.fixture(scope="module")
def optima():
    return np.array([highs.support(explicit(k)[1], int(TARGET[k]), 0.0, 1.0) for k in range(COUNT)])


def bounds(iterations=1000, **more):
    return region_bound(
        LAYERS, BITS, jnp.asarray(TARGET), low=0.0, high=1.0, iterations=iterations, **more
    )


def test_never_below_highs_and_close_to_it(optima):
    for iterations in (1, 30, 1000):
        found = bounds(iterations)
        assert (found.bound >= optima - 1e-9).all()
        assert (found.dual >= 0).all()
    gap = (np.asarray(found.bound) - optima).max(1) / np.abs(optima).max(1)
    assert np.median(gap) < 0.01
    np.testing.assert_allclose(bounds(200, chunk=4).bound, bounds(200).bound, rtol=1e-4, atol=1e-4)


def test_a_box_of_its_own_for_every_input(optima):
    low, high = np.full(12, -0.5), np.linspace(1, 2, 12)
    found = region_bound(LAYERS, BITS, jnp.asarray(TARGET), low=low, high=high, iterations=1000)
    for k in (0, 1):
        want = highs.support(explicit(k)[1], int(TARGET[k]), low, high)
        assert (found.bound[k] >= want - 1e-9).all()
        assert found.bound[k].max() <= 1.02 * want.max()
    assert (found.bound.max(1) > optima.max(1)).all()  # a larger box, a larger lead


def test_the_checker_agrees_and_is_sound_for_any_multipliers(optima):
    found, rng = bounds(), np.random.default_rng(0)
    for k in range(COUNT):
        active, _ = explicit(k)
        again = patch_check.bound(LAYERS, active, int(TARGET[k]), found.dual[k], 0.0, 1.0)
        np.testing.assert_allclose(again, found.bound[k], rtol=1e-4, atol=1e-3)
        assert (again >= optima[k] - 1e-9).all()
        for _ in range(50):
            y = rng.exponential(size=(4, NEURONS)) * (rng.random((4, NEURONS)) < 0.3)
            assert (
                patch_check.bound(LAYERS, active, int(TARGET[k]), y, 0.0, 1.0) >= optima[k] - 1e-9
            ).all()
    with pytest.raises(ValueError, match="negative"):
        patch_check.bound(LAYERS, active, 0, -np.ones((4, NEURONS)), 0.0, 1.0)


def test_eq_7_has_a_constant_among_its_optima(optima):
    """The whole robust programme, affine maps and all, is no better."""
    layers = network(3, (5, 6, 4, 3))
    x = jnp.asarray(np.random.default_rng(4).random((3, 5)), jnp.float32)
    z, logits = regions.preactivations(layers, x)
    for k in range(3):
        found = highs.region(layers, np.asarray(z[k] > 0))
        target = int(np.argsort(logits[k])[-2])
        values = highs.support(found, target, 0.0, 1.0)
        affine = highs.robust(found, target, 0.1, 0.0, 1.0)
        assert abs(affine - highs.constant(values, 0.1)) < 1e-8
        assert affine > 0.05


def certified(mode="region"):
    config = PruneConfig(mode=mode, low=0.0, high=1.0, iterations=400)
    made = prune(LAYERS, X, jnp.asarray(Y), config=config)
    box = {"low": np.zeros(12), "high": np.ones(12)} if made.dual is not None else {}
    return patch_files.PatchFile(
        made.patches,
        patch_files.model_hash(LAYERS),
        config.sharpness,
        config.margin,
        np.arange(COUNT, dtype=np.int32),
        dual=made.dual,
        **box,
    )


def test_certified_patches_pass(tmp_path, optima):
    patch_files.save_patches(tmp_path / "p.npz", certified())
    file = patch_files.load_patches(tmp_path / "p.npz")
    found = patch_check.check(file, LAYERS)
    assert len(found) == COUNT and all(c.valid for c in found)
    assert all(c.margin >= 0.1 * (1 - 1e-6) for c in found)
    # What is claimed holds for the worst points of the region, which HiGHS finds.
    for c in found:
        delta = np.asarray(file.patches.delta[c.patch], np.float64)
        t = int(TARGET[c.patch])
        worst = (optima[c.patch] + delta - delta[t])[np.arange(4) != t].max()
        assert worst <= -c.margin + 1e-9


def prove(layers, x, y, low, high):
    config = PruneConfig(mode="region", low=low, high=high, iterations=200)
    made = prune(layers, x, y, config=config)
    d = x.shape[1]
    return patch_files.PatchFile(
        made.patches,
        patch_files.model_hash(layers),
        config.sharpness,
        config.margin,
        np.arange(len(x)),
        np.full(d, low),
        np.full(d, high),
        made.dual,
    )


def leads(layers, patches, x, k):
    """By how much the target of patch k leads where its gate is 1."""
    z, _ = regions.preactivations(layers, x)
    active = np.unpackbits(np.asarray(patches.bits[k]), count=z.shape[1], bitorder="little")
    clear = np.abs(np.asarray(z)).min(1) > 1e-6  # the sign is no matter of rounding
    inside = ((np.asarray(z) > 0) == active[None].astype(bool)).all(1) & clear
    _, now = map(np.asarray, apply_patched(layers, patches, x))
    target = int(patches.target[k])
    return (now[:, [target]] - np.delete(now, target, 1)).min(1)[inside]


def test_a_neighbours_collar_takes_nothing_back():
    """Two half-lines whose targets are each other's label: both collars are at the same point."""
    layers = [(jnp.ones((1, 1)), jnp.zeros(1)), (jnp.array([[4.0, 0.0]]), jnp.array([0.5, 1.0]))]
    file = prove(layers, jnp.array([[0.5], [-0.5]]), jnp.array([0, 1]), -1.0, 1.0)
    assert all(c.valid for c in patch_check.check(file, layers))
    x = jnp.array([[-1e-4], [-1e-5], [1e-5], [1e-4], [-0.9], [0.9]])
    answer = apply_patched(layers, file.patches, x)[1].argmax(-1)
    assert answer.tolist() == [0, 0, 1, 1, 0, 1]
    for k in (0, 1):
        assert (leads(layers, file.patches, x, k) >= 0.1 - 1e-5).all()


def test_what_is_certified_holds_between_patched_neighbours():
    """On segments between patched points, finely near every crossing of a neuron."""
    layers = network(5, (2, 8, 3))
    grid = np.stack(np.meshgrid(*[np.linspace(0.03, 0.97, 12)] * 2), -1).reshape(-1, 2)
    x = jnp.asarray(grid, jnp.float32)
    y = regions.preactivations(layers, x)[1].argmax(-1)
    _, one_each = np.unique(np.asarray(regions.activation_pattern(layers, x)), True, axis=0)
    x, y = x[one_each], y[one_each]
    file = prove(layers, x, y, 0.0, 1.0)
    valid = [c.patch for c in patch_check.check(file, layers) if c.valid]
    assert len(valid) > 5
    first, second = np.triu_indices(len(x), 1)
    kernel, bias = (np.asarray(leaf, np.float64) for leaf in layers[0])
    a, b = (np.asarray(x, np.float64)[side] @ kernel + bias for side in (first, second))
    cross = (a / np.where(a == b, 1, a - b))[:, :, None]  # of each segment with each neuron
    steps = np.concatenate([-np.logspace(-6, -3, 6), np.logspace(-6, -3, 6)])
    t = np.clip(cross + steps[None, None], 0, 1)[..., None]
    ends = [np.asarray(x, np.float64)[side][:, None, None] for side in (first, second)]
    on = jnp.asarray((ends[0] + t * (ends[1] - ends[0])).reshape(-1, 2), jnp.float32)
    lead = [leads(layers, file.patches, on, k) for k in valid]
    assert sum(map(len, lead)) > 500
    assert min(found.min() for found in lead if len(found)) >= 0.1 - 1e-3


def test_a_patch_that_an_earlier_one_hides_proves_nothing():
    """Padding bits are no neurons: the second patch has the first one's region."""
    layers = [(jnp.ones((1, 1)), jnp.zeros(1)), (jnp.array([[4.0, 0.0]]), jnp.zeros(2))]
    bits, target = jnp.array([[1], [3]], jnp.uint8), jnp.array([1, 0])
    dual = region_bound(layers, bits, target, low=-1.0, high=1.0).dual
    patches = empty(2, 1, 2)._replace(
        bits=bits, delta=jnp.array([[-2.1, 2.1], [1.0, -1.0]]), target=target
    )
    box = np.full(1, -1.0), np.ones(1)
    name = patch_files.model_hash(layers)
    file = patch_files.PatchFile(patches, name, 1000.0, 0.1, np.array([0, -1]), *box, dual)
    found = patch_check.check(file, layers)
    assert [c.valid for c in found] == [True, False] and "patch 0" in found[1].reason


def test_replacing_patches_need_no_multipliers():
    file = certified("replace")
    assert file.dual is None and all(c.valid for c in patch_check.check(file, LAYERS))


def test_large_logits_keep_their_margin():
    """In float32 a margin of 0.1 between logits near 1000 is rounded."""
    layers = [*LAYERS[:-1], tuple(500 * leaf for leaf in LAYERS[-1])]
    made = prune(layers, X, jnp.asarray(Y), config=PruneConfig(mode="replace"))
    rows = np.arange(COUNT)
    name = patch_files.model_hash(layers)
    file = patch_files.PatchFile(made.patches, name, 1000.0, 0.1, rows)
    assert [c.valid for c in patch_check.check(file, layers)] == [True] * COUNT


def test_forgeries_are_rejected():
    file = certified()
    p = file.patches
    too_small = file._replace(patches=p._replace(delta=0.8 * p.delta))
    other_target = file._replace(patches=p._replace(target=(p.target + 1) % 4))
    other_region = file._replace(patches=p._replace(bits=p.bits[::-1]))
    negative = file._replace(dual=-file.dual)
    halved = file._replace(dual=0.5 * file.dual)
    nan = file._replace(dual=file.dual * np.nan)
    wider = file._replace(high=2 * file.high)
    for forged in (too_small, other_target, other_region, negative, halved, nan, wider):
        found = patch_check.check(forged, LAYERS)
        assert not all(c.valid for c in found), forged
        assert all(c.reason for c in found if not c.valid)
    dropped = file._replace(patches=p._replace(care=p.bits))
    assert "leaves neurons out" in patch_check.check(dropped, LAYERS)[0].reason
    without = file._replace(dual=None)
    assert "no multipliers" in patch_check.check(without, LAYERS)[0].reason


def test_other_weights_void_everything():
    changed = [LAYERS[0], LAYERS[1], (LAYERS[2][0], LAYERS[2][1] + 1e-6)]
    with pytest.raises(ValueError, match="voids all patches"):
        patch_check.check(certified(), changed)


def test_bad_input():
    for low, high in ((None, 1.0), (0.0, None)):
        with pytest.raises(ValueError, match="Give the least and the greatest"):
            region_bound(LAYERS, BITS, jnp.asarray(TARGET), low=low, high=high)
    with pytest.raises(ValueError, match="low <= high"):
        region_bound(LAYERS, BITS, jnp.asarray(TARGET), low=1.0, high=0.0)
    with pytest.raises(ValueError, match="iterations=0"):
        bounds(0)


def test_in_float64():
    with jax.enable_x64(True):
        layers = [tuple(jnp.asarray(leaf, jnp.float64) for leaf in layer) for layer in LAYERS]
        wide = region_bound(layers, BITS, jnp.asarray(TARGET), low=0.0, high=1.0, iterations=200)
        assert wide.bound.dtype == jnp.float64
        for k in range(COUNT):  # the checker's own allowance is within the method's
            again = patch_check.bound(
                layers, explicit(k)[0], int(TARGET[k]), wide.dual[k], 0.0, 1.0
            )
            assert (again <= np.asarray(wide.bound[k]) + 1e-14).all()
    np.testing.assert_allclose(wide.bound, bounds(200).bound, rtol=1e-2)


def test_no_multipliers_gain_by_rounding():
    """Three faces w, v and w + v whose multipliers cancel, huge: against rational arithmetic."""
    rng = np.random.default_rng(0)
    w, v = rng.integers(-64, 64, (2, 12)) / 64
    kernel, c = np.stack([w, v, w + v], 1), rng.integers(-8, 8, (3, 2)) / 8.0
    layers, active = [(kernel, np.zeros(3)), (c, np.zeros(2))], np.array([True, True, False])
    lead = [Fraction(value) for value in c[:2, 0] - c[:2, 1]]
    short = 0
    for t in 10.0 ** np.arange(18) / 3:
        y = np.full((2, 3), t)
        exact = Fraction(0)
        for face in kernel:
            a, b, both = map(Fraction, face)
            exact += max(0, a * lead[0] + b * lead[1] + Fraction(t) * (a + b - both))
        assert patch_check.bound(layers, active, 1, y, 0.0, 1.0)[0] >= exact
        q = (active * (c[:, 0] - c[:, 1]) + [t, t, -t]) @ kernel.T
        short += np.maximum(0, q).sum() < exact  # as the sums alone would have it
    assert short > 2


def test_a_neuron_that_is_always_zero_hides_no_region():
    """Behind neurons that are off, one without a bias is 0: both its bits name the same region."""
    one = jnp.ones((1, 1)), jnp.zeros(1)
    layers = [one, one, (jnp.array([[1.0, 0.0]]), jnp.array([0.0, 1.0]))]
    # For x < 0 both neurons are 0 and class 1 leads by 1. The first patch, of a region that no
    # input is said to be in, acts in all of it.
    bits, target = jnp.array([[2], [0]], jnp.uint8), jnp.array([1, 0])
    dual = region_bound(layers, bits, target, low=-1.0, high=1.0).dual
    delta = jnp.array([[-0.1, 0.1], [0.6, -0.6]])
    patches = empty(2, 2, 2)._replace(bits=bits, delta=delta, target=target)
    box = np.full(1, -1.0), np.ones(1)
    name = patch_files.model_hash(layers)
    file = patch_files.PatchFile(patches, name, 1000.0, 0.1, np.array([-1, 0]), *box, dual)
    answer = apply_patched(layers, patches, jnp.array([[-0.5]]))[1].argmax(-1)
    assert answer.tolist() == [1]  # not what the second patch is certified for
    found = patch_check.check(file, layers)
    assert not found[1].valid and "patch 0" in found[1].reason
