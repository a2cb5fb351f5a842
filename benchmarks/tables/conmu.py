"""ConMU's Tables 1 and 4 on Fashion-MNIST: 20% of the rows at random, and half of a class.

Beside the paper's rows: no-op, fine-tuning at a tuned rate, ConMU's default here, and ConMU as its
official code computes it; JSD to retrained models, bands of what retraining itself scores, and cost
in sample gradients. The paper has no Fashion-MNIST: its numbers are those of ResNet-18 on CIFAR-10.
What is done is stored in --folder, and the same command goes on from there.

On a GPU, add --model resnet18; the paper's own datasets are in conmu_table1 and conmu_table4.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.tables import _conmu_ulira, layout
from jaxunlearn import TrainConfig, data
from jaxunlearn._files import atomic_write
from jaxunlearn.experiments import CompareConfig, compare
from jaxunlearn.experiments.environment import environment
from jaxunlearn.experiments.metrics import BY_KEY
from jaxunlearn.experiments.notes import MARKS, mark
from jaxunlearn.experiments.summary import Summary, summarise

# Keys of metrics: the paper's columns, then ours.
PAPER_COLUMNS = ("acc_test", "acc_forget", "acc_retain", "mia", "unlearn_s", "frm")
OUR_COLUMNS = ("jsd", "grad_speedup", "speedup", "compile_s")
# Label, method, and the label of the paper's row.
ROWS = (
    ("No-op", "noop", None),
    ("Retrain", "retrain", "Retrain"),
    ("IU + Pruning", "influence+pruning", "IU + Pruning"),
    ("GA + Pruning", "gradient_ascent+pruning", "GA + Pruning"),
    ("FT + Pruning", "finetune+pruning", "FT + Pruning"),
    ("FT, rate .05", "finetune", None),
    ("ConMU, paper's knobs", "conmu_paper", "ConMU"),
    ("ConMU, official code", "conmu_official", None),
    ("ConMU, default", "conmu", None),
)
SETTINGS = ("finetune.learning_rate=0.05",)
# Table 3 of the paper: the knobs for half of a class.
CLASS_SETTINGS = (
    "conmu_paper.retain.low=0.2",
    "conmu_paper.forget.low=0.8",
    "conmu_paper.alpha=12",
)
BLOCKS = {
    "random": ("20% of the rows at random", "resnet18_cifar10_random"),
    "class": ("half of one class", "resnet18_cifar10_class"),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Attributes:
    folder: of the records; run again to go on.
    rows: training rows of Fashion-MNIST.
    epochs: of every training.
    seeds: each draws its own request, initial parameters and orders.
    first_seed: the first of them. The defaults of ConMU were chosen on other seeds.
    references: retrained models a seed.
    model: see `jaxunlearn models`.
    label: the class that half of is forgotten: 6 is shirts, the hardest one.
    requests: "random", "class" or both with a comma between.
    ulira: models an arm of U-LiRA, on a small network; 0 leaves it out.
    json: also write everything as JSON to this file.
    data_dir: folder of prepared TFDS sets.
    """

    folder: pathlib.Path = pathlib.Path("runs/conmu")
    rows: int = 2000
    epochs: int = 30
    seeds: int = 10
    first_seed: int = 0
    references: int = 3
    model: str = "cnn"
    label: int = 6
    requests: str = "random,class"
    ulira: int = 64
    json: pathlib.Path | None = None
    data_dir: pathlib.Path | None = None


def comparison(options: Options, request: str) -> CompareConfig:
    """The comparison that fills one block."""
    one_class = request == "class"
    return CompareConfig(
        dataset="fashion_mnist",
        data_dir=options.data_dir,
        rows=options.rows,
        model=options.model,
        forget=request,
        fraction=0.5 if one_class else 0.2,
        label=options.label if one_class else None,
        methods=",".join(method for _, method, _ in ROWS),
        settings=SETTINGS + (CLASS_SETTINGS if one_class else ()),
        seeds=options.seeds,
        first_seed=options.first_seed,
        references=options.references,
        train=TrainConfig(
            epochs=options.epochs, batch_size=128, learning_rate=0.05, microbatch=32, progress=True
        ),
        out=options.folder / request,
    )


def main(argv: Sequence[str] | None = None) -> None:
    options = tyro.cli(Options, description=__doc__, args=argv, prog="benchmarks.tables conmu")
    names = [name.strip() for name in options.requests.split(",")]
    if unknown := set(names) - BLOCKS.keys():
        raise SystemExit(f"--requests {', '.join(sorted(unknown))}: there are {', '.join(BLOCKS)}.")
    try:
        splits = data.load("fashion_mnist", data_dir=options.data_dir)
    except FileNotFoundError as error:
        raise SystemExit(f"Error: {error}") from None
    ulira = _conmu_ulira.measured(splits, options.ulira) if options.ulira else {}
    found = {name: summarise(compare(comparison(options, name))) for name in names}
    console = Console()
    console = console if console.is_terminal else Console(width=190)
    show(found, console)
    if ulira:
        console.print(_conmu_ulira.drawn(ulira, options.ulira))
        console.print(
            "Half of the answers of a coin would be right: .5 is forgotten. Retrain: one more set "
            "of retrained models against the first.",
            highlight=False,
        )
    if options.json is not None:
        out = as_json(found)
        for name, (report, right) in ulira.items():
            out["metrics"] |= {f"ulira.{name}": report.value, f"ulira.{name}.acc_forget": right}
            out["intervals"][f"ulira.{name}"] = [report.interval.low, report.interval.high]
        with atomic_write(options.json) as file:
            file.write(json.dumps(out, indent=2, allow_nan=False).encode())


def paper_rows(block: str) -> dict[str, dict[str, Any]]:
    """The paper's rows of a block of its Table 1, by label."""
    table = layout.load("conmu_table1")
    (found,) = (b for b in table["blocks"] if b["name"] == block)
    return {row["label"]: row for row in found["rows"]}


def show(found: dict[str, Summary], console: Console) -> None:
    doubts = layout.load("conmu_table1")["doubts"]
    for name, summary in found.items():
        console.print(_drawn(name, summary, doubts))
    for sign, meaning in MARKS:
        console.print(f"{sign} {meaning}", highlight=False)
    for number, meaning in enumerate(doubts.values(), 1):
        console.print(f"{'*' * number} {meaning}", highlight=False)
    console.print(
        "Paper: ResNet-18 on CIFAR-10, mean of ten runs, other machines, and a retrained model "
        "with fewer epochs than the original. Ours: mean ± half a 95% interval over seeds.\nRTE is "
        "the whole request, selection, pruning, proxy and fine-tuning, without compiling. FRM "
        "counts forget accuracy twice (MIA is about 100 - FA) and is no evidence of forgetting:\n"
        "look at JSD, which compares answers row by row, and at the no-op row.",
        highlight=False,
    )


def _drawn(name: str, summary: Summary, doubts: dict[str, str]) -> Table:
    title, block = BLOCKS[name]
    printed = paper_rows(block)
    drawn = Table(title=f"Fashion-MNIST, {title} removed", title_justify="left")
    metrics = [BY_KEY[key] for key in (*PAPER_COLUMNS, *OUR_COLUMNS)]
    headings = {"unlearn_s": "RTE s", "grad_speedup": "grads ×", "speedup": "wall ×"}
    for head in ("", "", *(headings.get(m.key, m.heading) for m in metrics)):
        drawn.add_column(head, justify="right" if head else "left", no_wrap=True)
    marks = {doubt: "*" * (i + 1) for i, doubt in enumerate(doubts)}
    for label, method, in_paper in ROWS:
        if in_paper is not None:
            row = printed[in_paper]
            cells = [f"{v:.{d}f}" for v, d in zip(row["paper"], (1, 1, 1, 1, 0, 3), strict=True)]
            sign = marks.get(row.get("doubt", ""), "")
            drawn.add_row(f"{label} {sign}".strip(), "paper", *cells, style="dim")
            label = ""
        ours = summary.row(method)
        cells = []
        for metric in metrics:
            cell = ours.cells[metric.key] if ours else None
            if cell is None:
                cells.append("")
                continue
            text = f"{metric.text(cell.value.estimate)} {metric.half(cell.value)}".strip()
            cells.append(f"{text} {mark(cell)}".strip())
        drawn.add_row(label, "ours", *cells, style="bold")
    cells = []
    for metric in metrics:
        null = summary.null.get(metric.key)
        band = null.band if null else None
        bounds = (null.mean + band.low, null.mean + band.high) if null and band else ()
        cells.append(" to ".join(metric.text(value) for value in bounds))
    drawn.add_row("one more Retrain", "95%", *cells, style="dim")
    return drawn


def as_json(found: dict[str, Summary]) -> dict[str, Any]:
    """Means as flat metrics; intervals, bands and the paper's rows beside."""
    finite = lambda value: value if math.isfinite(value) else None
    metrics, intervals, bands = {}, {}, {}
    for name, summary in found.items():
        for row in summary.rows:
            for key in (*PAPER_COLUMNS, *OUR_COLUMNS):
                value = row.cells[key].value
                metrics[f"{name}.{row.method}.{key}"] = finite(value.estimate)
                intervals[f"{name}.{row.method}.{key}"] = [finite(value.low), finite(value.high)]
        for key, null in summary.null.items():
            if null.band is not None:
                low, high = null.mean + null.band.low, null.mean + null.band.high
                bands[f"{name}.{key}"] = [finite(low), finite(high)]
    paper = {name: paper_rows(BLOCKS[name][1]) for name in found}
    return {
        "metrics": metrics,
        "intervals": intervals,
        "null_bands": bands,
        "paper": paper,
        "environment": environment(),
    }
