"""A Pallas kernel that reads every entry of an array once and writes what belongs to it."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

# One dimension, a power of two, as Triton wants it; and rows of 128 lanes, as a TPU does:
# 32 of them are the smallest tile of int8.
GPU_BLOCK = 1024
TPU_ROWS = 256
LANES = 128


def elementwise(
    body: Callable[..., Sequence[jax.Array]],
    x: jax.Array,
    words: jax.Array,
    dtypes: Sequence[jax.typing.DTypeLike],
    *,
    platform: str,
    interpret: bool = False,
) -> list[jax.Array]:
    """``body(x, index, words)`` for every block of ``x``, in one pass over memory.

    Args:
      body: takes a block of ``x`` as ``float32``, the flat positions of its entries as ``int32``
        and the scalars of ``words``; returns one block for each of ``dtypes``.
      x: ``[...]`` floats.
      words: ``[k]``, scalars that every block reads, held in scalar memory on a TPU.
      dtypes: of the outputs, each of the shape of ``x``.
      platform: "gpu" or "tpu": how the array is cut.
      interpret: run the kernel by XLA, on any device.

    Cost: on a TPU, a size that is no multiple of 128 is padded first, which is one more pass.
    """
    if x.size == 0:
        return [jnp.zeros(x.shape, dtype) for dtype in dtypes]
    # What the compilers of kernels take; the others are converted on the way.
    flat = x.reshape(-1).astype(x.dtype if x.dtype == jnp.bfloat16 else jnp.float32)
    run = {"gpu": _gpu, "tpu": _tpu}[platform]
    outputs = run(body, flat, words, dtypes, interpret)
    return [y.reshape(-1)[: x.size].reshape(x.shape) for y in outputs]


def _gpu(body, x, words, dtypes, interpret):
    """Blocks of a power of two; the last one overlaps the one before it.

    Triton reads and writes beyond the end of an array. An overlap costs neither a mask nor a
    copy, and is safe because both blocks write the same values there.
    """
    block = min(GPU_BLOCK, 1 << (x.size.bit_length() - 1))
    start = lambda i: jnp.minimum(i * block, x.size - block)

    def kernel(words_ref, x_ref, *out_refs):
        index = start(pl.program_id(0)) + jax.lax.iota(jnp.int32, block)
        scalars = [words_ref[i] for i in range(words.size)]
        _write(out_refs, body(x_ref[...].astype(jnp.float32), index, scalars))

    spec = pl.BlockSpec((pl.Element(block),), lambda i: (start(i),))
    return pl.pallas_call(
        kernel,
        grid=(pl.cdiv(x.size, block),),
        in_specs=[pl.BlockSpec(words.shape, lambda i: (0,)), spec],
        out_specs=[spec] * len(dtypes),
        out_shape=[jax.ShapeDtypeStruct(x.shape, dtype) for dtype in dtypes],
        compiler_params=_triton(),
        interpret=interpret,
    )(words, x)


def _tpu(body, x, words, dtypes, interpret):
    """Tiles of ``[rows, 128]``; the compiler leaves out what is beyond the last row."""
    from jax.experimental.pallas import tpu

    x = jnp.pad(x, (0, -x.size % LANES)).reshape(-1, LANES)

    def kernel(words_ref, x_ref, *out_refs):
        row, lane = (jax.lax.broadcasted_iota(jnp.int32, (TPU_ROWS, LANES), d) for d in (0, 1))
        index = (pl.program_id(0) * TPU_ROWS + row) * LANES + lane
        scalars = [words_ref[i] for i in range(words.size)]
        _write(out_refs, body(x_ref[...].astype(jnp.float32), index, scalars))

    spec = pl.BlockSpec((TPU_ROWS, LANES), lambda i: (i, 0))
    return pl.pallas_call(
        kernel,
        grid=(pl.cdiv(x.shape[0], TPU_ROWS),),
        in_specs=[pl.BlockSpec(memory_space=tpu.SMEM), spec],
        out_specs=[spec] * len(dtypes),
        out_shape=[jax.ShapeDtypeStruct(x.shape, dtype) for dtype in dtypes],
        interpret=interpret,
    )(words, x)


def _triton():
    # jax up to 0.11 compiles for GPUs by another route unless it is told.
    from jax.experimental.pallas import triton

    return triton.CompilerParams(num_warps=4)


def _write(refs, values) -> None:
    for ref, value in zip(refs, values, strict=True):
        ref[...] = value
