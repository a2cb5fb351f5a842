"""ConMU: what it saves over retraining, what it is worth, and what a frontier costs."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from benchmarks.harness import Case, Options, Result
from benchmarks.training import images
from jaxunlearn import Dataset, TrainConfig, audit, data, models
from jaxunlearn.audit.band import gap_band
from jaxunlearn.audit.intervals import mean_interval
from jaxunlearn.data import Splits
from jaxunlearn.experiments import measure
from jaxunlearn.methods.conmu import ConMUConfig, conmu, pipeline, sweep
from jaxunlearn.methods.conmu.config import knobs_of, plan_of
from jaxunlearn.methods.conmu.sweep import finetune_all, train_proxies
from jaxunlearn.models import cross_entropy
from jaxunlearn.primitives.selection import Quantile, el2n, select
from jaxunlearn.training import fit, minimize, train_many
from jaxunlearn.types import Array, Params

TARGETS = {
    "grad_speedup": harness.at_least(10),
    "rte_speedup": harness.at_least(10),
    "frm": None,
    "frm_null_low": None,
    "jsd_vs_noop": harness.at_most(1),
    "frontier_vs_loop": harness.at_least(3),
    "compiles": harness.at_most(3),
    "selection_vs_epoch": harness.at_most(0.45),
}
TRAIN = TrainConfig(epochs=30, batch_size=128, learning_rate=0.05, microbatch=32)


def request(options: Options) -> Result:
    """One request for 20% of 10,000 rows, random: ConMU's default against retraining."""
    n, timed_epochs = 10_000, 2
    splits = harness.dataset("fashion_mnist", options)
    rows = images(n)
    if splits is not None:
        rows = Dataset(jnp.asarray(splits.train.x[:n]), jnp.asarray(splits.train.y[:n]))
    model = models.cnn(10)
    keys = jax.random.split(jax.random.key(0), 3)
    forget = data.forget_random(keys[0], rows.y, 0.2)
    params = fit(keys[1], model, rows, config=dataclasses.replace(TRAIN, epochs=5))
    config = ConMUConfig()
    done = conmu(keys[2], model, params, rows, forget, config=config, train=TRAIN)
    plan, knobs = plan_of(config, TRAIN), knobs_of(config)

    def unlearned(key, params, rows, forget):
        return pipeline.run(
            key, params, rows, forget, ~forget, knobs, TRAIN.learning_rate, None, None, None,
            model=model, plan=plan,
        ).params  # fmt: skip

    def retrained(key, rows, forget):
        short = dataclasses.replace(TRAIN, epochs=timed_epochs)
        return fit(key, model, rows, weights=~forget, config=short)

    runs = harness.measure(
        {
            "ConMU": harness.compiled(unlearned, keys[2], params, rows, forget),
            "retraining": harness.compiled(
                retrained, keys[2], rows, forget, per=timed_epochs / TRAIN.epochs
            ),
        },
        options,
    )
    retrain_grads = TRAIN.epochs * float((~forget).sum())
    metrics = {
        "grad_speedup": retrain_grads / float(done.grads),
        "rte_speedup": harness.inverse(harness.ratio(runs, "ConMU", "retraining")),
    }
    description = {
        "rows": n, "model": "cnn", "pictures": "random" if splits is None else "fashion_mnist",
        "epochs of a retraining": f"{TRAIN.epochs}, {timed_epochs} timed",
        "rows selected": int(done.selected.sum()),
    }  # fmt: skip
    return Result(description, runs, metrics)


def privacy(options: Options) -> Result:
    """Ten seeds of a small task: FRM beside what retraining scores, JSD beside doing nothing."""
    splits = harness.dataset("fashion_mnist", options)
    names = ("frm", "frm_null_low", "jsd_vs_noop")
    if splits is None:
        return Result({"skipped": "fashion_mnist is not prepared"}, {}, dict.fromkeys(names))
    n, tests, seeds, references = 2000, 2000, 10, 5
    rows, test = (
        Dataset(jnp.asarray(part.x[:size]), jnp.asarray(part.y[:size]))
        for part, size in ((splits.train, n), (splits.test, tests))
    )
    splits = splits._replace(train=rows, test=test)
    model, train = models.mlp(10, hidden=(64,)), dataclasses.replace(TRAIN, microbatch=None)
    keys = jax.random.split(jax.random.key(0), (seeds, 4))
    forget = jax.vmap(lambda key: data.forget_random(key, rows.y, 0.2))(keys[:, 0])
    originals = train_many(keys[:, 1], jnp.ones((seeds, n)), model, rows, config=train)
    again = jax.vmap(lambda key: jax.random.split(key, references))(keys[:, 2]).ravel()
    kept = jnp.repeat(~forget, references, axis=0)
    retrained = train_many(again, kept, model, rows, config=train)
    (part,) = sweep(
        keys[:, 3], model, originals, rows, forget, [ConMUConfig()], train=train, chunk=1
    )
    score = functools.partial(_score, model=model, splits=splits)
    frm, frm_null, jsd, jsd_noop = [], [], [], []
    for seed in range(seeds):
        gone = forget[seed]
        at = lambda stacked, i: jax.tree.map(lambda leaf: leaf[i], stacked)
        refs = [score(at(retrained, seed * references + k), gone) for k in range(references)]
        terms, logits = (jnp.asarray([r[i] for r in refs]) for i in (0, 1))
        ours = score(at(at(part.params, 0), seed), gone)
        noop = score(at(originals, seed), gone)
        frm.append(float(audit.frm(jnp.asarray(ours[0]), terms.mean(0))))
        frm_null.append(np.asarray(audit.frm_null(terms)))
        jsd.append(float(audit.jsd_to_references(ours[1], logits)))
        jsd_noop.append(float(audit.jsd_to_references(noop[1], logits)))
    band = gap_band(frm_null)
    ratio = np.array(jsd) / np.array(jsd_noop)
    description = {
        "rows": n, "model": "mlp, 64 hidden", "seeds": seeds, "references a seed": references,
        "JSD of ConMU (x 1000)": round(1000 * float(np.mean(jsd)), 1),
        "JSD of no-op (x 1000)": round(1000 * float(np.mean(jsd_noop)), 1),
        "FRM of retraining": round(float(np.mean(frm_null)), 3),
    }  # fmt: skip
    metrics = {
        "frm": mean_interval(np.array(frm)),
        "frm_null_low": float(np.mean(frm_null) + band.low),
        "jsd_vs_noop": mean_interval(ratio),
    }
    return Result(description, {}, metrics)


def _score(params: Params, forget: Array, *, model, splits: Splits) -> tuple[list[float], Array]:
    """FA, RA and MIA of a model, and its logits on the forgotten rows."""
    logits = model.apply(params, splits.train.x)
    values = measure.scores(logits, model.apply(params, splits.test.x), splits, forget)
    return measure.frm_terms(values), logits[np.asarray(forget)]


# The knobs of the three modules.
GRID = [
    dataclasses.replace(
        ConMUConfig(), retain=Quantile(0.75, high), alpha=alpha, proxy_epochs=delta
    )
    for high in (0.8, 0.9, 0.95, 1.0) for alpha in (0.0, 0.5, 1.0, 3.0) for delta in (1, 3)
]  # fmt: skip


def _programs() -> int:
    """Programs compiled so far for proxies and for fine-tunings, whatever the settings."""
    functions: tuple[Any, ...] = (finetune_all, train_proxies)
    return sum(function._cache_size() for function in functions)


def frontier(options: Options) -> Result:
    """32 settings on 4 seeds of digits, by vmap, and as 128 calls of one compiled program."""
    rows, model, seeds = data.load("digits").train, models.mlp(10), 4
    train = TrainConfig(epochs=30, learning_rate=0.1)
    keys = jax.random.split(jax.random.key(0), seeds)
    originals = train_many(keys, jnp.ones((seeds, rows.y.shape[0])), model, rows, config=train)
    forget = jax.vmap(lambda key: data.forget_random(key, rows.y, 0.2))(keys)

    def together() -> list[Any]:
        return [
            part.params for part in sweep(keys, model, originals, rows, forget, GRID, train=train)
        ]

    members = [
        (keys[s], jax.tree.map(lambda leaf, s=s: leaf[s], originals), forget[s])
        for s in range(seeds)
    ]
    settings = [(knobs_of(config), plan_of(config, train)) for config in GRID]

    def one_by_one() -> list[Any]:
        return [
            jax.block_until_ready(
                pipeline.run(
                    key, params, rows, gone, ~gone, knobs, train.learning_rate, None, None, None,
                    model=model, plan=plan,
                ).params
            )
            for knobs, plan in settings
            for key, params, gone in members
        ]  # fmt: skip

    before = _programs()
    runs = harness.measure({"by vmap": Case(together), "one by one": Case(one_by_one)}, options)
    programs = _programs() - before
    metrics = {
        "frontier_vs_loop": harness.inverse(harness.ratio(runs, "by vmap", "one by one")),
        "compiles": programs,
    }
    return Result({"settings": len(GRID), "seeds": seeds, "model": "mlp"}, runs, metrics)


def selection(options: Options) -> Result:
    """EL2N and a selection on 50,000 rows, over one epoch of training on them."""
    n, model = 50_000, models.cnn(10)
    rows, key = images(n), jax.random.key(0)
    params, loss_fn = model.init(key, rows.x[:1]), cross_entropy(model.apply)
    config = dataclasses.replace(TRAIN, epochs=1)

    def selected(params, rows):
        return select(el2n(model.apply, params, rows), Quantile(0.75, 0.9))

    def epoch(params, rows):
        return minimize(key, loss_fn, params, rows, config=config)

    runs = harness.measure(
        {
            "EL2N and selection": harness.compiled(selected, params, rows),
            "one epoch": harness.compiled(epoch, params, rows),
        },
        options,
    )
    metrics = {"selection_vs_epoch": harness.ratio(runs, "EL2N and selection", "one epoch")}
    return Result({"rows": n, "model": "cnn"}, runs, metrics)


if __name__ == "__main__":
    harness.main(__doc__, [request, privacy, frontier, selection], TARGETS)
