"""Magnitude pruning masks.

One-shot magnitude pruning (OMP) as the sparse-unlearning papers use it: the
smallest weights, of all layers together or of each by itself, are set to zero, and stay there or
grow again.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _validate
from jaxunlearn.types import Array, Params, PyTree

SCOPES = ("global", "layer")


def magnitude_mask(params: Params, rate: Array | float, *, scope: str = "global") -> PyTree:
    """0/1 mask that drops the ``rate`` smallest weights, ranked over all kernels together.

    Kernels are the leaves with two or more axes; biases and normalisation parameters
    are kept, as in the official code of Liu et al. (Model Sparsity Can Simplify
    Machine Unlearning, 2023), which prunes convolutions only. Exactly
    ``round(rate * size)`` entries are dropped; ties go by position, first ones first.

    Args:
      params: any pytree of floats.
      rate: fraction of the kernel entries to drop, in (0, 1); may be traced.
      scope: ``global`` ranks all kernels together, ``layer`` each by itself, dropping
        ``round(rate * size)`` of every one.

    Returns:
      A pytree like ``params``, of its dtypes, with entries 0 and 1.

    Cost: one sort of the kernel entries.

    Raises:
      ValueError: a rate outside (0, 1); no leaf with two axes; an unknown scope.

    Example:
      >>> mask = magnitude_mask({"w": jnp.array([[0.1, -3.0], [2.0, 0.2]]), "b": jnp.zeros(2)}, 0.5)
      >>> mask["w"].tolist(), mask["b"].tolist()
      ([[0.0, 1.0], [1.0, 0.0]], [1.0, 1.0])
    """
    if not isinstance(rate, jax.Array):
        _validate.fraction(rate=rate)
    _validate.one_of(SCOPES, scope=scope)
    leaves, structure = jax.tree.flatten(params)
    kernels = [leaf for leaf in leaves if leaf.ndim >= 2]
    if not kernels:
        raise ValueError("params has no leaf with two or more axes, so no weights to prune.")
    flat = [jnp.abs(leaf).ravel() for leaf in kernels]
    if scope == "global":
        keep = _largest(jnp.concatenate(flat), rate)
        pieces = iter(jnp.split(keep, np.cumsum([leaf.size for leaf in kernels])[:-1]))
    else:
        pieces = (_largest(magnitudes, rate) for magnitudes in flat)
    masks = [
        next(pieces).reshape(leaf.shape).astype(leaf.dtype)
        if leaf.ndim >= 2
        else jnp.ones_like(leaf)
        for leaf in leaves
    ]
    return jax.tree.unflatten(structure, masks)


def _largest(magnitudes: Array, rate: Array | float) -> Array:
    """``bool[size]``: all but the ``round(rate * size)`` smallest."""
    size = magnitudes.size
    known = not isinstance(rate, jax.Array)
    dropped = round(rate * size) if known else jnp.round(rate * size)
    rank = (
        jnp.zeros(size, jnp.int32)
        .at[jnp.argsort(magnitudes, stable=True)]
        .set(jnp.arange(size, dtype=jnp.int32))
    )
    return rank >= dropped


class OneShot(NamedTuple):
    """What :func:`one_shot` returns.

    Attributes:
      params: with zeros where weights were dropped.
      mask: 0/1 pytree to stay within (``minimize(..., mask=mask)``); None where they may regrow.
    """

    params: Params
    mask: PyTree | None


def one_shot(
    params: Params, rate: Array | float, *, scope: str = "global", regrow: bool = False
) -> OneShot:
    """One-shot magnitude pruning of a trained network, without training it again.

    With ``regrow`` the zeros are where the next training starts, no more: the official code of
    ConMU drops its mask before it fine-tunes, so that nothing sparse is left after.
    :func:`~jaxunlearn.training.fit_pruned` is the other kind, with rewinding.

    Args:
      params: any pytree of floats; not modified.
      rate: as in :func:`magnitude_mask`.
      scope: as there.
      regrow: give no mask to stay within.

    Returns:
      :class:`OneShot`.

    Cost and errors as :func:`magnitude_mask`.

    Example:
      >>> params, mask = one_shot({"w": jnp.array([[0.1, -3.0]])}, 0.5)
      >>> params["w"].tolist(), mask["w"].tolist()
      ([[0.0, -3.0]], [[0.0, 1.0]])
      >>> one_shot({"w": jnp.array([[0.1, -3.0]])}, 0.5, regrow=True).mask is None
      True
    """
    mask = magnitude_mask(params, rate, scope=scope)
    return OneShot(jax.tree.map(jnp.multiply, params, mask), None if regrow else mask)


def density(mask: PyTree) -> Array:
    """Fraction of ones in a mask.

    Example:
      >>> float(density({"w": jnp.array([1.0, 0.0])}))
      0.5
    """
    leaves = jax.tree.leaves(mask)
    return jnp.sum(jnp.stack([leaf.sum() for leaf in leaves])) / sum(leaf.size for leaf in leaves)
