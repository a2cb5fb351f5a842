"""Settings of a grid as arrays: those numbers that differ as columns, the others as scalars."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn import tree
from jaxunlearn._platform import platform
from jaxunlearn.types import Array, Params, PyTree

# Bytes that the models, gradients, momenta and logits of one chunk may take by default.
CHUNK_BYTES = 2**28


class Swept(NamedTuple):
    """Some settings of a grid, done on all seeds; leaves are ``[len(settings), seeds, ...]``.

    Attributes:
      settings: their numbers in the grid.
      params: the unlearned parameters.
      grads: sample gradients spent.
      status: a :class:`~jaxunlearn.Status`.
      facts: what else is known of each, by name.
    """

    settings: list[int]
    params: Params
    grads: Array
    status: Array
    facts: dict[str, Array]


class Form(NamedTuple):
    """How to put the numbers of one setting together again; hashable, static under ``jax.jit``."""

    structure: Any
    varies: tuple[bool, ...]

    def joined(self, differ: Sequence[Array], same: Sequence[Array]) -> Any:
        """The knobs of one setting."""
        both = iter(differ), iter(same)
        leaves = [next(both[0 if varies else 1]) for varies in self.varies]
        return jax.tree.unflatten(self.structure, leaves)


class Grid(NamedTuple):
    """All settings.

    Attributes:
      form: see there.
      differ: for each number that differs, its values ``[settings]``.
      same: the other numbers. They stay out of the vmap, and with them all that depends on
        nothing else: lengths of loops, noise, scores.
    """

    form: Form
    differ: tuple[Any, ...]
    same: tuple[Any, ...]


def grid(knobs: Sequence[PyTree]) -> Grid:
    """The grid of some knobs, pytrees of scalars of one structure."""
    columns = [np.stack(values) for values in zip(*map(jax.tree.leaves, knobs), strict=True)]
    varies = tuple(bool((column != column[0]).any()) for column in columns)
    return Grid(
        Form(jax.tree.structure(knobs[0]), varies),
        tuple(c for c, v in zip(columns, varies, strict=True) if v),
        tuple(c[0] for c, v in zip(columns, varies, strict=True) if not v),
    )


def chunk_size(settings: int, params: Params, logits: int) -> int:
    """Settings at once: bounded memory, and on a CPU what its caches hold.

    32 members at once were fastest there for a small network: fewer do not fill the vector units,
    more run out of cache and wait longer for the longest.

    Args:
      settings: of the grid.
      params: of all seeds, leaves ``[seeds, ...]``.
      logits: numbers kept for each row and class, of one member.
    """
    seeds = jax.tree.leaves(params)[0].shape[0]
    member = 16 * tree.size(params) // seeds + 8 * logits
    members = min(CHUNK_BYTES // member, 32 if platform() == "cpu" else 1024)
    return max(1, min(members // seeds, settings))


def chunks(order: Sequence[int], size: int) -> Iterator[tuple[list[int], np.ndarray]]:
    """The settings of each chunk, and the same filled up with the last one: one shape for all."""
    for start in range(0, len(order), size):
        some = list(order[start : start + size])
        yield some, np.array(some + some[-1:] * (size - len(some)))


def first(count: int) -> Callable[[PyTree], PyTree]:
    """Leaves without what a chunk was filled up with."""
    cut = lambda leaf: leaf if leaf.shape[0] == count else leaf[:count]
    return lambda value: jax.tree.map(cut, value)
