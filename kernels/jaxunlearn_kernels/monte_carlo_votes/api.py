"""The public function: checks the arguments and chooses an implementation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn_kernels import _options
from jaxunlearn_kernels.monte_carlo_votes import pallas, reference
from jaxunlearn_kernels.monte_carlo_votes.reference import Votes


def monte_carlo_votes(
    g: jax.Array,
    key: jax.Array,
    *,
    sigma: float,
    lam: float,
    noise: str = "gaussian",
    samples: int,
    implementation: _options.Implementation | None = None,
) -> Votes:
    """How often a ternary quantizer says 1 and -1 under sampled noise.

    Draws ``samples`` values of the noise for every entry of ``g`` and counts
    ``g + noise > lam / 2`` and ``g + noise < -lam / 2``; in the others it said 0. This is how PCMU
    (Zhang et al. 2023) estimates its smoothed quantizer; ``smooth_quantize`` is the limit.

    Guarantee: the noise of entry ``i`` in sample ``s`` is a function of ``(key, i, s)`` alone, by
    Threefry-2x32. So the votes are the same from every implementation, up to its rounding of
    ``erf_inv`` and ``log1p``, and the first samples of a longer run are those of a shorter one.
    Probabilities are right to 2^-23, the step of the uniform numbers; Gaussian noise ends at
    5.3 ``sigma``.

    Args:
      g: ``[...]`` floats of any shape and precision; computed in ``float32``.
      key: from ``jax.random.key``, with the default generator. Use it for nothing else.
      sigma: standard deviation of the noise, compiled in.
      lam: width of the zone that is quantized to 0, compiled in.
      noise: ``"gaussian"``, ``"laplace"`` or ``"uniform"``.
      samples: how many to draw for each entry, compiled in.
      implementation: ``"xla"`` or ``"pallas"`` (a GPU or a TPU); ``None`` chooses.

    Returns:
      ``plus`` and ``minus``, each ``int32[...]``. Where ``g`` is NaN both are 0.

    Cost: ``samples`` evaluations of half a Threefry and one inverse distribution function an entry;
    memory for a few arrays like ``g``, whatever ``samples``.

    Raises:
      ValueError: ``sigma`` or ``lam`` is out of range or not a Python number, ``samples`` is not an
        integer from 1 to 2^31 - 1, ``noise`` is unknown, ``g`` is not floating, ``key`` is not one
        key of two words.
      NotImplementedError: the named implementation does not run on this device.

    Example:
      >>> g = jnp.array([0.3, -0.02, 0.0])
      >>> votes = monte_carlo_votes(g, jax.random.key(0), sigma=0.1, lam=0.01, samples=1000)
      >>> (votes.plus > votes.minus).tolist()[:2], int((votes.plus + votes.minus).max()) <= 1000
      ([True, False], True)
    """
    g = jnp.asarray(g)
    _options.floats("g", g)
    sigma = _options.number("sigma", sigma)
    lam = _options.number("lam", lam, zero=True)
    _options.one_of("noise", noise, tuple(reference.NOISE))
    whole = isinstance(samples, int | np.integer) and not isinstance(samples, bool)
    if not (whole and 1 <= samples < 2**31):
        raise ValueError(f"samples={samples!r} must be an integer from 1 to 2^31 - 1.")
    words = _words(key)
    return _run(g, words, sigma, lam, noise, int(samples), _options.chosen(implementation))


def _words(key: jax.Array) -> jax.Array:
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ():
        words = jax.random.key_data(key)
        if words.shape == (2,):
            return words
    raise ValueError(
        f"key has dtype {key.dtype} and shape {key.shape}, but must be one key of two words: "
        'make it by jax.random.key(seed, impl="threefry2x32").'
    )


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5, 6))
def _run(g, words, sigma, lam, noise, samples, implementation):
    options = {"sigma": sigma, "lam": lam, "noise": noise, "samples": samples}
    if implementation == "xla":
        return reference.monte_carlo_votes(g, words, **options)
    return pallas.monte_carlo_votes(g, words, **options, platform=jax.default_backend())
