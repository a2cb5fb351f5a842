"""A 2-D convolution that is fast on every backend, also inside loops.

XLA's CPU convolution is fast at the top level of a program, and many times slower
inside ``lax.scan`` or ``lax.fori_loop``, which is where a whole training in one jit
lives (seen with jax 0.10 on two CPU cores). Slicing, concatenating and one matrix
product run at full speed everywhere, and differentiate and vmap into more of the same.
"""

from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax import lax

from jaxunlearn import _validate
from jaxunlearn._platform import platform
from jaxunlearn.types import Array

Padding = Literal["SAME", "VALID"] | tuple[tuple[int, int], tuple[int, int]]
Implementation = Literal["slices", "xla"]


def conv(
    x: Array,
    kernel: Array,
    *,
    strides: int | tuple[int, int] = 1,
    padding: Padding = "SAME",
    implementation: Implementation | None = None,
) -> Array:
    """2-D convolution (cross-correlation) of images with a bank of kernels.

    ``out[b, i, j, o] = sum_{u, v, c} x[b, s i + u, s j + v, c] kernel[u, v, c, o]``
    with ``x`` padded and ``s`` the stride: what ``jax.lax.conv_general_dilated``
    computes, to rounding.

    Args:
      x: ``float[B, height, width, c_in]``.
      kernel: ``float[kh, kw, c_in, c_out]``, of the dtype of ``x``.
      strides: pixels between outputs, one number or (vertical, horizontal).
      padding: zeros around the image. ``"VALID"`` none; ``"SAME"`` so many that
        stride 1 keeps the size; or ``((top, bottom), (left, right))``.
      implementation: ``"slices"`` cuts the image into ``kh * kw`` shifted copies
        and does one matrix product; ``"xla"`` is ``lax.conv_general_dilated``.
        ``None`` takes slices where the default device is a CPU, xla elsewhere.

    Returns:
      ``float[B, out_height, out_width, c_out]``, of the dtype of ``x``.

    The choice is made while tracing, from ``jax.config.jax_default_device`` or
    ``jax.default_backend()``: both ways are correct on every device, so a wrong
    guess costs time only, and the traced program has no branches.

    Cost: ``"slices"`` holds ``kh * kw`` copies of ``x``, and keeps them for the
    backward pass (a 3 x 3 layer: 9 times the memory of its input).

    Raises:
      ValueError: wrong ranks, channels that do not match, negative padding, an
        image smaller than the kernel, or an unknown ``implementation``.

    Example:
      >>> import jax.numpy as jnp
      >>> edges = jnp.array([-1.0, 1.0]).reshape(1, 2, 1, 1)
      >>> image = jnp.array([0.0, 0.0, 1.0, 1.0]).reshape(1, 1, 4, 1)
      >>> conv(image, edges, padding="VALID").ravel().tolist()
      [0.0, 1.0, 0.0]
    """
    steps = (strides, strides) if isinstance(strides, int) else strides
    pads = _check(x, kernel, steps, padding)
    if implementation is None:
        implementation = "slices" if platform() == "cpu" else "xla"
    _validate.one_of(("slices", "xla"), implementation=implementation)
    if implementation == "slices":
        return _slices(x, kernel, steps, pads)
    return lax.conv_general_dilated(
        x, kernel, steps, pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


class Conv(nn.Module):
    """A convolution layer with the parameters of ``flax.linen.Conv``.

    Names, shapes and initial values are the same (``kernel`` [kh, kw, c_in,
    c_out], LeCun normal; ``bias`` [c_out], zeros), so parameters can be moved
    between the two; only the computation differs (:func:`conv`).

    Attributes:
      features: number of output channels, c_out.
      kernel_size: (kh, kw).
      strides, padding, implementation: as in :func:`conv`.
      use_bias: whether to add a bias.
      kernel_init, bias_init: initializers of the parameters.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> layer = Conv(16, (3, 3), strides=2)
      >>> x = jnp.ones((1, 28, 28, 1))
      >>> layer.apply(layer.init(jax.random.key(0), x), x).shape
      (1, 14, 14, 16)
    """

    features: int
    kernel_size: tuple[int, int]
    strides: int | tuple[int, int] = 1
    padding: Padding = "SAME"
    use_bias: bool = True
    implementation: Implementation | None = None
    kernel_init: Callable[..., Array] = nn.linear.default_kernel_init
    bias_init: Callable[..., Array] = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Convolve ``x[B, height, width, c_in]``."""
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", self.bias_init, (self.features,)) if self.use_bias else None
        x, kernel, bias = promote_dtype(x, kernel, bias)
        y = conv(
            x,
            kernel,
            strides=self.strides,
            padding=self.padding,
            implementation=self.implementation,
        )
        return y if bias is None else y + bias.reshape(1, 1, 1, -1)


def _slices(x, kernel, strides, pads):
    kh, kw, c_in, c_out = kernel.shape
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    batch, height, width, _ = x.shape
    rows = (height - kh) // strides[0] + 1
    columns = (width - kw) // strides[1] + 1

    def shifted(u, v):
        end = (u + (rows - 1) * strides[0] + 1, v + (columns - 1) * strides[1] + 1)
        return lax.slice(x, (0, u, v, 0), (batch, *end, c_in), (1, *strides, 1))

    patches = jnp.concatenate([shifted(u, v) for u in range(kh) for v in range(kw)], axis=-1)
    # Two axes, not four: XLA-CPU then runs the forward product and both gradients as plain
    # matrix products, which made training faster (jax 0.10, two CPU cores).
    patches = patches.reshape(batch * rows * columns, kh * kw * c_in)
    out = patches @ kernel.reshape(kh * kw * c_in, c_out)
    return out.reshape(batch, rows, columns, c_out)


def _check(x, kernel, strides, padding):
    """Check the arguments; return the padding as ((top, bottom), (left, right))."""
    if x.ndim != 4 or kernel.ndim != 4 or x.shape[-1] != kernel.shape[2]:
        raise ValueError(
            f"x has shape {x.shape} and kernel has shape {kernel.shape}; they must be "
            "[B, height, width, c_in] and [kh, kw, c_in, c_out] with the same c_in."
        )
    if x.dtype != kernel.dtype:
        raise ValueError(f"x is {x.dtype} and kernel is {kernel.dtype}: cast one to the other.")
    _validate.whole(strides=min(strides))
    if isinstance(padding, str):
        _validate.one_of(("SAME", "VALID"), padding=padding)
        pads = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    else:
        pads = padding
    pads = tuple((int(low), int(high)) for low, high in pads)
    if len(pads) != 2 or min(min(pair) for pair in pads) < 0:
        raise ValueError(
            f"padding={padding!r} must be 'SAME', 'VALID' or ((top, bottom), (left, right)), "
            "none of them negative."
        )
    padded = tuple(n + sum(pair) for n, pair in zip(x.shape[1:3], pads, strict=True))
    if padded[0] < kernel.shape[0] or padded[1] < kernel.shape[1]:
        raise ValueError(
            f"x of shape {x.shape}, padded to {padded}, is smaller than the kernel "
            f"{kernel.shape[:2]}: use larger images or more padding."
        )
    return pads
