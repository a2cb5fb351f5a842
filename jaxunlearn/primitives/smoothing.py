"""Randomized smoothing of quantized gradients (PCMU), exact instead of sampled.

The paper quantizes a gradient plus noise to -1, 0 or 1 and takes the likeliest class. In one
dimension that has a closed form: the result is again a ternary quantizer, with another
threshold. With ``F`` the distribution function of the noise, ``a = |g| / sigma`` and
``b = lam / (2 sigma)``,

    P(same sign as g) = F(a - b)    P(0) = F(b - a) - F(-b - a)    P(opposite) = F(-b - a)

so one sample of the paper's Monte Carlo loop costs more than the exact answer. At the paper's
own setting, ``sigma = .1, lam = sigma^2``, zero is never the likeliest class, and smoothing a
gradient takes its sign.

``sigma`` is the standard deviation of the noise, whatever its law. Gradients may be any pytree.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from jaxunlearn import _validate
from jaxunlearn.primitives import _noise
from jaxunlearn.types import Array, PyTree
from jaxunlearn_kernels.monte_carlo_votes import monte_carlo_votes
from jaxunlearn_kernels.smooth_quantize import laws
from jaxunlearn_kernels.smooth_quantize import smooth_quantize as _quantize

NOISES = laws.NOISES


class SmoothedQuant(NamedTuple):
    """A smoothed and quantized gradient: five pytrees like the gradient.

    Attributes:
      q: ``int8``, the likeliest class of ``Q(g + noise)``, in {-1, 0, 1}; a tie of -1 and 1
        gives 0, so that a parameter without a gradient stays where it is.
      p_a: ``float32``, probability of the likeliest class (of either in a tie).
      p_b: ``float32``, probability of the runner-up.
      radius: ``float32``, the paper's certificate from ``p_a`` and ``p_b``: ``q`` stays the same
        for every change of this coordinate smaller than it.
      radius_exact: ``float32``, the largest number of which that is true, or None where it is
        not known (:func:`monte_carlo_quantize`).

    Example:
      >>> smooth_quantize(jnp.array([0.3, -0.02, 0.0]), 0.1, 0.01).q.tolist()
      [1, -1, 0]
    """

    q: PyTree
    p_a: PyTree
    p_b: PyTree
    radius: PyTree
    radius_exact: PyTree | None


def ternary_threshold(sigma: float, lam: float | None = None, noise: str = "gaussian") -> float:
    """The size of a gradient below which zero is its likeliest class (float64, on the host).

    The root of ``P(same sign) = P(0)`` in ``|g|``. It is 0 where zero never wins: for Gaussian
    noise iff ``lam <= 0.8615 sigma``, for Laplace iff ``lam <= 0.573 sigma``, for uniform
    iff ``lam <= 1.155 sigma``.

    Args:
      sigma: standard deviation of the noise, > 0.
      lam: width of the zone that is quantized to 0 (the paper's lambda), >= 0; by
        default ``sigma^2``, as in the paper.
      noise: ``gaussian``, ``laplace`` or ``uniform``.

    Raises:
      ValueError: sigma, lam or noise outside their range, by name.

    Deviation: the paper (A.2) says that its default makes the middle region the largest. At
    ``sigma = .1`` it has probability .04 at most.

    Example:
      >>> ternary_threshold(0.1, 0.01)
      0.0
      >>> round(ternary_threshold(1.0, 2.0), 3)
      0.969
    """
    lam = _noise.checked(sigma, lam, noise)
    return float(sigma) * laws.threshold(lam / (2 * float(sigma)), noise)


def smooth_quantize(
    g: PyTree,
    sigma: float,
    lam: float | None = None,
    *,
    noise: str = "gaussian",
    implementation: str | None = None,
) -> SmoothedQuant:
    """The likeliest class of a quantized noisy gradient, and how far it is from changing.

    ``S'(g) = argmax_c P(Q(g + noise) = c)`` for each coordinate (PCMU Eq. 21), in closed form:
    ``sign(g)`` where ``|g|`` exceeds :func:`ternary_threshold`, else 0.

    Args:
      g: gradients, a pytree of floats.
      sigma: standard deviation of the noise, > 0; a Python number.
      lam: width of the zone quantized to 0, >= 0; ``sigma^2`` by default.
      noise: ``gaussian``, ``laplace`` or ``uniform``.
      implementation: of the kernel, see :mod:`jaxunlearn.kernels`.

    Returns:
      A :class:`SmoothedQuant`.

    Guarantee: ``radius <= radius_exact``, rounded down; ``q(g + d) = q(g)`` for ``|d| <
    radius_exact``. For Gaussian noise ``radius`` is Cohen's (PCMU Theorem 3, Eq. 24),
    ``sigma / 2 (Phi^-1(p_a) - Phi^-1(p_b))``; for the others the bounds that belong to their
    laws, to which Gauss's formula does not apply. This is about one gradient at fixed parameters:
    see :mod:`jaxunlearn.certify.budget` for what it says of removals.

    Deviation: the paper samples; ties go to 0 here, where an argmax over (-1, 0, 1) would take
    -1 and make weights without gradient drift.

    Cost: one pass over memory; outputs that are not used are not computed under ``jit``.

    Raises:
      ValueError: sigma, lam, noise outside their range; gradients that are not finite.

    Example:
      >>> found = smooth_quantize(jnp.array([0.03, 2.0]), 1.0, 2.0)
      >>> found.q.tolist(), [round(float(r), 3) for r in found.radius_exact]
      ([0, 1], [0.939, 1.031])
    """
    lam, g = _noise.checked(sigma, lam, noise), _noise.finite(g)
    leaves, structure = jax.tree.flatten(g)
    done = [
        _smooth_quantize(
            leaf, sigma=float(sigma), lam=lam, noise=noise, implementation=implementation
        )
        for leaf in leaves
    ]
    return SmoothedQuant(*_unzip(structure, done, len(SmoothedQuant._fields)))


def _unzip(structure, done: list[tuple], count: int) -> list[PyTree]:
    """Trees of the first, second ... entries of the results for all leaves, if there are any."""
    return [jax.tree.unflatten(structure, [entry[i] for entry in done]) for i in range(count)]


@functools.partial(jax.jit, static_argnames=("sigma", "lam", "noise", "implementation"))
def _smooth_quantize(g, *, sigma, lam, noise, implementation):
    q, radius, exact = _quantize(
        g, sigma=sigma, lam=lam, noise=noise, implementation=implementation
    )
    same, zero, opposite = class_probabilities(g, sigma, lam, noise=noise)
    p_a = jnp.where(q == 0, jnp.where(zero < same, same, zero), same)
    p_b = jnp.where(zero <= same, jnp.maximum(zero, opposite), same)
    return q, p_a, p_b, radius, exact


def class_probabilities(
    g: Array, sigma: float, lam: float, *, noise: str = "gaussian"
) -> tuple[Array, Array, Array]:
    """Probabilities that ``Q(g + noise)`` has the sign of ``g``, is zero, has the other sign.

    Lower tails throughout: one minus a probability near one would lose it.

    Args:
      g: one array of gradients.
      sigma: standard deviation of the noise.
      lam: width of the zone quantized to 0.
      noise: ``gaussian``, ``laplace`` or ``uniform``.

    Returns:
      Three arrays like ``g``, float32 or wider.

    Example:
      >>> [round(float(p), 3) for p in class_probabilities(jnp.float32(0.0), 1.0, 2.0)]
      [0.159, 0.683, 0.159]
    """
    a, b = jnp.abs(_wide(g)) / sigma, lam / (2 * sigma)
    opposite = _noise.cdf(-b - a, noise)
    return _noise.cdf(a - b, noise), _noise.cdf(b - a, noise) - opposite, opposite


def expected_quantize(
    g: PyTree, sigma: float, lam: float | None = None, *, noise: str = "gaussian"
) -> PyTree:
    """The mean of the quantized noisy gradient, a smooth function of it.

    ``E[Q(g + noise)] = P(1) - P(-1) = (s((g + lam/2) / sigma) + s((g - lam/2) / sigma)) / 2`` with
    ``s = 2 F - 1``. For ``|g|`` far below sigma and lam it is ``2 f(0) g / sigma``, ``.8 g /
    sigma`` for Gaussian noise: plain gradient descent at another rate, clipped softly.

    Args:
      g: gradients, a pytree of floats.
      sigma: standard deviation of the noise, > 0; may be traced.
      lam: as in :func:`ternary_threshold`; may be traced.
      noise: ``gaussian``, ``laplace`` or ``uniform``.

    Returns:
      A pytree like ``g``, values in [-1, 1]. Differentiable in ``g``, ``sigma`` and ``lam``, with
      the density as derivative also where the distribution function has a kink.

    Deviation: not the mean of the paper's softmax (Eq. 30), whose three components are nearly
    equal at its default setting.

    Raises:
      ValueError: as :func:`smooth_quantize`.

    Example:
      >>> [round(float(q), 3) for q in expected_quantize(jnp.array([0.0, 0.1, 9.0]), 0.1, 0.01)]
      [0.0, 0.682, 1.0]
    """
    lam, g = _noise.traceable(sigma, lam, noise), _noise.finite(g)

    def expected(leaf):
        wide = _wide(leaf)
        mean = 0.5 * (
            _noise.signed((wide + lam / 2) / sigma, noise)
            + _noise.signed((wide - lam / 2) / sigma, noise)
        )
        return mean.astype(leaf.dtype)

    return jax.tree.map(expected, g)


def sample_quantize(
    key: Array, g: PyTree, sigma: float, lam: float | None = None, *, noise: str = "gaussian"
) -> PyTree:
    """One draw of ``Q(g + noise)`` (PCMU Eq. 21 inside the probability).

    As a mechanism it is Gaussian noise followed by post-processing, which is what the model-level
    guarantee of :func:`jaxunlearn.certify.budget.gaussian_unlearning_epsilon` rests on.

    Args:
      key: ``jax.random.key``.
      g: gradients, a pytree of floats.
      sigma: standard deviation of the noise, > 0; may be traced.
      lam: as in :func:`ternary_threshold`; may be traced.
      noise: ``gaussian``, ``laplace`` or ``uniform``.

    Returns:
      A pytree like ``g`` of ``int8`` in {-1, 0, 1}, independent over coordinates.

    Raises:
      ValueError: as :func:`smooth_quantize`.

    Example:
      >>> draw = sample_quantize(jax.random.key(0), jnp.full(1000, 0.1), 0.1, 0.01)
      >>> bool(abs(draw.mean() - 0.682) < 0.1)
      True
    """
    lam, g = _noise.traceable(sigma, lam, noise), _noise.finite(g)
    leaves, structure = jax.tree.flatten(g)
    keys = jax.random.split(key, len(leaves))

    def draw(key, leaf):
        wide = _wide(leaf)
        noisy = wide + sigma * _noise.draw(key, wide, noise)
        return jnp.where(jnp.abs(noisy) > lam / 2, jnp.sign(noisy), 0.0).astype(jnp.int8)

    return jax.tree.unflatten(structure, [draw(*both) for both in zip(keys, leaves, strict=True)])


def monte_carlo_quantize(
    key: Array,
    g: PyTree,
    sigma: float,
    lam: float | None = None,
    *,
    noise: str = "gaussian",
    samples: int = 1000,
    alpha: float = 0.001,
    implementation: str | None = None,
) -> SmoothedQuant:
    """The paper's route to :func:`smooth_quantize`: votes, and Clopper-Pearson bounds.

    Args:
      key: ``jax.random.key``.
      g: gradients, a pytree of floats.
      sigma: standard deviation of the noise, > 0; a Python number.
      lam: as in :func:`ternary_threshold`.
      noise: ``gaussian``, ``laplace`` or ``uniform``.
      samples: draws a coordinate, >= 1. Telling ``|g| = sigma / 100`` from its opposite needs
        over 100,000; the paper does not say how many it took.
      alpha: probability, a coordinate, that its bounds are wrong.
      implementation: of the kernel, see :mod:`jaxunlearn.kernels`.

    Returns:
      A :class:`SmoothedQuant` with the lower bound of the most frequent class as ``p_a``, the
      largest upper bound of the others as ``p_b``, and ``radius_exact=None``. Where the bounds
      do not separate, ``radius`` is 0 and ``q`` a guess.

    Guarantee: each coordinate's radius holds with probability 1 - alpha (a bound for each of the
    three classes at alpha / 3, since the votes also choose the class); nothing joint.

    Cost: ``samples`` draws a coordinate, nothing of that size in memory.

    Raises:
      ValueError: as :func:`smooth_quantize`; samples below 1, alpha outside (0, 1).

    Example:
      >>> found = monte_carlo_quantize(jax.random.key(0), jnp.array([0.2]), 0.1, samples=500)
      >>> found.q.tolist(), bool(found.radius[0] < 0.2)
      ([1], True)
    """
    lam, g = _noise.checked(sigma, lam, noise), _noise.finite(g)
    _validate.whole(samples=samples)
    _validate.fraction(alpha=alpha)
    leaves, structure = jax.tree.flatten(g)
    keys = jax.random.split(key, len(leaves))
    options = {"sigma": float(sigma), "lam": lam, "noise": noise, "samples": samples}
    done = [
        _monte_carlo(k, leaf, alpha=alpha, implementation=implementation, **options)
        for k, leaf in zip(keys, leaves, strict=True)
    ]
    return SmoothedQuant(*_unzip(structure, done, 4), radius_exact=None)


@functools.partial(
    jax.jit, static_argnames=("sigma", "lam", "noise", "samples", "alpha", "implementation")
)
def _monte_carlo(key, g, *, sigma, lam, noise, samples, alpha, implementation):
    plus, minus = monte_carlo_votes(
        g,
        key,
        sigma=sigma,
        lam=lam,
        noise=noise,
        samples=samples,
        implementation=implementation,
    )
    votes = jnp.stack([minus, samples - plus - minus, plus])
    # A bound is a function of a count: all of them in one small table.
    lower, upper = (jnp.asarray(t, jnp.float32) for t in _clopper_pearson(samples, alpha / 3))
    winner = jnp.argmax(votes, axis=0)
    others = jnp.arange(3).reshape(-1, *[1] * g.ndim) != winner[None]
    p_a = lower[votes.max(0)]
    p_b = jnp.where(others, upper[votes], 0.0).max(0)
    radius = radius_of_probabilities(p_a, p_b, sigma, noise=noise)
    return (winner - 1).astype(jnp.int8), p_a, p_b, radius


@functools.lru_cache
def _clopper_pearson(samples: int, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Two-sided bounds of a probability for every count 0..samples."""
    count = np.arange(samples + 1)
    lower = np.where(count > 0, stats.beta.ppf(alpha / 2, count, samples - count + 1), 0.0)
    upper = np.where(
        count < samples, stats.beta.ppf(1 - alpha / 2, count + 1, samples - count), 1.0
    )
    return lower, upper


def radius_of_probabilities(
    p_a: Array, p_b: Array, sigma: float, *, noise: str = "gaussian"
) -> Array:
    """How far a coordinate may move, given bounds of its two largest class probabilities.

    Gaussian: ``sigma / 2 (Phi^-1(p_a) - Phi^-1(p_b))`` (Cohen et al. 2019; PCMU Theorem 3 and Eq.
    24). Laplace with ``beta = sigma / sqrt 2``: the larger of ``beta / 2 log(p_a / p_b)`` and
    ``-2 beta log(1 - (p_a - p_b) / 2)``. Uniform: ``sqrt(3) sigma (p_a - p_b)``. The last two
    follow from how much a shift can change the probability of any event.

    Args:
      p_a: lower bound of the largest probability.
      p_b: upper bound of the second.
      sigma: standard deviation of the noise.
      noise: ``gaussian``, ``laplace`` or ``uniform``.

    Returns:
      The radius; 0 where ``p_a <= p_b``.

    Guarantee: the class does not change within the radius, if the bounds hold. In float32 ``p_a``
    rounds to 1 from 5.5 sigma on and the Gaussian formula then gives infinity, which is no
    certificate: :func:`smooth_quantize` computes its radius without the probabilities.

    Example:
      >>> round(float(radius_of_probabilities(jnp.float32(0.9), jnp.float32(0.05), 0.1)), 4)
      0.1463
    """
    _noise.checked(sigma, None, noise)
    p_a, p_b = jnp.asarray(p_a), jnp.asarray(p_b)
    if noise == "gaussian":
        from_a, from_b = jax.scipy.special.ndtri(p_a), jax.scipy.special.ndtri(p_b)
        radius = 0.5 * sigma * (from_a - from_b)
    elif noise == "laplace":
        beta = sigma / math.sqrt(2)
        ratio = 0.5 * beta * (jnp.log(p_a) - jnp.log(p_b))
        radius = jnp.maximum(ratio, -2 * beta * jnp.log1p(-0.5 * (p_a - p_b)))
    else:
        radius = math.sqrt(3) * sigma * (p_a - p_b)
    return jnp.where(p_a > p_b, radius, 0.0)


def _wide(g: Array) -> Array:
    return g.astype(jnp.promote_types(g.dtype, jnp.float32))
