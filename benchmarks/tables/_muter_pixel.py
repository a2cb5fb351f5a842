"""Figure 4, Figure 5 and Table 2 of the MUter paper: a network's last layer, attacked in pixels."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.flatten_util import ravel_pytree
from rich.console import Console
from rich.table import Table

from benchmarks import muter_pixel
from jaxunlearn.audit import intervals
from jaxunlearn.methods import muter
from jaxunlearn.primitives.balls import L2Ball

ROWS = 200
SEEDS = 8
STEPS = 60
# A mean gradient below this is that of an optimum.
OPTIMUM = 1e-9
NOISE = (0.005, 0.01, 0.02, 0.03)
# Seconds in Table 2 of the paper for 1, 5 and 10 rows: Lacuna-10, WRN-28-10.
PAPER_SECONDS = {
    "Fisher": (1.47, 7.76, 15.51),
    "Fisher-delta": (1.66, 8.41, 16.82),
    "MUter": (4.18, 21.37, 41.69),
    "Retrain": (935, 934, 932),
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """A network and where it is attacked."""

    act: str
    radius: float
    box: bool = False

    @property
    def name(self) -> str:
        return f"{self.act}-{'box' if self.box else 'l2'}-{self.radius}"

    @property
    def label(self) -> str:
        return f"{self.act}, {'box' if self.box else 'L2'} {self.radius}"


FIRST = Setting("tanh", 0.15)
SETTINGS = [Setting("tanh", 0.05), FIRST, Setting("tanh", 0.4), Setting("relu", 0.05)]
SETTINGS += [Setting("relu", 0.15), Setting("tanh", 0.02, True), Setting("relu", 0.02, True)]


def case(setting: Setting) -> dict[str, Any]:
    """All seeds of a setting; the first setting with all methods, accuracies and noise."""
    runs = []
    for seed in range(SEEDS):
        first = setting == FIRST
        how = {"rows": ROWS, "box": setting.box, "steps": STEPS, "compare": first}
        # The two that are to be told apart also go without the matrix.
        how |= {"robust": first, "free": setting.radius == FIRST.radius and seed == 0}
        removals = (1, 3, 6, 10, 15) if first else (1, 10)
        runs.append(
            muter_pixel.experiment(setting.act, setting.radius, seed, removals=removals, **how)
        )
    out = {"setting": dataclasses.asdict(setting), "runs": runs}
    return {**out, "noise": noise(setting)} if setting == FIRST else out


def noise(setting: Setting) -> list[dict[str, float]]:
    """Figure 5: Gaussian noise on the last layer after 5% of the rows are unlearned."""
    it, ball = muter_pixel.problem(setting.act, 0, ROWS), L2Ball(setting.radius)
    start = muter_pixel.optimum(it, ball, 0, steps=STEPS)
    forget = jnp.arange(ROWS) < ROWS // 20
    again = muter_pixel.retrained(it, ball, start, forget, steps=STEPS).params
    given = it.loss_fn, start.params, it.train, start.inner.delta
    memory = muter.prepare(*given, ball=ball)
    step, _ = muter.remove(it.loss_fn, memory, it.train, forget, ball=ball)
    flat, unravel = ravel_pytree(step)
    lines = []
    for sigma in NOISE:
        draws = []
        for seed in range(5):
            drawn = sigma * jax.random.normal(jax.random.key(seed), flat.shape, flat.dtype)
            w = unravel(flat + drawn)
            robust = muter_pixel.robust_accuracy(it, w, ball)
            draws.append(
                (muter_pixel.distance(w, again), muter_pixel.clean_accuracy(it, w), robust)
            )
        distance, clean, robust = np.mean(draws, 0)
        lines.append({"sigma": sigma, "distance": distance, "clean": clean, "robust": robust})
    return lines


def show(cases: list[dict[str, Any]], console: Console) -> None:
    """Medians of how well each setting converged, distances over that of no-op; accuracies."""
    names = ("muter", "muter + refresh", "muter, PGD-10 raw", "muter, PGD-10 refined")
    names = (*names, "muter_newton_delta")
    heads = ("setting", "gradient", "residual", "fallback", "FD kkt / direct", "k", "at optima")
    title = f"Last layer, attack on pixels, {ROWS} rows: distance to Retrain over that of no-op"
    table = Table(*heads, *names, title=f"{title} (geometric mean and 95% interval)")
    for it in cases:
        runs, setting = it["runs"], Setting(**it["setting"])
        middle = lambda key, runs=runs: f"{np.median([run[key] for run in runs]):.0e}"
        head = [setting.name, middle("gradient"), middle("inner_residual")]
        head += [f"{np.median([run['fallback'] for run in runs]):.0f}"]
        head += [f"{middle('fd_kkt')} / {middle('fd_direct')}"]
        for k in runs[0]["removals"]:
            lines = [run["removals"][k] for run in runs]
            worst = [max(run["gradient"], run["removals"][k]["retrain_gradient"]) for run in runs]
            optima = f"{sum(g <= OPTIMUM for g in worst)} of {len(runs)}"
            table.add_row(*head, k, optima, *(ratio(lines, name) for name in names))
            head = [""] * 5
    console.print(table)
    for it in cases:
        if it["warnings"]:
            more = f" (and {len(it['warnings']) - 1} like it)"
            console.print(f"{Setting(**it['setting']).name} warned: {it['warnings'][0]}{more}")
        for run in it["runs"]:
            for k, line in run["removals"].items():
                if "matrix-free" in line:
                    console.print(
                        f"{Setting(**it['setting']).name}, {k} rows: the matrix-free step is "
                        f"{line['matrix-free']:.0e} from the dense one ({line['iterations']} steps)"
                    )
    for it in cases:
        if Setting(**it["setting"]) == FIRST:
            compared(it, console)


def draw(cases: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Distances over that of no-op when ten rows go, a line for each setting."""
    figure, axis = plt.subplots(figsize=(7.6, 4.2))
    shown = {"muter_newton_delta": "Newton-delta", "muter": "constrained"}
    shown |= {"muter + refresh": "constrained, and a refresh"}
    for number, name in enumerate(shown):
        found = [interval([run["removals"]["10"] for run in it["runs"]], name) for it in cases]
        middle, low, high = np.array(found).T
        places = np.arange(len(cases)) + 0.22 * (1 - number)
        axis.errorbar(
            middle, places, xerr=(middle - low, high - middle), fmt="so^"[number],
            markersize=5, capsize=2, linewidth=1, label=shown[name],
        )  # fmt: skip
    axis.axvline(1, color="black", linewidth=1, label="no-op")
    axis.set(xscale="log", xlabel="distance to Retrain over that of no-op, 10 rows removed")
    axis.set_yticks(range(len(cases)), [Setting(**it["setting"]).label for it in cases])
    axis.invert_yaxis()
    axis.grid(axis="x", alpha=0.3)
    figure.legend(loc="lower center", ncols=4, fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def interval(lines: list[dict[str, Any]], name: str) -> tuple[float, float, float]:
    """Distance over that of no-op: geometric mean and interval over seeds."""
    logs = [np.log(line[name] / line["noop"]) for line in lines]
    mean, low, high = np.exp(intervals.mean_interval(logs))
    return float(mean), float(low), float(high)


def ratio(lines: list[dict[str, Any]], name: str) -> str:
    """:func:`interval`, printed."""
    mean, low, high = interval(lines, name)
    return f"{mean:.2g} [{low:.2g}, {high:.2g}]"


def compared(it: dict[str, Any], console: Console) -> None:
    """The first setting: all methods, accuracies and seconds, and noise."""
    runs, names = it["runs"], ["muter", *list(muter.RULES)[1:]]
    removals = list(runs[0]["removals"])
    title = f"{Setting(**it['setting']).name}: distance over that of no-op"
    table = Table("", *removals, "s at 1 row", title=title)
    for name in names:
        lines = {k: [run["removals"][k] for run in runs] for k in removals}
        seconds = np.median([line["seconds"][name] for line in lines["1"]])
        table.add_row(name, *(ratio(lines[k], name) for k in removals), f"{seconds:.2g}")
    seconds = np.median([run["removals"]["1"]["seconds"]["retrain"] for run in runs])
    table.add_row("warm Retrain", *["0"] * len(removals), f"{seconds:.2g}")
    console.print(table)
    console.print(f"The paper's seconds (Lacuna-10, WRN-28-10): {PAPER_SECONDS}")
    for k in removals:
        mean = lambda key, k=k: float(np.mean([run["removals"][k][key] for run in runs]))
        console.print(
            f"{k} rows: clean accuracy {mean('clean'):.3f} (Retrain {mean('clean_retrain'):.3f}), "
            f"robust {mean('robust'):.3f} ({mean('robust_retrain'):.3f})"
        )
    for line in it["noise"]:
        console.print(
            f"noise {line['sigma']}: distance {line['distance']:.3g}, clean {line['clean']:.3f}, "
            f"robust {line['robust']:.3f}"
        )
