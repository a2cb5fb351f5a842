"""For GPU and TPU: a tile of the result at a time, bits unpacked where they are used.

On a GPU it goes through Triton: Mosaic has no general product of matrices. jax 0.12 warns that it
will drop Triton, one more reason for the reference to be the default.

Beside the reference this saves the clipped violations and the float masks, which are
``2 B N + 2 K N`` floats in main memory, written once and read by every tile.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton


class Tile(NamedTuple):
    """Inputs and regions of one tile, and bytes of bits (eight neurons each) of one step."""

    rows: int
    regions: int
    bytes: int
    params: Any = None


TILES = {
    "gpu": Tile(64, 64, 16, triton.CompilerParams(num_warps=4)),  # else Mosaic, which has no dot
    "tpu": Tile(128, 128, 128),
}


def region_gate(z, bits, care, *, sharpness, platform: str, interpret: bool = False):
    """The gates by tiles of rows and regions; arguments as checked by the public function."""
    tile, (rows, count) = TILES[platform], z.shape
    regions, width = bits.shape
    if care is None:
        care = jnp.full_like(bits, 255)
    # Padding violates nothing: z = 0.
    whole = width + -width % tile.bytes
    z = jnp.pad(sharpness * z.astype(jnp.float32), ((0, -rows % tile.rows), (0, 8 * whole - count)))
    pad = ((0, -regions % tile.regions), (0, whole - width))
    bits, care = (jnp.pad(b, pad).astype(jnp.int32) for b in (bits, care))
    # Bit j of all bytes together: neuron 8 w + j is at [j, :, w], and nothing is reshaped below.
    planes = z.reshape(z.shape[0], whole, 8).transpose(2, 0, 1)
    out = pl.pallas_call(
        functools.partial(_kernel, tile=tile),
        grid=(z.shape[0] // tile.rows, bits.shape[0] // tile.regions),
        in_specs=[
            pl.BlockSpec((8, tile.rows, whole), lambda b, k: (0, b, 0)),
            pl.BlockSpec((tile.regions, whole), lambda b, k: (k, 0)),
            pl.BlockSpec((tile.regions, whole), lambda b, k: (k, 0)),
        ],
        out_specs=pl.BlockSpec((tile.rows, tile.regions), lambda b, k: (b, k)),
        out_shape=jax.ShapeDtypeStruct((z.shape[0], bits.shape[0]), jnp.float32),
        compiler_params=tile.params,
        interpret=interpret,
    )(planes, bits, care)
    return out[:rows, :regions]


def _kernel(z_ref, bits_ref, care_ref, out_ref, *, tile: Tile):
    def step(number, violation):
        at = pl.ds(number * tile.bytes, tile.bytes)
        bits, care = bits_ref[:, at], care_ref[:, at]
        for j in range(8):
            z = z_ref[j, :, at]
            on, off = (bits & care) >> j & 1, (~bits & care) >> j & 1
            violation += _product(jnp.minimum(jnp.maximum(-z, 0.0), 1.0), on)
            violation += _product(jnp.minimum(jnp.maximum(z, 0.0), 1.0), off)
        return violation

    start = jnp.zeros((tile.rows, tile.regions), jnp.float32)
    steps = bits_ref.shape[1] // tile.bytes
    out_ref[...] = jnp.maximum(1 - jax.lax.fori_loop(0, steps, step, start), 0.0)


def _product(values, mask):
    """``values[b, w], mask[k, w] -> [b, k]``, in float32 throughout."""
    return jax.lax.dot_general(
        values,
        mask.astype(jnp.float32),
        (((1,), (1,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
