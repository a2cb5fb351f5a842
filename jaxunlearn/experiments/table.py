"""The result of a comparison in a terminal, or in a file that its output is sent to."""

import math
from collections.abc import Sequence

import rich.box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxunlearn.experiments.metrics import METRICS, Metric
from jaxunlearn.experiments.notes import CAUTION, MARKS, headline, mark, notes, verdict
from jaxunlearn.experiments.summary import Row, Summary

# What a terminal that knows only ASCII is given instead.
ASCII = str.maketrans(
    {"±": "+-", "−": "-", "–": "-", "•": "*", "◐": "~", "◦": "o", "×": "x", "⁻": "^-", "³": "3"}
)
TITLES = {
    "Audit against retrained models": ("utility", "forgetting"),
    "Cost, distance, and power of the attack": ("detail",),
}


def print_table(summary: Summary, *, console: Console | None = None) -> None:
    """Prints the audit, then the cost, then how to read them.

    Columns that do not fit beside each other go into a further table, so that no number is
    ever cut. Without a terminal the width is 120.

    Args:
      summary: what to print.
      console: where; standard output if None.
    """
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=120)
    console.print(f"\n[bold]{_safe(headline(summary), console)}[/]")
    for title, groups in TITLES.items():
        console.print(f"\n[bold]{title}[/]")
        metrics = [metric for metric in METRICS if metric.group in groups]
        while metrics:
            table, metrics = _widest(summary, metrics, console)
            console.print(table)
            if metrics:
                console.print()
    _explain(summary, console)


def _widest(
    summary: Summary, metrics: Sequence[Metric], console: Console
) -> tuple[Table, Sequence[Metric]]:
    """The table with as many columns as fit, at least one, and the metrics left over."""
    count = 1
    while count < len(metrics):
        wider = _table(summary, metrics[: count + 1], console)
        unlimited = console.options.update(width=10_000)
        if console.measure(wider, options=unlimited).maximum > console.width:
            break
        count += 1
    return _table(summary, metrics[:count], console), metrics[count:]


def _table(summary: Summary, metrics: Sequence[Metric], console: Console) -> Table:
    table = Table(box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("method", no_wrap=True)
    for metric in metrics:
        table.add_column(_safe(metric.heading, console), justify="right", no_wrap=True)
    lines = [_row(row, summary, metrics) for row in summary.rows]
    if any(metric.key in summary.null for metric in metrics):
        lines.append(_null_row(summary, metrics))
    for number, (style, *cells) in enumerate(lines):
        last_before_null = number == len(summary.rows) - 1
        cells = [_safe(cell, console) for cell in cells]
        table.add_row(*cells, style=style, end_section=last_before_null)
    return table


def _row(row: Row, summary: Summary, metrics: Sequence[Metric]) -> list[str]:
    second = []
    if row.failures:
        second.append(f"! {', '.join(dict.fromkeys(row.failures.values()))}")
    if len(row.seeds) < len(summary.seeds):
        second.append(f"{len(row.seeds)} of {len(summary.seeds)} seeds")
    cells = ["\n".join([row.method, *second])]
    for metric in metrics:
        cell = row.cells[metric.key]
        value = metric.text(cell.value.estimate)
        text = f"{value} {metric.half(cell.value)}".strip()
        if cell.gap is not None and math.isfinite(cell.gap.estimate):
            gap = metric.text(cell.gap.estimate, like=cell.value.estimate, signed=True)
            text += f"\n{gap} {mark(cell) or ' '}"
        cells.append(text)
    role = {"noop": "dim", "retrain": "bold"}.get(row.method, "")
    return ["red" if row.broken else role, *cells]


def _null_row(summary: Summary, metrics: Sequence[Metric]) -> list[str]:
    banded = any(metric.band for metric in metrics if metric.null)
    cells = ["retrain vs retrain\nmean, 95% band" if banded else "retrain vs retrain"]
    for metric in metrics:
        null = summary.null.get(metric.key)
        if null is None:
            cells.append("")
            continue
        text = metric.text(null.mean)
        if null.band is not None:
            text += f"\n±{metric.text(null.band.high, like=null.mean)}  "
        cells.append(text)
    return ["", *cells]


def _explain(summary: Summary, console: Console) -> None:
    seeds = len(summary.seeds)
    spread = " ± half its 95% t-interval" if seeds > 1 else ""
    console.print(
        _safe(
            f"\nUpper line: mean of {seeds} seed{'' if seeds == 1 else 's'}{spread}. "
            "Lower line: mean gap to the retrained models of the same seed, with a mark:",
            console,
        ),
        highlight=False,
    )
    for sign, meaning in MARKS:
        console.print(_safe(f"  {sign}  {meaning}", console), highlight=False)
    console.print(_safe(CAUTION, console), highlight=False)
    console.print(
        _safe(
            f"Last row: mean of {summary.references} retrained models, and how far from the mean "
            "of the others of its seed a single one lies, 95%.",
            console,
        ),
        highlight=False,
    )
    console.print(f"\n[bold]{_safe(verdict(summary), console)}[/]", highlight=False)
    for note in notes(summary):
        console.print(f"[bold yellow]Note:[/] {_safe(note, console)}", highlight=False)


def _safe(text: str, console: Console) -> str:
    """``text`` without markup, and without characters that the output cannot show."""
    return escape(text if console.encoding.startswith("utf") else text.translate(ASCII))
