"""What a patched network remembers beside its parameters, which never change."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _validate
from jaxunlearn.primitives import patches as patching
from jaxunlearn.primitives.outcomes import Outcome
from jaxunlearn.primitives.patches import Patches
from jaxunlearn.primitives.regions import Layers
from jaxunlearn.types import Array


class Memory(NamedTuple):
    """The patches of a state.

    Attributes:
      patches: as many as it can hold, the first ``count`` in use.
      rows: ``int32[capacity]``, the training row of each; -1 where there is none.
      outcome: ``int32[capacity]``, an :class:`~jaxunlearn.primitives.outcomes.Outcome` each.
      count: ``int32``.
    """

    patches: Patches
    rows: Array
    outcome: Array
    count: Array


def room(layers: Layers, capacity: int, *, groups: bool, care: bool = False) -> Memory:
    """A memory without patches.

    Args:
      layers: from :func:`~jaxunlearn.primitives.regions.dense_layers`.
      capacity: patches that it can hold.
      groups: they share constants.
      care: they leave neurons out.

    Example:
      >>> from jaxunlearn.primitives.regions import dense_layers
      >>> layers = dense_layers([(jnp.eye(2), jnp.zeros(2)), (jnp.eye(2), jnp.zeros(2))])
      >>> room(layers, 3, groups=False).rows.tolist()
      [-1, -1, -1]
    """
    neurons = sum(layer.bias.shape[0] for layer in layers[:-1])
    wide = jnp.promote_types(layers[0].kernel.dtype, jnp.float32)
    made = patching.empty(capacity, neurons, layers[-1].bias.shape[0], wide)
    if groups:
        made = made._replace(group=jnp.arange(capacity, dtype=jnp.int32))
    if care:
        made = made._replace(care=jnp.zeros_like(made.bits))
    nobody = jnp.full(capacity, -1, jnp.int32)
    return Memory(made, nobody, jnp.full(capacity, Outcome.EMPTY, jnp.int32), jnp.int32(0))


def requested(forget: Array, used: Array, capacity: int) -> tuple[Array, int]:
    """Numbers of the requested rows in places for them, n where a place stays empty.

    Args:
      forget: ``bool[n]``.
      used: patches that there are already.
      capacity: patches that there may be.

    Returns:
      ``int[size]``, and ``size``: as many as are asked for, rounded up to a power of two, or
      the capacity where that is not known.

    Raises:
      ValueError: more than fit.

    Example:
      >>> requested(jnp.array([True, False, True]), jnp.int32(0), 8)[0].tolist()
      [0, 2]
    """
    size = capacity
    if _validate.known(forget) and _validate.known(used):
        asked = int(np.asarray(forget).sum())
        if asked + int(used) > capacity:
            raise ValueError(
                f"forget asks for {asked} patches, and {int(used)} of capacity={capacity} are in "
                "use: make the unlearner with a larger capacity."
            )
        size = min(capacity, 1 << (asked - 1).bit_length())
    (rows,) = jnp.nonzero(forget, size=size, fill_value=forget.shape[0])
    return rows, size


@jax.jit
def place(memory: Memory, new: Patches, rows, outcome, asked) -> tuple[Memory, Array]:
    """The memory with new patches after the old ones, and the place of each (beyond it: none).

    Args:
      memory: has room, or the last of the new ones are lost.
      new: patches.
      rows: ``int[K]`` of the training data, for each.
      outcome: ``int[K]``.
      asked: ``bool[K]``, which of them there are; these come first.

    Example:
      >>> nobody = jnp.full(2, -1, jnp.int32)
      >>> memory = Memory(patching.empty(2, 8, 3), nobody, nobody, jnp.int32(1))
      >>> given = jnp.array([7]), jnp.array([0]), jnp.array([True])
      >>> place(memory, patching.empty(1, 8, 3), *given)[0].rows.tolist()
      [-1, 7]
    """
    capacity = memory.rows.shape[0]
    into = jnp.where(asked, memory.count + jnp.arange(rows.shape[0]), capacity)
    if new.group is not None:
        new = new._replace(group=new.group + memory.count)

    def put(old, leaf) -> Any:
        return None if old is None else old.at[into].set(leaf.astype(old.dtype), mode="drop")

    kept = Patches(*map(put, memory.patches, new))
    if kept.group is None:
        kept = patching.deduplicate(kept).patches
    count = jnp.minimum(memory.count + asked.sum(), capacity).astype(jnp.int32)
    return Memory(kept, put(memory.rows, rows), put(memory.outcome, outcome), count), into
