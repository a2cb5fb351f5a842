"""The audit passes what is honest, and fails files that were edited or do too little."""

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
    with pytest.raises(ValueError, match="multipliers for 2 neurons"):
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
        ("low has shape", lambda f: f._replace(low=np.zeros(3), high=np.ones(3))),
        ("low has shape", lambda f: f._replace(low=np.zeros(()), high=np.ones(()))),
        ("its box must be", lambda f: f._replace(low=np.ones(1), high=np.zeros(1))),
        ("its box must be", lambda f: f._replace(low=np.array([-np.inf]))),
        ("its box must be", lambda f: f._replace(low=np.full(1, 0.9), high=np.full(1, 0.9))),
        ("margin=-1", lambda f: f._replace(margin=-1.0)),
    ],
)
def test_arrays_that_do_not_fit(message, change):
    with pytest.raises(ValueError, match=message):
        audit(change(certified(mode="point")))
