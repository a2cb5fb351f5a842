"""PRUNE's tables on the terminal, and its figures."""

import pathlib
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.tables import _prune_paper as prune_paper
from benchmarks.tables._prune_setting import COLUMNS

PLAIN = ("fit", "unlearn", "MB", "time")  # columns without intervals


def show(out: dict[str, Any], console: Console) -> None:
    for name, found in out.items():
        if name in ("options", "environment"):
            continue
        console.print(
            f"\n[bold]{name}[/]  one training: {found['training_s']:.1f} s", highlight=False
        )
        if "points" in found:
            console.print(_points(name, found))
        if "convergence" in found:
            console.print(_convergence(found["convergence"]))
        if "classes" in found:
            console.print(_classes(name, found["classes"]))


def _over(cells: list[dict[str, Any]]) -> str:
    seeds = len(cells[0]["seeds"])
    return f"mean ± half a 95% interval, {seeds} seeds" if seeds > 1 else "one seed"


def _convergence(found: dict[str, Any]) -> Table:
    first = next(iter(found["sizes"].values()))
    title = f"Figures 4 and 5: A_u in % after rounds of Algorithm 1, {_over(first)}"
    drawn = Table(title=title, title_justify="left")
    for head in ("", *map(str, range(1, len(first) + 1))):
        drawn.add_column(head, justify="right" if head else "left", no_wrap=True)
    size = next(iter(found["sizes"]))
    names = {"clusters": f"K = {{}}, {size} points", "sizes": "K = 4, {} points"}
    for part, curves in found.items():
        for value, cells in curves.items():
            texts = (_over_seeds("A_u", cell) for cell in cells)
            drawn.add_row(names[part].format(value), *texts)
    return drawn


def _classes(name: str, found: dict[str, Any]) -> Table:
    columns = list(found["before"])
    title = f"Table V, mean over classes: {_over(list(found['before'].values()))}"
    drawn = Table(title=title, title_justify="left")
    for head in ("", *columns):
        drawn.add_column(head, justify="right" if head else "left", no_wrap=True)
    for method, row in found.items():
        drawn.add_row(method, *(_over_seeds(c, row[c]) for c in columns))
    for method, row in prune_paper.TABLE_V.get(name, {}).items():
        drawn.add_row(f"{method}, paper", "", *(f"{v:.1f}" for v in row), style="dim")
    return drawn


def _points(name: str, found: dict[str, Any]) -> Table:
    first = next(iter(found["points"].values()))["noop"]["A_te"]
    title = f"Tables III and IV, Figure 3: {_over([first])}. Times in trainings"
    drawn = Table(title=title, title_justify="left")
    for head in ("points", "", *COLUMNS):
        drawn.add_column(head, justify="right" if head in COLUMNS else "left", no_wrap=True)
    for size, methods in found["points"].items():
        for method, row in methods.items():
            drawn.add_row(str(size), method, *(_over_seeds(c, v) for c, v in row.items()))
        if band := found["one more retrain"][size]:
            bounds = (" – ".join(_text(c, v) for v in band.get(c, ())) for c in COLUMNS)
            drawn.add_row(str(size), "one more Retrain, 95%", *bounds)
        for method, row in prune_paper.TABLE_III.get(name, {}).get(int(size), {}).items():
            cells = {**dict.fromkeys(COLUMNS), **dict(zip(COLUMNS[:4], row, strict=True))}
            recall = prune_paper.TABLE_IV.get(name, {}).get(method) if int(size) == 100 else None
            if recall:
                cells["recall before"], cells["recall"] = recall
            texts = ("" if v is None else _text(c, v) for c, v in cells.items())
            drawn.add_row("", f"{method}, paper", *texts, style="dim")
        drawn.add_section()
    return drawn


def _text(column: str, value: float) -> str:
    return f"{value:.4f}" if column in PLAIN else f"{value:.1f}"


def _over_seeds(column: str, cell: dict[str, Any]) -> str:
    text, (low, high) = _text(column, cell["mean"]), cell["interval"]
    return text if column in PLAIN or low is None else f"{text} ±{(high - low) / 2:.1f}"


def draw(out: dict[str, Any], path: pathlib.Path) -> None:
    """Figure 3, and 4 and 5 if they are there, from least to most: a row for each dataset."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = [name for name in out if "retrain" in _largest(out[name])]
    width = 3 if any("convergence" in out[name] for name in names) else 1
    size = (1 + 4 * width, 3.8 * len(names))
    figure, axes = plt.subplots(len(names), width, figsize=size, squeeze=False)
    for (left, *others), name in zip(axes, names, strict=True):
        found = out[name]
        largest = _largest(found)
        methods = [m for m in largest if m != "noop"]
        train, unlearn = ([largest[m][c]["mean"] for m in methods] for c in ("fit", "unlearn"))
        left.barh(methods, train, color="0.8", label="training")
        left.barh(methods, unlearn, left=train, color="tab:blue", label="unlearning")
        left.set(title=f"{name}: time, {list(found['points'])[-1]} points", xlabel="trainings")
        left.invert_yaxis()
        left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncol=2)
        panels = (("clusters", "K"), ("sizes", "points"))[: len(others)]
        for axis, (part, label) in zip(others, panels, strict=True):
            for value, cells in found["convergence"][part].items():
                means = [cell["mean"] for cell in cells]
                below = [cell["mean"] - min(cell["seeds"]) for cell in cells]
                above = [max(cell["seeds"]) - cell["mean"] for cell in cells]
                axis.errorbar(
                    range(1, len(cells) + 1),
                    means,
                    yerr=[below, above],
                    marker="o",
                    ms=3,
                    capsize=2,
                    label=value,
                )
            axis.set(
                title=f"Algorithm 1 by {label}",
                xlabel="rounds",
                ylabel="$A_u$ %",
                xticks=range(1, 5),
            )
            axis.legend(title=label)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _largest(found: dict[str, Any]) -> dict[str, Any]:
    """The rows of the last size."""
    return list(found.get("points", {"": {}}).values())[-1]
