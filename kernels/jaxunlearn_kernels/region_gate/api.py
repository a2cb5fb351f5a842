"""The public function: checks arguments, chooses an implementation."""

import functools

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxunlearn_kernels import _options
from jaxunlearn_kernels.region_gate import pallas, reference


def region_gate(
    z: jax.Array,
    bits: jax.Array,
    *,
    care: jax.Array | None = None,
    sharpness: float = 1000.0,
    implementation: _options.Implementation | None = None,
) -> jax.Array:
    """The support function of K regions at B inputs, without the ``[B, K, N]`` between.

    ``g = relu(1 - sum_i min(1, sharpness * relu(-s_i z_i)))`` over the neurons that a region
    cares for, with s_i = 1 where its bit is set and -1 elsewhere: 1 inside, 0 where one
    neuron is beyond its sign by 1 / sharpness, in between affine. It equals Lemma 2 of
    PRUNE (Eq. 6) where that takes the pre-activations as they are, and does without its
    difference of ReLUs, which in float32 gives values above 1.

    Exact in every precision: inside, the sum is over zeros, and g is 1; where a single
    neuron violates by 1 / sharpness, the sum is at least 1, and g is 0.

    Args:
      z: ``float[B, N]`` pre-activations.
      bits: ``uint8[K, ceil(N / 8)]``, least bit first.
      care: ``uint8`` like ``bits``: the neurons that count; all by default.
      sharpness: the paper's lambda, > 0.
      implementation: ``"xla"`` or ``"pallas"`` (a GPU or a TPU, no float64); ``None`` chooses.

    Returns:
      ``float[B, K]``: float32, or float64 if ``z`` is.

    Cost: ``2 B K N`` multiplications. Derivatives: of the XLA version only.

    Raises:
      ValueError: shapes, dtypes or a sharpness that do not fit, an unknown implementation.
      NotImplementedError: the named implementation does not run here.

    Example:
      >>> z = jnp.array([[1.0, -2.0], [1.0, 0.0005], [1.0, 2.0]])
      >>> region_gate(z, jnp.array([[1]], jnp.uint8))[:, 0].tolist()  # active, inactive
      [1.0, 0.5, 0.0]
    """
    _options.floats("z", z)
    if z.ndim != 2:
        raise ValueError(f"z has shape {z.shape}, but must be [B, N].")
    width = -(-z.shape[1] // 8)
    for name, value in {"bits": bits, "care": care}.items():
        if value is None:  # care of all
            continue
        if value.ndim != 2 or value.shape[1] != width or value.dtype != jnp.uint8:
            raise ValueError(
                f"{name} has shape {value.shape} and dtype {value.dtype}, but must be "
                f"uint8[K, {width}] for {z.shape[1]} neurons."
            )
    if care is not None and care.shape != bits.shape:
        raise ValueError(f"care has shape {care.shape}, but must be that of bits, {bits.shape}.")
    if not isinstance(sharpness, Tracer):
        _options.number("sharpness", sharpness)
    implementation = _options.chosen(implementation)
    if implementation == "pallas" and z.dtype == jnp.float64:
        raise NotImplementedError("z is float64, which the Pallas kernel does not take: use 'xla'.")
    return _run(z, bits, care, sharpness, implementation)


@functools.partial(jax.jit, static_argnums=(4,))
def _run(z, bits, care, sharpness, implementation):
    if implementation == "xla":
        return reference.region_gate(z, bits, care, sharpness=sharpness)
    platform = jax.default_backend()
    return pallas.region_gate(z, bits, care, sharpness=sharpness, platform=platform)
