"""The constant of a patch: which class it makes the answer, and how much that takes."""

import jax
import jax.numpy as jnp

from jaxunlearn.types import Array


def runner_up(logits: Array, y: Array) -> Array:
    """The best class that is not the label: ``int32[K]``.

    Example:
      >>> runner_up(jnp.array([[3.0, 1.0, 2.0]]), jnp.array([0])).tolist()
      [2]
    """
    label = jnp.arange(logits.shape[-1])[None] == y[:, None]
    return jnp.where(label, -jnp.inf, logits).argmax(-1).astype(jnp.int32)


def lead_over(logits: Array, target: Array) -> Array:
    """How far every class is ahead of the target: ``float[K, L]``.

    Example:
      >>> lead_over(jnp.array([[3.0, 1.0]]), jnp.array([1])).tolist()
      [[2.0, 0.0]]
    """
    return logits - jnp.take_along_axis(logits, target[:, None], axis=1)


def constant(lead: Array, target: Array, margin: float) -> Array:
    """The optimal constant of Eq. 7, ``t = max(0, (V + margin) / 2)`` with ``V`` the largest lead.

    ``+t`` for the target and ``-t`` for all others.

    Args:
      lead: ``float[K, L]``, of every class over the target.
      target: ``int[K]``.
      margin: epsilon.

    Returns:
      ``float[K, L]``.

    Example:
      >>> constant(jnp.array([[3.0, 0.0]]), jnp.array([1]), 1.0).tolist()
      [[-2.0, 2.0]]
    """
    t = jax.nn.relu((lead.max(-1) + margin) / 2)
    return t[:, None] * (2 * jax.nn.one_hot(target, lead.shape[-1], dtype=lead.dtype) - 1)
