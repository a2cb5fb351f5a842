"""Programs side by side on a CPU, where XLA computes what vmap batched on one core."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import jax

T = TypeVar("T")
R = TypeVar("R")


def cores() -> int:
    """Cores that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed is not None else os.cpu_count() or 1


def workers(array: jax.Array) -> int:
    """How many programs on such arrays are worth running at once: one a core of a CPU."""
    (device, *others) = array.devices()
    return cores() if device.platform == "cpu" and not others else 1


def side_by_side(call: Callable[[T], R], items: Iterable[T], count: int) -> Iterator[R]:
    """``map(call, items)`` in order, ``count`` at once.

    What ``call`` runs must be compiled: a thread of its own knows nothing of ``enable_x64`` and
    other settings of the caller's.
    """
    if count == 1:
        yield from map(call, items)
        return
    with ThreadPoolExecutor(count) as pool:
        yield from pool.map(call, items)
