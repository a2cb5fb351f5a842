"""The main job: train, unlearn with several methods, audit each against retrained models.

For every seed: a request, an original model, K models retrained without the
requested rows (the references), then each method. Every step is stored when it is
done; a job that is killed goes on from there, and since every random draw hangs on
the seed and the method's name alone, it ends with the records it would have had.
"""

import dataclasses
import pathlib
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _progress, audit, data, models, registry, tree
from jaxunlearn.experiments import measure, notes, trained
from jaxunlearn.experiments.config import CompareConfig, TaskConfig
from jaxunlearn.experiments.environment import environment
from jaxunlearn.experiments.records import Records, jsonable, locked
from jaxunlearn.experiments.timing import Compiler
from jaxunlearn.experiments.trained import Original, References, Request, Task
from jaxunlearn.types import Array, Dataset, Model, Status, Unlearner

# Scores that a record has for the original model too.
BEFORE = ("acc_test", "acc_retain", "acc_forget", "err_test", "err_retain", "err_forget")


def compare(config: CompareConfig) -> list[dict[str, Any]]:
    """Runs what is missing of a comparison and returns its records.

    Args:
      config: what to compare, and where to put the results; ``config.train.progress``
        shows bars on standard error.

    Returns:
      The records of this configuration's seeds and methods: one for each method and
      seed, and one for the references of each seed.

    Raises:
      ValueError: a bad configuration; a folder with records of another one, with a method under
        other settings, or in use by another run.
      FileNotFoundError: a dataset that is not prepared; the message says how.

    Example:
      >>> records = compare(CompareConfig(seeds=10, out="runs/first"))  # doctest: +SKIP
    """
    task = prepare(config)
    out = task.config.out
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    wanted = [run_id_of(name, seed) for seed in seeds for name in ("references", *task.configs)]
    with locked(out), _progress.showing(config.train.progress) as display:
        records = Records(out, config.fingerprint())
        records.refuse_other_settings(task.configs)
        bar = display.add_task("runs", total=len(wanted)) if display else None
        for seed in seeds:
            run_seed(task, seed, records, display, bar)
    return [records.by_id[run_id] for run_id in wanted]


def prepare(config: TaskConfig) -> Task:
    """Loads the data, and fails here for what does not suit it, before a folder is claimed.

    Raises:
      ValueError, FileNotFoundError: as :func:`compare`.
    """
    splits, model = prepared(config)
    train = splits.train
    config = dataclasses.replace(config, out=pathlib.Path(config.out))
    # A request or a model that does not suit the data fails here, before it claims a folder.
    draw_request(config, train.y, config.first_seed)
    jax.eval_shape(model.init, jax.random.key(0), train.x[:1])
    common = {
        "dataset": config.dataset,
        "arch": config.model,
        "n_train": int(splits.train.y.shape[0]),
        "forget_mode": config.forget,
        "paper": None,  # a table of a paper that the run is meant for
        **environment(),
    }
    return Task(config, splits, model, config.method_configs(), Compiler(), common)


def prepared(config: TaskConfig) -> tuple[data.Splits, Model]:
    """The rows and the model of a comparison.

    Raises:
      ValueError: more rows than there are, an unknown dataset.
      FileNotFoundError: a dataset that is not prepared.
    """
    splits = data.load(config.dataset, data_dir=config.data_dir)
    n = splits.train.y.shape[0]
    if config.rows is not None and config.rows > n:
        raise ValueError(f"rows={config.rows} exceeds the {n} training rows of {config.dataset}.")
    train, test = (
        Dataset(jnp.asarray(part.x[:rows]), jnp.asarray(part.y[:rows]))
        for part, rows in ((splits.train, config.rows), (splits.test, None))
    )
    splits = splits._replace(train=train, test=test)
    return splits, models.get(config.model, splits.num_classes)


def run_id_of(name: str, seed: int) -> str:
    """The name of a run in the records."""
    return f"{name}/seed-{seed}"


def run_seed(task: Task, seed: int, records: Records, display, bar) -> None:
    """Everything that is missing for one seed."""

    def announce(what: str, advance: int = 0) -> None:
        if display is not None:
            display.update(bar, description=f"seed {seed}: {what}", advance=advance)

    names = ["references", *task.configs]
    missing = [name for name in names if run_id_of(name, seed) not in records]
    announce("done", advance=len(names) - len(missing))
    if not missing:
        return
    request = request_of(task, seed)
    announce("references")
    references = trained.references(task, request)
    originals: dict[str, Original] = {}
    for name in missing:
        announce(name)
        if name == "references":
            record = reference_record(task, request, references)
        else:
            start = registry.get(name).training(task.configs[name])
            if start not in originals:
                originals[start] = trained.original(task, request, trainer_of(task, name), start)
            own = trained.adopted(task, originals[start], name)
            retrain = records.by_id.get(run_id_of("retrain", seed))
            record = method_record(task, request, own, references, name, retrain)
        records.append(record)
        if record.get("status", "OK") != "OK":
            status = record["status"]
            warn(f"{record['run_id']}: {status}; {notes.advice(status)}", display)
        announce(name, advance=1)


def unlearner_of(task: Task, name: str) -> Unlearner:
    """The unlearner of a method, with the settings of the task."""
    return _made(task, name, task.configs[name])


def trainer_of(task: Task, name: str) -> Unlearner:
    """The unlearner whose ``fit`` trains the method's model, perhaps for others too."""
    return _made(task, registry.get(name).trainer, task.configs[name])


def _made(task: Task, name: str, config: Any) -> Unlearner:
    train, federation = task.config.train, getattr(config, "federation", None)
    if federation is None:
        return registry.make(name, task.model, train=train, config=config)
    # Drawn here: what is compiled cannot look at the labels, which partitions by label do.
    partition = federation.partition_of(task.splits.train.y)
    return registry.get(name).make(task.model, train, config, partition=partition)


def warn(message: str, display) -> None:
    """One line on the terminal, above the bars if there are any."""
    import rich

    console = display.console if display is not None else rich.get_console()
    console.print(f"[bold yellow]Warning:[/] {message}")


def draw_request(config: TaskConfig, y: Array, seed: int) -> Request:
    """The request of a seed, drawn anew."""
    key = jax.random.fold_in(jax.random.key(0), seed)
    draw = jax.random.fold_in(key, zlib.crc32(b"request"))
    if config.label is not None:
        return Request(seed, key, data.forget_class(draw, y, config.label, config.fraction))
    return Request(seed, key, data.forget_random(draw, y, config.fraction))


def request_of(task: Task, seed: int) -> Request:
    """The seed's request; saved once, and the same ever after."""
    request = draw_request(task.config, task.splits.train.y, seed)
    path = task.config.out / "requests" / f"seed-{seed}.npz"
    if not path.exists():
        data.save_split(path, request.forget)
    return request._replace(forget=data.load_split(path))


def reference_record(task: Task, request: Request, references: References) -> dict[str, Any]:
    """What retraining itself scores: the null of every metric."""
    record = {
        "run_id": run_id_of("references", request.seed),
        "kind": "references",
        "seed": request.seed,
        **task.common,
        "split_hash": data.split_hash(request.forget),
        "n_forget": int(request.forget.sum()),
        "n_references": len(references.scores),
        "scores": references.scores,
        "frm_null": np.asarray(audit.frm_null(frm_terms(references))).tolist(),
        "jsd_null": np.asarray(audit.jsd_null(references.forget_logits)).tolist(),
        "param_l2_null": references.distances,
    }
    return jsonable(record)


def certificate_numbers(certificate: Any) -> dict[str, float]:
    """The numbers in a certificate, by name; of one in another as ``removal.bound``.

    What it says of single parameters or clients stays in the state.
    """
    found = {}
    for name, value in (certificate._asdict() if hasattr(certificate, "_asdict") else {}).items():
        if hasattr(value, "_asdict"):
            within = certificate_numbers(value)
            found |= {f"{name}.{inner}": number for inner, number in within.items()}
        elif jnp.ndim(value) == 0:
            found[name] = value.item()
    return found


def frm_terms(references: References) -> Array:
    """What FRM is made of."""
    return jnp.asarray([measure.frm_terms(values) for values in references.scores])


def method_record(
    task: Task,
    request: Request,
    original: Original,
    references: References,
    name: str,
    retrain: dict[str, Any] | None,
) -> dict[str, Any]:
    """Unlearns with one method and measures the result; ``retrain`` is the record to compare with.

    There is none for retraining itself, which comes first.
    """
    method, config = registry.get(name), task.configs[name]
    unlearner = unlearner_of(task, name)
    key = jax.random.fold_in(request.key, zlib.crc32(name.encode()))
    call = (key, original.state, task.splits.train, request.forget)
    done = task.compiler.run(f"unlearn {name}", unlearner.unlearn, *call)
    state = done.result
    train_logits, test_logits, eval_s = trained.predictions(task, name, unlearner, state)
    scores = measure.scores(train_logits, test_logits, task.splits, request.forget)
    forget = np.asarray(request.forget)
    forget_logits = jnp.asarray(np.asarray(train_logits)[forget])
    reference_terms = frm_terms(references)
    frm_null = np.asarray(audit.frm_null(reference_terms))
    grads = float(state.grads)
    record = {
        "run_id": run_id_of(name, request.seed),
        "kind": "method",
        "method": name,
        "seed": request.seed,
        **task.common,
        "guarantee": method.guarantee,
        "own_training": method.own_training,
        "split_hash": data.split_hash(request.forget),
        "n_forget": int(forget.sum()),
        "n_params": tree.size(state.params),
        "hparams": dataclasses.asdict(config),
        "status": Status(int(state.status)).name,
        "certificate": certificate_numbers(state.certificate),
        **scores,
        **{f"{score}_before": original.scores[score] for score in BEFORE},
        "train_s": original.train_s,
        "train_compile_s": original.compile_s,
        "unlearn_s": done.seconds,
        "compile_s": done.compile_s,
        "total_s": original.train_s + done.seconds,
        "eval_s": eval_s,
        "retrain_s": retrain["unlearn_s"] if retrain else None,
        "speedup": retrain["unlearn_s"] / done.seconds if retrain else None,
        "grads": grads,
        "grad_speedup": retrain["grads"] / grads if retrain and grads else None,
        "peak_mem_bytes": done.peak_bytes,
        "model_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state.params)),
        "param_l2": _distance(state.params, references.params),
        "jsd_forget": float(audit.jsd_to_references(forget_logits, references.forget_logits)),
        "frm": float(audit.frm(jnp.asarray(measure.frm_terms(scores)), reference_terms.mean(0))),
        "frm_null_mean": float(frm_null.mean()),
        "frm_null_ci": list(audit.null_band(frm_null)),
        "loss_histogram": {
            "log10_edges": measure.LOSS_BINS.tolist(),
            "forget": measure.loss_histogram(forget_logits, task.splits.train.y[forget]),
            "test": measure.loss_histogram(test_logits, task.splits.test.y),
        },
    }
    return jsonable(record)


def _distance(params, reference) -> float | None:
    """None between models of other shapes: the shards of SISA are as many models."""
    shapes = lambda tree_: jax.tree.map(jnp.shape, tree_)
    if shapes(params) != shapes(reference):
        return None
    return float(audit.parameter_distance(params, reference))
