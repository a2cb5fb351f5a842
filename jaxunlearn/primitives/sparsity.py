"""Magnitude pruning masks.

One-shot magnitude pruning (OMP) as the sparse-unlearning papers use it: the
smallest weights of all layers together are set to zero, and stay there.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _validate
from jaxunlearn.types import Array, Params, PyTree


def magnitude_mask(params: Params, rate: float) -> PyTree:
    """0/1 mask that drops the ``rate`` smallest weights, ranked over all kernels together.

    Kernels are the leaves with two or more axes; biases and normalisation parameters
    are kept, as in the official code of Liu et al. (Model Sparsity Can Simplify
    Machine Unlearning, 2023), which prunes convolutions only. Exactly
    ``round(rate * size)`` entries are dropped; ties go by position, first ones first.

    Args:
      params: any pytree of floats.
      rate: fraction of the kernel entries to drop, in (0, 1).

    Returns:
      A pytree like ``params``, of its dtypes, with entries 0 and 1.

    Cost: one sort of the kernel entries.

    Raises:
      ValueError: a rate outside (0, 1); no leaf with two axes.

    Example:
      >>> mask = magnitude_mask({"w": jnp.array([[0.1, -3.0], [2.0, 0.2]]), "b": jnp.zeros(2)}, 0.5)
      >>> mask["w"].tolist(), mask["b"].tolist()
      ([[0.0, 1.0], [1.0, 0.0]], [1.0, 1.0])
    """
    _validate.fraction(rate=rate)
    leaves, structure = jax.tree.flatten(params)
    kernels = [leaf for leaf in leaves if leaf.ndim >= 2]
    if not kernels:
        raise ValueError("params has no leaf with two or more axes, so no weights to prune.")
    magnitudes = jnp.concatenate([jnp.abs(leaf).ravel() for leaf in kernels])
    dropped = round(rate * magnitudes.size)
    order = jnp.argsort(magnitudes, stable=True)
    keep = jnp.ones(magnitudes.size, bool).at[order[:dropped]].set(False)
    pieces = iter(jnp.split(keep, np.cumsum([leaf.size for leaf in kernels])[:-1]))
    masks = [
        next(pieces).reshape(leaf.shape).astype(leaf.dtype)
        if leaf.ndim >= 2
        else jnp.ones_like(leaf)
        for leaf in leaves
    ]
    return jax.tree.unflatten(structure, masks)


def density(mask: PyTree) -> Array:
    """Fraction of ones in a mask.

    Example:
      >>> float(density({"w": jnp.array([1.0, 0.0])}))
      0.5
    """
    leaves = jax.tree.leaves(mask)
    return jnp.sum(jnp.stack([leaf.sum() for leaf in leaves])) / sum(leaf.size for leaf in leaves)
