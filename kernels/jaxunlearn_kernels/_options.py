"""Checks that every operation's public function makes before anything is traced."""

import math
from collections.abc import Sequence
from typing import Literal

import jax

Implementation = Literal["xla", "pallas"]


def number(name: str, value: float, *, zero: bool = False) -> float:
    """``value`` as a finite Python float > 0, or >= 0 with ``zero``."""
    bound = ">= 0" if zero else "> 0"
    try:
        known = float(value)
    except (TypeError, ValueError):  # a tracer, or no number at all
        raise ValueError(
            f"{name}={value!r} must be a Python number {bound}: it is compiled into the kernel. "
            "Under jit, pass it as a static argument."
        ) from None
    if not (math.isfinite(known) and (known > 0 or zero and known == 0)):
        raise ValueError(f"{name}={value!r} must be a finite number {bound}.")
    return known


def one_of(name: str, value: str, choices: Sequence[str]) -> None:
    """``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown. Known: {', '.join(choices)}.")


def floats(name: str, x: jax.Array) -> None:
    """``x`` is an array of floats whose entries, and a block beyond, 31 bits can number."""
    if not jax.numpy.issubdtype(x.dtype, jax.numpy.floating):
        raise ValueError(f"{name} has dtype {x.dtype}, but must be floating: convert it first.")
    if x.size >= 2**31 - 2**20:
        raise ValueError(
            f"{name} has {x.size} entries, but they are numbered by 31 bits: pass it in pieces."
        )


def chosen(implementation: Implementation | None) -> Implementation:
    """The implementation to run; for ``None`` the one that is known to be fastest.

    No kernel has been timed on an accelerator yet, so ``None`` is XLA everywhere.
    """
    if implementation is None:
        return "xla"
    one_of("implementation", implementation, ("xla", "pallas"))
    backend = jax.default_backend()
    if implementation == "pallas" and backend not in ("gpu", "tpu"):
        raise NotImplementedError(
            f'implementation="pallas" runs on a GPU or a TPU, but the default device is {backend}. '
            'Take implementation=None or "xla" here.'
        )
    return implementation
