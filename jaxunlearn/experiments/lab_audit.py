"""The laboratory's numbers: every method against models retrained without the rows."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import audit, registry
from jaxunlearn.audit.report import AuditReport
from jaxunlearn.data.vulnerable import row_vulnerability
from jaxunlearn.experiments import lab, lab_groups
from jaxunlearn.experiments.lab import Arm, Bench, Task
from jaxunlearn.experiments.lab_groups import Game
from jaxunlearn.types import Array

RETRAIN = "retrain"
# Reports by the key under which a record has them.
REPORTS = (
    "ulira", "ruli_efficacy", "epsilon", "quality", "quality_paper", "loss", "confidence",
    "entropy", "modified_entropy", "relearn", "ruli",
)  # fmt: skip
EPSILON_EDGES = [round(0.25 * k, 2) for k in range(21)]  # the last bin is open


def exposed_first(task: Task) -> np.ndarray:
    """All rows, the most exposed to LiRA first; trained once and kept."""
    key = jax.random.fold_in(task.key, 1)
    found = row_vulnerability(
        key, task.splits.train, task.model, config=task.train,
        shadows=task.config.shadows, cache=task.folder / "references",
    )  # fmt: skip
    return np.argsort(-found, kind="stable")


def vulnerable(order: np.ndarray, count: int) -> Array:
    """A request of the ``count`` most exposed rows."""
    return jnp.zeros(len(order), bool).at[order[:count]].set(True)


def prepare(bench: Bench, requests: dict[str, Array]) -> None:
    """Originals, and two sets of retrained models for each request, from the cached references."""
    task, config = bench.task, bench.task.config
    idle = lab.unlearner(task, "noop", None)
    all_there = config.models // config.block
    for request, forget in requests.items():
        rows = np.flatnonzero(forget)
        for which in "AB":
            if bench.stored(f"plain/{which}/{request}") < all_there:
                key = jax.random.fold_in(task.key, ord(which))
                found = audit.references(
                    key, task.model, bench.train, forget, count=config.models, config=task.train,
                    originals=which == "A", cache=task.folder / "references", block=config.block,
                )  # fmt: skip
                if found.originals is not None:
                    bench.keep_originals(found.originals)
                for block in bench.blocks():
                    states = bench.plain_states(found.params, block)
                    target = _target(bench, request, rows)
                    bench.relearn_target[request] = target
                    bench.measure(
                        f"plain/{which}/{request}", block, "noop", idle, states, rows, 0.0,
                        relearn=request,
                    )  # fmt: skip
        bench.relearn_target[request] = _target(bench, request, rows)


def _target(bench: Bench, request: str, rows: np.ndarray) -> float:
    """Relearned: within a point of the originals' accuracy on the forgotten rows."""
    if request in bench.relearn_target:
        return bench.relearn_target[request]
    first = next(iter(bench.blocks()))
    apply, x, y = bench.task.model.apply, bench.train.x[rows], bench.train.y[rows]
    states = bench.originals(first)
    hits = jax.vmap(lambda p: audit.accuracy(apply(p, x), y))(states.params)
    return max(float(hits.mean()) - 0.01, 0.01)


def run(
    task: Task, methods: dict[str, Any], requests: dict[str, Array], order: np.ndarray
) -> list[dict[str, Any]]:
    """Trains what is missing and audits every method under every request.

    Args:
      task: rows, model, training, folder.
      methods: name -> configuration; ``retrain`` is always there.
      requests: name -> ``bool[n]``, all with as many rows.
      order: all rows, the most exposed first.

    Returns:
      Records, JSON values.
    """
    methods = {RETRAIN: registry.get(RETRAIN).config, **methods}
    bench = Bench(task, requests, methods)
    prepare(bench, requests)
    play = lab_groups.game(task, order)
    groups: dict[str, dict[str, Any]] = {}
    for name, config in methods.items():
        groups.setdefault(lab.method_of(name).training(config), {})[name] = config
    for group, members in groups.items():
        lab_groups.run_group(bench, group, members, requests, play)
    return audit_all(bench, methods, requests, play)


def audit_all(
    bench: Bench, methods: dict[str, Any], requests: dict[str, Array], play: Game | None
) -> list[dict[str, Any]]:
    """Records of everything that is stored so far."""
    found = [
        audit_method(bench, lab.method_of(name).training(config), name, request, forget, play)
        for name, config in methods.items()
        for request, forget in requests.items()
        if bench.stored(f"{name}/{request}")
    ]
    return [record for record in found if record is not None]


def audit_method(
    bench: Bench, group: str, name: str, request: str, forget: Array, play: Game | None
) -> dict[str, Any] | None:
    """One record: every attack on one method's models, each with its null; None without models."""
    method = lab.method_of(name)
    family = group if group != "plain" and method.own_training else "plain"
    blocks = min(bench.stored(f"{w}/{request}") for w in (name, f"{family}/A", f"{family}/B"))
    if blocks == 0:
        return None
    found = bench.arm(f"{name}/{request}", blocks)
    a, b = (bench.arm(f"{family}/{which}/{request}", blocks) for which in "AB")
    rows = np.flatnonzero(forget)
    y, test_y = np.asarray(bench.train.y)[rows], np.asarray(bench.test.y)
    record: dict[str, Any] = {
        "method": name,
        "request": request,
        "task": bench.task.name,
        "reference": "its own training" if family != "plain" else "retraining",
        "n_forget": len(rows),
        "n_models": len(found.ok),
        "ok": float(found.ok.mean()),
        "seconds": found.seconds,
        "acc_forget": _mean(_hits(found.forget_logits, y)),
        "acc_test": _mean(_hits(found.test_logits, test_y)),
        "acc_retain": _mean(found.acc_retain),
        "acc_forget_null": _mean(_hits(a.forget_logits, y)),
        "acc_test_null": _mean(_hits(a.test_logits, test_y)),
        "acc_retain_null": _mean(a.acc_retain),
    }
    for key, report in reports(bench, found, a, b, y, test_y):
        record[key] = shown(report)
        if key == "epsilon":
            record[key]["histogram"] = histogram(report.detail["epsilons"])
            record[key]["null_histogram"] = histogram(report.detail["null_epsilons"])
    if play is not None and bench.stored(f"{name}/game"):
        report = game_report(bench, name, play)
        if report is not None:
            record["ruli"] = shown(report)
    return record


def reports(bench: Bench, found: Arm, a: Arm, b: Arm, y, test_y):
    """All attacks on one arm; one that cannot be made is left out, as on a model that diverged."""
    score = lambda arm: audit.member_scores(arm.forget_logits, y)
    u, r, null = score(found), score(a), score(b)
    calls = {
        "ulira": lambda: audit.ulira(u, r, null=null),
        "ruli_efficacy": lambda: audit.ulira(u, r, null=null, density="kde"),
        "epsilon": lambda: audit.epsilon_report(u, r, null=null),
        "quality": lambda: audit.forgetting_quality(u, r, null=null),
        "quality_paper": lambda: audit.forgetting_quality(u, r, null=null, mode="paper"),
    }
    for name in ("loss", "confidence", "entropy", "modified_entropy"):
        scores = lambda logits, labels, name=name: audit.member_scores(logits, labels, score=name)
        calls[name] = lambda scores=scores, name=name: audit.population_attack(
            scores(found.forget_logits, y),
            scores(found.test_logits, test_y),
            null=(scores(b.forget_logits, y), scores(b.test_logits, test_y)),
            name=name,
        )
    if (found.relearn >= 0).all() and (b.relearn >= 0).all():
        steps = bench.task.config.relearn_steps
        calls["relearn"] = lambda: audit.relearn_report(
            found.relearn, a.relearn, null=b.relearn, steps=steps
        )
    for key, call in calls.items():
        try:
            yield key, call()
        except ValueError:  # scores that are constant or not finite: there is nothing to audit
            continue


def game_report(bench: Bench, name: str, play: Game) -> AuditReport | None:
    """RULI's privacy test of one method, beside ordinary retraining; None without models."""
    blocks = min(bench.stored(f"{name}/game"), bench.stored(f"{RETRAIN}/game"))
    if blocks == 0:
        return None
    y = np.asarray(bench.train.y)[play.targets]
    scores = [
        audit.member_scores(bench.arm(f"{who}/game", blocks).forget_logits, y)
        for who in (name, RETRAIN)
    ]
    half = len(play.targets) // 2
    exposed = np.arange(len(play.targets)) < half
    try:
        return audit.ruli(
            scores[0], play.removed[: len(scores[0])], retrained=scores[1],
            groups={"vulnerable": exposed, "protected": ~exposed},
        )  # fmt: skip
    except ValueError:
        return None


def shown(report: AuditReport) -> dict[str, Any]:
    """A report as JSON values, its arrays left out but for the ROC."""
    out: dict[str, Any] = {
        "value": report.value,
        "interval": [report.interval.low, report.interval.high],
        "null": [report.null.estimate, report.null.low, report.null.high],
        "n_models": report.n_models,
    }
    for name, value in report.detail.items():
        if isinstance(value, float):
            out[name] = value
        elif name == "roc":
            out["roc"] = [value.fpr.tolist(), value.tpr.tolist()]
    return out


def histogram(epsilons: np.ndarray) -> list[int]:
    """Rows by epsilon in ``EPSILON_EDGES``, the last bin open: infinity is in it."""
    capped = np.minimum(epsilons, EPSILON_EDGES[-1] - 1e-6)
    return np.histogram(capped, EPSILON_EDGES)[0].tolist()


def _hits(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    # As audit.accuracy: argmax would answer with the place of a NaN.
    return ((logits.argmax(-1) == y) & ~np.isnan(logits).any(-1)).mean(1)


def _mean(values) -> list[float]:
    """Mean over models, and the half width of its t interval."""
    found = audit.mean_interval(np.asarray(values, float))
    return [found.estimate, (found.high - found.low) / 2]


def config_of(name: str, hparams: dict[str, Any] | None) -> Any:
    """The configuration of a method from the settings that a record has."""
    return _filled(registry.get(name).config, hparams or {})


def _filled(config: Any, values: dict[str, Any]) -> Any:
    fields = {}
    for field in dataclasses.fields(config):
        if field.name not in values:
            continue
        old, new = getattr(config, field.name), values[field.name]
        if dataclasses.is_dataclass(old) and isinstance(new, dict):
            new = _filled(old, new)
        elif isinstance(old, tuple) and isinstance(new, list):
            new = tuple(new)
        elif isinstance(old, float) and new is None:
            new = math.nan if math.isnan(old) else old
        fields[field.name] = new
    return dataclasses.replace(config, **fields)
