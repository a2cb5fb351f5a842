"""Patches do what they say inside their regions, nothing outside, and survive files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.primitives import patch_files, regions
from jaxunlearn.primitives.patches import (
    Patches,
    apply_patched,
    collisions,
    deduplicate,
    empty,
    gate,
    live,
    merge,
)

pytestmark = pytest.mark.usefixtures("compiled_in_haste")
RNG = np.random.default_rng(0)
SIZES = (4, 12, 9, 3)
LAYERS = [
    (
        jnp.asarray(RNG.normal(size=(a, b)) / a**0.5, jnp.float32),
        jnp.asarray(0.3 * RNG.normal(size=b), jnp.float32),
    )
    for a, b in zip(SIZES, SIZES[1:], strict=False)
]
X = jnp.asarray(RNG.normal(size=(400, 4)), jnp.float32)


def patches_for(rows, replace=False, delta=None):
    rows = np.asarray(rows)
    delta = RNG.normal(size=(len(rows), 3)) if delta is None else delta
    return Patches(
        bits=regions.activation_pattern(LAYERS, X[rows]),
        delta=jnp.asarray(delta, jnp.float32),
        target=jnp.asarray(np.argmax(delta, -1), jnp.int32),
        replace=jnp.full(len(rows), replace),
    )


def same_region(row):
    bits = np.asarray(regions.activation_pattern(LAYERS, X))
    return (bits == bits[row]).all(-1)


@pytest.mark.parametrize("replace", [False, True])
def test_acts_inside_and_nowhere_else(replace):
    patches = patches_for([3], replace)
    base, patched = apply_patched(LAYERS, patches, X, sharpness=1e6)
    inside = same_region(3)
    np.testing.assert_array_equal(base[~inside], patched[~inside])  # bit for bit
    want = patches.delta if replace else base[inside] + patches.delta
    np.testing.assert_allclose(
        patched[inside], jnp.broadcast_to(want, (inside.sum(), 3)), rtol=1e-6
    )


def test_the_gate_is_one_on_the_region_and_falls_with_the_violation():
    patches = patches_for([3])
    inside = same_region(3)
    sharp = np.asarray(gate(LAYERS, patches, X, sharpness=1e6))[:, 0]
    soft = np.asarray(gate(LAYERS, patches, X, sharpness=0.1))[:, 0]
    assert (sharp[inside] == 1).all() and (sharp[~inside] < 1).all()
    assert (soft >= sharp).all() and ((soft > 0) & (soft < 1)).any()
    z, _ = regions.preactivations(LAYERS, X)
    sign = np.where(z[3] > 0, 1, -1)
    violation = np.minimum(1, 0.1 * np.maximum(-sign * np.asarray(z), 0)).sum(1)
    np.testing.assert_allclose(soft, np.maximum(1 - violation, 0), atol=1e-6)


def test_overlapping_patches_add_their_constant_once():
    nothing = jnp.zeros((2, 3), jnp.uint8)  # two regions that are everything
    delta = jnp.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    patches = Patches(
        nothing, delta, jnp.array([2, 0]), jnp.zeros(2, bool), nothing, jnp.array([0, 0])
    )
    assert live(patches).tolist() == [True, True]
    base, patched = apply_patched(LAYERS, patches, X[:5])
    np.testing.assert_allclose(patched - base, jnp.tile(delta[:1], (5, 1)), rtol=1e-5)
    apart = patches._replace(group=jnp.array([0, 1]), delta=jnp.tile(delta[:1], (2, 1)))
    base, patched = apply_patched(LAYERS, apart, X[:5])
    np.testing.assert_allclose(patched - base, jnp.tile(delta[:1], (5, 1)), rtol=1e-5)


def test_care_leaves_neurons_out():
    rows = patches_for([3])
    kept = jnp.asarray(np.arange(21) < 5)
    patches = rows._replace(care=regions.pack(kept)[None])
    z, _ = regions.preactivations(LAYERS, X)
    inside = ((z > 0) == (z[3] > 0)[None])[:, :5].all(-1)
    got = np.asarray(gate(LAYERS, patches, X, sharpness=1e7))[:, 0]
    np.testing.assert_array_equal(got == 1, inside)
    assert inside.sum() > same_region(3).sum()


def test_deduplicate_and_merge():
    one, two = patches_for([3, 5, 3]), patches_for([5, 7])
    found = deduplicate(one)
    assert found.first.tolist() == [0, 1, 0]
    assert live(found.patches).tolist() == [True, True, False]
    assert found.conflict[2] == (one.target[0] != one.target[2])
    both = merge(one, two, empty(4, 21, 3))
    assert both.patches.bits.shape[0] == 5 and both.first.tolist() == [0, 1, 0, 1, 4]
    base, patched = apply_patched(LAYERS, both.patches, X[jnp.array([3, 5, 7])])
    want = jnp.stack([one.delta[0], one.delta[1], two.delta[1]])
    np.testing.assert_allclose(patched - base, want, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="some|with care and without"):
        merge(one, two._replace(care=two.bits))
    with pytest.raises(ValueError, match="in groups"):
        deduplicate(one._replace(group=jnp.arange(3)))


def test_collisions_are_all_those_that_the_gate_reaches():
    patches = patches_for([3, 9])
    found = collisions(LAYERS, patches, X, own=jnp.array([3, 9]), sharpness=2.0, chunk=64)
    gates = np.array(gate(LAYERS, patches, X, sharpness=2.0))
    gates[3, 0] = gates[9, 1] = 0
    assert [(c.row, c.patch) for c in found] == [tuple(at) for at in np.argwhere(gates > 0)]
    assert found and collisions(LAYERS, empty(2, 21, 3), X) == []
    twin = jnp.concatenate([X[3:4], X[3:4]])
    assert [c.gate for c in collisions(LAYERS, patches, twin, own=jnp.array([0, -1]))] == [1.0]


def test_nan_stays_nan_and_spoils_no_other_row():
    patches, broken = patches_for([3]), X[:6].at[1].set(jnp.nan)
    base, patched = apply_patched(LAYERS, patches, broken)
    assert np.isnan(patched[1]).all() and np.isfinite(np.delete(patched, 1, 0)).all()


def test_patches_of_another_network():
    with pytest.raises(ValueError, match="1 bytes of bits.*21 hidden neurons.*another network"):
        apply_patched(LAYERS, empty(2, 8, 3), X)


def file_of(patches, **more):
    rows = np.arange(patches.bits.shape[0], dtype=np.int32)
    return patch_files.PatchFile(patches, patch_files.model_hash(LAYERS), 1000.0, 0.1, rows, **more)


@pytest.mark.parametrize("full", [False, True])
def test_files_give_back_what_was_saved(tmp_path, full):
    patches, more = patches_for([3, 5]), {}
    if full:
        patches = patches._replace(care=patches.bits, group=jnp.array([0, 0], jnp.int32))
        more = {"low": np.zeros(4), "high": np.ones(4), "dual": np.ones((2, 3, 21), np.float32)}
    file = file_of(patches, **more)
    patch_files.save_patches(tmp_path / "p.npz", file)
    back = patch_files.load_patches(tmp_path / "p.npz")
    jax.tree.map(np.testing.assert_array_equal, back.patches, patches)
    assert back.model == file.model and (back.patches.care is None) == (not full)
    for name in ("sharpness", "margin", "rows", *more):
        np.testing.assert_array_equal(getattr(back, name), getattr(file, name))


def test_any_damage_is_noticed(tmp_path):
    path = tmp_path / "p.npz"
    patch_files.save_patches(path, file_of(patches_for([3, 5])))
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    noticed = 0
    for cut in (10, len(good) // 2, len(good) - 5):
        path.write_bytes(good[:cut])
        with pytest.raises(ValueError, match="is no patch file, or it is damaged"):
            patch_files.load_patches(path)
    # A flipped bit of what is read is noticed by the checksums; some bytes of a zip are not read.
    want = patch_files.load_patches(_written(path, good))
    for at in rng.integers(0, len(good), 60):
        broken = bytearray(good)
        broken[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(broken))
        try:
            back = patch_files.load_patches(path)
        except ValueError:
            noticed += 1
        else:
            jax.tree.map(np.testing.assert_array_equal, back, want)
    assert noticed > 20
    with pytest.raises(FileNotFoundError, match="no patch file at"):
        patch_files.load_patches(tmp_path / "none.npz")


def _written(path, content):
    path.write_bytes(content)
    return path


def test_files_that_do_not_fit_together(tmp_path):
    file = file_of(patches_for([3, 5]))
    wrong = {
        r"target is not in 0\.\.2": file._replace(
            patches=file.patches._replace(target=jnp.array([0, 9]))
        ),
        "rows has shape": file._replace(rows=np.zeros(3, np.int32)),
        "no input box": file._replace(dual=np.zeros((2, 3, 21))),
        r"delta is not in -1e\+30": file._replace(
            patches=file.patches._replace(delta=jnp.full((2, 3), jnp.nan))
        ),
    }
    for message, bad in wrong.items():
        with pytest.raises(ValueError, match=message):
            patch_files.save_patches(tmp_path / "p.npz", bad)
    np.savez(tmp_path / "other.npz", a=np.ones(3))
    with pytest.raises(ValueError, match="its format is not"):
        patch_files.load_patches(tmp_path / "other.npz")
    with pytest.raises(ValueError, match="but a network file holds"):
        patch_files.load_network(tmp_path / "other.npz")


def test_the_hash_sees_every_weight():
    changed = [tuple(map(np.array, layer)) for layer in LAYERS]
    before = patch_files.model_hash(changed)
    assert before == patch_files.model_hash(LAYERS)
    changed[1][0][2, 1] = np.nextafter(changed[1][0][2, 1], np.float32(9))
    assert before != patch_files.model_hash(changed)


def test_bytes_of_a_patch():
    wide = jax.tree.leaves(empty(500, 512, 10))
    assert sum(leaf.nbytes for leaf in wide) / 500 <= 128 - 4
