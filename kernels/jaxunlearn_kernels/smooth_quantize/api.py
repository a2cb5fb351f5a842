"""The public function: checks the arguments and chooses an implementation."""

import functools

import jax
import jax.numpy as jnp

from jaxunlearn_kernels import _options
from jaxunlearn_kernels.smooth_quantize import laws, pallas, reference
from jaxunlearn_kernels.smooth_quantize.reference import Quantized


def smooth_quantize(
    g: jax.Array,
    *,
    sigma: float,
    lam: float,
    noise: str = "gaussian",
    implementation: _options.Implementation | None = None,
) -> Quantized:
    """Likeliest class of a ternary quantizer under noise, and how far it is safe.

    ``Q(t)`` is 1 above ``lam / 2``, -1 below ``-lam / 2``, and 0 between. For every entry of ``g``
    this gives ``argmax_c P[Q(g + noise) = c]``, the smoothed quantizer S' of PCMU (Zhang et al.
    2023), without sampling: ``sign(g)`` where ``|g| > theta`` and 0 elsewhere. ``theta`` is 0
    unless ``lam`` is large (for Gaussian noise, above 0.8615 ``sigma``). A tie gives 0.

    Guarantee: the class is that of every ``g'`` with ``|g' - g| < radius``, up to the rounding of
    ``g`` and of ``theta`` to ``float32``. ``radius_exact = ||g| - theta|`` is the largest such
    radius. ``radius`` is what the two largest probabilities alone certify, rounded down and never
    above ``radius_exact``: for Gaussian noise Cohen's
    ``sigma (Phi^-1(p_a) - Phi^-1(p_b)) / 2``, to within 1e-5 of itself plus 2e-6 ``(sigma + lam)``.

    Deviation: the paper inverts the normal distribution at every entry; in ``float32`` that is
    infinite, and wrong, from 5.5 ``sigma``. Here it is finite as far as ``g`` is. For Laplace and
    uniform noise ``radius`` follows from how much a shift can change a probability.

    Args:
      g: ``[...]`` floats of any shape and precision; computed in ``float32``.
      sigma: standard deviation of the noise, compiled in.
      lam: width of the zone that is quantized to 0, compiled in.
      noise: ``"gaussian"``, ``"laplace"`` or ``"uniform"``.
      implementation: ``"xla"`` or ``"pallas"`` (a GPU or a TPU); ``None`` chooses.

    Returns:
      ``q``, ``int8[...]``; ``radius`` and ``radius_exact``, ``float32[...]``. Where ``g`` is NaN
      the class is 0 and both radii are NaN.

    Cost: one pass over ``g``, on a CPU one for each output that is used; nothing as large as ``g``
    in between. A few milliseconds on the host for every new ``lam / sigma``.

    Raises:
      ValueError: ``sigma`` or ``lam`` is out of range or not a Python number, ``noise`` is unknown,
        ``g`` is not floating, or has 2^31 entries or more.
      NotImplementedError: the named implementation does not run on this device.

    Example:
      >>> out = smooth_quantize(jnp.array([0.5, -0.25, 0.0]), sigma=0.1, lam=0.01)
      >>> out.q.tolist(), out.radius_exact.tolist()
      ([1, -1, 0], [0.5, 0.25, 0.0])
    """
    g = jnp.asarray(g)
    _options.floats("g", g)
    sigma = _options.number("sigma", sigma)
    lam = _options.number("lam", lam, zero=True)
    _options.one_of("noise", noise, laws.NOISES)
    return _run(g, sigma, lam, noise, _options.chosen(implementation))


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _run(g, sigma, lam, noise, implementation):
    if implementation == "xla":
        return reference.smooth_quantize(g, sigma=sigma, lam=lam, noise=noise)
    platform = jax.default_backend()
    return pallas.smooth_quantize(g, sigma=sigma, lam=lam, noise=noise, platform=platform)
