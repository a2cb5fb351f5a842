"""What the tables of PCMU and FFMU share: scores and seconds of removing rows, and their cells."""

import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from benchmarks import harness
from jaxunlearn import Dataset, audit, data
from jaxunlearn._files import atomic_write
from jaxunlearn.audit.band import null_band
from jaxunlearn.audit.intervals import mean_interval
from jaxunlearn.experiments.environment import environment
from jaxunlearn.types import Array, Params

PERCENT = ("accuracy", "error_t", "error_r", "error_f")
SCORES = (*PERCENT, "auc")
SECONDS = ("training_s", "unlearning_s", "total_s")
HEADS = ("", "Accuracy", "Error_t", "Error_r", "Error_f", "AUC", "train s", "unlearn s", "total s")
Found = dict[tuple[str, str, str], list[float]]  # request, row, column: one value a seed
Papers = Mapping[str, Mapping[str, Sequence[float]]]  # request, row: PERCENT, then SECONDS


def fashion_mnist(data_dir: pathlib.Path | None) -> data.Splits:
    splits = harness.dataset("fashion_mnist", harness.Options(data_dir=data_dir))
    if splits is None:
        raise SystemExit("fashion_mnist is not prepared: give its folder with --data-dir.")
    return splits


def timed(function: Callable, *args) -> tuple[Any, float]:
    start = time.perf_counter()
    result = jax.block_until_ready(function(*args))
    return result, time.perf_counter() - start


def three_times(training: float, unlearning: float) -> dict[str, float]:
    return dict(zip(SECONDS, (training, unlearning, training + unlearning), strict=True))


def scores(predict, params: Params, rows: Dataset, test: Dataset, forget: Array) -> dict:
    logits = jnp.concatenate([predict(params, x) for x in jnp.split(rows.x, 4)])
    at_test = jnp.concatenate([predict(params, x) for x in jnp.split(test.x, 10)])
    result = audit.evaluate(logits, at_test, rows.y, test.y, forget)
    errors = (1 - result.acc_test, 1 - result.acc_retain, 1 - result.acc_forget)
    percent = [100 * float(value) for value in (result.acc_test, *errors)]
    return dict(zip(PERCENT, percent, strict=True)) | {"auc": float(result.auc_forget_vs_test)}


def empty_table(name: str, *more: str) -> Table:
    table = Table(title=f"Fashion-MNIST, {name} removed", title_justify="left")
    for head in (*HEADS, *more):
        table.add_column(head, justify="right" if head else "left", no_wrap=True)
    return table


def add_rows(table: Table, found: Found, papers: Papers, name: str, row: str, *more: str) -> None:
    """The paper's row, if it has one, and ours: mean and half a 95% interval over seeds."""
    if paper := papers.get(name, {}).get(row):
        cells = [f"{value:.2f}" for value in paper[:4]]
        table.add_row(f"{row} (paper)", *cells, "", *(f"{value:,}" for value in paper[4:]))
    cells = []
    for column in (*SCORES, *SECONDS):
        value = mean_interval(found[name, row, column])
        if column in SECONDS:
            cells.append(f"{value.estimate:.2g}")
        else:
            half, digits = (value.high - value.low) / 2, _digits(column)
            cells.append(f"{value.estimate:.{digits}f} ±{half:.{digits}f}")
    table.add_row(row, *cells, *more, style="bold")


def add_band(table: Table, found: Found, name: str, row: str) -> None:
    """Where one more retraining would lie; empty with one seed."""
    cells = []
    for column in SCORES:
        values = found[name, row, column]
        if len(values) > 1:
            band, digits = null_band(values), _digits(column)
            cells.append(f"{band.low:.{digits}f} – {band.high:.{digits}f}")
    table.add_row(f"one more {row}, 95%", *cells, style="dim")


def _digits(column: str) -> int:
    return 3 if column == "auc" else 1


def write(path: pathlib.Path, found: Found, papers: Papers, options: Mapping[str, Any]) -> None:
    """Everything as JSON."""
    metrics = {}
    for key, values in found.items():
        value = mean_interval(values)
        bounds = [None if np.isnan(v) else v for v in (value.low, value.high)]
        metrics[".".join(key)] = {"mean": value.estimate, "interval": bounds}
    paper = {
        f"{name}.{row}": dict(zip((*PERCENT, *SECONDS), values, strict=True))
        for name, block in papers.items()
        for row, values in block.items()
    }
    out = {
        "metrics": metrics, "paper": paper, "environment": environment(), "options": dict(options)
    }  # fmt: skip
    with atomic_write(path) as file:
        file.write(json.dumps(out, indent=2, allow_nan=False).encode())
