"""The tables that a benchmark prints."""

from collections.abc import Mapping
from typing import Any

import rich
from rich.table import Table


def show_runs(name: str, description: Mapping[str, Any], runs: Mapping[str, Any]) -> None:
    """One workload: what was measured, and the :class:`harness.Run` of every case."""
    rich.print(f"\n[bold]{name}[/]: {', '.join(f'{k} {v}' for k, v in description.items())}")
    if not runs:
        return
    table = _table("", "median", "quartiles", "turns", "compile", "memory")
    for label, run in runs.items():
        memory = "" if run.peak_bytes is None else f"{run.peak_bytes / 2**20:.1f} MiB"
        spread = " - ".join(map(seconds, run.quartiles))
        times = seconds(run.median), spread, str(len(run.seconds)), seconds(run.compile_s)
        table.add_row(label, *times, memory)
    rich.print(table)


def show_metrics(metrics: Mapping, intervals: Mapping, targets: Mapping) -> None:
    """All metrics with interval and target; "null" is a metric that was not measured."""
    table = _table("", "value", "95%", "target", "reached")
    for key, value in metrics.items():
        target, interval = targets[key], intervals.get(key)
        bound = f"{target.sign} {target.bound:g}" if target else ""
        reached = "" if target is None or value is None else ("no", "yes")[target.reached(value)]
        between = f"{interval.low:.3g} - {interval.high:.3g}" if interval else ""
        table.add_row(key, "null" if value is None else f"{value:.3g}", between, bound, reached)
    rich.print("\n[bold]Metrics[/]", table)


def seconds(value: float) -> str:
    """A time with three digits and its unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def _table(first: str, *columns: str) -> Table:
    table = Table(first)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table
