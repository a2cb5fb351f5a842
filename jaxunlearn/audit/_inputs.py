"""What every audit does first: check its arrays, widen them, weigh their rows."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn._validate import known
from jaxunlearn.types import Array


def widen(x) -> Array:
    """``x`` in float32, or in its own dtype if that is wider."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def logits(value, *, name: str = "logits") -> Array:
    """``value`` as wide floats; it must be ``float[n, C]`` with n >= 1 and C >= 2.

    NaN is let through: a model that diverged is a result, which its audit shows as nan.
    """
    value = jnp.asarray(value)
    if value.ndim != 2 or value.shape[0] == 0 or value.shape[1] < 2:
        raise ValueError(
            f"{name} has shape {value.shape}, but must be [n, C]: n >= 1 rows and C >= 2 classes. "
            "For many models at once, use jax.vmap."
        )
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(f"{name} has dtype {value.dtype}, but logits must be floats.")
    return widen(value)


def labels(value, shape: tuple[int, ...], *, name: str = "y") -> Array:
    """``value`` as an array; it must be ``int[n]`` below C, for logits of ``shape`` [n, C]."""
    value = jnp.asarray(value)
    if value.shape != shape[:1]:
        raise ValueError(f"{name} has shape {value.shape}, but must be ({shape[0]},): one a row.")
    if not jnp.issubdtype(value.dtype, jnp.integer):
        raise ValueError(f"{name} has dtype {value.dtype}, but class labels must be integers.")
    if known(value):
        # In NumPy: a constant closed over by a jitted function would be traced by jnp.
        low, high = np.asarray(value).min(), np.asarray(value).max()
        if low < 0 or high >= shape[1]:
            raise ValueError(
                f"{name} has labels from {low} to {high}, but the logits have classes "
                f"0..{shape[1] - 1}. Renumber the labels from 0."
            )
    return value


def scores(value, *, name: str) -> Array:
    """``value`` as wide floats; it must be a non-empty vector."""
    value = widen(value)
    if value.ndim != 1 or value.shape[0] == 0:
        raise ValueError(
            f"{name} has shape {value.shape}, but must be [n] with n >= 1: one score a row."
        )
    return value


def weights(value, like: Array, *, name: str = "weights") -> Array:
    """``value``, or ones for None, in the dtype of ``like[n]``; bool or numbers >= 0, shape [n]."""
    if value is None:
        return jnp.ones_like(like)
    value = jnp.asarray(value)
    if value.shape != like.shape:
        raise ValueError(
            f"{name} has shape {value.shape}, but must be {like.shape}: one weight a row."
        )
    if known(value) and not bool(np.all(np.asarray(value) >= 0)):
        raise ValueError(f"{name} has entries that are negative or NaN, but weights must be >= 0.")
    return value.astype(like.dtype)


@jax.jit
def weighted_mean(values: Array, weight: Array) -> Array:
    """Mean of ``values[n]``; nan if all weights are zero. Rows of weight zero may hold anything."""
    return jnp.where(weight > 0, values * weight, 0).sum() / weight.sum()
