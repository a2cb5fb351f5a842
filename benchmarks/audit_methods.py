"""Every registered method, audited against retrained models, and the table of it."""

import dataclasses
import json
import warnings
from typing import Any

import jax
import numpy as np

from benchmarks.audit_tasks import FOLDER, digits_task, fashion_task
from benchmarks.harness import Options, Result
from jaxunlearn import _progress, audit, data, registry
from jaxunlearn._files import atomic_write
from jaxunlearn.baselines import FineTuneConfig, GradientAscentConfig
from jaxunlearn.experiments import lab, lab_audit, lab_groups
from jaxunlearn.experiments.records import jsonable

# Beside the published defaults, which hardly move these models.
MORE = {
    "finetune@rate .1": FineTuneConfig(learning_rate=0.1),
    "gradient_ascent@rate .003": GradientAscentConfig(learning_rate=0.003),
}
FRACTION = 0.1
HEADS = (
    "method", "M", "OK", "TA", "RA", "FA gap", "U-LiRA", "ε", "apart", "Fq", "AUC", "RULI v/p",
    "IC", "relearn",
)  # fmt: skip
# Classes whose labels are swapped for the interclass confusion test: shirts, and 3 and 8.
CONFUSED = {"fashion_mnist": (0, 6), "digits": (3, 8)}


def chosen() -> dict[str, Any]:
    """All registered methods, those that share the ordinary training first."""
    every = {name: method.config for name, method in registry.METHODS.items()} | MORE
    first = lambda item: not lab.method_of(item[0]).ordinary_training
    return dict(sorted(every.items(), key=first))


def methods(options: Options) -> Result:
    """Every method on both tasks; not with --quick."""
    if options.quick:
        return Result({"skipped": "with --quick"}, {}, {})
    described: dict[str, Any] = {}
    for task in (fashion_task(options), digits_task()):
        if task is None:
            continue
        records, missed = audited(task)
        path = FOLDER / f"{task.name}.json"
        with atomic_write(path) as file:
            file.write(json.dumps(jsonable(records), indent=1).encode())
        print(f"\n{task.name}: {path}\n")
        print("\n".join(table(records)))
        described[task.name] = f"{len(records)} rows"
        described |= {f"{task.name}, {name}": error for name, error in missed.items()}
    return Result(described, {}, {})


def audited(task: lab.Task) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Records of all methods, and why some have none."""
    order = lab_audit.exposed_first(task)
    y = task.splits.train.y
    key = jax.random.fold_in(task.key, 2)
    requests = {
        "random": data.forget_random(key, y, FRACTION),
        "vulnerable": lab_audit.vulnerable(order, round(FRACTION * y.shape[0])),
    }
    wanted, missed = chosen(), {}
    bench = lab.Bench(task, requests, wanted)
    lab_audit.prepare(bench, requests)
    play = lab_groups.game(task, order)
    groups: dict[str, dict[str, Any]] = {}
    for name, config in wanted.items():
        groups.setdefault(lab.method_of(name).training(config), {})[name] = config
    with _progress.showing():
        for group, members in groups.items():
            try:
                with warnings.catch_warnings():
                    # A warning for each of hundreds of models; their statuses are in the records.
                    warnings.simplefilter("ignore")
                    lab_groups.run_group(bench, group, members, requests, play)
            except Exception as error:  # one method that fails must not take the others with it
                missed[group] = str(error).split("\n")[0][:200]
                print(f"{task.name}, {group}: {missed[group]}", flush=True)
        plain = groups["plain"]
        confusion = confused(task, plain)
    records = lab_audit.audit_all(bench, wanted, requests, play)
    for record in records:
        record["confusion"] = confusion.get(record["method"])
    return records, missed


def confused(task: lab.Task, members: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Interclass confusion of the methods that share the ordinary training."""
    classes = CONFUSED[task.name]
    key = jax.random.fold_in(task.key, 3)
    train, forget = data.confuse_classes(key, task.splits.train, classes, 0.5)
    other = task._replace(
        name=f"{task.name}, confused",
        splits=task.splits._replace(train=train),
        config=dataclasses.replace(task.config, models=32, relearn_steps=0),
    )
    requests = {"confused": forget}
    bench = lab.Bench(other, requests, members)
    lab_audit.prepare(bench, requests)
    lab_groups.run_group(bench, "plain", members, requests, None)

    def errors(what: str) -> np.ndarray:
        logits, y = bench.arm(what).test_logits, bench.test.y
        return np.array([audit.interclass_error(one, y, classes) for one in logits])

    null, found = errors("plain/B/confused"), {name: errors(f"{name}/confused") for name in members}
    return {  # none for a method some of whose models diverged
        name: lab_audit.shown(audit.confusion_report(values, null=null))
        for name, values in found.items()
        if np.isfinite(values).all()
    }


def table(records: list[dict[str, Any]]) -> list[str]:
    """Markdown, a table for each request; gaps to retraining, each number with its null."""
    lines = []
    for request in dict.fromkeys(record["request"] for record in records):
        some = [record for record in records if record["request"] == request]
        lines += [f"**{request} request**", "", f"| {' | '.join(HEADS)} |"]
        lines.append("|---|" + "---|" * (len(HEADS) - 1))
        lines += [f"| {' | '.join(row(record))} |" for record in some]
        null = next((r for r in some if r["method"] == "noop"), some[0])
        lines += [f"| {' | '.join(null_row(null))} |", ""]
    return lines


def row(record: dict[str, Any]) -> list[str]:
    percent = lambda pair: f"{100 * pair[0]:.1f}"
    gap = 100 * (record["acc_forget"][0] - record["acc_forget_null"][0])
    ulira, epsilon = record.get("ulira"), record.get("epsilon")
    quality, attack = record.get("quality"), record.get("confidence")
    ruli, again = record.get("ruli"), record.get("relearn")
    confusion = record.get("confusion")
    beyond = lambda found: "**" if found["interval"][0] > found["null"][2] else ""
    text = lambda value, digits=2: "∞" if value >= 50 else f"{value:.{digits}f}"
    return [
        f"`{record['method']}`",
        f"{record['n_models']}",
        f"{100 * record['ok']:.0f}%",
        percent(record["acc_test"]),
        percent(record["acc_retain"]),
        f"{gap:+.1f}".replace("-", "−"),
        f"{beyond(ulira)}{ulira['value']:.3f}{beyond(ulira)}" if ulira else "–",
        text(epsilon["value"]) if epsilon else "–",
        f"{100 * epsilon['infinite']:.0f}%" if epsilon else "–",
        text(quality["value"]) if quality else "–",
        f"{attack['value']:.3f}" if attack else "–",
        f"{ruli['vulnerable_auc']:.2f}/{ruli['protected_auc']:.2f}" if ruli else "–",
        f"{100 * confusion['value']:.0f}%" if confusion else "–",
        f"{again['value']:.0f}" if again else "–",
    ]


def null_row(record: dict[str, Any]) -> list[str]:
    at = lambda name, digits: f"{record[name]['null'][0]:.{digits}f}" if name in record else "–"
    ruli, confusion = record.get("ruli"), record.get("confusion")
    percent = lambda pair: f"{100 * pair[0]:.1f}"
    return [
        "*retrain vs retrain*",
        f"{record['n_models']}",
        "",
        percent(record["acc_test_null"]),
        percent(record["acc_retain_null"]),
        "0",
        at("ulira", 3),
        at("epsilon", 2),
        f"{100 * record['epsilon']['null_infinite']:.0f}%",
        at("quality", 2),
        at("confidence", 3),
        f"{ruli['vulnerable_null_auc']:.2f}/{ruli['protected_null_auc']:.2f}" if ruli else "–",
        f"{100 * confusion['null'][0]:.0f}%" if confusion else "–",
        at("relearn", 0),
    ]
