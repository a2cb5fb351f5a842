"""FFMU: what a federated round costs, and what its certificate is worth."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from benchmarks.harness import Case, Options, Result
from benchmarks.training import images
from jaxunlearn import Dataset, TrainConfig, models
from jaxunlearn.audit import accuracy, intervals
from jaxunlearn.baselines.federated import FedAvgConfig
from jaxunlearn.certify.federated import client_certificate, removal_certificate
from jaxunlearn.federated import (
    FEDAVG,
    Clients,
    FederatedConfig,
    Rule,
    advance,
    begin,
    gather,
    partition,
    round_updates,
)
from jaxunlearn.federated.aggregate import weighted_mean
from jaxunlearn.federated.rounds import _advance
from jaxunlearn.methods.ffmu import FFMUConfig, Smoothed, predict_smoothed, rule
from jaxunlearn.models import cross_entropy
from jaxunlearn.types import Array, PyTree

TARGETS = {
    "round_vs_fedavg": harness.at_most(1.05),
    "chunk_memory_ratio": harness.at_most(0.25),
    "sharded_error": harness.at_most(1e-5),
    "bound_violations": harness.at_most(0),
    "bound_sigma1": None,
    "accuracy_vs_fedavg": harness.at_least(-0.01),
}
CLIENTS = 100
ROWS, DRAWS, NOISES = 5_000, 34, 32  # of the check of the bound
PAPER_LOCAL = TrainConfig(
    epochs=2, batch_size=50, learning_rate=0.1, schedule="constant", momentum=0.0
)


def plan(rounds: int, rate: float, *, schedule="cosine", chunk=4) -> FederatedConfig:
    """A training with the paper's clients: two epochs, batches of 50, no momentum."""
    local = dataclasses.replace(PAPER_LOCAL, learning_rate=rate, schedule=schedule)
    return FederatedConfig(rounds, local, chunk=chunk)


def one_round(options: Options) -> Result:
    """One round of FFMU over one of FedAvg, K = 100; the memory of chunks of 10 over all 100."""
    rows, model = images(CLIENTS * 50), models.get("cnn", 10)
    clients = gather(rows, partition.iid(0, CLIENTS * 50, CLIENTS))
    key, loss_fn = jax.random.key(0), cross_entropy(model.apply)
    params = model.init(key, rows.x[:1])

    def compiled(method: Rule, rate: float, chunk: int) -> Any:
        return _advance.lower(
            key,
            begin(params, CLIENTS, rule=method),
            clients,
            loss_fn=loss_fn,
            config=plan(1, rate, chunk=chunk),
            rule=method,
            aggregator=weighted_mean(),
            rounds=1,
            interleave=False,
        ).compile()

    def case(method: Rule, rate: float) -> Case:
        program, server = compiled(method, rate, 4), begin(params, CLIENTS, rule=method)
        return Case(lambda: program(key, server, clients), compile_s=0.0)

    ours = FFMUConfig()
    cases = {
        "FedAvg": case(FEDAVG, 0.1),
        "FFMU": case(rule(ours), ours.rates[0]),
    }
    runs = harness.measure(cases, options)
    temporary = {
        chunk: compiled(rule(ours), 0.1, chunk).memory_analysis().temp_size_in_bytes
        for chunk in (10, CLIENTS)
    }
    description = {"clients": CLIENTS, "rows a client": 50, "model": "cnn"}
    description |= {f"temporary MB, chunk {c}": b / 1e6 for c, b in temporary.items()}
    metrics = {
        "round_vs_fedavg": harness.ratio(runs, "FFMU", "FedAvg"),
        "chunk_memory_ratio": temporary[10] / temporary[CLIENTS],
    }
    return Result(description, runs, metrics)


SHARDED = """
import json, jax, numpy as np
from benchmarks import ffmu
print(json.dumps(ffmu.spread_gap()))
"""


def spread_gap() -> dict[str, float]:
    """Largest difference of any parameter after two rounds on all devices and on one."""
    from jaxunlearn.federated import spread

    rows, model = images(16 * 20), models.mlp(10, hidden=(32,))
    clients = gather(rows, partition.iid(0, 16 * 20, 16))
    mesh = jax.make_mesh((jax.device_count(),), ("clients",))
    key, loss_fn = jax.random.key(0), cross_entropy(model.apply)
    params, found = model.init(key, rows.x[:1]), {}
    # The mean gradient, and soft steps: at a sign, rounding alone would show as a full step.
    for name, method in (
        ("fedavg", FEDAVG),
        ("ffmu", rule(FFMUConfig(local="soft", server="soft"))),
    ):
        server = begin(params, 16, rule=method)
        ends = [
            advance(key, loss_fn, server, some, config=plan(2, 0.02, chunk=8), rule=method).params
            for some in (clients, spread(clients, mesh))
        ]
        pairs = zip(*map(jax.tree.leaves, ends), strict=True)
        found[name] = max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)
    return {"devices": jax.device_count(), **found}


def devices(options: Options) -> Result:
    """The same rounds with clients over 8 forced host devices and on one."""
    del options
    flags = "--xla_force_host_platform_device_count=8 " + os.environ.get("XLA_FLAGS", "")
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-c", SHARDED], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    found = json.loads(done.stdout.splitlines()[-1])
    return Result(found, {}, {"sharded_error": max(found["fedavg"], found["ffmu"])})


def soundness(options: Options) -> Result:
    """How far smoothed outputs really move when clients or rows leave a round, against the bound.

    Rounds of a real training with FFMU. Every draw is a removal, a sigma and a rate, and outputs
    are those of 200 test rows.
    """
    splits = harness.dataset("fashion_mnist", options)
    if splits is None:
        nothing = {"bound_violations": None, "bound_sigma1": None}
        return Result({"skipped": "fashion_mnist is not prepared"}, {}, nothing)
    n, model = ROWS, models.mlp(10, hidden=(32,))
    rows = Dataset(jnp.asarray(splits.train.x[:n]), jnp.asarray(splits.train.y[:n]))
    part = partition.iid(0, n, CLIENTS)
    clients, x = gather(rows, part), jnp.asarray(splits.test.x[:200])
    key, loss_fn = jax.random.key(0), cross_entropy(model.apply)
    method, ffmu = FFMUConfig(), rule(FFMUConfig())
    config = plan(12, method.rates[0])
    server = begin(model.init(key, x[:1]), CLIENTS, rule=ffmu)

    def gradient(clients: Clients) -> tuple[PyTree, PyTree]:
        updates = round_updates(
            key,
            loss_fn,
            server.params,
            clients,
            round=server.round,
            config=config,
            rule=ffmu,
        )
        return updates, mean(updates, clients.counts)

    violations, draws, largest, widest = 0, 0, 0.0, []
    for done in (0, 6, 11):
        server = advance(
            key, loss_fn, server, clients, config=config, rule=ffmu, rounds=done - int(server.round)
        )
        updates, before = gradient(clients)
        each = client_certificate(updates, before, 1.0)
        widest.append([float(each.bound.max()), float(each.bound.mean()), float(each.paper)])
        for number in range(DRAWS):
            some = jax.random.fold_in(jax.random.key(7), 100 * done + number)
            keep = removal(some, number, part, rows.y)
            _, after = gradient(gather(rows, part, keep=keep))
            for sigma, rate in ((1.0, 0.1), (0.1, 0.03)):
                bound = float(removal_certificate(before, after, sigma).bound)
                gap = output_gap(
                    some, server.params, before, after, x, rate, model=model, sigma=sigma
                )
                violations += gap > bound
                largest, draws = max(largest, gap / bound), draws + 1
    top, average, paper = np.max(widest, axis=0)
    description = {"draws": draws, "largest gap over bound": largest, "rounds": [0, 6, 11]}
    description |= {"clients, sigma 1: mean bound": average, "the paper's, C = 1": paper}
    metrics = {"bound_violations": float(violations), "bound_sigma1": float(top)}
    return Result(description, {}, metrics)


@jax.jit
def mean(updates: PyTree, counts: Array) -> PyTree:
    share = counts / counts.sum()
    return jax.tree.map(lambda u: jnp.tensordot(share, u, axes=1), updates)


def removal(key: Array, number: int, part: partition.Partition, y: Array) -> Array:
    """``bool[n]``, rows that stay: without one client, ten, a tenth of the rows, a class, a row."""
    n, order = y.shape[0], jax.random.permutation(key, CLIENTS)
    owner = jnp.zeros(n, int).at[part.rows].set(jnp.arange(CLIENTS)[:, None])
    kinds = (
        lambda: owner != order[0],
        lambda: ~jnp.isin(owner, order[:10]),
        lambda: jax.random.uniform(key, (n,)) > 0.1,
        lambda: y != order[0] % 10,
        lambda: jnp.arange(n) != jax.random.randint(key, (), 0, n),
    )
    return kinds[number % len(kinds)]()


def output_gap(key, params, before, after, x, rate: float, *, model, sigma: float) -> float:
    """The largest change of any output of the smoothed model that 32 draws of noise show.

    The same noise with and without the rows. Few draws say little about small changes, so five
    standard errors are taken off: what is left above a bound is no chance.
    """
    found = _differences(key, params, before, after, x, jnp.float32(rate), model=model, sigma=sigma)
    change, error = jnp.abs(found.mean(0)), found.std(0, ddof=1) / NOISES**0.5
    return max(0.0, float((change - 5 * error).max()))


@functools.partial(jax.jit, static_argnames=("model", "sigma"))
def _differences(key, params, before, after, x, rate, *, model, sigma):
    def one(k):
        with_rows, without = (
            predict_smoothed(k, model.apply, Smoothed(params, g, rate), x, sigma=sigma, samples=1)
            for g in (before, after)
        )
        return with_rows - without

    return jax.lax.map(one, jax.random.split(key, NOISES))


RATES, MOMENTA = (0.2, 0.4, 0.8), (0.0, 0.5, 0.8)


def learning(options: Options) -> Result:
    """Test accuracy after the same rounds: FFMU with its defaults, FedAvg with its best setting.

    FedAvg's rate and its server's momentum are chosen here, on another seed; FFMU's defaults were
    on Fashion-MNIST too, on twice the rows and a wider network.
    """
    splits = harness.dataset("fashion_mnist", options)
    if splits is None:
        return Result(
            {"skipped": "fashion_mnist is not prepared"}, {}, {"accuracy_vs_fedavg": None}
        )
    n, seeds, rounds = 5000, 3 if options.quick else 5, 30
    rows = Dataset(jnp.asarray(splits.train.x[:n]), jnp.asarray(splits.train.y[:n]))
    test, model = jax.tree.map(jnp.asarray, splits.test), models.mlp(10, hidden=(32,))
    clients = gather(rows, partition.iid(0, n, CLIENTS))
    loss_fn = cross_entropy(model.apply)
    score = jax.jit(lambda params: accuracy(model.apply(params, test.x), test.y))

    def scores(setting: tuple[Rule, float], seeds) -> np.ndarray:
        method, rate = setting
        found = []
        for seed in seeds:
            key = jax.random.key(seed)
            server = begin(model.init(key, rows.x[:1]), CLIENTS, rule=method)
            config = plan(rounds, rate, chunk=CLIENTS)
            done = advance(key, loss_fn, server, clients, config=config, rule=method)
            found.append(float(score(done.params)))
        return np.array(found)

    theirs = {
        f"FedAvg, server momentum {momentum}, rate {rate}": (
            FedAvgConfig(server_momentum=momentum).rule,
            rate,
        )
        for momentum in MOMENTA
        for rate in RATES
    }
    tuned = {name: float(scores(setting, [100])[0]) for name, setting in theirs.items()}
    best = max(tuned, key=lambda name: tuned[name])
    plain, averaged = FFMUConfig(), FFMUConfig(server="fedavg")
    found = {
        best: scores(theirs[best], range(seeds)),
        "FFMU": scores((rule(plain), plain.rates[0]), range(seeds)),
        "FFMU-N": scores((rule(averaged), averaged.rates[0]), range(seeds)),
    }
    difference = intervals.mean_interval(found["FFMU"] - found[best])
    description = {"rows": n, "clients": CLIENTS, "rounds": rounds, "seeds": seeds}
    description |= {name: float(np.mean(values)) for name, values in found.items()}
    without = [value for name, value in tuned.items() if "momentum 0.0" in name]
    description["best FedAvg without server momentum, seed 100"] = max(without)
    return Result(description, {}, {"accuracy_vs_fedavg": difference})


if __name__ == "__main__":
    harness.main(__doc__, [one_round, devices, soundness, learning], TARGETS)
