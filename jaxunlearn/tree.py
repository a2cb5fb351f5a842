"""Arithmetic on pytrees of arrays, where optax has none of it."""

import jax
import jax.numpy as jnp

from jaxunlearn.types import Array, PyTree


def size(tree: PyTree) -> int:
    """Number of scalars in all leaves.

    >>> size({"w": jnp.zeros((2, 3)), "b": jnp.zeros(3)})
    9
    """
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def all_finite(tree: PyTree) -> Array:
    """Scalar bool: no leaf holds NaN or infinity."""
    leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
    return jnp.stack(leaves).all() if leaves else jnp.array(True)


def add_scaled(a: PyTree, scale, b: PyTree) -> PyTree:
    """``a + scale * b`` leaf by leaf, in the dtypes of ``a``."""
    return jax.tree.map(lambda u, v: (u + scale * v).astype(u.dtype), a, b)


def where(condition: Array, a: PyTree, b: PyTree) -> PyTree:
    """``a`` if the scalar ``condition`` else ``b``, leaf by leaf."""
    return jax.tree.map(lambda u, v: jnp.where(condition, u, v), a, b)
