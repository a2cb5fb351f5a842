"""Training and per-sample gradients against PyTorch, Opacus and plain loops of jitted steps."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import harness
from benchmarks.harness import Case, Options, Result
from jaxunlearn import Dataset, TrainConfig, data, models
from jaxunlearn.models import cross_entropy
from jaxunlearn.primitives.gradients import clipped_sum, per_sample_gradients, per_sample_norms
from jaxunlearn.training import fit, minimize, train_many
from jaxunlearn.types import Model, Params

TARGETS = {
    "cnn_step_vs_torch": harness.at_most(0.7),
    "scan_vs_loop": harness.at_most(0.8),
    "train_many_vs_loop": harness.at_least(30),
    "train_many_vs_jit": None,
    "per_sample_vs_opacus": harness.at_most(0.7),
    "per_sample_vs_torch_func": harness.at_most(0.7),
    "chunk_memory_ratio": harness.at_most(0.25),
}


def images(n: int) -> Dataset:
    """Random images of the shape of Fashion-MNIST: times do not depend on what is in them."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.random((n, 28, 28, 1), np.float32))
    return Dataset(x, jnp.asarray(rng.integers(0, 10, n), jnp.int32))


def step_loop(
    model: Model, params: Params, rows: Dataset, config: TrainConfig, keep: np.ndarray
) -> Callable[[], Params]:
    """One training of ``config.epochs`` on the rows ``keep``, as a Python loop of jitted steps.

    The step gathers its batch from the data on the device and its buffers are donated: nothing
    but the loop itself differs from a training in one jit.
    """
    optimizer = optax.sgd(config.learning_rate, config.momentum)
    loss_fn = cross_entropy(model.apply)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, rows, index):
        examples = jax.tree.map(lambda leaf: leaf[index], rows)
        mean = lambda p: jax.vmap(loss_fn, in_axes=(None, 0))(p, examples).mean()
        updates, state = optimizer.update(jax.grad(mean)(params), state)
        return optax.apply_updates(params, updates), state

    rng = np.random.default_rng(0)

    def train():
        now = jax.tree.map(jnp.copy, params)
        state = optimizer.init(now)
        for _ in range(config.epochs):
            order = rng.permutation(keep).astype(np.int32)
            for start in range(0, len(order), config.batch_size):
                index = order[start : start + config.batch_size]
                now, state = step(now, state, rows, index)
        return now

    return train


def cnn_step(options: Options) -> Result:
    """One step of training: the whole training in one jit, a loop of jitted steps, PyTorch."""
    steps, batch = 20, 128
    config = TrainConfig(epochs=1, batch_size=batch, learning_rate=0.01, schedule="constant")
    rows, model = images(steps * batch), models.cnn(10)
    params = model.init(jax.random.key(0), rows.x[:1])
    loss_fn, key = cross_entropy(model.apply), jax.random.key(1)

    def train(params, rows, config=config):
        return minimize(key, loss_fn, params, rows, config=config)

    # As torch gets the best of its settings, ours has two: the batch at once or in parts.
    parts = functools.partial(train, config=dataclasses.replace(config, microbatch=32))

    def retrain(params, rows, keep):
        return minimize(key, loss_fn, params, rows, weights=keep, config=config)

    # A retraining of as many steps: a fifth of the rows is removed, and their steps are skipped.
    more = images(steps * batch * 5 // 4)
    keep = jnp.arange(more.y.shape[0]) % 5 > 0
    loop = step_loop(model, params, rows, config, np.arange(steps * batch))
    cases = {
        "one jit": harness.compiled(train, params, rows, per=steps),
        "one jit, microbatch=32": harness.compiled(parts, params, rows, per=steps),
        "one jit, 20% removed": harness.compiled(retrain, params, more, keep, per=steps),
        "loop of jitted steps": Case(loop, steps),
    }
    description: dict[str, Any] = {"model": "cnn", "batch": batch, "steps a call": steps}
    if torch_cnn := harness.peer("benchmarks.torch_cnn"):
        how = {"learning_rate": config.learning_rate, "momentum": config.momentum}
        make = functools.partial(torch_cnn.trainer, params, batch=batch, **how)
        epochs = {name: make(rows, setting=name)[1] for name in torch_cnn.SETTINGS}
        tried = harness.measure({name: Case(run) for name, run in epochs.items()}, Options(True))
        best = min(tried, key=lambda name: tried[name].median)
        cases["torch"] = Case(epochs[best], steps)
        description["torch"] = best
        description["difference after 3 steps"] = _difference(make, best, model, params, config)
    runs = harness.measure(cases, options)
    ours = min(("one jit", "one jit, microbatch=32"), key=lambda name: runs[name].median)
    metrics = {
        "cnn_step_vs_torch": harness.ratio(runs, ours, "torch"),
        "scan_vs_loop": harness.ratio(runs, "one jit", "loop of jitted steps"),
    }
    return Result(description, runs, metrics)


def _difference(make, setting: str, model: Model, params: Params, config: TrainConfig) -> float:
    """Largest difference of the logits after three equal steps of ours and of torch."""
    torch_cnn = harness.peer("benchmarks.torch_cnn")
    rows = images(config.batch_size)
    net, epoch = make(rows, setting=setting)
    for _ in range(3):
        epoch()
    three = dataclasses.replace(config, epochs=3)
    ours = minimize(jax.random.key(0), cross_entropy(model.apply), params, rows, config=three)
    return float(np.abs(np.asarray(model.apply(ours, rows.x)) - torch_cnn.logits(net, rows)).max())


def many(options: Options) -> Result:
    """64 logistic regressions, each on its own 80% of the digits.

    The loops differ in nothing but their rows, so two of them are timed for all.
    """
    count, looped = 64, 2
    rows, model = data.load("digits").train, models.logistic(10)
    rows = jax.tree.map(jnp.asarray, rows)
    n = rows.y.shape[0]
    config = TrainConfig(epochs=10, batch_size=32, learning_rate=0.05, schedule="constant")
    keys = jax.random.split(jax.random.key(0), count)
    drawn = np.random.default_rng(0).permuted(np.tile(np.arange(n) >= n // 5, (count, 1)), axis=1)
    weights = jnp.asarray(drawn)
    params = model.init(keys[0], rows.x[:1])
    loops = [
        step_loop(model, params, rows, config, np.flatnonzero(drawn[m])) for m in range(looped)
    ]
    one = jax.jit(lambda key, w: fit(key, model, rows, weights=w, config=config))
    each = list(zip(keys, weights, strict=True))
    cases = {
        "train_many": Case(lambda: train_many(keys, weights, model, rows, config=config)),
        "train_many, shared order": Case(
            lambda: train_many(keys, weights, model, rows, config=config, shared_order=True)
        ),
        "one jit each": Case(lambda: [one(key, w) for key, w in each]),
        "loop of jitted steps each": Case(lambda: [loop() for loop in loops], looped / count),
    }
    runs = harness.measure(cases, options)
    description = {
        "models": count,
        "rows": n,
        "batch": config.batch_size,
        "epochs": config.epochs,
        "loops timed": f"{looped}, times {count // looped}",
    }
    metrics = {
        "train_many_vs_loop": harness.inverse(
            harness.ratio(runs, "train_many", "loop of jitted steps each")
        ),
        "train_many_vs_jit": harness.inverse(harness.ratio(runs, "train_many", "one jit each")),
    }
    return Result(description, runs, metrics)


def per_sample(options: Options) -> Result:
    """Gradients of every row: ours, Opacus, torch.func; and what chunks save."""
    batch, chunk = 256, 32
    rows, model = images(batch), models.cnn(10)
    params = model.init(jax.random.key(0), rows.x[:1])
    loss_fn = cross_entropy(model.apply)
    gradients = harness.compiled(lambda p, r: per_sample_gradients(loss_fn, p, r), params, rows)
    norms = lambda size: lambda p, r: per_sample_norms(loss_fn, p, r, chunk=size)
    sums = lambda size: lambda p, r: clipped_sum(loss_fn, p, r, clip=1.0, chunk=size)
    cases = {
        "gradients": gradients,
        "norms": harness.compiled(norms(batch), params, rows),
        f"norms, chunk={chunk}": harness.compiled(norms(chunk), params, rows),
        "clipped sum": harness.compiled(sums(batch), params, rows),
        f"clipped sum, chunk={chunk}": harness.compiled(sums(chunk), params, rows),
    }
    description: dict[str, Any] = {"model": "cnn", "batch": batch}
    if torch_cnn := harness.peer("benchmarks.torch_cnn"):
        ours = np.asarray(jax.jit(norms(None))(params, rows))
        calls = {"torch.func": torch_cnn.func_gradients(params, rows)}
        if harness.peer("opacus"):
            calls["opacus"] = torch_cnn.opacus_gradients(params, rows)
        for name, call in calls.items():
            difference = np.abs(torch_cnn.norms(call()) / ours - 1).max()
            description[f"norms differ by, {name}"] = float(difference)
            cases[name] = Case(call)
    runs = harness.measure(cases, options)
    small, large = (
        cases[name].peak_bytes for name in (f"clipped sum, chunk={chunk}", "clipped sum")
    )
    metrics = {
        "per_sample_vs_opacus": harness.ratio(runs, "gradients", "opacus"),
        "per_sample_vs_torch_func": harness.ratio(runs, "gradients", "torch.func"),
        "chunk_memory_ratio": small / large if small and large else None,
    }
    return Result(description, runs, metrics)


if __name__ == "__main__":
    harness.main(__doc__, [cnn_step, many, per_sample], TARGETS)
