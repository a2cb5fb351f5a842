"""A table of a paper with our numbers beside: from a TOML file and folders of records."""

import math
import pathlib
import tomllib
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from jaxunlearn.experiments import read_records
from jaxunlearn.experiments.metrics import BY_KEY, Metric
from jaxunlearn.experiments.summary import Cell, Summary, summarise

HERE = pathlib.Path(__file__).parent


class Line(NamedTuple):
    """One row of a block: the paper's numbers (None for the rows that we add), and ours."""

    label: str
    method: str
    paper: list[float] | None
    spread: list[float]
    doubt: str
    ours: dict[str, Cell] | None


class Block(NamedTuple):
    """One setting of a table.

    Attributes:
      name: of the folder with its records.
      title: as in the paper.
      command: makes the records.
      lines: no-op, which no paper has, then the paper's rows.
      summary: of the records; None if there are none yet.
      differs: settings in which the records are not what the command makes.
    """

    name: str
    title: str
    command: str
    lines: list[Line]
    summary: Summary | None
    differs: list[str]


def names() -> list[str]:
    """The tables that there are."""
    return sorted({path.stem for path in HERE.glob("*.toml")} | set(modules()))


def modules() -> list[str]:
    """The tables that train what they need: a file of their own, with a ``main(argv)``."""
    return sorted(path.stem for path in HERE.glob("[!_]*.py") if path.stem != "layout")


def load(name: str) -> dict[str, Any]:
    """The configuration of a table, checked.

    Raises:
      ValueError: an unknown name; a column that is no metric; a row of another length or with an
        unexplained doubt.
    """
    path = HERE / f"{name}.toml"
    if not path.exists():
        raise ValueError(f"table={name!r} is unknown. Known: {', '.join(names())}.")
    table = tomllib.loads(path.read_text())
    for _, key, _ in table["columns"]:
        if key not in BY_KEY:
            raise ValueError(f"{path.name}: column {key!r} is no metric: {', '.join(BY_KEY)}.")
    for block in table["blocks"]:
        for row in block["rows"]:
            where = f"{path.name}: {block['name']}, {row['label']}"
            if len(row["paper"]) != len(table["columns"]):
                raise ValueError(f"{where}: {len(row['paper'])} numbers, not one for each column.")
            if row.get("doubt", "") not in ("", *table["doubts"]):
                raise ValueError(f"{where}: the doubt {row['doubt']!r} is not explained.")
    return table


def command(run: dict[str, Any], out: pathlib.Path) -> str:
    """The command line of a comparison."""
    options = [f"--{name} {value}" for name, value in run.items()]
    return " ".join(["jaxunlearn compare", *options, f"--out {out}"])


def fill(table: dict[str, Any], folder: pathlib.Path) -> list[Block]:
    """The blocks of a table with what ``folder/NAME`` of each has in records."""
    return [_block(table, block, folder / block["name"]) for block in table["blocks"]]


def _block(table: dict[str, Any], block: dict[str, Any], folder: pathlib.Path) -> Block:
    run = {**table["run"], **block["run"]}
    records = read_records(folder) if folder.is_dir() else []
    summary = summarise(records) if records else None

    def ours(method: str) -> dict[str, Cell] | None:
        row = summary.row(method) if summary else None
        return row.cells if row else None

    lines = [Line("No-op", "noop", None, [], "", ours("noop"))]
    for row in block["rows"]:
        spread, doubt = row.get("spread", []), row.get("doubt", "")
        method = row["method"]
        lines.append(Line(row["label"], method, row["paper"], spread, doubt, ours(method)))
    differs = []
    if summary:
        meant = {"dataset": run["dataset"], "arch": run["model"], "forget_mode": run["forget"]}
        for name, value in meant.items():
            found = summary.task.get(name)
            if found != value:
                differs.append(f"{name} is {found}, not {value}")
        if len(summary.seeds) != run["seeds"]:
            differs.append(f"{len(summary.seeds)} seeds, not {run['seeds']}")
    return Block(block["name"], block["title"], command(run, folder), lines, summary, differs)


def as_json(table: dict[str, Any], blocks: list[Block]) -> dict[str, Any]:
    """Our means as flat metrics (null where there is none), everything else by block."""
    keys = [key for _, key, _ in table["columns"]]
    metrics, settings = {}, {}
    for block in blocks:
        rows = []
        for line in block.lines:
            cells = {key: line.ours[key] if line.ours else None for key in keys}
            values = {key: _numbers(cell, BY_KEY[key]) for key, cell in cells.items()}
            for key, value in values.items():
                metrics[f"{block.name}.{line.method}.{key}"] = value["mean"]
            paper = dict(zip(keys, line.paper, strict=True)) if line.paper else None
            spread = dict(zip(keys, line.spread, strict=False))
            rows.append(
                {"label": line.label, "method": line.method, "paper": paper}
                | {"spread": spread, "doubt": line.doubt or None, "ours": values}
            )
        null = {}
        for key in keys:
            found = block.summary.null.get(key) if block.summary else None
            if found and found.band:
                bounds = found.mean + found.band.low, found.mean + found.band.high
                null[key] = [_finite(value * BY_KEY[key].scale) for value in bounds]
        settings[block.name] = {
            "title": block.title,
            "command": block.command,
            "differs": block.differs,
            "rows": rows,
            "null_band": null,
        }
    return {"metrics": metrics, "workloads": settings}


def _numbers(cell: Cell | None, metric: Metric) -> dict[str, float | None]:
    values = cell.value if cell else (math.nan,) * 3
    mean, low, high = (_finite(value * metric.scale) for value in values)
    return {"mean": mean, "low": low, "high": high}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def show(table: dict[str, Any], blocks: list[Block], console: Console) -> None:
    """Prints the blocks, one above the other as in the paper, and the notes."""
    console.print(f"\n[bold]{table['title']}[/]\n{table['paper']}", highlight=False)
    marks = {name: "*" * (i + 1) for i, name in enumerate(table["doubts"])}
    for block in blocks:
        console.print(_drawn(table, block, marks))
        for difference in block.differs:
            console.print(
                f"[bold yellow]Not the paper's setting:[/] {difference}.", highlight=False
            )
        if block.summary is None:
            console.print("No records yet. They come from", highlight=False)
            console.print(f"  {block.command}", highlight=False, soft_wrap=True)
    for name, meaning in table["doubts"].items():
        console.print(f"{marks[name]} {meaning}", highlight=False)
    for note in table["notes"]:
        console.print(f"- {note}", highlight=False)


def _drawn(table: dict[str, Any], block: Block, marks: dict[str, str]) -> Table:
    drawn = Table(title=block.title, title_justify="left")
    for title in ("", "", *(title for title, *_ in table["columns"])):
        drawn.add_column(title, justify="right" if title else "left", no_wrap=True)
    metrics = [BY_KEY[key] for _, key, _ in table["columns"]]
    decimals = [count for *_, count in table["columns"]]
    for line in block.lines:
        label = " ".join([line.label, marks.get(line.doubt, "")]).strip()
        last = line is block.lines[-1]
        if line.paper is not None:
            cells = [f"{v:.{d}f}" for v, d in zip(line.paper, decimals, strict=True)]
            for i, value in enumerate(line.spread):
                cells[i] += f" ±{value:.{decimals[i]}f}"
            drawn.add_row(label, "paper", *cells)
            label = ""
        cells = [_text(line.ours[m.key], m) if line.ours else "" for m in metrics]
        drawn.add_row(label, "ours", *cells, style="bold", end_section=last)
    cells = []
    for metric in metrics:
        null = block.summary.null.get(metric.key) if block.summary else None
        band = null.band if null else None
        bounds = (null.mean + band.low, null.mean + band.high) if null and band else ()
        cells.append(" to ".join(metric.text(value) for value in bounds))
    drawn.add_row("Retrain vs retrain", "95%", *cells, style="dim")
    return drawn


def _text(cell: Cell, metric: Metric) -> str:
    text = metric.text(cell.value.estimate)
    if math.isfinite(cell.value.low):
        text += f" [{metric.text(cell.value.low)}, {metric.text(cell.value.high)}]"
    return text.replace("[", r"\[")
