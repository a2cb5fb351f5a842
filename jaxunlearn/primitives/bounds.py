"""Bounds on what a dense ReLU network can do over a box: intervals, and CROWN.

Both are sound: no input of the box leaves them. CROWN is never looser here, because
it starts from the intervals and keeps the better of the two at every layer.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _validate
from jaxunlearn.primitives.regions import HIGHEST, dense_layers
from jaxunlearn.types import Array, Params


class Bounds(NamedTuple):
    """Lower and upper bounds over a box.

    Attributes:
      low: ``[..., N]``, of the hidden pre-activations, layer after layer.
      high: the same.
      logits_low: ``[..., L]``, or one for each row of a ``target``.
      logits_high: the same.
    """

    low: Array
    high: Array
    logits_low: Array
    logits_high: Array


def interval_bounds(params: Params, low: Array, high: Array) -> Bounds:
    """Interval arithmetic, layer by layer: ``c = W m + b, r = |W| r`` for midpoints and radii.

    Args:
      params: dense ReLU layers (see :mod:`jaxunlearn.primitives.regions`).
      low: ``float[..., d]``, least inputs.
      high: ``float[..., d]``, greatest inputs.

    Returns:
      :class:`Bounds`, of the logits.

    Cost: two forward passes. Guarantee: sound up to rounding.

    Example:
      >>> layers = [(jnp.array([[1.0, -1.0]]), jnp.zeros(2)), (jnp.ones((2, 1)), jnp.zeros(1))]
      >>> bounds = interval_bounds(layers, jnp.array([-1.0]), jnp.array([2.0]))
      >>> bounds.low.tolist(), bounds.logits_high.tolist()  # |v| is at most 2, but it adds 1
      ([-1.0, -2.0], [3.0])
    """
    layers = dense_layers(params)
    _check_box(low, high)
    return _intervals(layers, jnp.asarray(low), jnp.asarray(high))


def crown_bounds(params: Params, low: Array, high: Array, *, target: Array | None = None) -> Bounds:
    """CROWN (Zhang et al. 2018): each ReLU between two lines, propagated back to the input.

    An unstable ReLU on [l, u] lies below ``u (z - l) / (u - l)`` and above ``a z``, with
    a = 1 if u >= -l and 0 otherwise (the choice of the least area). Substituting
    backwards gives an affine bound on the input box, whose extreme is in closed form.

    Args:
      params: dense ReLU layers.
      low: ``float[d]``, least inputs; :func:`jax.vmap` takes many boxes.
      high: ``float[d]``, greatest inputs.
      target: ``float[M, L]``: bound ``target @ logits`` (differences of logits, say,
        which is tighter than the difference of bounds) instead of the logits.

    Returns:
      :class:`Bounds`; the last two are of ``target @ logits``.

    Cost: for every layer one product of its width with all layers before it.
    Guarantee: sound up to rounding, and never looser than :func:`interval_bounds`.

    Example:
      >>> layers = [(jnp.array([[1.0, -1.0]]), jnp.zeros(2)), (jnp.ones((2, 1)), jnp.zeros(1))]
      >>> bounds = crown_bounds(layers, jnp.array([-1.0]), jnp.array([2.0]))
      >>> bounds.logits_high.tolist()
      [2.0]
    """
    layers = dense_layers(params)
    _check_box(low, high)
    low = jnp.asarray(low)
    if target is None:
        target = jnp.eye(layers[-1].bias.shape[0], dtype=low.dtype)
    return _crown(layers, low, jnp.asarray(high), target)


def certified_radius(
    params: Params, x: Array, y: Array, *, low, high, largest: float = 0.1, steps: int = 8
) -> Array:
    """The largest l_inf radius at which CROWN proves that every input keeps its label.

    Args:
      params: dense ReLU layers.
      x: ``float[B, d]`` inputs.
      y: ``int[B]`` labels.
      low: least inputs of the domain; the ball is cut with it.
      high: greatest ones.
      largest: radius to search up to.
      steps: bisections.

    Returns:
      ``float[B]``; 0 where not even the smallest tried radius is proved.

    Cost: ``steps`` times CROWN for every input.

    Raises:
      ValueError: a point outside of the domain.

    Example:
      >>> layers = [(jnp.array([[1.0, -1.0]]), jnp.zeros(2)), (jnp.eye(2), jnp.zeros(2))]
      >>> x, y = jnp.array([[0.5]]), jnp.array([0])  # class 0 where the input is positive
      >>> radius = certified_radius(layers, x, y, low=-1.0, high=1.0, largest=1.0)
      >>> bool(0.4 < radius[0] <= 0.5)
      True
    """
    layers = dense_layers(params)
    inside_box("x", x, low, high)
    return _radius(layers, x, y, low, high, largest, steps=steps)


def fixed_neurons(params: Params, x: Array, radius: Array, *, low, high) -> Array:
    """The neurons whose sign CROWN proves to be fixed in a ball: ``bool[B, N]``.

    Args:
      params: dense ReLU layers.
      x: ``float[B, d]`` centres.
      radius: ``float[B]``, l_inf.
      low: least inputs of the domain.
      high: greatest ones.

    Returns:
      True where the pre-activation is >= 0, or <= 0, in all of the ball.

    Cost: CROWN for every input.

    Raises:
      ValueError: a point outside of the domain.

    Example:
      >>> layers = [(jnp.array([[1.0, -1.0]]), jnp.ones(2)), (jnp.eye(2), jnp.zeros(2))]
      >>> fixed_neurons(layers, jnp.zeros((1, 1)), jnp.array([2.0]), low=-1.0, high=1.0).tolist()
      [[True, True]]
    """
    inside_box("x", x, low, high)
    return _fixed(dense_layers(params), x, radius, low, high)


def _check_box(low, high) -> None:
    if jnp.shape(low) != jnp.shape(high):
        raise ValueError(
            f"low has shape {jnp.shape(low)} and high {jnp.shape(high)}, but they must be equal."
        )
    if _validate.known(low) and _validate.known(high):
        if not (np.asarray(low) <= np.asarray(high)).all():
            raise ValueError("low must be at most high everywhere: this box is empty, or has NaN.")


def inside_box(name: str, x, low, high) -> None:
    """Raises ValueError if a point, where it is known, lies outside of the box.

    Example:
      >>> inside_box("x", jnp.array([[0.5], [1.0]]), 0.0, 1.0)
    """
    if not all(map(_validate.known, (x, low, high))):
        return
    values, low, high = np.asarray(x), np.asarray(low), np.asarray(high)
    side = lambda bound: np.broadcast_to(bound, values.shape[1:])[None]
    beyond = ~((values >= side(low)) & (values <= side(high)))
    outside = np.flatnonzero(beyond.any(1))
    if outside.size:
        raise ValueError(
            f"{name} has {outside.size} points outside of the box from low={low.min():g} to "
            f"high={high.max():g} (first: {outside[:5].tolist()}): widen it."
        )


def _mm(a, b):
    return jnp.matmul(a, b, precision=HIGHEST)


@jax.jit
def _intervals(layers, low, high) -> Bounds:
    lows, highs = [], []
    for number, (kernel, bias) in enumerate(layers):
        if number:
            low, high = jax.nn.relu(low), jax.nn.relu(high)
        middle, radius = _mm((low + high) / 2, kernel), _mm((high - low) / 2, jnp.abs(kernel))
        middle = middle + bias.reshape((1,) * (middle.ndim - 1) + bias.shape)
        low, high = middle - radius, middle + radius
        lows.append(low)
        highs.append(high)
    cat = lambda parts: jnp.concatenate(parts[:-1], axis=-1)
    return Bounds(cat(lows), cat(highs), lows[-1], highs[-1])


@jax.jit
def _crown(layers, low, high, target) -> Bounds:
    known = []  # bounds of the pre-activations of the layers so far
    for depth in range(len(layers)):
        last = depth == len(layers) - 1
        kernel, bias = layers[depth]
        rows = _mm(target, kernel.T) if last else kernel.T
        offset = _mm(target, bias) if last else bias
        found = _back(layers, known, rows, offset, low, high)
        if known:  # the interval from the layer before, where it is better
            inner = [jax.nn.relu(b) for b in known[-1]]
        else:
            inner = [low, high]
        centre, radius = (inner[0] + inner[1]) / 2, (inner[1] - inner[0]) / 2
        middle, spread = _mm(rows, centre) + offset, _mm(jnp.abs(rows), radius)
        found = jnp.maximum(found[0], middle - spread), jnp.minimum(found[1], middle + spread)
        known.append(found)
    hidden = [jnp.concatenate([b[side] for b in known[:-1]]) for side in (0, 1)]
    return Bounds(hidden[0], hidden[1], *known[-1])


def _back(layers, known, rows, offset, low, high):
    """Bounds of ``rows @ relu(z) + offset``, z the last known layer, over the box."""
    lower, upper, c_low, c_high = rows, rows, offset, offset
    for box, (kernel, bias) in zip(known[::-1], layers[len(known) - 1 :: -1], strict=False):
        slope, shift, under = _relaxation(*box)
        pos, neg = jax.nn.relu, lambda a: jnp.minimum(a, 0)
        c_low = c_low + _mm(neg(lower), shift)
        c_high = c_high + _mm(pos(upper), shift)
        lower = pos(lower) * under[None] + neg(lower) * slope[None]
        upper = pos(upper) * slope[None] + neg(upper) * under[None]
        c_low, c_high = c_low + _mm(lower, bias), c_high + _mm(upper, bias)
        lower, upper = _mm(lower, kernel.T), _mm(upper, kernel.T)
    middle, radius = (low + high) / 2, (high - low) / 2
    return (
        _mm(lower, middle) - _mm(jnp.abs(lower), radius) + c_low,
        _mm(upper, middle) + _mm(jnp.abs(upper), radius) + c_high,
    )


def _relaxation(low, high):
    """Slope and shift of the line above a ReLU, and the slope of the one below."""
    unstable = (low < 0) & (high > 0)
    width = jnp.where(unstable, high - low, 1)
    active = (low >= 0).astype(low.dtype)
    slope = jnp.where(unstable, high / width, active)
    shift = jnp.where(unstable, -high * low / width, 0)
    under = jnp.where(unstable, (high >= -low).astype(low.dtype), active)
    return slope, shift, under


def _ball(x, radius, low, high):
    return jnp.maximum(x - radius, low), jnp.minimum(x + radius, high)


@functools.partial(jax.jit, static_argnames=("steps",))
def _radius(layers, x, y, low, high, largest, *, steps):
    classes = layers[-1].bias.shape[0]

    def one(inputs):
        x, y = inputs
        ahead = jax.nn.one_hot(y, classes, dtype=x.dtype)[None] - jnp.eye(classes, dtype=x.dtype)

        def keeps(radius):
            margins = _crown(layers, *_ball(x, radius, low, high), ahead).logits_low
            return ((margins > 0) | (jnp.arange(classes) == y)).all()

        def halve(_, between):
            proved, open_ = between
            middle = (proved + open_) / 2
            good = keeps(middle)
            return jnp.where(good, middle, proved), jnp.where(good, open_, middle)

        start = jnp.zeros((), x.dtype), jnp.asarray(largest, x.dtype)
        return jax.lax.fori_loop(0, steps, halve, start)[0]

    return jax.lax.map(one, (x, y), batch_size=min(16, x.shape[0]))


@jax.jit
def _fixed(layers, x, radius, low, high):
    def one(inputs):
        x, radius = inputs
        box = _ball(x, radius, low, high)
        found = _crown(layers, *box, jnp.eye(layers[-1].bias.shape[0], dtype=x.dtype))
        return (found.low >= 0) | (found.high <= 0)

    return jax.lax.map(one, (x, radius), batch_size=min(16, x.shape[0]))
