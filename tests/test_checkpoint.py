"""States on disk."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import State, checkpoint

STATE = State(
    params={"w": jnp.array([0.1, jnp.nan, -0.0], jnp.bfloat16), "nested": (jnp.float32(1e-45),)},
    removed=jnp.array([True, False]),
    memory=(),
    grads=jnp.float32(3),
    status=jnp.int32(0),
    certificate={},
)


def like(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


@pytest.mark.parametrize("template", [lambda tree: tree, like])
def test_bit_for_bit(tmp_path, template):
    checkpoint.save(tmp_path / "deep" / "state", STATE)
    restored = checkpoint.restore(tmp_path / "deep" / "state", template(STATE))
    assert jax.tree.structure(restored) == jax.tree.structure(STATE)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(STATE), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_nothing_is_overwritten(tmp_path):
    checkpoint.save(tmp_path / "state", STATE)
    with pytest.raises(ValueError, match=r"path='.*state' exists; remove it first"):
        checkpoint.save(tmp_path / "state", STATE._replace(grads=jnp.float32(4)))
    chex.assert_trees_all_equal(checkpoint.restore(tmp_path / "state", STATE), STATE)


def test_a_save_that_fails_leaves_nothing(tmp_path):
    with pytest.raises((TypeError, ValueError)):
        checkpoint.save(tmp_path / "state", {"w": jnp.ones(2), "function": print})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "other, message",
    [
        ({"w": jnp.zeros(4)}, r"(?s)\(4,\).*\(3,\)"),
        ({"w": jnp.zeros(2)}, r"(?s)\(2,\).*\(3,\)"),
        ({"w": jnp.zeros(3, jnp.bfloat16)}, "like has dtype bfloat16 at w, but .* holds float32"),
        ({"v": jnp.zeros(3)}, "structures do not match"),
        ({"w": jnp.zeros(3), "v": jnp.zeros(3)}, "structures do not match"),
    ],
)
def test_another_template_is_refused(tmp_path, other, message):
    checkpoint.save(tmp_path / "state", {"w": jnp.arange(3.0)})
    with pytest.raises(ValueError, match=message):
        checkpoint.restore(tmp_path / "state", other)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no state at '.*nowhere'"):
        checkpoint.restore(tmp_path / "nowhere", STATE)
