"""FFMU's Tables 1, 2 and 5 to 7: 5 to 20% of the rows of Fashion-MNIST removed from a federation.

Beside the paper's rows (Retrain, FedEraser, UN, FFMU): FedAvg without any unlearning, FFMU's own
training without the rows, FFMU-N, and FFMU with the paper's rate. The tables on CIFAR-10 and SVHN
have no rows here. With --out, what is done is kept and a run that was stopped goes on.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console

from benchmarks.tables import _removal
from benchmarks.tables._removal import Found, scores, three_times, timed
from jaxunlearn import Dataset, TrainConfig, Unlearner, _progress, data, models, registry
from jaxunlearn.baselines.federated import FedAvgConfig, FedEraserConfig, ReverseSGDConfig
from jaxunlearn.experiments.records import Records
from jaxunlearn.federated.federation import Federation
from jaxunlearn.methods.ffmu import PAPER, FFMUConfig

REQUESTS = {"5%": 0.05, "8%": 0.08, "10%": 0.1, "15%": 0.15, "20%": 0.2}
# Accuracy, Error_t, Error_r, Error_f in %, then training, unlearning and total seconds.
PAPER_ROWS = {
    "5%": {
        "Retrain": (84.49, 15.51, 14.71, 16.10, 193, 920, 1113),
        "FedEraser": (82.07, 17.93, 17.11, 20.83, 361, 1766, 2127),
        "UN": (80.35, 19.65, 19.07, 23.19, 205, 1053, 1258),
        "FFMU": (84.55, 15.45, 14.87, 15.37, 1288, 0, 1288),
    },
    "8%": {
        "Retrain": (84.75, 15.25, 14.45, 15.58, 198, 1416, 1614),
        "FedEraser": (83.78, 16.22, 15.66, 16.84, 358, 2828, 3186),
        "UN": (80.38, 19.62, 18.82, 18.00, 210, 1618, 1828),
        "FFMU": (84.55, 15.45, 14.86, 15.38, 1288, 0, 1288),
    },
    "10%": {
        "Retrain": (84.40, 15.60, 14.70, 15.75, 211, 1636, 1847),
        "FedEraser": (81.64, 18.36, 17.70, 16.72, 369, 3610, 3979),
        "UN": (80.87, 19.13, 17.90, 16.69, 234, 1965, 2199),
        "FFMU": (84.55, 15.45, 14.88, 15.07, 1288, 0, 1288),
    },
    "15%": {
        "Retrain": (84.66, 15.34, 14.84, 14.84, 188, 2378, 2566),
        "FedEraser": (83.77, 16.23, 15.94, 15.95, 364, 5349, 5713),
        "UN": (82.06, 17.94, 16.69, 16.67, 217, 2963, 3180),
        "FFMU": (84.55, 15.45, 14.84, 14.76, 1288, 0, 1288),
    },
    "20%": {
        "Retrain": (84.39, 15.61, 14.74, 15.12, 198, 2340, 2538),
        "FedEraser": (79.51, 20.49, 19.33, 18.65, 369, 3610, 3979),
        "UN": (82.20, 17.80, 16.43, 18.85, 221, 3935, 4156),
        "FFMU": (84.55, 15.45, 14.83, 15.19, 1288, 0, 1288),
    },
}
RETRAIN, NOOP, OWN = "Retrain", "FedAvg, no unlearning", "Retrain, FFMU's rule"
ORDER = (RETRAIN, NOOP, "FedEraser", "UN", OWN, "FFMU", "FFMU-N", "FFMU, paper's rate")


@dataclasses.dataclass(frozen=True)
class Options:
    """Attributes:
    rows: training rows of Fashion-MNIST.
    clients: K; rows are dealt out at random.
    rounds: of every training, of two local epochs with batches of 50.
    seeds: each draws its own requests, initial parameters and orders.
    model: see `jaxunlearn models`.
    rate: of FedAvg's clients, with a cosine schedule over the rounds.
    requests: the shares to remove, with commas between.
    out: folder that keeps what is done.
    json: also write everything as JSON to this file.
    data_dir: folder of prepared TFDS sets.
    """

    rows: int = 2000
    clients: int = 20
    rounds: int = 15
    seeds: int = 3
    model: str = "cnn"
    rate: float = 0.3
    requests: str = "5%,8%,10%,15%,20%"
    out: pathlib.Path | None = None
    json: pathlib.Path | None = None
    data_dir: pathlib.Path | None = None


def main(argv: Sequence[str] | None = None) -> None:
    options = tyro.cli(Options, description=__doc__, args=argv, prog="benchmarks.tables ffmu")
    names = [name.strip() for name in options.requests.split(",")]
    if unknown := set(names) - set(REQUESTS):
        raise SystemExit(f"--requests {unknown}: there are {', '.join(REQUESTS)}.")
    splits = _removal.fashion_mnist(options.data_dir)
    config = {k: getattr(options, k) for k in ("rows", "clients", "rounds", "model", "rate")}
    found = run(options, splits, names, Records(options.out, config) if options.out else None)
    console = Console()
    show(found, names, console if console.is_terminal else Console(width=150))
    if options.json is not None:
        config |= {"seeds": options.seeds}
        _removal.write(options.json, found, PAPER_ROWS, config)


def methods(options: Options, num_classes: int) -> dict[str, Unlearner]:
    """The methods of the rows; those without unlearning are rows of the same training."""
    model = models.get(options.model, num_classes)
    federation = Federation(clients=options.clients, rounds=options.rounds)
    train = TrainConfig(batch_size=50, learning_rate=options.rate, momentum=0.0)
    make = lambda name, config: registry.make(name, model, train=train, config=config)
    paper = dataclasses.replace(PAPER, federation=federation)
    return {
        RETRAIN: make("fedavg", FedAvgConfig(federation)),
        "FedEraser": make("federaser", FedEraserConfig(federation)),
        "UN": make("un", ReverseSGDConfig(federation, repair=max(1, options.rounds // 5))),
        OWN: make("ffmu_retrain", FFMUConfig(federation)),
        "FFMU": make("ffmu", FFMUConfig(federation)),
        "FFMU-N": make("ffmu_n", FFMUConfig(federation, server="fedavg")),
        "FFMU, paper's rate": make("ffmu", paper),
    }


def run(options: Options, splits: data.Splits, names: list[str], kept: Records | None) -> Found:
    """Trains everything and scores it, one method and seed at a time."""
    rows = Dataset(*(jnp.asarray(part[: options.rows]) for part in splits.train))
    test = jax.tree.map(jnp.asarray, splits.test)
    predict = jax.jit(models.get(options.model, splits.num_classes).apply)
    found: Found = {}
    made = methods(options, splits.num_classes)
    jobs = [
        (name, unlearner, seed) for seed in range(options.seeds) for name, unlearner in made.items()
    ]
    compiled: set[str] = set()
    for name, unlearner, seed in _progress.track(jobs, "methods and seeds", enabled=True):
        done = kept.by_id if kept else {}
        if any(f"{name}/{seed}/{request}" not in done for request in names):
            first = name not in compiled
            compiled.add(name)
            records = _one(name, unlearner, seed, names, rows, test, predict, first)
        else:
            records = [done[f"{name}/{seed}/{request}"] for request in names]
        for record in records:
            if kept and record["run_id"] not in kept:
                kept.append(record)
            for row, values in record["rows"].items():
                for column, value in values.items():
                    found.setdefault((record["request"], row, column), []).append(value)
    return found


def _one(name, unlearner: Unlearner, seed, names, rows, test, predict, first: bool) -> list[dict]:
    keys = jax.random.split(jax.random.key(seed), 3)
    fit: Callable = jax.jit(unlearner.fit)
    # Retrainings draw their own initial parameters: nothing of the original is known to them.
    unlearn: Callable = jax.jit(unlearner.unlearn)
    if first:  # compile
        jax.block_until_ready(fit(keys[0], rows))
    state, training = timed(fit, keys[0], rows)
    out = []
    for request in names:
        forget = data.forget_random(keys[1], rows.y, REQUESTS[request])
        if first and request == names[0]:
            jax.block_until_ready(unlearn(keys[2], state, rows, forget))
        answer, seconds = timed(unlearn, keys[2], state, rows, forget)
        score = lambda params, forget=forget: scores(predict, params, rows, test, forget)
        found = {name: score(answer.params) | three_times(training, seconds)}
        if name == RETRAIN:
            found[NOOP] = score(state.params) | three_times(training, 0.0)
        if name == "FFMU":
            bounds = answer.certificate
            found[name] |= {
                "removal bound": float(bounds.removal.bound),
                "client bound": float(bounds.clients.bound.max()),
                "paper bound": float(bounds.clients.paper),
            }
        head = {"run_id": f"{name}/{seed}/{request}", "request": request, "seed": seed}
        out.append({**head, "method": name, "rows": found})
    return out


def show(found: Found, names: list[str], console: Console) -> None:
    for name in names:
        table = _removal.empty_table(name)
        for row in ORDER:
            _removal.add_rows(table, found, PAPER_ROWS, name, row)
        for row in (RETRAIN, OWN):
            _removal.add_band(table, found, name, row)
        console.print(table)
        bounds = {c: np.mean(found[name, "FFMU", f"{c} bound"]) for c in BOUNDS}
        console.print(
            "FFMU, last round, sigma .1: provable bound of the removal "
            f"{bounds['removal']:.3f}, of a client's distance to the server "
            f"{bounds['client']:.3f}; the paper's {bounds['paper']:.2f}."
        )
    console.print(
        "Ours: mean ± half a 95% interval over seeds. AUC: forgotten against test rows by "
        "confidence, .5 if alike.\nThe paper has 60,000 rows, 100 clients, 200 rounds and other "
        "machines. Retrain's training is FedAvg's; FFMU's unlearning is the round that its "
        "certificate takes.\nFedEraser and UN forget clients; here every client takes part with "
        "the rows that it keeps."
    )


BOUNDS = ("removal", "client", "paper")
