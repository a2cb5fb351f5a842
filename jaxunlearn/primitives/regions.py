"""Linear regions of a dense ReLU network: which neurons are active, and what that fixes.

A stack of dense layers with ReLU between is affine on each set of inputs that
activate the same neurons. Such a region is named by one bit a neuron: the bits
hold all there is to know about it, because the masked network (each ReLU
replaced by its bit) is the affine map, and its adjoint the normals of the faces.
Only :func:`linear_region` writes them out.

Everywhere here ``params`` is the stack that is patched, M_c of the paper: either
``{"Dense_0": {"kernel", "bias"}, ...}`` as the models of this library have it,
or a sequence of ``(kernel[in, out], bias[out])``; ``x`` are its inputs
``[..., d]``, that is, features M_p(x) where something comes before it.
"""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _validate
from jaxunlearn.types import Array, Params

HIGHEST = jax.lax.Precision.HIGHEST


class Dense(NamedTuple):
    """One dense layer: ``x @ kernel + bias``.

    Attributes:
      kernel: ``[in, out]``.
      bias: ``[out]``.
    """

    kernel: Array
    bias: Array


Layers = tuple[Dense, ...]


def dense_layers(params: Params) -> Layers:
    """The layers of a dense ReLU network, in order, from its parameters.

    Args:
      params: a dictionary of ``Dense_0``, ``Dense_1``, ... (entries of other names
        belong to the feature extractor and are left out), or a sequence of layers.

    Returns:
      A tuple of :class:`Dense`, the output layer last.

    Raises:
      ValueError: no dense layers, shapes that do not chain, or no hidden layer: without
        a ReLU every input lies in one region, and a patch of it would patch everything.

    Example:
      >>> params = {f"Dense_{i}": {"kernel": jnp.eye(2), "bias": jnp.zeros(2)} for i in (0, 1)}
      >>> len(dense_layers(params))
      2
    """
    if isinstance(params, dict):
        numbers = [int(m[1]) for key in params if (m := re.fullmatch(r"Dense_(\d+)", str(key)))]
        params = [params[f"Dense_{number}"] for number in sorted(numbers)]
    layers = []
    for number, layer in enumerate(params):
        kernel, bias = (layer["kernel"], layer["bias"]) if isinstance(layer, dict) else tuple(layer)
        if len(kernel.shape) != 2 or bias.shape != kernel.shape[1:]:
            raise ValueError(
                f"layer {number} of params has a kernel {kernel.shape} and a bias {bias.shape}, "
                "but must have [in, out] and [out]."
            )
        if layers and layers[-1].bias.shape[0] != kernel.shape[0]:
            raise ValueError(
                f"layer {number} of params takes {kernel.shape[0]} inputs, but the layer before "
                f"gives {layers[-1].bias.shape[0]}: give the dense layers in their order."
            )
        layers.append(Dense(kernel, bias))
    if len(layers) < 2:
        raise ValueError(
            f"params has {len(layers)} dense layers, but needs a hidden ReLU layer: with a linear "
            "head alone there is a single region, all of space, and a patch would change every "
            "output. Use a network with a hidden dense layer, or the logit mask for a class."
        )
    return tuple(layers)


def neurons(params: Params) -> int:
    """Number of hidden neurons, N.

    Example:
      >>> neurons([(jnp.ones((4, 3)), jnp.ones(3)), (jnp.ones((3, 2)), jnp.ones(2))])
      3
    """
    return sum(layer.bias.shape[0] for layer in dense_layers(params)[:-1])


def preactivations(params: Params, x: Array) -> tuple[Array, Array]:
    """The ordinary forward pass: all hidden pre-activations, and the logits.

    Args:
      params: dense ReLU layers.
      x: ``float[..., d]``.

    Returns:
      ``(z[..., N], logits[..., L])``, layer after layer in ``z``.

    Cost: one forward pass.

    Example:
      >>> layers = [(jnp.array([[1.0, -1.0]]), jnp.zeros(2)), (jnp.ones((2, 1)), jnp.zeros(1))]
      >>> z, logits = preactivations(layers, jnp.array([3.0]))
      >>> z.tolist(), logits.tolist()
      ([3.0, -3.0], [3.0])
    """
    return _forward(dense_layers(params), x)


def activation_pattern(params: Params, x: Array) -> Array:
    """The region of every input, as packed bits: bit i is set where ``z_i > 0``.

    Args:
      params: dense ReLU layers with N hidden neurons.
      x: ``float[..., d]``.

    Returns:
      ``uint8[..., ceil(N / 8)]``, least bit first, layer after layer.

    Cost: one forward pass. 64 bytes an input at N = 512, where the explicit faces
    of :func:`linear_region` would take 1.6 MB.

    Example:
      >>> layers = [(jnp.array([[1.0, -1.0]]), jnp.zeros(2)), (jnp.ones((2, 1)), jnp.zeros(1))]
      >>> activation_pattern(layers, jnp.array([[3.0], [-3.0]])).tolist()
      [[1], [2]]
    """
    return _pattern(dense_layers(params), jnp.asarray(x))


def unpack(bits: Array, count: int) -> Array:
    """Packed bits as booleans: ``uint8[..., W] -> bool[..., count]``.

    Example:
      >>> unpack(jnp.array([5], jnp.uint8), 3).tolist()
      [True, False, True]
    """
    return jnp.unpackbits(bits, axis=-1, count=count, bitorder="little").astype(bool)


def pack(flags: Array) -> Array:
    """Booleans as packed bits, least bit first: ``bool[..., n] -> uint8[..., ceil(n / 8)]``.

    Example:
      >>> pack(jnp.array([True, False, True])).tolist()
      [5]
    """
    return jnp.packbits(flags, axis=-1, bitorder="little")


def signed_preactivations(params: Params, bits: Array, x: Array) -> Array:
    """How far ``x`` lies within the faces of a region: negative beyond a face.

    Lemma 1 (Eq. 5) of PRUNE without its matrix: the masked forward pass gives the
    affine function that neuron i is on the region, and the sign makes it positive
    inside. ``x`` is in the region of ``bits`` iff no entry is negative.

    Args:
      params: dense ReLU layers.
      bits: ``uint8[..., W]`` of the regions.
      x: ``float[..., d]``, the same leading axes.

    Returns:
      ``float[..., N]``, equal to ``b - A x`` of :func:`linear_region`.

    Cost: one forward pass.

    Example:
      >>> layers = [(jnp.array([[1.0, -1.0]]), jnp.zeros(2)), (jnp.ones((2, 1)), jnp.zeros(1))]
      >>> bits = activation_pattern(layers, jnp.array([3.0]))
      >>> signed_preactivations(layers, bits, jnp.array([-1.0])).tolist()
      [-1.0, -1.0]
    """
    layers = dense_layers(params)
    return _signed(layers, jnp.asarray(bits), jnp.asarray(x))


def linear_region(params: Params, x: Array) -> tuple[Array, Array]:
    """The region of one input written out: all ``v`` with ``A v <= b`` (Lemma 1, Eq. 5).

    For small networks and tests; everything else uses the bits.

    Args:
      params: dense ReLU layers.
      x: ``float[d]``.

    Returns:
      ``(A[N, d], b[N])``.

    Cost: N backward passes and ``N d`` floats.

    Raises:
      ValueError: ``x`` is no vector.

    Example:
      >>> layers = [(jnp.array([[1.0, -1.0]]), jnp.zeros(2)), (jnp.ones((2, 1)), jnp.zeros(1))]
      >>> a, b = linear_region(layers, jnp.array([3.0]))
      >>> a.tolist(), jnp.abs(b).tolist()  # -v <= 0, -v <= 0
      ([[-1.0], [-1.0]], [0.0, 0.0])
    """
    layers = dense_layers(params)
    x = jnp.asarray(x)
    if x.ndim != 1:
        raise ValueError(f"x has shape {x.shape}, but must be one input [d].")
    return _faces(layers, x)


def masked_forward(layers: Layers, active: Array, x: Array, *, bias: bool = True):
    """The affine map of a region: ``(z[..., N], logits[..., L])`` with ReLU replaced by bits.

    Args:
      layers: from :func:`dense_layers`.
      active: ``bool[..., N]``.
      x: ``float[..., d]``.
      bias: False for the linear part alone.

    Example:
      >>> layers = dense_layers([(jnp.eye(1), jnp.ones(1)), (jnp.eye(1), jnp.ones(1))])
      >>> masked_forward(layers, jnp.array([True]), jnp.array([-3.0]))[1].tolist()
      [-1.0]
    """
    found, start = [], 0
    for kernel, shift in layers[:-1]:
        z = _dot(x, kernel)
        if bias:
            z = z + _lead(shift, z)
        found.append(z)
        x = z * active[..., start : start + z.shape[-1]]
        start += z.shape[-1]
    logits = _dot(x, layers[-1].kernel)
    if bias:
        logits = logits + _lead(layers[-1].bias, logits)
    return jnp.concatenate(found, axis=-1), logits


def masked_adjoint(layers: Layers, active: Array, z: Array, logits: Array) -> Array:
    """The transpose of the linear part of :func:`masked_forward`: ``[..., d]``.

    Args:
      layers: from :func:`dense_layers`.
      active: ``bool[..., N]``.
      z: ``float[..., N]``.
      logits: ``float[..., L]``.

    Example:
      >>> layers = dense_layers([(2 * jnp.eye(1), jnp.ones(1)), (3 * jnp.eye(1), jnp.ones(1))])
      >>> masked_adjoint(layers, jnp.array([True]), jnp.ones(1), jnp.ones(1)).tolist()
      [8.0]
    """
    x, stop = _dot(logits, layers[-1].kernel.T), z.shape[-1]
    for kernel, shift in layers[-2::-1]:
        start = stop - shift.shape[0]
        x = _dot(x * active[..., start:stop] + z[..., start:stop], kernel.T)
        stop = start
    return x


def signs(active: Array, dtype) -> Array:
    """+1 for active neurons and -1 for the others.

    Example:
      >>> signs(jnp.array([True, False]), "float32").tolist()
      [1.0, -1.0]
    """
    return 2 * active.astype(dtype) - 1


def finite_rows(name: str, x: Array, width: int) -> None:
    """``x`` is ``[rows, width]`` and, where its values are known, finite.

    Example:
      >>> finite_rows("x", jnp.ones((2, 3)), 3)
    """
    if x.ndim != 2 or x.shape[1] != width:
        raise ValueError(f"{name} has shape {x.shape}, but must be [rows, {width}].")
    if _validate.known(x) and not np.isfinite(np.asarray(x)).all():
        bad = np.flatnonzero(~np.isfinite(np.asarray(x)).all(1))
        raise ValueError(
            f"{name} has NaN or infinite values in {bad.size} rows (first: {bad[:5].tolist()})."
        )


def _dot(x, kernel):
    return jnp.matmul(x, kernel, precision=HIGHEST)


def _lead(bias, like):
    """A bias with as many axes as what it is added to."""
    return bias.reshape((1,) * (like.ndim - 1) + bias.shape)


@jax.jit
def _forward(layers, x):
    found = []
    for kernel, bias in layers[:-1]:
        z = _dot(x, kernel)
        z = z + _lead(bias, z)
        found.append(z)
        x = jax.nn.relu(z)
    logits = _dot(x, layers[-1].kernel)
    return jnp.concatenate(found, axis=-1), logits + _lead(layers[-1].bias, logits)


@jax.jit
def _pattern(layers, x):
    return pack(_forward(layers, x)[0] > 0)


@jax.jit
def _signed(layers, bits, x):
    count = sum(layer.bias.shape[0] for layer in layers[:-1])
    active = unpack(bits, count)
    z, _ = masked_forward(layers, active, x)
    return signs(active, z.dtype) * z


@jax.jit
def _faces(layers, x):
    active = _forward(layers, x)[0] > 0
    count, classes = active.shape[0], layers[-1].bias.shape[0]
    everyone = jnp.broadcast_to(active, (count, count))
    normals = masked_adjoint(
        layers, everyone, jnp.eye(count, dtype=x.dtype), jnp.zeros((count, classes), x.dtype)
    )
    offset, _ = masked_forward(layers, active, jnp.zeros_like(x))
    sign = signs(active, x.dtype)
    return -sign[:, None] * normals, sign * offset
