"""PCMU's step as an optax transformation."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn import _validate
from jaxunlearn.primitives import _noise, smoothing
from jaxunlearn.types import Array

MODES = ("hard", "soft", "sampled")
NOISES = (*smoothing.NOISES, "none")
RELATIVE = (None, "leaf_rms")


class SampledState(NamedTuple):
    """Optimizer state of :func:`pcmu` with ``mode="sampled"``.

    Attributes:
      key: of the next draw.
    """

    key: Array


def pcmu(
    sigma: float = 0.1,
    lam: float | None = None,
    *,
    noise: str = "gaussian",
    mode: str = "hard",
    relative: str | None = None,
    key: Array | None = None,
) -> optax.GradientTransformation:
    """Smooths and quantizes gradients: an optax transformation, for ``optax.chain``.

    PCMU's step is ``w -= lr S'(G)`` (Eq. 29) with ``S'`` the likeliest class of ``Q(G + noise)``
    (Eq. 21), here in closed form:

    ======== ==================================================== =========================
    mode     update of a coordinate                               differentiable
    ======== ==================================================== =========================
    hard     ``sign(g)`` above the threshold, else 0 (the paper)  no: constant almost
                                                                  everywhere
    soft     ``E[Q(g + noise)]``                                  yes
    sampled  one draw of ``Q(g + noise)``                         no
    ======== ==================================================== =========================

    Args:
      sigma: standard deviation of the noise, > 0.
      lam: width of the zone quantized to 0, ``sigma^2`` by default.
      noise: ``gaussian`` (the paper), ``laplace`` or ``uniform`` (its variants), or ``none``: plain
        quantization ``Q(g)``, the paper's ablation PCMU-N; hard mode only.
      mode: see above.
      relative: ``None``, sigma and lam are in units of the gradient; ``leaf_rms``, in units of the
        root mean square of each leaf. Needed for a quantizer whose zero class is alive,
        ``lam > .86 sigma``, since gradients shrink by orders of magnitude in a training.
      key: ``jax.random.key``; for ``mode="sampled"`` only, which needs it.

    Returns:
      An ``optax.GradientTransformation``. The same object for the same arguments without a key,
      so that what was compiled with it is found again.

    Guarantee: none of the model. That of sampled noise needs clipped gradients and a fixed
    denominator, which :func:`train` has and a transformation cannot know. Under ``vmap`` over
    seeds all of them draw the same noise unless each gets a ``SampledState`` of its own.

    Deviation: a coordinate with zero gradient stays; the paper's argmax would take -1.

    Cost: hard, one comparison a coordinate: a step costs what a step of SGD does.

    Raises:
      ValueError: an argument outside its range, by name; updates that are not finite. Under
        ``jit`` NaN goes through instead, and an infinite gradient counts by its sign.

    Example:
      >>> step = optax.chain(pcmu(0.1), optax.scale(-0.003))
      >>> params = {"w": jnp.array([1.0, 1.0, 1.0])}
      >>> gradients = {"w": jnp.array([0.02, -4.0, 0.0])}
      >>> updates, _ = step.update(gradients, step.init(params), params)
      >>> [round(float(w), 3) for w in optax.apply_updates(params, updates)["w"]]
      [0.997, 1.003, 1.0]
    """
    _validate.one_of(NOISES, noise=noise)
    _validate.one_of(MODES, mode=mode)
    lam = _noise.checked(sigma, lam, "gaussian" if noise == "none" else noise)
    if relative not in RELATIVE:
        raise ValueError(f"relative={relative!r} must be None or 'leaf_rms'.")
    if noise == "none" and mode != "hard":
        raise ValueError(f"noise='none' leaves nothing to smooth: mode={mode!r} must be 'hard'.")
    if (mode == "sampled") != (key is not None):
        raise ValueError(
            f"key={'given' if key is not None else None} does not go with mode={mode!r}: "
            "only 'sampled' draws, and it needs a jax.random.key."
        )
    if mode == "sampled":
        return _sampled(float(sigma), lam, noise, relative, key)
    return _deterministic(float(sigma), lam, noise, mode, relative)


# Cached, so that a jitted training that has it as a static argument compiles once.
@functools.lru_cache
def _deterministic(sigma, lam, noise, mode, relative) -> optax.GradientTransformation:
    theta = lam / 2 if noise == "none" else smoothing.ternary_threshold(sigma, lam, noise)

    def one(g: Array) -> Array:
        scaled = _scaled(g, relative) if relative and (theta or mode == "soft") else g
        if mode == "soft":
            return smoothing.expected_quantize(scaled, sigma, lam, noise=noise).astype(g.dtype)
        rest = g * 0 if theta else g  # NaN stays NaN
        sign = jnp.copysign(jnp.ones((), g.dtype), g)
        return jnp.where(jnp.abs(scaled) > theta, sign, rest)

    def update(updates, params):
        del params
        _noise.check_finite(updates, name="updates")
        return jax.tree.map(one, updates)

    return optax.stateless(update)


def _sampled(sigma, lam, noise, relative, key) -> optax.GradientTransformation:
    def update(updates, state, params=None):
        del params
        _noise.check_finite(updates, name="updates")
        now, later = jax.random.split(state.key)
        scaled = jax.tree.map(lambda g: _scaled(g, relative), updates)
        q = smoothing.sample_quantize(now, scaled, sigma, lam, noise=noise)
        # int8 has no NaN.
        shown = lambda q, g: jnp.where(jnp.isnan(g), g, q.astype(g.dtype))
        return jax.tree.map(shown, q, updates), SampledState(later)

    return optax.GradientTransformation(lambda params: SampledState(key), update)


def _scaled(g: Array, relative: str | None) -> Array:
    """The gradient in units of its root mean square, in float32 or wider."""
    wide = g.astype(jnp.promote_types(g.dtype, jnp.float32))
    if relative is None or g.size == 0:
        return wide
    largest = jnp.max(jnp.abs(wide))
    wide = wide / jnp.where(largest > 0, largest, 1.0)  # squares neither overflow nor vanish
    rms = jnp.sqrt(jnp.mean(jnp.square(wide)))
    return wide / jnp.where(rms > 0, rms, 1.0)
