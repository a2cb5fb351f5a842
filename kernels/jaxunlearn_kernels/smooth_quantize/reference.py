"""Smoothed quantization with both radii: plain XLA, and the definition of the operation."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn_kernels.smooth_quantize import laws


class Quantized(NamedTuple):
    """What :func:`smooth_quantize` returns, each of the shape of ``g``.

    Attributes:
      q: ``int8``, the likeliest class of ``Q(g + noise)``: -1, 0 or 1.
      radius: ``float32``, from the two largest probabilities; never above ``radius_exact``.
      radius_exact: ``float32``, the distance of ``g`` to where ``q`` changes.
    """

    q: jax.Array
    radius: jax.Array
    radius_exact: jax.Array


def smooth_quantize(g: jax.Array, *, sigma: float, lam: float, noise: str) -> Quantized:
    """See :func:`jaxunlearn_kernels.smooth_quantize.smooth_quantize`."""
    g = g.astype(jnp.float32)
    size = jnp.abs(g)
    half_width = lam / (2 * sigma)
    theta = sigma * laws.threshold(half_width, noise)
    # Comparisons, so that a tie and NaN are in no class but 0.
    q = ((g > theta).astype(jnp.int32) - (g < -theta).astype(jnp.int32)).astype(jnp.int8)
    exact = jnp.abs(size - theta)
    radius = sigma * RADII[noise](size / sigma, half_width)
    # Not `minimum`: where g is infinite or NaN the radius is what the exact one is.
    return Quantized(q, jnp.where(radius < exact, radius, exact), exact)


def gaussian_radius(a: jax.Array, half_width: float) -> jax.Array:
    """Cohen's ``(Phi^-1(p_a) - Phi^-1(p_b)) / 2`` in units of sigma, rounded down."""
    fit = laws.correction(half_width)
    if fit is None:
        return a
    # Clenshaw's recurrence.
    x = 2 / (1 + jnp.maximum(a - fit.start, 0.0) / fit.scale) - 1
    last = before = jnp.zeros_like(x)
    for coefficient in fit.series[:0:-1]:
        last, before = coefficient + 2 * x * last - before, last
    series = fit.series[0] + x * last - before
    radius = jnp.abs(a - half_width + series) - (fit.error + 2e-7 * a)
    return jnp.where(a < fit.start, a, jnp.maximum(radius, 0.0))


def laplace_radius(a: jax.Array, half_width: float) -> jax.Array:
    """The larger of two bounds on a shift that keeps the likeliest class, in units of sigma.

    A shift by ``r`` changes a probability at most by the factor ``exp(r / beta)`` and at
    most by ``1 - exp(-r / (2 beta))``, with ``beta = sigma / sqrt(2)``.
    """
    a, b = math.sqrt(2) * a, math.sqrt(2) * half_width  # in units of beta
    inside = jnp.minimum(a - b, 0.0)
    outside = jnp.maximum(a - b, 0.0)
    log_same = jnp.where(a < b, inside - math.log(2), jnp.log1p(-0.5 * jnp.exp(-outside)))
    log_opposite = -(a + b) - math.log(2)
    # sinh(b) as exp(b) (1 - exp(-2b)) / 2 does not overflow for wide zones.
    log_sinh = b + (math.log(-math.expm1(-2 * b) / 2) if b else -math.inf)
    near = jnp.minimum(a, b)
    cosh = 0.5 * (jnp.exp(near - b) + jnp.exp(-near - b))
    log_zero = jnp.where(a < b, jnp.log1p(-cosh), log_sinh - a)
    most = jnp.maximum(log_same, log_zero)
    # The opposite sign is never likelier than the same one.
    second = jnp.where(log_same >= log_zero, jnp.maximum(log_zero, log_opposite), log_same)
    ratio = 0.5 * (most - second)
    total = -2 * jnp.log1p(-0.5 * (jnp.exp(most) - jnp.exp(second)))
    return _rounded_down(jnp.maximum(ratio, total) / math.sqrt(2), a)


def uniform_radius(a: jax.Array, half_width: float) -> jax.Array:
    """A shift by ``r`` changes a probability at most by ``r`` over the width of the noise."""
    h = math.sqrt(3)
    cdf = lambda t: jnp.clip((t + h) / (2 * h), 0.0, 1.0)
    same, opposite = cdf(a - half_width), cdf(-half_width - a)
    zero = cdf(half_width - a) - opposite
    most = jnp.maximum(same, zero)
    second = jnp.where(same >= zero, jnp.maximum(zero, opposite), same)
    return _rounded_down(h * (most - second), half_width)


def _rounded_down(radius: jax.Array, size) -> jax.Array:
    return jnp.maximum(radius - 4e-7 * (1 + size), 0.0)


RADII = {"gaussian": gaussian_radius, "laplace": laplace_radius, "uniform": uniform_radius}
