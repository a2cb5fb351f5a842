"""What every benchmark is made of: how to time, compare, print and store.

A benchmark is a module with workloads, targets and a `main`:

    import jax, jax.numpy as jnp
    from benchmarks import harness

    def product(options):
        '''Our product against NumPy's.'''
        x = jnp.ones((500, 500))
        runs = harness.measure(
            {"ours": harness.compiled(lambda a: a @ a, x), "numpy": harness.Case(peer)}, options
        )
        metrics = {"vs_numpy": harness.ratio(runs, "ours", "numpy")}
        return harness.Result({"size": 500}, runs, metrics)

    TARGETS = {"vs_numpy": harness.at_most(0.7)}

    if __name__ == '__main__':
        harness.main(__doc__, [product], TARGETS)

Run it from the root of the checkout: `python -m benchmarks.NAME [--quick] [--json PATH]`.

How times are taken. Compiling and the first call come before and are reported apart. Then all
cases of a workload run in turns (A, B, A, B ...), so that a load on the machine meets all alike;
trust ratios, not seconds. A case is the median of its repeats. A ratio is that of two medians,
its interval from resampling whole turns. By default the process is pinned to one core, and XLA
and torch get one thread each, so that what is compared is work and not thread pools.

A peer that is not installed gives None (`harness.peer`): its metrics are null and the rest runs.
"""

import dataclasses
import importlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import tyro

from benchmarks import printing
from jaxunlearn._files import atomic_write
from jaxunlearn.audit import Interval
from jaxunlearn.data import Splits, load
from jaxunlearn.experiments.environment import environment
from jaxunlearn.experiments.timing import peak_bytes


@dataclasses.dataclass(frozen=True)
class Options:
    """Attributes:
    quick: fewer repeats; at most 90 seconds on two cores.
    json: also write everything as JSON to this file.
    threads: threads of XLA and torch, the process pinned to as many cores; 0 for all.
    only: run these workloads only; the metrics of the others are null.
    data_dir: folder of prepared TFDS sets; else that of TFDS, or ../shared/tfds if it is there.
    """

    quick: bool = False
    json: pathlib.Path | None = None
    threads: int = 1
    only: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    data_dir: pathlib.Path | None = None

    @property
    def repeats(self) -> tuple[int, float]:
        """Turns to take at least, and seconds to go on for when turns are short."""
        return (7, 4.0) if self.quick else (21, 15.0)


class Case(NamedTuple):
    """One thing to time.

    Attributes:
      call: does it all; what it returns is waited for.
      per: the seconds of one call are divided by this (steps in a call, say).
      compile_s: seconds it took to compile; None if the first call is to be taken for it.
      peak_bytes: memory that it needs; None if unknown.
    """

    call: Callable[[], Any]
    per: float = 1.0
    compile_s: float | None = None
    peak_bytes: int | None = None


class Run(NamedTuple):
    """A case measured: seconds of every turn, and what compiling cost."""

    seconds: np.ndarray
    compile_s: float
    peak_bytes: int | None

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def quartiles(self) -> list[float]:
        return np.quantile(self.seconds, (0.25, 0.75)).tolist()

    def as_json(self) -> dict[str, Any]:
        return {
            "median_s": self.median,
            "quartiles_s": self.quartiles,
            "repeats": len(self.seconds),
            "compile_s": self.compile_s,
            "peak_bytes": self.peak_bytes,
        }


class Result(NamedTuple):
    """What a workload returns: its description (JSON values), its runs, its metrics."""

    description: dict[str, Any]
    runs: dict[str, Run]
    metrics: Mapping[str, Interval | float | None]


class Target(NamedTuple):
    """A bound that a metric should keep."""

    sign: str
    bound: float

    def reached(self, value: float) -> bool:
        return value <= self.bound if self.sign == "<=" else value >= self.bound


def at_most(bound: float) -> Target:
    return Target("<=", bound)


def at_least(bound: float) -> Target:
    return Target(">=", bound)


def compiled(function: Callable, *args, per: float = 1.0) -> Case:
    """The case of a jitted function on fixed arguments, compiled ahead of time."""
    start = time.perf_counter()
    program = jax.jit(function).lower(*args).compile()
    return Case(lambda: program(*args), per, time.perf_counter() - start, peak_bytes(program))


def measure(cases: Mapping[str, Case], options: Options = Options()) -> dict[str, Run]:
    """Times the cases in turns, after a first call of each that does not count."""
    first = {name: _seconds(case) for name, case in cases.items()}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    least, budget = options.repeats
    start, turns = time.perf_counter(), 0
    while turns < least or (turns < 10 * least and time.perf_counter() - start < budget):
        for name, case in cases.items():
            seconds[name].append(_seconds(case))
        turns += 1

    def finish(name: str, case: Case) -> Run:
        compile_s = case.compile_s
        if compile_s is None:
            compile_s = max(0.0, first[name] - float(np.median(seconds[name])))
        return Run(np.array(seconds[name]) / case.per, compile_s, case.peak_bytes)

    return {name: finish(name, case) for name, case in cases.items()}


def _seconds(case: Case) -> float:
    start = time.perf_counter()
    result = jax.block_until_ready(case.call())
    seconds = time.perf_counter() - start
    del result  # not in anybody's time
    return seconds


def ratio(runs: Mapping[str, Run], ours: str, theirs: str) -> Interval | None:
    """Median seconds of ``ours`` by those of ``theirs``, with 95% interval; None if one is missing.

    Turns are resampled as a whole: what slowed both down cancels.
    """
    if ours not in runs or theirs not in runs:
        return None
    pairs = np.stack([runs[ours].seconds, runs[theirs].seconds])
    turns = pairs.shape[1]
    drawn = np.random.default_rng(0).integers(turns, size=(2000, turns))
    a, b = np.median(pairs[:, drawn], axis=-1)
    low, high = np.quantile(a / b, (0.025, 0.975))
    return Interval(runs[ours].median / runs[theirs].median, float(low), float(high))


def inverse(value: Interval | None) -> Interval | None:
    """A speed-up from a ratio of seconds."""
    return value and Interval(1 / value.estimate, 1 / value.high, 1 / value.low)


def peer(name: str) -> Any:
    """The module of that name, or None if it, or what it imports, is not installed.

    Typed Any: what a peer has in it is its own affair.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def dataset(name: str, options: Options) -> Splits | None:
    """A dataset, or None if it is not prepared: the metrics that need it are then null."""
    beside = pathlib.Path(__file__).resolve().parents[2] / "shared" / "tfds"
    for folder in dict.fromkeys((options.data_dir, beside if beside.is_dir() else None)):
        try:
            return load(name, data_dir=folder)
        except FileNotFoundError:
            continue
    return None


def main(
    about: str | None,
    workloads: Sequence[Callable[[Options], Result]],
    targets: Mapping[str, Target | None],
    argv: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Runs the workloads, prints the tables, writes the JSON file; returns its content.

    Args:
      about: shown by ``--help``.
      workloads: each named by its function.
      targets: every metric of the benchmark, with None for those that are only reported.
      argv: arguments, ``sys.argv`` by default.
    """
    options = tyro.cli(Options, description=about, args=argv)
    names = {workload.__name__ for workload in workloads}
    if unknown := set(options.only) - names:
        raise SystemExit(
            f"--only {' '.join(sorted(unknown))}: there are {', '.join(sorted(names))}."
        )
    if argv is None:
        _limit_threads(options.threads)
    out: dict[str, Any] = {"metrics": dict.fromkeys(targets), "environment": environment()}
    out["workloads"] = {}
    intervals: dict[str, Interval] = {}
    for workload in workloads:
        if options.only and workload.__name__ not in options.only:
            continue
        result = workload(options)
        if stray := result.metrics.keys() - targets.keys():
            raise ValueError(
                f"metrics {sorted(stray)} of {workload.__name__} have no entry in targets."
            )
        printing.show_runs(workload.__name__, result.description, result.runs)
        for key, value in result.metrics.items():
            if isinstance(value, Interval):
                intervals[key], value = value, value.estimate
            out["metrics"][key] = value
        out["workloads"][workload.__name__] = {
            **result.description,
            "runs": {name: run.as_json() for name, run in result.runs.items()},
        }
    out["intervals"] = {key: [value.low, value.high] for key, value in intervals.items()}
    printing.show_metrics(out["metrics"], intervals, targets)
    if options.json is not None:
        with atomic_write(options.json) as file:
            file.write(json.dumps(out, indent=2, allow_nan=False).encode())
    return out


def _limit_threads(threads: int) -> None:
    """Starts this program again on so many cores: thread pools are made once, at the start."""
    mark = "JAXUNLEARN_BENCHMARK_THREADS"
    if threads == 0 or os.environ.get(mark) == str(threads):
        return
    os.environ |= {mark: str(threads), "OMP_NUM_THREADS": str(threads)}
    if threads == 1:
        flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    os.execv(sys.executable, sys.orig_argv)
