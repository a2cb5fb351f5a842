"""The columns of the laboratory: one entry each, for table, report and documentation alike."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import rich.box
from rich.console import Console
from rich.table import Table

from jaxunlearn.experiments.metrics import DASH
from jaxunlearn.experiments.table import _safe


@dataclasses.dataclass(frozen=True)
class Column:
    """One number of the laboratory.

    Attributes:
      short: heading.
      title: in words.
      meaning: how to read it.
      value: of a record: the number, its interval, and the null's estimate and interval; None where
        the record has none.
      decimals: how many are printed.
      scale: the printed number is so many times the recorded one.
    """

    short: str
    title: str
    meaning: str
    value: Callable[[dict[str, Any]], tuple[float, list[float], list[float]] | None]
    decimals: int = 3
    scale: float = 1.0

    def text(self, value: float | None) -> str:
        if value is None or math.isnan(value):
            return DASH
        if value >= 50 and self.short == "ε":
            return "∞"
        return f"{value * self.scale:.{self.decimals}f}".replace("-", "−")

    def cells(self, record: dict[str, Any]) -> tuple[str, str, bool]:
        """The number, the null, and whether the interval lies clear of the null's."""
        found = self.value(record)
        if found is None:
            return DASH, "", False
        value, interval, null = found
        clear = _clear(interval, null)
        return self.text(value), self.text(null[0]), clear


def _clear(interval: Sequence[float | None], null: Sequence[float | None]) -> bool:
    bounds = [*interval, *null[1:]]
    if any(b is None or math.isnan(b) for b in bounds):
        return False
    low, high, null_low, null_high = (float(b) for b in bounds if b is not None)
    return low > null_high or high < null_low


def _report(key: str):
    def value(record):
        found = record.get(key)
        return found and (found["value"], found["interval"], found["null"])

    return value


def _detail(key: str, name: str, null: str):
    """A number beside the value, with no interval of its own."""

    def value(record):
        found = record.get(key)
        if not found or found.get(name) is None:
            return None
        nothing = found.get(null, math.nan)
        return found[name], [math.nan] * 2, [nothing, math.nan, math.nan]

    return value


def _gap(record):
    (value, half), (null, null_half) = record["acc_forget"], record["acc_forget_null"]
    ends = [value - null - half, value - null + half]
    return value - null, ends, [0.0, -null_half, null_half]


COLUMNS = (
    Column(
        "FA gap", "Forget accuracy less that of retraining",
        "In points, mean over models. What most papers report; the columns after it see more.",
        _gap, 1, 100,
    ),
    Column(
        "U-LiRA", "U-LiRA accuracy",
        "How often one row's score tells an unlearned from a retrained model, by its own law under "
        "both. One half is a guess.",
        _report("ulira"),
    ),
    Column(
        "RULI eff.", "RULI efficacy, accuracy",
        "The same with kernel densities, which assume no shape.",
        _report("ruli_efficacy"),
    ),
    Column(
        "ε", "Epsilon of single rows, median",
        "How far the two laws of a row can be told apart by a threshold, δ = .1. Biased upwards at "
        "few models: compare with the null, not with 0.",
        _report("epsilon"), 2,
    ),
    Column(
        "Apart", "Rows told apart without an error",
        "Share of the forgotten rows, in percent, whose scores under the two kinds of models do "
        "not overlap.",
        _detail("epsilon", "infinite", "null_infinite"), 0, 100,
    ),
    Column(
        "Fq", "Forgetting quality (NeurIPS 2023 challenge)",
        "Mean over rows of 1, 1/2, 1/4 ... for epsilon below .5, 1, 1.5 ...; 1 is the best.",
        _report("quality"),
    ),
    Column(
        "Pop. AUC", "Forgotten against test rows, one threshold",
        "Mean AUC of the confidence over models: a weak attack, whose silence says little.",
        _report("confidence"),
    ),
    Column(
        "TPR@0.1%", "Forgotten rows found at 0.1% FPR",
        "In percent, by the same threshold on single models. With fewer than 1,000 test rows no "
        "mistake is allowed at all.",
        _detail("confidence", "tpr_at_01fpr", "null_tpr_at_01fpr"), 1, 100,
    ),
    Column(
        "RULI vuln.", "RULI privacy, the most exposed rows",
        "AUC between rows that the model unlearned and rows that it never saw, among those that "
        "LiRA finds most exposed.",
        _detail("ruli", "vulnerable_auc", "vulnerable_null_auc"), 2,
    ),
    Column(
        "RULI prot.", "RULI privacy, the most protected rows",
        "The same among the rows that LiRA finds most protected.",
        _detail("ruli", "protected_auc", "protected_null_auc"), 2,
    ),
    Column(
        "Relearn", "Relearn time",
        "Steps on the forgotten rows until their accuracy is that of the original. A model that "
        "only hides what it knows is fast.",
        _report("relearn"), 1,
    ),
)  # fmt: skip


def requests_of(records: Sequence[dict[str, Any]]) -> list[str]:
    """The requests of some records, in their order.

    Example:
      >>> requests_of([{"request": "random"}, {"request": "vulnerable"}, {"request": "random"}])
      ['random', 'vulnerable']
    """
    return list(dict.fromkeys(record["request"] for record in records))


def print_lab(records: Sequence[dict[str, Any]], *, console: Console | None = None) -> None:
    """Prints the laboratory's tables: a line for each method, under each number its null.

    Args:
      records: of :func:`~jaxunlearn.experiments.lab_audit.run`.
      console: where; standard output if None.
    """
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=140)
    for request in requests_of(records):
        some = [record for record in records if record["request"] == request]
        console.print(f"\n[bold]Audit laboratory, {request} request: {some[0]['n_forget']} rows[/]")
        table = Table(box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column("method", no_wrap=True)
        table.add_column("models", justify="right")
        for column in COLUMNS:
            table.add_column(_safe(column.short, console), justify="right", no_wrap=True)
        for record in some:
            cells = []
            for column in COLUMNS:
                value, null, clear = column.cells(record)
                cells.append(_safe(f"{value}{'*' if clear else ' '}\n{null} ", console))
            table.add_row(_safe(record["method"], console), f"{record['n_models']}", *cells)
        console.print(table)
    console.print(
        "Upper line: the method. Lower line: retraining against retraining, as many models. "
        "*: the 95% intervals of the two do not meet.",
        highlight=False,
    )
