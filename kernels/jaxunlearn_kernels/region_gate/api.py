"""The public function: checks arguments, chooses an implementation."""

import jax
import jax.numpy as jnp

from jaxunlearn_kernels.region_gate import pallas, reference

IMPLEMENTATIONS = ("xla", "pallas", "pallas_interpret")


def region_gate(
    z: jax.Array,
    bits: jax.Array,
    *,
    care: jax.Array | None = None,
    sharpness: float = 1000.0,
    implementation: str | None = None,
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
      implementation: ``"xla"``, ``"pallas"`` (GPU and TPU), ``"pallas_interpret"`` (slow,
        anywhere, for tests). None takes XLA: on a CPU it is the only one, and on no
        accelerator has another been measured to be faster yet.

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
    if z.ndim != 2 or not jnp.issubdtype(z.dtype, jnp.floating):
        raise ValueError(f"z has shape {z.shape} and dtype {z.dtype}, but must be float[B, N].")
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
    if isinstance(sharpness, int | float) and not sharpness > 0:
        raise ValueError(f"sharpness={sharpness!r} must be > 0.")
    if implementation not in (None, *IMPLEMENTATIONS):
        known = ", ".join(map(repr, IMPLEMENTATIONS))
        raise ValueError(f"implementation={implementation!r} is unknown. Known: {known}, None.")
    if implementation in (None, "xla"):
        return _xla(z, bits, care, sharpness)
    interpret = implementation == "pallas_interpret"
    pallas.check(z, interpret=interpret)
    tile = pallas.TILES["gpu" if interpret else jax.default_backend()]
    return pallas.region_gate(z, bits, care, sharpness=sharpness, tile=tile, interpret=interpret)


@jax.jit
def _xla(z, bits, care, sharpness):
    return reference.region_gate(z, bits, care, sharpness=sharpness)
