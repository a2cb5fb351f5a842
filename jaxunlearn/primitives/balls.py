"""Where an adversarial perturbation may lie: an L2 ball, or a box within the range of inputs.

A ball is a hashable description. Its methods take ONE row ``x`` of any shape and arrays like it.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxunlearn import _validate
from jaxunlearn.types import Array


@dataclasses.dataclass(frozen=True)
class L2Ball:
    """Perturbations of Euclidean length at most ``radius``.

    Attributes:
      radius: > 0.
    """

    radius: float

    def __post_init__(self):
        _validate.positive(radius=self.radius)

    def project(self, x: Array, delta: Array) -> Array:
        """The nearest point of the ball."""
        return delta * jnp.minimum(1.0, self.radius / jnp.maximum(norm(delta), tiny(delta)))

    def extreme(self, x: Array, g: Array) -> Array:
        """The point farthest along ``g``."""
        return self.radius * g / jnp.maximum(norm(g), tiny(g))

    def draw(self, key: Array, x: Array) -> Array:
        """A random point, uniform in the ball."""
        direction, length = jax.random.split(key)
        u = jax.random.uniform(length, (), x.dtype) ** (1 / x.size)
        return u * self.extreme(x, jax.random.normal(direction, x.shape, x.dtype))

    def active(self, x: Array, delta: Array) -> Array:
        """``bool``: whether ``delta`` lies on the sphere."""
        return norm(delta) >= self.radius * (1 - _slack(delta))

    def tangent(self, x: Array, delta: Array, g: Array) -> tuple[Callable, Array]:
        """The projection onto the directions that stay in the ball, and the multiplier."""
        active = self.active(x, delta)
        u = delta / jnp.maximum(norm(delta), tiny(delta))
        # A gradient that points inwards holds nothing at the sphere.
        nu = jnp.where(active, jnp.vdot(u, g) / self.radius, 0.0)
        return lambda v: v - jnp.where(active, jnp.vdot(u, v), 0.0) * u, nu

    def retract(self, x: Array, delta: Array, move: Array) -> Array:
        """``delta + move`` back in the ball; on the sphere if it was there."""
        to = delta + move
        on = self.radius * to / jnp.maximum(norm(to), tiny(to))
        return jnp.where(self.active(x, delta), on, self.project(x, to))


@dataclasses.dataclass(frozen=True)
class LInfBox:
    """Perturbations of at most ``radius`` in every coordinate, with ``x + delta`` within ``clip``.

    Attributes:
      radius: > 0.
      clip: smallest and largest value of an input, or None.
    """

    radius: float
    clip: tuple[float, float] | None = (0.0, 1.0)

    def __post_init__(self):
        _validate.positive(radius=self.radius)
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise ValueError(f"clip={self.clip!r} must be (low, high) with low < high, or None.")

    def bounds(self, x: Array) -> tuple[Array, Array]:
        """Smallest and largest ``delta``; 0 is always between them."""
        if self.clip is None:
            return jnp.full_like(x, -self.radius), jnp.full_like(x, self.radius)
        low, high = self.clip
        return (
            jnp.clip(low - x, -self.radius, 0.0).astype(x.dtype),
            jnp.clip(high - x, 0.0, self.radius).astype(x.dtype),
        )

    def project(self, x: Array, delta: Array) -> Array:
        """The nearest point of the box."""
        return jnp.clip(delta, *self.bounds(x))

    def extreme(self, x: Array, g: Array) -> Array:
        """The corner farthest along ``g``; 0 where ``g`` is."""
        low, high = self.bounds(x)
        return jnp.where(g > 0, high, jnp.where(g < 0, low, 0.0))

    def draw(self, key: Array, x: Array) -> Array:
        """A random point, uniform in the box."""
        low, high = self.bounds(x)
        return low + (high - low) * jax.random.uniform(key, x.shape, x.dtype)

    def active(self, x: Array, delta: Array) -> Array:
        """``bool`` like ``x``: which coordinates lie at a bound."""
        low, high = self.bounds(x)
        slack = self.radius * _slack(delta)
        return (delta <= low + slack) | (delta >= high - slack)

    def tangent(self, x: Array, delta: Array, g: Array) -> tuple[Callable, Array]:
        """The projection onto the free coordinates; the multiplier of a box bends nothing: 0."""
        low, high = self.bounds(x)
        inwards = ((delta <= low) & (g > 0)) | ((delta >= high) & (g < 0))
        free = ~self.active(x, delta) | (inwards & (low < high))
        return lambda v: jnp.where(free, v, 0.0), jnp.zeros((), x.dtype)

    def retract(self, x: Array, delta: Array, move: Array) -> Array:
        """``delta + move`` back in the box."""
        return self.project(x, delta + move)


Ball = L2Ball | LInfBox


def norm(v: Array) -> Array:
    """Euclidean length over all entries; its derivative at 0 is 0, not NaN.

    Example:
      >>> float(norm(jnp.array([3.0, 4.0])))
      5.0
    """
    square = jnp.sum(v * v)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def tiny(v: Array) -> Array:
    """The smallest normal number of a dtype: what to divide by instead of 0.

    Example:
      >>> float(tiny(jnp.zeros(1))) > 0
      True
    """
    return jnp.asarray(jnp.finfo(v.dtype).tiny)


def _slack(v: Array) -> float:
    """How close to the boundary counts as on it: a few roundings."""
    return 1e3 * float(jnp.finfo(v.dtype).eps)
