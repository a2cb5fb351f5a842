"""The settings that no other beats, in a terminal and as a file of comma-separated values."""

import csv
import io
import math
import os
import pathlib

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxunlearn._files import atomic_write
from jaxunlearn.experiments.frontier.front import AXES, Frontier, Point
from jaxunlearn.experiments.frontier.page import FIXED, MEASURES, TITLES, verdict


def non_dominated_points(front: Frontier, privacy: str) -> list[Point]:
    """Retraining, doing nothing, and the settings that no other point beats, cheapest first.

    Example:
      >>> non_dominated_points(Frontier((), {}, {}, ()), "jsd")
      []
    """
    best = [p for p in front.points if p.on_front[privacy] or p.method in FIXED]
    cost = lambda p: (p.method not in FIXED, p.values["cost"].estimate)
    return sorted(best, key=cost)


def print_front(front: Frontier, privacy: str, *, console: Console | None = None) -> None:
    """Prints them with their intervals.

    Args:
      front: what to print.
      privacy: "jsd" or "frm": which measure decides.
      console: where; standard output if None.

    Example:
      >>> print_front(frontier_of(read_records("runs/frontier")), "jsd")  # doctest: +SKIP
    """
    if console is None:
        console = Console()
        console = console if console.is_terminal else Console(width=120)
    task = front.task
    console.print(
        f"\n[bold]Settings that no other beats in test accuracy, {MEASURES[privacy][0]} and cost"
        f"[/]: {task.get('dataset')}, {task.get('arch')}, {len(front.seeds)} seeds",
        highlight=False,
    )
    table = Table()
    table.add_column("setting")
    for short, _, unit, *_ in MEASURES.values():
        table.add_column(f"{short} {unit}".strip(), justify="right", no_wrap=True)
    table.add_column("sure", justify="right")
    for point in non_dominated_points(front, privacy):
        name = TITLES.get(point.method, point.method)
        label = f"{name}: {point.name}" if point.knobs else name
        failed = f" [red]! {point.failed}[/]" if point.failed else ""
        cells = [_text(point, key) for key in MEASURES]
        table.add_row(escape(label) + failed, *cells, f"{point.sure[privacy]:.0%}")
    console.print(table)
    console.print(_knobs(front))
    console.print(verdict(front, privacy), highlight=False)
    console.print(
        "± half a 95% interval over seeds; JSD in thousandths of a nat; cost in sample gradients, "
        "% of Retrain; sure: share of resamples of the seeds in which the setting is on the front.",
        highlight=False,
    )


def _knobs(front: Frontier) -> Table:
    """What each value of a knob does, averaged over the rest of the grid: the paper's Figure 3."""
    columns = ("cost", "acc_test", "jsd", "frm", "acc_forget")
    table = Table(title="Knob by knob, mean over the rest of the grid", title_justify="left")
    table.add_column("knob")
    table.add_column("value", justify="right")
    for key in columns:
        short, _, unit, *_ = MEASURES[key]
        table.add_column(f"{short} {unit}".strip(), justify="right")
    values: dict[tuple[str, str], dict[float, list[Point]]] = {}
    for point in front.points:
        for knob, value in point.knobs.items():
            values.setdefault((point.method, knob), {}).setdefault(value, []).append(point)
    for (method, knob), levels in values.items():
        for number, (value, points) in enumerate(sorted(levels.items()) if len(levels) > 1 else []):
            name = "" if number else f"{TITLES.get(method, method)}: {knob}"
            cells = []
            for key in columns:
                _, _, _, scale, decimals, _ = MEASURES[key]
                mean = sum(p.values[key].estimate for p in points) / len(points)
                cells.append(f"{scale * mean:.{decimals}f}")
            last = number == len(levels) - 1
            table.add_row(escape(name), f"{value:g}", *cells, end_section=last)
    return table


def _text(point: Point, key: str) -> str:
    _, _, _, scale, decimals, _ = MEASURES[key]
    mean, low, high = (scale * value for value in point.values[key])
    if not math.isfinite(mean):
        return "–"
    half = f" ±{(high - low) / 2:.{decimals}f}" if math.isfinite(high) and high > low else ""
    return f"{mean:.{decimals}f}{half}"


def write_front(front: Frontier, path: str | os.PathLike[str]) -> pathlib.Path:
    """Writes all points, dominated or not, as CSV: means and bounds as fractions.

    Args:
      front: what to write.
      path: of the file.

    Returns:
      ``path``.

    Example:
      >>> table = write_front(frontier_of(records), "front.csv")  # doctest: +SKIP
    """
    path = pathlib.Path(path)
    knobs = list(dict.fromkeys(knob for point in front.points for knob in point.knobs))
    text = io.StringIO()
    out = csv.writer(text)
    bounds = [f"{axis}{end}" for axis in AXES for end in ("", "_low", "_high")]
    flags = [f"{flag}_{key}" for key in ("jsd", "frm") for flag in ("on_front", "sure")]
    out.writerow(["method", *knobs, "seeds", *bounds, *flags, "status"])
    for point in front.points:
        values = [value for axis in AXES for value in point.values[axis]]
        both = [v for key in ("jsd", "frm") for v in (point.on_front[key], point.sure[key])]
        own = [point.knobs.get(knob, "") for knob in knobs]
        out.writerow([point.method, *own, point.seeds, *values, *both, point.failed or "OK"])
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())
    return path
