"""PRUNE's tables on the terminal, and its figures."""

import pathlib
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.tables import _prune_paper as prune_paper

COLUMNS = (
    "A_te",
    "A_res",
    "A_u before",
    "A_u",
    "recall before",
    "recall",
    "TPR@1%",
    "fit",
    "unlearn",
    "MB",
)


def show(out: dict[str, Any], console: Console) -> None:
    for name, found in out.items():
        if name in ("options", "environment"):
            continue
        console.print(
            f"\n[bold]{name}[/]  one training: {found['training_s']:.1f} s", highlight=False
        )
        drawn = Table(title="Tables III and IV, Figure 3. Times in trainings", title_justify="left")
        for title in ("points", "", *COLUMNS):
            drawn.add_column(title, justify="right" if title in COLUMNS else "left", no_wrap=True)
        for size, methods in found["points"].items():
            for method, row in methods.items():
                drawn.add_row(str(size), method, *(_text(c, v) for c, v in row.items()))
            paper = prune_paper.TABLE_III.get(name, {}).get(int(size), {})
            for method, row in paper.items():
                cells = {**dict.fromkeys(COLUMNS), **dict(zip(COLUMNS[:4], row, strict=True))}
                recall = (
                    prune_paper.TABLE_IV.get(name, {}).get(method) if int(size) == 100 else None
                )
                if recall:
                    cells["recall before"], cells["recall"] = recall
                drawn.add_row(
                    "", f"{method}, paper", *(_text(c, v) for c, v in cells.items()), style="dim"
                )
            drawn.add_section()
        console.print(drawn)
        if "classes" in found:
            drawn = Table(title="Table V: mean over classes ± deviation", title_justify="left")
            titles = list(found["classes"]["before"]["mean"])
            for title in ("", *titles):
                drawn.add_column(title, justify="right" if title else "left", no_wrap=True)
            for method, row in found["classes"].items():
                cells = (f"{row['mean'][t]:.2f} ± {row['deviation'][t]:.2f}" for t in titles)
                drawn.add_row(method, *cells)
            for method, row in prune_paper.TABLE_V.get(name, {}).items():
                drawn.add_row(f"{method}, paper", "", *(f"{v:.2f}" for v in row), style="dim")
            console.print(drawn)


def _text(column: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if column in ("fit", "unlearn", "MB") else f"{value:.2f}"


def draw(out: dict[str, Any], path: pathlib.Path) -> None:
    """Figures 3, 4 and 5, a row for each dataset."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = [name for name in out if "convergence" in out[name]]
    figure, axes = plt.subplots(len(names), 3, figsize=(13, 3.8 * len(names)), squeeze=False)
    for (left, middle, right), name in zip(axes, names, strict=True):
        found = out[name]
        largest = found["points"][list(found["points"])[-1]]
        methods = [m for m in largest if m != "noop"]
        train = [largest[m]["fit"] for m in methods]
        unlearn = [largest[m]["unlearn"] for m in methods]
        left.barh(methods, train, color="0.8", label="training")
        left.barh(methods, unlearn, left=train, color="tab:blue", label="unlearning")
        left.set(title=f"{name}: time, {list(found['points'])[-1]} points", xlabel="trainings")
        left.invert_yaxis()
        left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncol=2)
        for axis, part, label in ((middle, "clusters", "K"), (right, "sizes", "points")):
            for value, left_over in found["convergence"][part].items():
                axis.plot(range(1, len(left_over) + 1), left_over, marker="o", ms=3, label=value)
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
