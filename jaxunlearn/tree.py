"""Arithmetic on pytrees of arrays, where optax has none of it."""

import jax
import jax.numpy as jnp

from jaxunlearn.types import Array, PyTree


def size(tree: PyTree) -> int:
    """Number of scalars in all leaves.

    Example:
      >>> size({"w": jnp.zeros((2, 3)), "b": jnp.zeros(3)})
      9
    """
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def all_finite(tree: PyTree) -> Array:
    """``bool[]``: no leaf holds NaN or infinity.

    Example:
      >>> bool(all_finite({"w": jnp.ones(2), "b": jnp.array([1.0, jnp.nan])}))
      False
    """
    leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
    return jnp.stack(leaves).all() if leaves else jnp.array(True)


def add_scaled(a: PyTree, scale, b: PyTree) -> PyTree:
    """``a + scale * b`` leaf by leaf, in the dtypes of ``a``.

    Example:
      >>> add_scaled([jnp.ones(2)], 0.5, [jnp.array([2.0, 4.0])])[0].tolist()
      [2.0, 3.0]
    """
    return jax.tree.map(lambda u, v: (u + scale * v).astype(u.dtype), a, b)
