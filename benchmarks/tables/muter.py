"""Figures 3 to 5 and Tables 1 and 2 of the MUter paper, with rows for no-op and for another start.

    python -m benchmarks.tables muter --folder FOLDER

writes a JSON file and a picture for every model and ball, one JSON file for every network with its
attack on pixels, and prints the tables. What stands in FOLDER already is not computed again. Linear
models: MNIST 1 against 7 if it is prepared, the embedded digits otherwise; everything in float64.

The worst perturbation of a linear model is known in closed form, and FGSM from the row itself is
it. The attacks of the paper's code start at random points: what they leave of the closed form's
loss has a line of its own, and so have steps that are taken at their perturbations.
"""

import dataclasses
import functools
import json
import pathlib
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import muter_picture
from benchmarks.muter import L2, balls, binary
from benchmarks.tables import _muter_pixel as pixel
from jaxunlearn import Dataset
from jaxunlearn._files import atomic_write
from jaxunlearn.audit import intervals
from jaxunlearn.experiments.environment import environment
from jaxunlearn.methods.muter import linear as muter_linear
from jaxunlearn.primitives import linear
from jaxunlearn.primitives.adversarial import PGDConfig, pgd
from jaxunlearn.primitives.balls import LInfBox
from jaxunlearn.primitives.solve import CG, Cholesky, solve
from jaxunlearn.training.linear import minimise

ROWS = 2000
SEEDS = 3
# Seconds in Table 1 of the paper for 1, 5 and 10 rows: MNIST-b; its other figures are plots.
PAPER_SECONDS = {
    "logistic": {"Fisher": (0.002, 0.010, 0.019), "MUter": (0.009, 0.052, 0.106), "Retrain": 63},
    "ridge": {"Fisher": (0.002, 0.009, 0.018), "MUter": (0.009, 0.057, 0.097), "Retrain": 64},
}
# mode of the Hessian, at which perturbations
COMPARED = {
    "paper (Eq. 16)": ("paper", "worst"),
    "paper (code)": ("code", "worst"),
    "paper (code), PGD-15": ("code", "pgd"),
    "paper (code), FGSM": ("code", "fgsm"),
    "Newton": ("direct", "clean"),
    "Newton-delta": ("direct", "worst"),
    "Fisher": ("fisher", "clean"),
    "Fisher-delta": ("fisher", "worst"),
}
# Exactly, and as the paper's code: ten iterations.
SOLVERS = ((Cholesky(), ""), (CG(tol=1e-10, maxiter=10), ", CG 10"))


@dataclasses.dataclass
class Block:
    """One model and ball at its optimum, and every way to unlearn from it."""

    loss: str
    label: str
    rows: Dataset
    test: Dataset

    def __post_init__(self):
        ball = balls(self.rows)[self.label]
        self.how: dict[str, Any] = {"ball": ball, "loss": self.loss, "l2": L2}
        begin = time.perf_counter()
        self.optimum = jax.block_until_ready(self.train())
        self.cold = time.perf_counter() - begin
        self.w = self.optimum.w
        self.memory = muter_linear.prepare(self.optimum, self.rows, **self.how)
        self.step = jax.jit(
            lambda memory, some, weights, numbers: muter_linear.remove(
                memory, some, weights=weights, numbers=numbers, **self.how
            )[0]
        )
        self.at = self.perturbations()
        self.matrices = {name: linear.matrix(self.pieces(name)) for name in COMPARED}

    def train(self, **given):
        return minimise(self.rows, **self.how, tolerance=1e-11, **given)

    def perturbations(self) -> dict[str, jax.Array]:
        """The worst ones, those of the attacks of the paper's code, and none."""
        ball, loss = self.how["ball"], self.loss

        def score(w, row):
            one = Dataset(row.x[None], row.y[None])
            return linear.losses(w, one, ball=None, loss=loss)[0]

        size = 8 / 255 if isinstance(ball, LInfBox) else None
        many = PGDConfig(steps=15, step_size=size)
        single = PGDConfig(steps=1, step_size=ball.radius)
        attack = lambda config: pgd(
            jax.random.key(0), score, self.w, self.rows, ball=ball, config=config
        )
        return {
            "clean": jnp.zeros_like(self.rows.x),
            "worst": linear.maximum(self.w, self.rows, ball=ball, loss=loss).delta,
            "pgd": attack(many).delta,
            "fgsm": attack(single).delta,
        }

    def pieces(self, name: str, numbers: Any = slice(None)) -> linear.Pieces:
        mode, where = COMPARED[name]
        some, delta = Dataset(self.rows.x[numbers], self.rows.y[numbers]), self.at[where][numbers]
        return linear.pieces(self.w, some, delta, ball=None, mode=mode, loss=self.loss, l2=L2)

    def lost(self, where: str) -> float:
        """How much of the loss that the worst perturbations add an attack does not find."""
        mean = lambda d: float(
            linear.losses(
                self.w, Dataset(self.rows.x + d, self.rows.y), ball=None, loss=self.loss
            ).mean()
        )
        worst, clean = mean(self.at["worst"]), mean(self.at["clean"])
        return (worst - mean(self.at[where])) / (worst - clean)

    def accuracies(self, w) -> tuple[float, float]:
        y = 2 * self.test.y - 1
        delta = linear.maximum(w, self.test, ball=self.how["ball"], loss=self.loss).delta
        right = lambda x: float(((x @ w) * y > 0).mean())
        return right(self.test.x), right(self.test.x + delta)


@functools.partial(jax.jit, static_argnames=("solver", "keep"))
def answer(w, matrix, parts, weights, *, solver, keep):
    """A step of the comparison: with the matrix of the remaining rows, or of all."""
    system = matrix if keep else matrix - linear.matrix(parts, weights)
    return w + solve(system, weights @ parts.gradient, solver=solver).x


def one_request(block: Block, k: int, size: int, seed: int, other) -> dict[str, Any]:
    """All methods on k rows; ``size`` rows are given, those beyond k with weight 0.

    Seconds are those of single rows; the first seed also trains from ``other``, if given.
    """
    timed = twice if k == 1 else once
    n = block.rows.y.size
    chosen = np.random.default_rng((k, seed)).permutation(n)[:size]
    some = Dataset(block.rows.x[chosen], block.rows.y[chosen])
    counted = (jnp.arange(size) < k).astype(block.rows.x.dtype)
    keep = jnp.ones(n).at[chosen[:k]].set(0.0)
    again, seconds = timed(lambda: block.train(weights=keep, start=block.optimum))
    found = {"Retrain": (again.w, seconds), "no-op": (block.w, 0.0)}
    if other is not None and not seed:
        found["Retrain, other start"] = block.train(weights=keep, start=other).w, None
    step, seconds = timed(lambda: block.step(block.memory, some, counted, jnp.asarray(chosen)))
    found["MUter (ours)"] = step.w, seconds
    for name, matrix in block.matrices.items():
        parts = block.pieces(name, chosen)
        few = COMPARED[name][1] in ("pgd", "fgsm")
        for solver, ending in SOLVERS[: 1 if few else 2]:
            call = functools.partial(answer, block.w, matrix, parts, counted, solver=solver)
            found[name + ending] = timed(functools.partial(call, keep=False))
            if "Newton" in name:
                kept = timed(functools.partial(call, keep=True))
                found[name.replace("Newton", "Influence") + ending] = kept
    out: dict[str, Any] = {"gradient": float(again.gradient), "moved": int(step.moved)}
    for name, (w, seconds) in found.items():
        clean, robust = block.accuracies(w)
        distance = float(jnp.linalg.norm(w - again.w))
        out[name] = {"distance": distance, "clean": clean, "robust": robust, "seconds": seconds}
    return out


def once(call: Callable[[], Any]) -> tuple[Any, None]:
    return call(), None


def twice(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, and the seconds of its second run: the first may compile."""
    jax.block_until_ready(call())
    begin = time.perf_counter()
    out = jax.block_until_ready(call())
    return out, time.perf_counter() - begin


def linear_block(loss: str, label: str, rows: Dataset, test: Dataset, seeds: int) -> dict[str, Any]:
    """One model and ball: all methods at 1 to 5 rows and at 1 to 5%."""
    block, n = Block(loss, label, rows, test), rows.y.size
    # Far from the optimum, on few weights: those of a box are few.
    rng = np.random.default_rng(1)
    other = jnp.asarray(
        0.5 * rng.normal(size=rows.x.shape[1]) * (rng.random(rows.x.shape[1]) < 0.03)
    )
    percent = [max(6, n * p // 100) for p in range(1, 6)]
    lines = []
    for k in [1, 2, 3, 4, 5, *percent]:
        size = 5 if k <= 5 else percent[-1]  # two sizes only: two compilations
        again = other if k in (1, percent[-1]) else None
        runs = [one_request(block, k, size, seed, again) for seed in range(seeds)]
        lines.append({"removed": k, "runs": runs})
    return {
        "model": loss,
        "ball": str(block.how["ball"]),
        "rows": n,
        "gradient": float(block.optimum.gradient),
        "cold_training_s": block.cold,
        "weights not 0": int((block.w != 0).sum()),
        "rows at kinks": int((jnp.abs(block.optimum.mix) < 1).sum()),
        "attack loses": {name: block.lost(name) for name in ("pgd", "fgsm")},
        "lines": lines,
    }


def values(line: dict[str, Any], name: str, what: str) -> list[float]:
    return [run[name][what] for run in line["runs"] if name in run]


def names_of(block: dict[str, Any]) -> list[str]:
    return [name for name, cell in block["lines"][0]["runs"][0].items() if isinstance(cell, dict)]


def show(block: dict[str, Any], console: Console) -> None:
    """Distances of every method, and below what is to be known of the block."""
    lines, few = block["lines"], {1, 5}
    last = lines[-1]
    few |= {line["removed"] for line in lines[5::2]}
    lines = [line for line in lines if line["removed"] in few]
    title = f"{block['model']}, {block['ball']}, {block['rows']} rows: distance to Retrain"
    heads = [str(line["removed"]) for line in lines]
    table = Table("", *heads, "clean", "robust", "s", title=title)
    for name in names_of(block):
        cells = [spread(values(line, name, "distance")) for line in lines]
        mean = lambda what, name=name: f"{np.mean(values(last, name, what)):.3f}"
        seconds = values(lines[0], name, "seconds")
        taken = "" if seconds[0] is None else f"{np.median(seconds):.2g}"
        table.add_row(name, *cells, mean("clean"), mean("robust"), taken)
    console.print(table)
    worst = max(run["gradient"] for line in block["lines"] for run in line["runs"])
    lost = block["attack loses"]
    console.print(
        f"Mean of {len(last['runs'])} requests ± half a 95% interval; accuracies at the largest, "
        f"seconds at one row. Gradient at the optimum {block['gradient']:.1g}, at the worst "
        f"retraining {worst:.1g}; {block['weights not 0']} weights not 0, {block['rows at kinks']} "
        f"rows at kinks; cold training {block['cold_training_s']:.1f} s. PGD-15 leaves "
        f"{lost['pgd']:.1%} of the loss that the worst perturbation adds, FGSM from a random "
        f"point {lost['fgsm']:.0%}."
    )
    for warning in block["warnings"]:
        console.print(f"Warned: {warning}")


def spread(found: list[float]) -> str:
    """Mean and half an interval."""
    if not found:
        return ""
    if len(found) < 2 or not np.std(found):
        return f"{np.mean(found):.2g}"
    mean, _, high = intervals.mean_interval(found)
    return f"{mean:.2g} ± {high - mean:.1g}"


def draw(block: dict[str, Any], path: pathlib.Path) -> None:
    """Distance and robustness against removals, of one model and ball."""
    names = ("no-op", "MUter (ours)", "paper (Eq. 16)", "Newton-delta", "Newton-delta, CG 10")
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 4.2))
    panels = (("distance", "distance to Retrain", names),)
    panels += (("robust", "robust test accuracy", (*names, "Retrain")),)
    k = [line["removed"] for line in block["lines"]]
    for axis, (what, title, shown) in zip(axes, panels, strict=True):
        for name, mark in zip(shown, "os^vdx", strict=False):
            drawn = np.array([values(line, name, what) for line in block["lines"]])
            axis.plot(k, drawn.mean(1), marker=mark, markersize=4, linewidth=1, label=name)
            color = axis.lines[-1].get_color()
            axis.fill_between(k, drawn.min(1), drawn.max(1), color=color, alpha=0.15, linewidth=0)
        axis.set(xscale="log", xlabel="rows removed", title=title)
    axes[0].set_yscale("log")
    axes[1].set_ylim(-0.05, 1.05)
    handles, labels = axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=3, fontsize=9, frameon=False)
    figure.suptitle(f"{block['model']}, {block['ball']}", fontsize=10)
    figure.tight_layout(rect=(0, 0.14, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def noted(path: pathlib.Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What stands in a file, or is made and written there with its warnings."""
    if not path.exists():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            content = make()
        said = sorted({str(warning.message) for warning in caught})
        content = {**content, "warnings": said, "environment": environment()}
        with atomic_write(path) as file:
            file.write(json.dumps(content, indent=1, allow_nan=True).encode())
    return json.loads(path.read_text())


def run(
    folder: pathlib.Path = pathlib.Path("runs/muter"),
    quick: bool = False,
    only: tuple[str, ...] = (),
) -> None:
    """All of it; what stands in the folder already is not computed again.

    Args:
      folder: of the figures and pictures.
      quick: one request each on 400 rows, and no networks.
      only: compute these alone, as `ridge-linf` or `relu-l2-0.15`, and show what the folder has.
    """
    console = Console(width=200)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = lambda name: name in only or not only or (folder / f"{name}.json").exists()
    with jax.enable_x64(True):
        muter_picture.draw(folder / "maximum.png")
        for loss, label in [(loss, ball) for loss in linear.LOSSES for ball in ("l2", "linf")]:
            path = folder / f"{loss}-{label}.json"
            if not wanted(path.stem):
                continue

            def make(loss=loss, label=label):
                rows, name = binary(400 if quick else ROWS)
                test, _ = binary(1000, split="test")
                found = linear_block(loss, label, rows, test, 1 if quick else SEEDS)
                return {"data": name, **found}

            block = noted(path, make)
            draw(block, path.with_suffix(".png"))
            show(block, console)
        console.print(f"The paper's seconds (MNIST-b, 1, 5 and 10 rows): {PAPER_SECONDS}")
        if not quick:
            cases = [
                noted(folder / f"{setting.name}.json", functools.partial(pixel.case, setting))
                for setting in pixel.SETTINGS
                if wanted(setting.name)
            ]
            pixel.show(cases, console)
            pixel.draw(cases, folder / "pixel.png")


def main(argv: Sequence[str] | None = None) -> None:
    tyro.cli(run, args=argv, prog="python -m benchmarks.tables muter", description=__doc__)
