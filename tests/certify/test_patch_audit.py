"""The audit passes what is honest, and fails files that were edited or do too little."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import Dataset
from jaxunlearn.certify.patch_audit import audit_patches
from jaxunlearn.certify.patch_check import Claim, check
from jaxunlearn.methods.prune import PruneConfig, prune
from jaxunlearn.primitives.patch_files import PatchFile, model_hash
from jaxunlearn.primitives.patches import empty

pytestmark = pytest.mark.usefixtures("compiled_in_haste")
# Class 0 where x > 0.5, class 1 elsewhere; the regions are x > 0 and x <= 0.
LAYERS = [(jnp.ones((1, 1)), jnp.zeros(1)), (jnp.array([[2.0, 0.0]]), jnp.array([0.0, 1.0]))]
X = jnp.array([[0.9], [-0.9], [0.2], [-1e-4], [0.7]])
Y = jnp.array([0, 1, 1, 1, 1])  # the last one is not known


def certified(rows=(0,), mode="region"):
    rows = np.array(rows)
    config = PruneConfig(mode=mode, low=-1.0, high=1.0, iterations=50)
    made = prune(LAYERS, X[rows], Y[rows], config=config)
    return PatchFile(
        made.patches, model_hash(LAYERS), 1e3, 0.1, rows, np.full(1, -1.0), np.ones(1), made.dual
    )


def audit(file, keep=(0, 1, 2, 4)):
    keep = np.array(keep)
    return audit_patches(file, LAYERS, Dataset(X[keep], Y[keep]))


def edited(file, **more):
    return file._replace(patches=file.patches._replace(**more))


def told(file, requests, outcome):
    return file._replace(requests=np.array(requests), outcome=np.array(outcome))


def test_what_is_honest_passes_and_says_what_it_changed():
    found = audit(certified())
    assert found.passed and found.flipped == [0] and found.changed_elsewhere == []
    # Rows of the same region, which it cannot spare, and those of them whose answer changed.
    assert sorted({c.row for c in found.collisions}) == [2, 3] and found.answers_elsewhere == [3]


def test_a_collar_is_no_cause():
    found = audit(certified(), keep=range(5))
    assert found.changed_elsewhere == [3] and not found.passed


def test_soft_gates_are_refused():
    with pytest.raises(ValueError, match="sharpness=1e-09 must be 10"):
        audit(certified()._replace(sharpness=1e-9))


def test_every_named_row_is_looked_at():
    nothing = certified()._replace(patches=empty(1, 1, 2), dual=None)
    assert audit(nothing).not_flipped == [0] and not audit(nothing).passed
    nobody = certified()._replace(rows=np.array([-1]))
    assert not audit(nobody).passed
    conflict = certified((0, 2))  # one region, two labels
    found = audit(conflict)
    assert found.flipped == [0] and found.not_flipped == [2] and not found.passed
    wrong = audit(certified((1, 4)), keep=range(5))
    assert wrong.already_wrong == [4] and 4 not in wrong.flipped


def test_a_patch_must_be_at_its_row():
    found = audit(certified((0, 1))._replace(rows=np.array([1, 0])))
    assert found.misplaced == [0, 1] and not found.passed


def test_no_text_excuses_a_false_certificate():
    file = certified()
    with pytest.raises(ValueError, match="dual has 2 neurons, but the network takes 1"):
        audit(file._replace(dual=np.zeros((1, 2, 2))))
    halved = audit(edited(file, delta=0.5 * file.patches.delta))
    assert [c.claim for c in halved.certificates] == [Claim.REGION] and not halved.passed
    point = audit(certified(mode="point"))
    assert [c.claim for c in point.certificates] == [Claim.POINT] and point.passed


def test_wider_patches_are_audited_and_excuse_their_own_class_only():
    file = edited(certified(mode="point"), care=jnp.zeros((1, 1), jnp.uint8))
    found = audit(file)
    assert [c.claim for c in found.certificates] == [Claim.WIDER]
    assert found.changed_elsewhere == [1, 2, 3] and not found.passed
    own = audit_patches(file, LAYERS, Dataset(jnp.array([[0.9], [0.8]]), jnp.zeros(2, int)))
    assert own.passed and own.answers_elsewhere == [1]
    replacing = edited(certified(mode="replace"), care=jnp.zeros((1, 1), jnp.uint8))
    assert [c.valid for c in check(replacing, LAYERS)] == [False] and not audit(replacing).passed


def test_a_patch_for_nobody_excuses_nothing():
    """Row 1 did not ask, and a second patch without a name changes it."""
    file = certified((0, 1))._replace(rows=np.array([0, -1]))
    found = audit(file)
    assert found.changed_elsewhere == [1] and not found.passed
    assert [c.valid for c in found.certificates] == [True, True]


def test_the_box_must_have_the_row_in_it():
    narrow = certified()._replace(low=np.full(1, -1.0), high=np.full(1, 0.5))
    found = audit(narrow)
    assert all(c.valid for c in found.certificates)
    assert found.misplaced == [0] and 0 in found.outside and not found.passed


def test_outcomes_are_compared_with_what_is():
    data = Dataset(X.at[3].set(-0.5), Y.at[3].set(0))  # row 3 was wrong before
    for outcome, misstated in (
        ([0, 1], []),
        ([2, 1], []),
        ([0, 0], [3]),
        ([1, 1], [0]),
        ([4, 1], [0]),
    ):
        found = audit_patches(told(certified(), [0, 3], outcome), LAYERS, data)
        assert found.flipped == [0] and found.already_wrong == [3]
        assert found.misstated == misstated and found.passed == (not misstated)
    # That a request was not met is no excuse for it.
    conflict = audit(told(certified((0, 2)), [0, 2], [0, 3]))
    assert conflict.misstated == [] and conflict.not_flipped == [2] and not conflict.passed
    skipped = audit(told(certified(), [0, 1], [0, 5]))
    assert skipped.not_flipped == [1] and not skipped.passed


def test_who_asked_is_what_the_auditor_says():
    file, data = certified(), Dataset(X[:3], Y[:3])
    assert audit_patches(file, LAYERS, data, requests=[0]).passed
    more = audit_patches(file, LAYERS, data, requests=[0, 1])
    assert more.missing == [1] and not more.passed
    others = audit_patches(file, LAYERS, data, requests=[1])
    assert others.uninvited == [0] and not others.passed


def test_weights_that_are_no_numbers():
    broken = [(jnp.full((1, 1), jnp.nan), LAYERS[0][1]), LAYERS[1]]
    with pytest.raises(ValueError, match="params has NaN or infinite weights"):
        audit_patches(certified(), broken, Dataset(X, Y))


def test_in_float64_the_audit_is_too():
    with jax.enable_x64(True):
        layers = [tuple(jnp.asarray(leaf, jnp.float64) for leaf in layer) for layer in LAYERS]
        # Beyond a face by less than float32 can tell from 1.
        layers[0] = layers[0][0], jnp.array([-1.0])
        x = jnp.array([[1 + 1e-9], [1 - 1e-9], [0.2]])
        made = prune(layers, x[:1], jnp.array([0]))
        name = model_hash(layers)
    weights = [tuple(map(np.asarray, layer)) for layer in layers]
    patches = jax.tree.map(np.asarray, made.patches)
    assert not patches.delta.any()  # class 1 leads there
    file = PatchFile(patches, name, 1e3, 0.1, np.array([0]))
    found = audit_patches(file, weights, Dataset(np.asarray(x), np.array([0, 1, 1])))
    assert found.already_wrong == [0] and found.changed_elsewhere == []


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("replace has dtype", lambda f: edited(f, replace=np.array([1e-3]))),
        ("replace has dtype", lambda f: edited(f, replace=np.array([-1]))),
        ("target has dtype", lambda f: edited(f, target=np.array([1.0]))),
        (r"group is not in 0\.\.0", lambda f: edited(f, group=np.array([99]))),
        (r"group is not in 0\.\.0", lambda f: edited(f, group=np.array([-1]))),
        ("rows has dtype", lambda f: f._replace(rows=f.rows + 0.5)),
        ("rows is not in", lambda f: f._replace(rows=f.rows - 9)),
        ("low has 3 inputs", lambda f: f._replace(low=np.zeros(3), high=np.ones(3))),
        ("low has shape", lambda f: f._replace(low=np.zeros(()), high=np.ones(()))),
        ("its box must have", lambda f: f._replace(low=np.ones(1), high=np.zeros(1))),
        ("low is not in", lambda f: f._replace(low=np.array([-np.inf]))),
        ("high is not in", lambda f: f._replace(high=np.array([np.nan]))),
        ("its box must have", lambda f: f._replace(low=np.full(1, 0.9), high=np.full(1, 0.9))),
        ("one side of a box", lambda f: f._replace(low=None)),
        ("margin=-1", lambda f: f._replace(margin=-1.0)),
        ("margin=nan", lambda f: f._replace(margin=float("nan"))),
        ("sharpness=1e\\+300", lambda f: f._replace(sharpness=1e300)),
        ("delta is not in", lambda f: edited(f, delta=np.array([[np.nan, 0.0]]))),
        ("delta is not in", lambda f: edited(f, delta=np.array([[1e39, 0.0]]))),
        ("delta has dtype", lambda f: edited(f, delta=np.array([[b"ab", b"cd"]]).view("V2"))),
        ("bits has 2 bytes", lambda f: edited(f, bits=np.array([[1, 0]], np.uint8))),
        ("delta has 3 classes", lambda f: edited(f, delta=np.ones((1, 3)))),
        ("dual has dtype", lambda f: f._replace(dual=np.ones((1, 2, 1), complex))),
        ("dual has shape", lambda f: f._replace(dual=np.ones((1, 2)))),
        ("requests has shape", lambda f: f._replace(requests=np.zeros((1, 1), int))),
        ("requests has a row more than once", lambda f: f._replace(requests=np.zeros(2, int))),
        (r"not in requests: \[0\]", lambda f: f._replace(requests=np.array([2]))),
        ("outcome has shape", lambda f: f._replace(outcome=np.array([0]))),
        ("outcome has shape", lambda f: told(f, [0, 2], [0])),
        (r"outcome is not in 0\.\.5", lambda f: told(f, [0], [6])),
    ],
)
def test_arrays_that_do_not_fit(message, change):
    with pytest.raises(ValueError, match=message):
        audit(change(certified(mode="point")))
