"""Pooling over windows of 2 x 2 pixels, with gradients that are fast on CPU.

The gradient of ``flax.linen.max_pool`` is XLA's select-and-scatter, which is slow on
CPU; four strided slices and elementwise operations are many times faster (seen with
jax 0.10 on two CPU cores).
"""

import jax.numpy as jnp

from jaxunlearn.types import Array


def max_pool(x: Array) -> Array:
    """Maximum of every 2 x 2 window, stride 2.

    Args:
      x: ``float[B, height, width, channels]``.

    Returns:
      ``float[B, height // 2, width // 2, channels]``. The last row or column of
      an odd size is left out, as in ``flax.linen.max_pool(x, (2, 2), (2, 2))``.

    At ties the gradient is shared, half and half at each of the three
    comparisons: equal pixels in a window of four equal ones get a quarter each.
    (flax gives all of it to the first.) The sum over a window is always that of
    its output, and a reflected image has the reflected gradient.

    Cost: three comparisons for each output.

    Raises:
      ValueError: ``x`` is no batch of images of at least 2 x 2.

    Example:
      >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1)).ravel().tolist()
      [5.0, 7.0, 13.0, 15.0]
    """
    a, b, c, d = _corners(x)
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


def avg_pool(x: Array) -> Array:
    """Mean of every 2 x 2 window, stride 2; float16 and bfloat16 add up in float32.

    Args:
      x: ``float[B, height, width, channels]``.

    Returns:
      ``float[B, height // 2, width // 2, channels]``, odd sizes cropped as in
      :func:`max_pool`.

    Cost: three additions for each output.

    Raises:
      ValueError: ``x`` is no batch of images of at least 2 x 2.

    Example:
      >>> avg_pool(jnp.arange(16.0).reshape(1, 4, 4, 1)).ravel().tolist()
      [2.5, 4.5, 10.5, 12.5]
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    a, b, c, d = (corner.astype(wide) for corner in _corners(x))
    return (0.25 * (a + b + c + d)).astype(x.dtype)


def _corners(x):
    """The four pixels of every window, each ``[B, height // 2, width // 2, channels]``."""
    if x.ndim != 4 or min(x.shape[1:3]) < 2:
        raise ValueError(
            f"x has shape {x.shape}, but pooling takes [B, height, width, channels] "
            "with at least 2 x 2 pixels."
        )
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    return [x[:, i:height:2, j:width:2] for i in (0, 1) for j in (0, 1)]
