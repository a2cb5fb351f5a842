"""The definition of the operation: one matrix product, no ``[B, K, N]``."""

import jax
import jax.numpy as jnp


def region_gate(z, bits, care, *, sharpness):
    """``z[B, N], uint8[K, W], uint8[K, W] or None -> [B, K]``; see the public function."""
    count = z.shape[-1]
    active = jnp.unpackbits(bits, axis=-1, count=count, bitorder="little")
    if care is None:
        on, off = active, 1 - active
    else:
        kept = jnp.unpackbits(care, axis=-1, count=count, bitorder="little")
        on, off = active & kept, (1 - active) & kept
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    # What a neuron that should be active, or inactive, violates at most by: 1.
    below = jnp.minimum(1, sharpness * jax.nn.relu(-z))
    above = jnp.minimum(1, sharpness * jax.nn.relu(z))
    violation = jnp.matmul(
        jnp.concatenate([below, above], axis=-1),
        jnp.concatenate([on, off], axis=-1).T.astype(z.dtype),
        # Zeros and ones are exact in every precision, but the collar between them is not.
        precision=jax.lax.Precision.HIGHEST,
    )
    return jax.nn.relu(1 - violation)
