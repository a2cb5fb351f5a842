"""How far a class can lead another one inside a linear region: a sound upper bound.

The constant of a patch must outweigh ``V_l = max (M_l - M_target)(x)`` over the region
and the input box: a linear programme for each other class l. Its dual function bounds
it from above at *any* multipliers, so nothing has to be trusted but one evaluation of
it, and a solver may stop when it likes. Here that solver is a primal-dual gradient
method, all patches and classes at once, which never writes the region's matrix out.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn import _validate
from jaxunlearn.primitives.regions import (
    HIGHEST,
    dense_layers,
    masked_adjoint,
    masked_forward,
    signs,
    unpack,
)
from jaxunlearn.types import Array, Params


class RegionBound(NamedTuple):
    """Result of :func:`region_bound`.

    Attributes:
      bound: ``float[K, L]``, at least ``max (M_l - M_target)`` over the region and box.
      dual: ``float[K, L, N]``, multipliers >= 0 that prove it.
    """

    bound: Array
    dual: Array


# Iterations between restarts.
PERIOD = 100


def region_bound(
    params: Params,
    bits: Array,
    target: Array,
    *,
    low,
    high,
    iterations: int = 200,
    chunk: int = 32,
) -> RegionBound:
    """Bounds every other class's lead over ``target`` in each region, from above.

    With ``G x + g >= 0`` the region (Lemma 1, Eq. 5 of PRUNE) and ``c x + c0`` the lead
    there, weak duality gives for any ``y >= 0``

        V <= c0 + g.y + sum_i max(low_i q_i, high_i q_i),   q = c + G^T y.

    The multipliers come from PDHG (Applegate et al. 2021) with rows scaled to length
    one, restarts to the average, and primal weights.

    Args:
      params: dense ReLU layers.
      bits: ``uint8[K, W]``, the regions.
      target: ``int[K]``.
      low: least inputs, a number or ``float[d]``. Without a box V may be infinite.
      high: greatest inputs.
      iterations: of the method; 200 for a median gap of 2% on MNIST, 1000 for 0.2%.
      chunk: regions at once: memory is ``chunk L (d + 5 N)`` floats.

    Returns:
      :class:`RegionBound`. ``bound`` is of the precision of ``params``, its rounding
      added; :func:`jaxunlearn.certify.patch_check.bound` repeats it in float64.

    Guarantee: sound. Cost: ``2 K L iterations`` forward passes.

    Raises:
      ValueError: a box that is empty, ``iterations`` or ``chunk`` below 1.

    Example:
      >>> layers = [(jnp.array([[1.0, -1.0]]), jnp.zeros(2)), (jnp.eye(2), jnp.zeros(2))]
      >>> bits, target = jnp.array([[1]], jnp.uint8), jnp.array([1])
      >>> found = region_bound(layers, bits, target, low=-1.0, high=2.0)
      >>> bool(2.0 <= found.bound[0, 0] < 2.01)  # class 0 leads by x, at most 2
      True
    """
    layers = dense_layers(params)
    _validate.whole(iterations=iterations, chunk=chunk)
    low, high = box(low, high, layers[0].kernel)
    return _bound(layers, bits, target, low, high, iterations=iterations, chunk=chunk)


def box(low, high, kernel: Array) -> tuple[Array, Array]:
    """The input box as two vectors; raises if there is none or it is empty.

    Example:
      >>> [side.tolist() for side in box(0, 1, jnp.ones((2, 3)))]
      [[0.0, 0.0], [1.0, 1.0]]
    """
    if low is None or high is None:
        raise ValueError(
            f"low={low!r} and high={high!r}: a region may reach to infinity, so that nothing holds "
            "on all of it. Give the least and the greatest values that inputs can have, 0.0 and "
            "1.0 for images."
        )
    shape, dtype = kernel.shape[:1], kernel.dtype
    sides = [jnp.broadcast_to(jnp.asarray(side, dtype), shape) for side in (low, high)]
    if _validate.known(sides[0]) and _validate.known(sides[1]):
        with jax.ensure_compile_time_eval():
            good = bool((sides[0] <= sides[1]).all() and jnp.isfinite(jnp.stack(sides)).all())
        if not good:
            raise ValueError(f"low={low!r} and high={high!r} must be finite, and low <= high.")
    return sides[0], sides[1]


class _Programme(NamedTuple):
    """One chunk, in coordinates u in [-1, 1]: maximise c.u + c0 where G u + g >= 0."""

    layers: tuple  # the first kernel times the half-widths of the box
    active: Array  # bool[K, 1, N]
    scale: Array  # [K, 1, N], sign over the length of the row
    c: Array  # [K, L, d]
    c0: Array  # [K, L]
    g: Array  # [K, 1, N]

    def forward(self, u):
        z, _ = masked_forward(self.layers, self.active, u, bias=False)
        return self.scale * z

    def adjoint(self, y):
        nothing = jnp.zeros((*y.shape[:-1], self.layers[-1].bias.shape[0]), y.dtype)
        return masked_adjoint(self.layers, self.active, self.scale * y, nothing)

    def value(self, y):
        """The dual function, and the size of what is summed in it, for its rounding."""
        q = jnp.abs(self.c + self.adjoint(y)).sum(-1)
        terms = (self.g * y).sum(-1)
        size = jnp.abs(self.c0) + q + jnp.abs(self.g * y).sum(-1)
        return self.c0 + terms + q, size


@functools.partial(jax.jit, static_argnames=("iterations", "chunk"))
def _bound(layers, bits, target, low, high, *, iterations, chunk) -> RegionBound:
    def solve(inputs):
        bits, target = inputs
        programme, own = _programme(layers, bits, target, low, high)
        y = _pdhg(programme, iterations)
        y = jnp.where(own[..., None], 0, y)
        bound, size = programme.value(y)
        # Sums of some hundred terms: an error of sqrt(N) eps would be the rule, N eps the worst.
        # The checker allows 1e-10 for its own.
        slack = 1e-5 if bound.dtype == jnp.float32 else 3e-10
        bound = jnp.where(own, 0, bound + slack * size)
        lengths = jnp.abs(programme.scale)  # multipliers of the rows as they are
        return RegionBound(bound, y * lengths)

    count = bits.shape[0]
    parts = -(-count // chunk)
    pad = lambda leaf: jnp.pad(leaf, ((0, parts * chunk - count),) + ((0, 0),) * (leaf.ndim - 1))
    split = lambda leaf: pad(leaf).reshape(parts, chunk, *leaf.shape[1:])
    if parts == 1:
        return solve((bits, target))
    found = jax.lax.map(solve, (split(bits), split(target)))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:count], found)


def _programme(layers, bits, target, low, high) -> tuple[_Programme, Array]:
    middle, half = (low + high) / 2, (high - low) / 2
    count = sum(layer.bias.shape[0] for layer in layers[:-1])
    classes, dtype = layers[-1].bias.shape[0], layers[0].kernel.dtype
    active = unpack(bits, count)
    sign = signs(active, dtype)
    scaled = (layers[0]._replace(kernel=half[:, None] * layers[0].kernel), *layers[1:])
    lengths = _row_lengths(scaled, active)
    scale = sign / jnp.where(lengths > 0, lengths, 1)
    centre = jnp.broadcast_to(middle, (bits.shape[0], middle.shape[0]))
    z, logits = masked_forward(layers, active, centre)
    own = jnp.arange(classes)[None] == target[:, None]
    leads = jnp.eye(classes, dtype=dtype)[None] - own[:, None].astype(dtype)
    nothing = jnp.zeros((1, 1, count), dtype)
    c = masked_adjoint(scaled, active[:, None], nothing, leads)
    c0 = logits - jnp.take_along_axis(logits, target[:, None], axis=1)
    return _Programme(scaled, active[:, None], scale[:, None], c, c0, (scale * z)[:, None]), own


def _row_lengths(layers, active) -> Array:
    """The norm of every neuron's gradient in its region, ``[K, N]``, from Gram matrices.

    ``G_1 = W_1^T W_1`` is shared by all regions; ``G_j+1 = W^T D G_j D W`` with D the bits.
    Writing the gradients themselves out would take N backward passes a region.
    """
    gram = jnp.matmul(layers[0].kernel.T, layers[0].kernel, precision=HIGHEST)[None]
    found, start = [], 0
    for number, (_, bias) in enumerate(layers[:-1]):
        stop = start + bias.shape[0]
        diagonal = jnp.sqrt(jnp.diagonal(gram, axis1=-2, axis2=-1))
        found.append(jnp.broadcast_to(diagonal, (active.shape[0], stop - start)))
        if number + 2 < len(layers):
            d = active[:, start:stop].astype(gram.dtype)
            w = d[:, :, None] * layers[number + 1].kernel[None]
            gram = jnp.matmul(w.mT, jnp.matmul(gram, w, precision=HIGHEST), precision=HIGHEST)
        start = stop
    return jnp.concatenate(found, axis=-1)


def _pdhg(p: _Programme, iterations: int) -> Array:
    """Multipliers ``[K, L, N]`` of the scaled rows, the best ones met."""
    length = jnp.linalg.norm(p.c, axis=-1, keepdims=True)
    length = jnp.where(length > 0, length, 1)  # objectives of length one: steps fit all of them
    p = p._replace(c=p.c / length, c0=p.c0 / length[..., 0])
    batch, count = p.c.shape[:-1], p.g.shape[-1]

    def power(_, u):
        u = p.adjoint(p.forward(u))
        return u / jnp.linalg.norm(u, axis=-1, keepdims=True)

    u = jax.lax.fori_loop(0, 12, power, jnp.ones_like(p.c[:, :1]))
    norm = jnp.linalg.norm(p.forward(u), axis=-1, keepdims=True)
    step = 0.9 / jnp.maximum(norm, 1e-12)  # [K, 1, 1]

    def iterate(_, carry):
        u, y, pull, u_sum, y_sum, weight = carry
        ahead = jnp.clip(u + step / weight * (p.c + pull), -1, 1)
        y = jax.nn.relu(y - step * weight * (p.forward(2 * ahead - u) + p.g))
        return ahead, y, p.adjoint(y), u_sum + ahead, y_sum + y, weight

    def epoch(_, carry):
        u0, y0, weight, best, best_y = carry
        start = u0, y0, p.adjoint(y0), jnp.zeros_like(u0), jnp.zeros_like(y0), weight
        u, y, _, u_sum, y_sum, _ = jax.lax.fori_loop(0, period, iterate, start)
        mean, y_mean = u_sum / period, y_sum / period
        now, _ = p.value(y)
        average, _ = p.value(y_mean)
        better = (average < now)[..., None]
        u, y = jnp.where(better, mean, u), jnp.where(better, y_mean, y)
        value = jnp.minimum(now, average)
        improved = value < best
        best = jnp.where(improved, value, best)
        best_y = jnp.where(improved[..., None], y, best_y)
        moved_u = jnp.linalg.norm(u - u0, axis=-1, keepdims=True)
        moved_y = jnp.linalg.norm(y - y0, axis=-1, keepdims=True)
        known = (moved_u > 1e-8) & (moved_y > 1e-8)
        ratio = jnp.where(known, moved_y / jnp.where(known, moved_u, 1), weight)
        return u, y, jnp.sqrt(ratio * weight), best, best_y

    period = min(PERIOD, iterations)
    zeros = jnp.zeros((*batch, count), p.c.dtype)
    value, _ = p.value(zeros)
    weight = jnp.full((*batch, 1), p.c.shape[-1] ** -0.5, p.c.dtype)  # |y| is about 1, |u| sqrt(d)
    start = jnp.zeros_like(p.c), zeros, weight, value, zeros
    *_, best_y = jax.lax.fori_loop(0, -(-iterations // period), epoch, start)
    return best_y * length
