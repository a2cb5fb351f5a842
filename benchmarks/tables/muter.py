"""Figures 3 to 5 and Tables 1 and 2 of the MUter paper, with rows for no-op and for another start.

    python -m benchmarks.tables muter --folder FOLDER

writes a JSON file and a picture for every model and ball and `pixel.json` into FOLDER, and prints
the tables. Linear models: MNIST 1 against 7 if it is prepared, the embedded digits
otherwise. A linear model's maximum is in closed form and FGSM from the row itself is that maximum,
so PGD and FGSM share their rows: how far PGD-15 is from it is in the files.
"""

import functools
import json
import pathlib
import time
import warnings
from collections.abc import Sequence
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

from benchmarks import muter_picture, muter_pixel
from benchmarks.muter import BALLS, L2, binary
from jaxunlearn import Dataset
from jaxunlearn._files import atomic_write
from jaxunlearn.experiments.environment import environment
from jaxunlearn.methods import muter_linear
from jaxunlearn.primitives import linear
from jaxunlearn.primitives.adversarial import PGDConfig, pgd
from jaxunlearn.primitives.solve import CG, Cholesky, solve

ROWS = 4000
# Seconds in Table 1 of the paper for 1, 5 and 10 rows: MNIST-b; its other figures are plots.
PAPER_SECONDS = {
    "logistic": {"Fisher": (0.002, 0.010, 0.019), "MUter": (0.009, 0.052, 0.106), "Retrain": 63},
    "ridge": {"Fisher": (0.002, 0.009, 0.018), "MUter": (0.009, 0.057, 0.097), "Retrain": 64},
}
COMPARED = {
    "paper (Eq. 16)": ("paper", False),
    "paper (code)": ("code", False),
    "Newton": ("direct", True),
    "Newton-delta": ("direct", False),
    "Fisher": ("fisher", True),
    "Fisher-delta": ("fisher", False),
}
PIXEL = [
    ("tanh", 0.15, False, (0, 1, 2)),
    ("tanh", 0.05, False, (0, 1)),
    ("tanh", 0.4, False, (0, 1)),
    ("relu", 0.05, False, (0, 1)),
    ("relu", 0.15, False, (0, 1)),
    ("tanh", 0.02, True, (0, 1)),
]


def linear_block(loss: str, label: str, rows: Dataset, test: Dataset) -> dict[str, Any]:
    """One model and ball: all methods at 1 to 5 rows and at 1 to 5%."""
    ball, n, d = BALLS[label], rows.y.size, rows.x.shape[1]
    # Ridge regression in a ball has kinks in its rows and never gets there; see its gradient.
    steps = 100 if loss == "logistic" else 25
    how = {"ball": ball, "loss": loss, "l2": L2}
    train = functools.partial(linear.minimise, rows, **how, tolerance=1e-11, steps=steps)
    begin = time.perf_counter()
    optimum = jax.block_until_ready(train())
    cold = time.perf_counter() - begin
    w = optimum.w
    other = train(start=jnp.asarray(0.1 * np.random.default_rng(1).normal(size=d))).w
    worst = linear.maximum(w, rows, ball=ball, loss=loss).delta
    memory = muter_linear.prepare(w, rows, **how)
    step = jax.jit(lambda m, some, v: muter_linear.remove(m, some, weights=v, **how)[0].w)
    prepared = {}
    for name, (mode, clean) in COMPARED.items():
        at = jnp.zeros_like(rows.x) if clean else worst
        parts = linear.pieces(w, rows, at, ball=None, mode=mode, loss=loss, l2=L2)
        prepared[name] = at, linear.matrix(parts)

    @functools.partial(jax.jit, static_argnames=("mode", "solver", "keep"))
    def answer(matrix, some, delta, weights, *, mode, solver, keep):
        parts = linear.pieces(w, some, delta, ball=None, mode=mode, loss=loss, l2=L2)
        system = matrix if keep else matrix - linear.matrix(parts, weights)
        return w + solve(system, weights @ parts.gradient, solver=solver).x

    y = 2 * test.y - 1

    def accuracies(v):
        delta = linear.maximum(v, test, ball=ball, loss=loss).delta
        right = lambda x: float(((x @ v) * y > 0).mean())
        return right(test.x), right(test.x + delta)

    score = lambda v, row: linear.losses(
        v, jax.tree.map(lambda a: a[None], row), ball=None, loss=loss
    )[0]
    search = PGDConfig(steps=15, step_size=8 / 255 if label == "linf" else None)
    few = Dataset(rows.x[:500], rows.y[:500])
    rough = pgd(jax.random.key(0), score, w, few, ball=ball, config=search).delta
    lines = []
    percent = [max(6, n * p // 100) for p in range(1, 6)]
    for k in [1, 2, 3, 4, 5, *percent]:
        # Two sizes of request only, filled with rows of weight 0: two compilations.
        size = 5 if k <= 5 else percent[-1]
        chosen = np.random.default_rng(k).permutation(n)[:size]
        some = Dataset(rows.x[chosen], rows.y[chosen])
        counted = (jnp.arange(size) < k).astype(rows.x.dtype)
        keep = jnp.ones(n).at[chosen[:k]].set(0.0)
        begin = time.perf_counter()
        again = jax.block_until_ready(train(weights=keep, start=w))
        warm = time.perf_counter() - begin
        floor = train(weights=keep, start=other).w
        found = {
            "Retrain": (again.w, warm),
            "no-op": (w, 0.0),
            "Retrain, other start": (floor, 0.0),
        }
        found["MUter (ours)"] = timed(step, memory, some, counted)
        for name, (at, matrix) in prepared.items():
            for solver, label_ in ((Cholesky(), ""), (CG(tol=1e-10, maxiter=10), ", CG 10")):
                call = functools.partial(answer, mode=COMPARED[name][0], solver=solver)
                found[name + label_] = timed(
                    functools.partial(call, keep=False), matrix, some, at[chosen], counted
                )
                if "Newton" in name:
                    kept = functools.partial(call, keep=True)
                    infl = name.replace("Newton", "Influence") + label_
                    found[infl] = timed(kept, matrix, some, at[chosen], counted)
        line: dict[str, Any] = {"removed": k, "retrain_gradient": float(again.gradient)}
        for name, (v, seconds) in found.items():
            clean, robust = accuracies(v)
            distance = float(jnp.linalg.norm(v - again.w))
            line[name] = {
                "distance": distance,
                "clean": clean,
                "robust": robust,
                "seconds": seconds,
            }
        lines.append(line)
    return {
        "model": loss,
        "ball": str(ball),
        "rows": n,
        "gradient": float(optimum.gradient),
        "cold_training_s": cold,
        "weights not 0": int((w != 0).sum()),
        "PGD-15 from the maximum": float(jnp.abs(rough - worst[:500]).max()),
        "lines": lines,
    }


def timed(call, *args):
    """The result of the second call and its seconds: the first compiles."""
    jax.block_until_ready(call(*args))
    begin = time.perf_counter()
    out = jax.block_until_ready(call(*args))
    return out, time.perf_counter() - begin


def show(blocks: list[dict[str, Any]], console: Console) -> None:
    """Distances of every method, a table for each model and ball."""
    for block in blocks:
        lines = block["lines"]
        title = f"{block['model']}, {block['ball']}, {block['rows']} rows, ||w_u - w_retrain||"
        table = Table(
            "", *(str(line["removed"]) for line in lines), "robust at 5%", "s", title=title
        )
        for name in lines[0]:
            if name not in ("removed", "retrain_gradient"):
                cells = [f"{line[name]['distance']:.2g}" for line in lines]
                last = lines[-1][name]
                table.add_row(name, *cells, f"{last['robust']:.3f}", f"{last['seconds']:.2g}")
        console.print(table)
        console.print(f"mean gradient at the optimum {block['gradient']:.1g}")


def show_pixel(runs: list[dict[str, Any]], console: Console) -> None:
    """Pixel attacks: how well each setting converged, and distances over that of no-op."""
    names = ("muter", "muter + refresh", "muter, PGD-10 raw", "muter, PGD-10 refined")
    names = (*names, "muter_newton_delta")
    heads = ("setting", "gradient", "residual", "fallback", "FD kkt", "FD direct", "k", *names)
    table = Table(*heads, title="Last layer, attack on pixels: distance / that of no-op")
    for run in runs:
        radius = f"{run['network']} {run['ball']} {run['radius']} seed {run['seed']}"
        head = [radius, f"{run['gradient']:.0e}", f"{run['inner_residual']:.0e}"]
        head += [str(run["fallback"]), f"{run['fd_kkt']:.1e}", f"{run['fd_direct']:.1e}"]
        for k, line in run["removals"].items():
            cells = [f"{line[name] / line['noop']:.3g}" for name in names]
            table.add_row(*head, k, *cells)
            head = [""] * 6
    console.print(table)


def draw(block: dict[str, Any], path: pathlib.Path) -> None:
    """Distance and robustness against removals, of one model and ball."""
    names = ("no-op", "MUter (ours)", "paper (Eq. 16)", "Newton-delta", "Newton-delta, CG 10")
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 4.2))
    panels = (("distance", "distance to Retrain", names),)
    panels += (("robust", "robust test accuracy", (*names, "Retrain")),)
    k = [line["removed"] for line in block["lines"]]
    for axis, (what, title, shown) in zip(axes, panels, strict=True):
        for name, mark in zip(shown, "os^vdx", strict=False):
            values = [line[name][what] for line in block["lines"]]
            axis.plot(k, values, marker=mark, markersize=4, linewidth=1, label=name)
        axis.set(xscale="log", xlabel="rows removed", title=title)
    axes[0].set_yscale("log")
    handles, labels = axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=3, fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0.14, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def run(folder: pathlib.Path = pathlib.Path("runs/muter"), quick: bool = False) -> None:
    """All of it; what stands in the folder already is not computed again.

    Args:
      folder: of the figures and pictures.
      quick: logistic regression on 400 rows only.
    """
    console = Console(width=200)
    folder.mkdir(parents=True, exist_ok=True)
    with jax.enable_x64(True), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what does not converge is in the table
        cases = [("logistic", ball) for ball in BALLS]
        cases += [] if quick else [("ridge", ball) for ball in BALLS]
        blocks = []
        for loss, label in cases:
            path = folder / f"{loss}-{label}.json"
            if not path.exists():
                rows, name = binary(400 if quick else ROWS)
                test, _ = binary(1000, split="test")
                _write(path, {"data": name, **linear_block(loss, label, rows, test)})
            blocks.append(json.loads(path.read_text()))
            draw(blocks[-1], path.with_suffix(".png"))
        muter_picture.draw(folder / "maximum.png")
        show(blocks, console)
        if not quick and not (folder / "pixel.json").exists():
            runs = []
            for act, radius, box, seeds in PIXEL:
                for seed in seeds:
                    first = (act, radius) == ("tanh", 0.15)
                    settings = {"box": box, "steps": 12, "compare": first, "robust": first}
                    runs.append(muter_pixel.experiment(act, radius, seed, **settings))
            _write(folder / "pixel.json", {"runs": runs})
    if (folder / "pixel.json").exists():
        show_pixel(json.loads((folder / "pixel.json").read_text())["runs"], console)
    console.print(f"The paper's seconds (MNIST-b, 1, 5 and 10 rows): {PAPER_SECONDS}")


def _write(path: pathlib.Path, content: dict[str, Any]) -> None:
    with atomic_write(path) as file:
        content = {**content, "environment": environment()}
        file.write(json.dumps(content, indent=1, allow_nan=True).encode())


def main(argv: Sequence[str] | None = None) -> None:
    tyro.cli(run, args=argv, prog="python -m benchmarks.tables muter", description=__doc__)
