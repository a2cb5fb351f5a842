"""Votes of a quantizer under sampled noise: plain XLA, and the definition of the operation."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


class Votes(NamedTuple):
    """What :func:`monte_carlo_votes` returns, each ``int32`` of the shape of ``g``.

    Attributes:
      plus: how many samples of ``g + noise`` were quantized to 1.
      minus: how many were quantized to -1.
    """

    plus: jax.Array
    minus: jax.Array


def monte_carlo_votes(
    g: jax.Array, words: jax.Array, *, sigma: float, lam: float, noise: str, samples: int
) -> Votes:
    """See :func:`jaxunlearn_kernels.monte_carlo_votes.monte_carlo_votes`.

    ``words`` are the two words of the key.
    """
    index = jnp.arange(g.size, dtype=jnp.int32)
    flat = g.reshape(-1).astype(jnp.float32)
    scalars = (words[0], words[1])
    votes = count(flat, index, scalars, sigma=sigma, lam=lam, noise=noise, samples=samples)
    return Votes(*(v.reshape(g.shape) for v in votes))


def count(g, index, words, *, sigma: float, lam: float, noise: str, samples: int) -> Votes:
    """The votes for a block of ``g`` whose entries stand at ``index``.

    Every call of the generator gives the noise of two samples. Only ``g``, two counts and the
    state of the generator are held at any time.
    """
    index = index.astype(jnp.uint32)

    def draw(pair, votes, used=2):
        bits = threefry(words, index, jnp.zeros_like(index) + pair.astype(jnp.uint32))
        for word in bits[:used]:
            noisy = g + sigma * NOISE[noise](centred(word))
            plus = votes.plus + (noisy > lam / 2).astype(jnp.int32)
            minus = votes.minus + (noisy < -lam / 2).astype(jnp.int32)
            votes = Votes(plus, minus)
        return votes

    none = jnp.zeros_like(index).astype(jnp.int32)
    pairs, odd = divmod(samples, 2)
    votes = jax.lax.fori_loop(0, pairs, draw, Votes(none, none))
    return draw(jnp.int32(pairs), votes, used=1) if odd else votes


def threefry(key, x, y):
    """Threefry-2x32 with 20 rounds (Salmon et al. 2011): a bijection of ``(x, y)`` for each key."""
    schedule = (*key, key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA))
    x, y = x + schedule[0], y + schedule[1]
    for group in range(5):
        for turn in ROTATIONS[group % 2]:
            x = x + y
            y = ((y << jnp.uint32(turn)) | (y >> jnp.uint32(32 - turn))) ^ x
        x = x + schedule[(group + 1) % 3]
        y = y + schedule[(group + 2) % 3] + jnp.uint32(group + 1)
    return x, y


def centred(word):
    """Uniform on the ``2^23`` midpoints of (-1, 1), never its ends; exact in ``float32``."""
    # Via int32: not every accelerator converts unsigned integers.
    step = (word >> jnp.uint32(9)).astype(jnp.int32)
    return (2 * step + (1 - 2**23)).astype(jnp.float32) * 2.0**-23


# The inverse distribution function at (1 + v) / 2, for standard deviation 1.
NOISE = {
    "gaussian": lambda v: math.sqrt(2) * jax.lax.erf_inv(v),
    "laplace": lambda v: jnp.where(v < 0, 1.0, -1.0) * jnp.log1p(-jnp.abs(v)) / math.sqrt(2),
    "uniform": lambda v: math.sqrt(3) * v,
}
