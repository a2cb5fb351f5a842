"""Compile and run, timed apart."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np


class Timed(NamedTuple):
    """A result and what it cost; seconds, and bytes as the compiler planned them."""

    result: Any
    seconds: float
    compile_s: float
    peak_bytes: int | None


class Compiler:
    """Compiles each function once for all calls by the same name, and times its runs."""

    def __init__(self):
        self._programs: dict[str, tuple[Any, float, int | None]] = {}

    def run(self, name: str, function: Callable, *args) -> Timed:
        """The result of ``function(*args)`` under ``jax.jit``.

        Runs shorter than a fifth of a second are repeated, five times at most, and the
        median is taken. ``compile_s`` is what the compilation cost when it happened.
        """
        if name not in self._programs:
            start = time.perf_counter()
            program = jax.jit(function).lower(*args).compile()
            self._programs[name] = program, time.perf_counter() - start, peak_bytes(program)
        program, compile_s, planned = self._programs[name]
        seconds: list[float] = []
        while True:
            start = time.perf_counter()
            result = jax.block_until_ready(program(*args))
            seconds.append(time.perf_counter() - start)
            if sum(seconds) > 0.2 or len(seconds) == 5:
                return Timed(result, float(np.median(seconds)), compile_s, planned)


def peak_bytes(program) -> int | None:
    """Arguments, results and temporaries of a compiled program; None where XLA does not say."""
    plan = program.memory_analysis()
    if plan is None:
        return None
    sizes = plan.argument_size_in_bytes, plan.output_size_in_bytes, plan.temp_size_in_bytes
    return int(sum(sizes) - plan.alias_size_in_bytes)
