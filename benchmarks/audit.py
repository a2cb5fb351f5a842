"""The audit laboratory: what many references cost, what the null is, what the attacks can see.

Without --quick it also audits every registered method, on digits and on 2,000 rows of
Fashion-MNIST, against 128 retrained models, under a random and a vulnerable request. That takes
an hour or so; killed, it goes on. It keeps its models in runs/benchmark_audit and prints the table
of the documentation.
"""

import functools
import time
from typing import Any

import jax
import numpy as np
from scipy import optimize, stats

from benchmarks import harness
from benchmarks.audit_methods import methods
from benchmarks.audit_tasks import fashion_task, plain_scores
from benchmarks.harness import Options, Result, Run
from benchmarks.training import step_loop
from jaxunlearn import Dataset, TrainConfig, audit, data, models
from jaxunlearn.audit.roc_curve import tpr_at

TARGETS = {
    "references_vs_loop": harness.at_least(2),
    "references_vs_loop_tiny": harness.at_least(30),
    "audit_seconds": None,
    "null_ulira": harness.at_most(0.51),
    "null_epsilon": harness.at_most(0.1),
    "noop_ulira": harness.at_least(0.65),
    "lira_tpr": harness.at_least(5),
    "epsilon_coverage": harness.at_least(0.95),
    "epsilon_tightness": harness.at_least(0.6),
}


def _against_loop(rows, model, config, forget, *, count: int, loops: int) -> dict[str, Run]:
    """Blocks of references and single trainings by a loop of jitted steps, in turns."""
    block = 16 if count < 128 else 32
    key = jax.random.key(0)
    keep = np.flatnonzero(~np.asarray(forget))
    params = model.init(key, rows.x[:1])
    loop = step_loop(model, params, rows, config, keep)
    build = functools.partial(
        audit.references, model=model, data=rows, forget=forget, count=block, config=config,
        block=block,
    )  # fmt: skip
    first = []
    for call in (lambda: build(key), loop):  # compiled before anything is timed
        start = time.perf_counter()
        jax.block_until_ready(jax.tree.leaves(call()))
        first.append(time.perf_counter() - start)
    seconds: dict[str, list[float]] = {"references": [], "loop of jitted steps": []}
    for turn in range(count // block):
        start = time.perf_counter()
        jax.block_until_ready(build(jax.random.fold_in(key, turn)).params)
        seconds["references"].append((time.perf_counter() - start) / block)
        for _ in range(
            -(-loops * (turn + 1) // (count // block)) - len(seconds["loop of jitted steps"])
        ):
            start = time.perf_counter()
            jax.block_until_ready(loop())
            seconds["loop of jitted steps"].append(time.perf_counter() - start)
    out = {}
    for (name, values), warm in zip(seconds.items(), first, strict=True):
        per = block if name == "references" else 1
        out[name] = Run(np.array(values), max(0.0, warm - per * float(np.median(values))), None)
    return out


def _speedup(runs: dict[str, Run]) -> float:
    return runs["loop of jitted steps"].median / runs["references"].median


def references(options: Options) -> Result:
    """128 retrained models, in blocks, against as many loops of jitted steps (4 are run)."""
    found, metrics = {}, {}
    digits = data.load("digits").train
    forget = data.forget_random(jax.random.key(1), digits.y, 0.1)
    config = TrainConfig(epochs=10, batch_size=32, learning_rate=0.05, schedule="constant")
    runs = _against_loop(digits, models.logistic(10), config, forget, count=128, loops=4)
    found |= {f"digits, {name}": run for name, run in runs.items()}
    metrics["references_vs_loop_tiny"] = _speedup(runs)
    task = fashion_task(options)
    if task is not None:
        forget = data.forget_random(jax.random.key(1), task.splits.train.y, 0.1)
        runs = _against_loop(task.splits.train, task.model, task.train, forget, count=128, loops=4)
        found |= {f"fashion, {name}": run for name, run in runs.items()}
        metrics["references_vs_loop"] = _speedup(runs)
    return Result({"models": 128, "seconds": "of one model"}, found, metrics)


def null_and_power(options: Options) -> Result:
    """Retrain against retrain, no-op and LiRA on 2,000 rows of Fashion-MNIST, M = 128."""
    task = fashion_task(options)
    if task is None:
        return Result({"data": "Fashion-MNIST is not prepared"}, {}, {})
    rows = task.splits.train
    forget = data.forget_random(jax.random.key(1), rows.y, 0.1)
    start = time.perf_counter()
    keys = jax.random.split(jax.random.key(2), 3)
    build = functools.partial(
        audit.references, model=task.model, data=rows, forget=forget, count=128,
        config=task.train, block=32,
    )  # fmt: skip
    a, b = build(keys[0], originals=True), build(keys[1])
    assert a.originals is not None
    trained_s = time.perf_counter() - start
    gone = np.flatnonzero(forget)
    score = lambda params: plain_scores(task.model, params, rows, gone)
    original, retrained, again = score(a.originals), score(a.params), score(b.params)
    ulira = audit.ulira(original, retrained, null=again)
    start = time.perf_counter()
    _one_method(task, a, retrained, again, forget)
    audit_s = time.perf_counter() - start
    epsilon = audit.epsilon_report(original, retrained, null=again)
    shadows = audit.shadows(keys[2], task.model, rows, count=128, config=task.train, block=32)
    every = plain_scores(task.model, shadows.params, rows, np.arange(rows.y.shape[0]))
    member = np.asarray(shadows.member)
    lira = audit.lira(every, member)
    confidence = tpr_at(every[member], every[~member], 0.01)
    return Result(
        {
            "models": 128,
            "training 384 models, s": round(trained_s, 1),
            "no-op: epsilon": round(epsilon.value, 3),
            "null: epsilon, mean (7 for infinite)": round(
                float(np.minimum(epsilon.detail["null_epsilons"], 7).mean()), 3
            ),
            "null: U-LiRA, 95%": [round(v, 4) for v in ulira.null[1:]],
            "LiRA AUC": round(lira.value, 3),
            "LiRA TPR at 1% FPR": round(lira.detail["tpr_at_1fpr"], 4),
            "confidence TPR at 1% FPR": round(confidence, 4),
        },
        {},
        {
            "null_ulira": 0.5 + abs(ulira.null.estimate - 0.5),
            "null_epsilon": epsilon.null,
            "noop_ulira": ulira.interval,
            "lira_tpr": lira.detail["tpr_at_1fpr"] / confidence,
            "audit_seconds": audit_s,
        },
    )


def _one_method(task, references, retrained, again, forget) -> list[Any]:
    """The whole audit of fine-tuning on 128 originals: answers, scores, attacks."""
    from jaxunlearn.baselines import finetune

    rows, gone = task.splits.train, np.flatnonzero(forget)
    loss_fn = models.cross_entropy(task.model.apply)

    @jax.jit
    def answer(keys, params):
        one = lambda pair: finetune(pair[0], loss_fn, pair[1], rows, forget)
        return jax.lax.map(one, (keys, params), batch_size=32)

    params = answer(jax.random.split(jax.random.key(3), 128), references.originals)
    unlearned = plain_scores(task.model, params, rows, gone)
    relearn = jax.jit(
        lambda params: jax.lax.map(
            lambda p: audit.relearn_steps(
                task.model.apply, p, Dataset(rows.x[gone], rows.y[gone]), target=0.99
            ),
            params,
            batch_size=32,
        )
    )
    steps = [np.asarray(relearn(p)) for p in (params, references.params)]
    test = Dataset(*(leaf[:500] for leaf in task.splits.test))
    outside = [
        plain_scores(task.model, p, test, np.arange(500)) for p in (params, references.params)
    ]
    return [
        audit.ulira(unlearned, retrained, null=again),
        audit.ulira(unlearned, retrained, null=again, density="kde"),
        audit.epsilon_report(unlearned, retrained, null=again),
        audit.forgetting_quality(unlearned, retrained, null=again),
        audit.population_attack(unlearned, outside[0], null=(retrained, outside[1])),
        audit.relearn_report(steps[0], steps[1], null=steps[1], steps=50),
    ]


def true_epsilon(shift: float, delta: float) -> float:
    """Of two normal laws of unit spread that lie ``shift`` apart (Balle and Wang 2018, Thm 8)."""
    gap = lambda e: (
        stats.norm.cdf(shift / 2 - e / shift)
        - np.exp(e) * stats.norm.cdf(-shift / 2 - e / shift)
        - delta
    )
    return float(np.asarray(optimize.brentq(gap, 0, 100)))


def calibration(options: Options) -> Result:
    """The lower bound on epsilon against the truth: normal laws two apart, delta = .1."""
    shift, delta, draws = 2.0, 0.1, 200
    truth = true_epsilon(shift, delta)
    rng = np.random.default_rng(0)
    described: dict[str, Any] = {"shift": shift, "delta": delta, "true epsilon": round(truth, 3)}
    metrics = {}
    for size in (128, 512, 2000):
        a, b = rng.normal(shift, 1, (size, draws)), rng.normal(0, 1, (size, draws))
        bounds = audit.epsilon_lower_bound(a, b, delta=delta)
        covered, reached = int((bounds <= truth).sum()), float(np.median(bounds) / truth)
        described[f"{size} scores: below the truth"] = covered / draws
        described[f"{size} scores: median share reached"] = round(reached, 3)
        if size == 2000:
            metrics["epsilon_coverage"] = audit.wilson(covered, draws)
            metrics["epsilon_tightness"] = reached
    if harness.peer("jax_privacy.auditing"):
        a, b = rng.normal(shift, 1, 2000), rng.normal(0, 1, 2000)
        found = audit.privacy_bounds(a, b, null=(b, rng.normal(0, 1, 2000)), delta=delta)
        described["jax-privacy, 2000 scores: share reached"] = round(found.value / truth, 3)
    return Result(described, {}, metrics)


if __name__ == "__main__":
    harness.main(__doc__, [references, null_and_power, calibration, methods], TARGETS)
