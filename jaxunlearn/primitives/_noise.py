"""The laws of the smoothing noise, with standard deviation 1, and checks of its settings."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _validate
from jaxunlearn.types import Array, PyTree
from jaxunlearn_kernels.smooth_quantize import laws


def cdf(t: Array, noise: str) -> Array:
    """Distribution function of the noise with standard deviation 1, right in its lower tail."""
    if noise == "gaussian":
        return jax.scipy.special.ndtr(t)
    if noise == "laplace":
        half = 0.5 * jnp.exp(-math.sqrt(2) * jnp.abs(t))
        return jnp.where(t < 0, half, 1 - half)
    return jnp.clip(t / (2 * math.sqrt(3)) + 0.5, 0.0, 1.0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def signed(t: Array, noise: str) -> Array:
    """``2 F(t) - 1``, odd, and right near 0."""
    if noise == "gaussian":
        return jax.scipy.special.erf(t / math.sqrt(2))
    if noise == "laplace":
        return -jnp.sign(t) * jnp.expm1(-math.sqrt(2) * jnp.abs(t))
    return jnp.clip(t / math.sqrt(3), -1.0, 1.0)


@signed.defjvp
def _signed_jvp(noise, primals, tangents):
    (t,), (dt,) = primals, tangents
    if noise == "gaussian":
        density = jnp.exp(-0.5 * t * t) / math.sqrt(2 * math.pi)
    elif noise == "laplace":
        density = jnp.exp(-math.sqrt(2) * jnp.abs(t)) / math.sqrt(2)
    else:
        density = jnp.where(jnp.abs(t) <= math.sqrt(3), 0.5 / math.sqrt(3), 0.0).astype(t.dtype)
    return signed(t, noise), 2 * density * dt


def draw(key: Array, like: Array, noise: str) -> Array:
    if noise == "gaussian":
        return jax.random.normal(key, like.shape, like.dtype)
    if noise == "laplace":
        return jax.random.laplace(key, like.shape, like.dtype) / math.sqrt(2)
    h = math.sqrt(3)
    return jax.random.uniform(key, like.shape, like.dtype, -h, h)


def checked(sigma: float, lam: float | None, noise: str) -> float:
    """``lam`` or its default ``sigma^2``, after checking all three."""
    for name, value in {"sigma": sigma, "lam": lam}.items():
        if not (value is None or isinstance(value, int | float | np.number | jax.Array)):
            raise ValueError(f"{name}={value!r} must be a number.")
    if not _validate.known(sigma) or not _validate.known(lam):
        raise ValueError(
            "sigma and lam must be Python numbers here, not traced: thresholds are computed "
            "on the host. expected_quantize and sample_quantize take traced ones."
        )
    _validate.positive(sigma=sigma)
    lam = float(sigma) ** 2 if lam is None else float(lam)
    _validate.not_negative(lam=lam)
    _validate.one_of(laws.NOISES, noise=noise)
    return lam


def traceable(sigma, lam, noise: str):
    """The same of a ``sigma`` and a ``lam`` that may be traced: checked where they are known."""
    if _validate.known(sigma) and _validate.known(lam):
        return checked(sigma, lam, noise)
    _validate.one_of(laws.NOISES, noise=noise)
    return sigma**2 if lam is None else lam


def finite(g: PyTree) -> PyTree:
    """Gradients as arrays, checked."""
    g = jax.tree.map(jnp.asarray, g)
    check_finite(g)
    return g


def check_finite(g: PyTree, *, name: str = "g") -> None:
    """Gradients whose values are known are finite."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(g):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"{name}{_where(path)} has dtype {leaf.dtype}, but must be floats.")
        if not _validate.known(leaf):
            continue
        with jax.ensure_compile_time_eval():
            bad = int(leaf.size - jnp.isfinite(leaf).sum())
        if bad:
            raise ValueError(
                f"{name}{_where(path)} has {bad} values of {leaf.size} that are NaN or infinite. "
                "Lower the learning rate, or clip the gradients."
            )


def _where(path) -> str:
    return jax.tree_util.keystr(path)
