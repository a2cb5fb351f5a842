"""From a flax.linen module to a Model, with the checks of what goes in."""

import functools
import math
from collections.abc import Callable, Hashable
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxunlearn.types import Array, Model

# The least height and width of an image at which every layer still sees pixels.
# None: takes any shape, flattened.
MIN_SIZE: dict[str, int | None] = {
    "logistic": None,
    "mlp": None,
    "cnn": 8,
    "resnet18": 8,
    "lenet": 12,
    "vgg16": 16,
}


# Cached: equal arguments give the same Model, so that what was compiled for it is found again.
@functools.cache
def linen_model(name: str, make: Callable[..., nn.Module], *options: Hashable) -> Model:
    """The pair of functions of ``make(*options)``; ``name`` is its entry in ``MIN_SIZE``.

    Parameters are the plain dict under flax's "params" collection (there is no
    other collection). They are drawn in float32 and cast to the dtype of ``x``,
    so that a key gives the same network in every precision.
    """
    module = make(*options)

    # Compiled, the forward pass of flax's init is never run: only the parameters are used.
    @functools.partial(jax.jit, static_argnums=(1, 2))
    def draw(key, shape, dtype):
        params = module.init(key, jnp.zeros((1, *shape)))["params"]
        return jax.tree.map(lambda leaf: leaf.astype(dtype), params)

    def init(key, x):
        _check_input(name, x)
        return draw(key, x.shape[1:], x.dtype)

    def apply(params, x):
        _check_input(name, x)
        return cast(Array, module.apply({"params": params}, x))

    return Model(init, apply)


def flatten(x: Array) -> Array:
    """``x[B, ...]`` as ``[B, features]``; also for B = 0, where a -1 would fail."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def _check_input(name: str, x: Array) -> None:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"x has dtype {x.dtype}, but models take floats: x.astype('float32'), "
            "and divided by 255 for pixels."
        )
    least = MIN_SIZE[name]
    if least is None:
        if x.ndim < 2:
            raise ValueError(
                f"x has shape {x.shape}, but {name} takes a batch [B, ...]: x[None] for one row."
            )
        return
    if x.ndim != 4:
        hint = ", x[..., None] for grey images without a channel axis" if x.ndim == 3 else ""
        flat = " or ".join(known for known, size in MIN_SIZE.items() if size is None)
        raise ValueError(
            f"x has shape {x.shape}, but {name} takes images [B, height, width, channels]"
            f"{hint}. For other inputs use {flat}."
        )
    smallest = min(x.shape[1:3])
    if smallest < least:
        fit = [known for known, size in MIN_SIZE.items() if size is None or size <= smallest]
        raise ValueError(
            f"x has shape {x.shape}, but {name} takes images of at least {least} x {least} "
            f"pixels. Models that fit: {', '.join(fit)}."
        )
