"""Patches: a constant added to the logits inside one linear region, and nowhere else.

The patched network is ``M(x) + d_k`` in region k, and ``M(x) + sum_k g_k(x) d_k`` between
the regions (Eq. 8 of PRUNE with a constant for its affine map m: then H = |d| is exact
everywhere, and the two ReLUs reduce to a product). g_k is 1 in region k, 0 a little way
outside, and takes the pre-activations that the network has anyway: on the region these are
the ones of Lemma 1, and the set where g = 1 is the same.

A patch is its region's bits and its constant: 113 bytes at 512 neurons and 10 classes.
The bits are a membership oracle for whoever holds them, and nothing is erased: without
the patch the network is what it was.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _validate
from jaxunlearn.kernels import region_gate
from jaxunlearn.primitives.regions import HIGHEST, dense_layers, preactivations
from jaxunlearn.types import Array, Params

SHARPNESS = 1000.0
Implementation = Literal["xla", "pallas"]


class Patches(NamedTuple):
    """K patches, any of which may be empty (``delta`` zero and not ``replace``).

    Attributes:
      bits: ``uint8[K, W]``, the region of each, from
        :func:`~jaxunlearn.primitives.regions.activation_pattern`.
      delta: ``float[K, L]``, what is added to the logits, or put in their place.
      target: ``int32[K]``, the class that the patch makes the answer.
      replace: ``bool[K]``: ``delta`` takes the place of the logits.
      care: ``uint8[K, W]``, the neurons that count; None for all. Without some of them
        the set where a patch acts is larger than a linear region, and no longer convex.
      group: ``int32[K]``: patches of one group share row ``group`` of ``delta``,
        ``target`` and ``replace``, and act by their maximum (Eq. 10, 11). None: each is its
        own group.
    """

    bits: Array
    delta: Array
    target: Array
    replace: Array
    care: Array | None = None
    group: Array | None = None


def gate(
    params: Params,
    patches: Patches,
    x: Array,
    *,
    sharpness: float = SHARPNESS,
    implementation: Implementation | None = None,
) -> Array:
    """How far each input is inside each patch's region: ``[B, K]``, 1 inside, 0 outside.

    Lemma 2 (Eq. 6), as ``relu(1 - sum_i min(1, lambda relu(-s_i z_i)))``; see
    :func:`jaxunlearn.kernels.region_gate`. Between 0 and 1 in a collar around the
    region, ``1 / sharpness`` thick in pre-activations.

    Deviation: on the true pre-activations, not on those continued affinely from the
    region, which differ in the collar only; it makes one product of all regions.

    Args:
      params: dense ReLU layers.
      patches: K of them.
      x: ``float[B, d]``.
      sharpness: lambda. 0.5, as in the code that the paper builds on, reaches 68 other
        MNIST images with 500 patches; from 10 on none.
      implementation: of the kernel.

    Cost: a forward pass and ``2 B K N`` multiplications.

    Raises:
      ValueError: patches of another network.

    Example:
      >>> layers = [(jnp.array([[1.0, -1.0]]), jnp.zeros(2)), (jnp.eye(2), jnp.zeros(2))]
      >>> patches = Patches(
      ...     bits=jnp.array([[1]], jnp.uint8),
      ...     delta=jnp.array([[-5.0, 5.0]]),
      ...     target=jnp.array([1]),
      ...     replace=jnp.array([False]),
      ... )
      >>> gate(layers, patches, jnp.array([[2.0], [-2.0]])).tolist()
      [[1.0], [0.0]]
    """
    z, _ = preactivations(params, x)
    return region_gate(
        z, patches.bits, care=patches.care, sharpness=sharpness, implementation=implementation
    )


def apply_patched(
    params: Params,
    patches: Patches,
    x: Array,
    *,
    sharpness: float = SHARPNESS,
    implementation: Implementation | None = None,
) -> tuple[Array, Array]:
    """The logits without and with the patches, from one program: ``(base, patched)``.

    Equal bit for bit wherever every gate is 0. Only so: the same network compiled
    for another batch size already differs in the last digits (on 200 of 200 rows, 1
    against 5,000 of them).

    Args:
      params: dense ReLU layers.
      patches: K of them.
      x: ``float[B, d]``.
      sharpness: lambda.
      implementation: of the kernel.

    Returns:
      Two ``float[B, L]``. A row with NaN gives NaN in both.

    Cost: as :func:`gate`.

    Raises:
      ValueError: patches of another network.

    Example:
      >>> layers = [(jnp.array([[1.0, -1.0]]), jnp.zeros(2)), (jnp.eye(2), jnp.zeros(2))]
      >>> patches = Patches(
      ...     bits=jnp.array([[1]], jnp.uint8),
      ...     delta=jnp.array([[-5.0, 5.0]]),
      ...     target=jnp.array([1]),
      ...     replace=jnp.array([False]),
      ... )
      >>> base, patched = apply_patched(layers, patches, jnp.array([[2.0], [-2.0]]))
      >>> patched.tolist()
      [[-3.0, 5.0], [0.0, 2.0]]
    """
    layers = dense_layers(params)
    _fits(layers, patches)
    return _apply(layers, patches, jnp.asarray(x), sharpness, implementation=implementation)


@jax.jit
def corrected(patches: Patches, gates: Array, base: Array) -> Array:
    """``base`` with the patches added by their gates ``[B, K]``; inside a region its own alone.

    Where some gate is 1 the first such patch (or group) acts and no other: the collar of a
    neighbour, whose constant may be the opposite, would otherwise take back what a certificate
    says of this region. Where several gates are 1, on the common boundary of regions or
    where they are wider than linear regions, the first one wins.

    Deviation: Eq. 8 adds all of them, and a constant that is proved alone then holds not.

    Example:
      >>> patches = empty(2, 8, 2)._replace(delta=jnp.array([[0.0, 3.0], [5.0, 0.0]]))
      >>> gates = jnp.array([[1.0, 0.9], [0.5, 0.5], [0.0, 0.0]])
      >>> corrected(patches, gates, jnp.ones((3, 2))).tolist()
      [[1.0, 4.0], [3.5, 2.5], [1.0, 1.0]]
    """
    if patches.group is not None:
        members = jax.ops.segment_max(
            gates.T, patches.group, num_segments=patches.delta.shape[0], indices_are_sorted=False
        )
        gates = jax.nn.relu(members.T)  # -inf for a group without members
    does = patches.replace | (patches.delta != 0).any(-1)
    gates = jnp.where(does[None], gates, 0).astype(base.dtype)
    whole = gates >= 1
    first = jnp.arange(gates.shape[1])[None] == whole.argmax(-1)[:, None]
    gates = jnp.where(whole.any(-1)[:, None], first.astype(base.dtype), gates)
    added = jnp.matmul(gates, patches.delta.astype(base.dtype), precision=HIGHEST)
    taken = jnp.minimum(gates @ patches.replace.astype(base.dtype), 1)
    return base * (1 - taken)[:, None] + added


def empty(count: int, neurons: int, classes: int, dtype: Any = "float32") -> Patches:
    """Patches that do nothing, as places for some to come.

    Example:
      >>> empty(3, 20, 10).bits.shape
      (3, 3)
    """
    return Patches(
        bits=jnp.zeros((count, -(-neurons // 8)), jnp.uint8),
        delta=jnp.zeros((count, classes), dtype),
        target=jnp.zeros(count, jnp.int32),
        replace=jnp.zeros(count, bool),
    )


def live(patches: Patches) -> Array:
    """Which patches do something: ``bool[K]``.

    Example:
      >>> live(empty(2, 8, 10)).tolist()
      [False, False]
    """
    does = patches.replace | (patches.delta != 0).any(-1)
    return does if patches.group is None else does[patches.group]


class Deduplicated(NamedTuple):
    """Result of :func:`deduplicate`.

    Attributes:
      patches: the same number, later ones of a region emptied.
      first: ``int32[K]``, the first patch of the same region; itself if there is none.
      conflict: ``bool[K]``: the first has another target. Only one can be had in a region.
    """

    patches: Patches
    first: Array
    conflict: Array


def deduplicate(patches: Patches) -> Deduplicated:
    """Empties patches whose region has one already: only the first would act there.

    Args:
      patches: without groups, which need it not.

    Returns:
      :class:`Deduplicated`.

    Cost: ``K^2 W`` comparisons of bytes.

    Raises:
      ValueError: patches in groups.

    Example:
      >>> two = empty(2, 8, 2)._replace(delta=jnp.ones((2, 2)), target=jnp.array([0, 1]))
      >>> found = deduplicate(two)
      >>> found.first.tolist(), found.conflict.tolist(), live(found.patches).tolist()
      ([0, 0], [False, True], [True, False])
    """
    if patches.group is not None:
        raise ValueError("patches are in groups, which act by their maximum: they may overlap.")
    return _deduplicate(patches)


def merge(*several: Patches) -> Deduplicated:
    """Patches of the same network put together, regions once each, empty ones left out.

    Args:
      several: without groups, and all with ``care`` or all without.

    Returns:
      :class:`Deduplicated`, with ``first`` counted over all live patches in order.

    Raises:
      ValueError: patches in groups, or some with ``care`` and some without.

    Example:
      >>> one = empty(2, 8, 2)._replace(delta=jnp.array([[1.0, 0.0], [0.0, 0.0]]))
      >>> merge(one, one).patches.bits.shape
      (2, 1)
    """
    if len({patches.care is None for patches in several}) > 1:
        raise ValueError("several has patches with care and without: merge them apart.")
    kept = [jax.tree.map(lambda leaf, p=p: leaf[np.asarray(live(p))], p) for p in several]
    return deduplicate(jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *kept))


class Collision(NamedTuple):
    """One input that a patch reaches.

    Attributes:
      row: of the inputs.
      patch: number of the patch.
      gate: 1 if it lies in the region, less in its collar.
    """

    row: int
    patch: int
    gate: float


def collisions(
    params: Params,
    patches: Patches,
    x: Array,
    *,
    own: Array | None = None,
    sharpness: float = SHARPNESS,
    chunk: int = 4096,
) -> list[Collision]:
    """Every input that some patch reaches, beside those that the patches are for.

    Theorem 1 of PRUNE says that no other point of the data changes. That needs that no
    other point lies in the region, which is not given: of 60,000 images of Fashion-MNIST
    9 share all 512 bits with another. So it is looked up.

    Args:
      params: dense ReLU layers.
      patches: K of them.
      x: ``float[n, d]``.
      own: ``int[K]``, the row that each patch is for; -1 for none in ``x``.
      sharpness: lambda.
      chunk: rows at once.

    Returns:
      A list of :class:`Collision`, by rows.

    Cost: as :func:`gate` on all rows.

    Raises:
      ValueError: patches of another network, ``chunk`` below 1.

    Example:
      >>> layers = [(jnp.array([[1.0, -1.0]]), jnp.zeros(2)), (jnp.eye(2), jnp.zeros(2))]
      >>> patches = empty(1, 2, 2)._replace(
      ...     bits=jnp.array([[1]], jnp.uint8), delta=jnp.array([[-5.0, 5.0]])
      ... )
      >>> x = jnp.array([[2.0], [-2.0], [3.0]])
      >>> collisions(layers, patches, x, own=jnp.array([0]))
      [Collision(row=2, patch=0, gate=1.0)]
    """
    _validate.whole(chunk=chunk)
    layers = dense_layers(params)
    _fits(layers, patches)
    working = np.asarray(live(patches))
    found = []
    for start in range(0, x.shape[0], chunk):
        part = jnp.asarray(x[start : start + chunk])
        if start and part.shape[0] < chunk:  # one compilation for all
            part = jnp.pad(part, ((0, chunk - part.shape[0]), (0, 0)))
        gates = np.asarray(gate(layers, patches, part, sharpness=sharpness))
        gates = gates[: min(chunk, x.shape[0] - start)] * working[None]
        for row, k in np.argwhere(~(gates <= 0)):  # NaN is no reason to keep quiet
            if own is None or int(own[k]) != start + row:
                found.append(Collision(int(start + row), int(k), float(gates[row, k])))
    return found


def _fits(layers, patches: Patches) -> None:
    count = sum(layer.bias.shape[0] for layer in layers[:-1])
    want = -(-count // 8), layers[-1].bias.shape[0]
    have = patches.bits.shape[-1], patches.delta.shape[-1]
    if have != want:
        raise ValueError(
            f"patches has {have[0]} bytes of bits and {have[1]} classes, but this network has "
            f"{count} hidden neurons, hence {want[0]} bytes, and {want[1]} classes: these patches "
            "belong to another network."
        )


@functools.partial(jax.jit, static_argnames=("implementation",))
def _apply(layers, patches, x, sharpness, *, implementation):
    z, base = preactivations(layers, x)
    gates = region_gate(
        z, patches.bits, care=patches.care, sharpness=sharpness, implementation=implementation
    )
    return base, corrected(patches, gates, base)


@jax.jit
def _deduplicate(patches: Patches) -> Deduplicated:
    count = patches.target.shape[0]
    name = patches.bits
    if patches.care is not None:
        name = jnp.concatenate([name & patches.care, patches.care], axis=-1)
    working = live(patches)
    words = jnp.pad(name, ((0, 0), (0, -name.shape[1] % 4))).reshape(count, -1, 4)
    words = jax.lax.bitcast_convert_type(words, jnp.uint32)  # a quarter of the comparisons
    same = (words[:, None] == words[None]).all(-1) & working[None]
    first = jnp.where(working, jnp.argmax(same, axis=1), jnp.arange(count)).astype(jnp.int32)
    stays = first == jnp.arange(count)
    conflict = patches.target[first] != patches.target
    kept = patches._replace(
        delta=jnp.where(stays[:, None], patches.delta, 0), replace=patches.replace & stays
    )
    return Deduplicated(kept, first, conflict)
