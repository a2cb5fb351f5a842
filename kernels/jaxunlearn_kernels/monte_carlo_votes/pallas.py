"""Votes of a quantizer under sampled noise with everything in registers, on a GPU or a TPU."""

import jax
import jax.numpy as jnp

from jaxunlearn_kernels._elementwise import elementwise
from jaxunlearn_kernels.monte_carlo_votes import reference


def monte_carlo_votes(
    g: jax.Array,
    words: jax.Array,
    *,
    sigma: float,
    lam: float,
    noise: str,
    samples: int,
    platform: str,
    interpret: bool = False,
) -> reference.Votes:
    """All samples of a block are drawn before it is written: memory sees 12 bytes an entry."""
    body = lambda g, index, words: reference.count(
        g, index, words, sigma=sigma, lam=lam, noise=noise, samples=samples
    )
    dtypes = (jnp.int32, jnp.int32)
    return reference.Votes(
        *elementwise(body, g, words, dtypes, platform=platform, interpret=interpret)
    )
