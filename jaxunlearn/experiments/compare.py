"""The main job: train, unlearn with several methods, audit each against retrained models.

For every seed: a request, an original model, K models retrained without the
requested rows (the references), then each method. Every step is stored when it is
done; a job that is killed goes on from there, and since every random draw hangs on
the seed and the method's name alone, it ends with the records it would have had.
"""

import dataclasses
import json
import pathlib
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _progress, audit, data, models, registry, tree
from jaxunlearn._files import atomic_write
from jaxunlearn.checkpoint import restore, save
from jaxunlearn.experiments import measure
from jaxunlearn.experiments.config import CompareConfig
from jaxunlearn.experiments.environment import environment
from jaxunlearn.experiments.records import Records
from jaxunlearn.experiments.timing import Compiler
from jaxunlearn.training import train_many
from jaxunlearn.types import Array, Dataset, Model, Params, PyTree, State, Status, Unlearner


class Task(NamedTuple):
    """What stays the same for all seeds."""

    config: CompareConfig
    splits: data.Splits
    model: Model
    configs: dict[str, Any]
    compiler: Compiler
    common: dict[str, Any]


class Request(NamedTuple):
    """One seed: who asks to be forgotten, and the key of everything random."""

    seed: int
    key: Array
    forget: Array


class Original(NamedTuple):
    """A trained model, what it cost and what it scores."""

    state: State
    train_s: float
    compile_s: float
    scores: dict[str, Any]


class References(NamedTuple):
    """K retrained models: logits on the forgotten rows, scores, and the first one's parameters.

    The first starts from the initial parameters of the original; distances are to it.
    """

    forget_logits: Array
    scores: list[dict[str, Any]]
    params: Params
    distances: list[float]


def compare(config: CompareConfig) -> list[dict[str, Any]]:
    """Runs what is missing of a comparison and returns its records.

    Args:
      config: what to compare, and where to put the results; ``config.train.progress``
        shows bars on standard error.

    Returns:
      The records of this configuration's seeds and methods: one for each method and
      seed, and one for the references of each seed.

    Raises:
      ValueError: a bad configuration, or a folder with records of another one.
      FileNotFoundError: a dataset that is not prepared; the message says how.
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
    model = models.get(config.model, splits.num_classes)
    config = dataclasses.replace(config, out=pathlib.Path(config.out))
    # A request or a model that does not suit the data fails here, before it claims a folder.
    _draw_request(config, train.y, 0)
    jax.eval_shape(model.init, jax.random.key(0), train.x[:1])
    records = Records(config.out, config.fingerprint())
    common = {
        "dataset": config.dataset,
        "arch": config.model,
        "n_train": int(splits.train.y.shape[0]),
        "forget_mode": config.forget,
        **environment(),
    }
    task = Task(config, splits, model, config.method_configs(), Compiler(), common)

    runs = [(seed, name) for seed in range(config.seeds) for name in ("references", *task.configs)]
    wanted = [_run_id(name, seed) for seed, name in runs]
    with _progress.showing(config.train.progress) as display:
        bar = display.add_task("runs", total=len(runs)) if display else None
        for seed in range(config.seeds):
            _run_seed(task, seed, records, display, bar)
    return [records.by_id[run_id] for run_id in wanted]


def _run_id(name: str, seed: int) -> str:
    return f"{name}/seed-{seed}"


def _run_seed(task: Task, seed: int, records: Records, display, bar) -> None:
    """Everything that is missing for one seed."""

    def announce(what: str, advance: int = 0) -> None:
        if display is not None:
            display.update(bar, description=f"seed {seed}: {what}", advance=advance)

    names = ["references", *task.configs]
    missing = [name for name in names if _run_id(name, seed) not in records]
    announce("done", advance=len(names) - len(missing))
    if not missing:
        return
    request = _request(task, seed)
    announce("training")
    original = _original(task, request, registry.make("noop", task.model, train=task.config.train))
    announce("references")
    references = _references(task, request)
    for name in missing:
        announce(name)
        if name == "references":
            record = _reference_record(task, request, references)
        else:
            record = _method_record(task, request, original, references, name)
        records.append(record)
        if record.get("status", "OK") != "OK":
            _warn(f"{record['run_id']}: {record['status']}; its row is not to be trusted.", display)
        announce(name, advance=1)


def _warn(message: str, display) -> None:
    import rich

    console = display.console if display is not None else rich.get_console()
    console.print(f"[bold yellow]Warning:[/] {message}")


def _draw_request(config: CompareConfig, y: Array, seed: int) -> Request:
    key = jax.random.fold_in(jax.random.key(0), seed)
    draw = jax.random.fold_in(key, zlib.crc32(b"request"))
    if config.forget == "class":
        return Request(seed, key, data.forget_class(draw, y, config.label, config.fraction))
    return Request(seed, key, data.forget_random(draw, y, config.fraction))


def _request(task: Task, seed: int) -> Request:
    """The seed's request; saved once, and the same ever after."""
    request = _draw_request(task.config, task.splits.train.y, seed)
    path = task.config.out / "requests" / f"seed-{seed}.npz"
    if not path.exists():
        data.save_split(path, request.forget)
    return request._replace(forget=data.load_split(path))


def _predictions(task: Task, name: str, unlearner: Unlearner, state: State) -> tuple:
    """Logits on all training rows and all test rows, and the seconds that they took."""

    def both(state: State, train_x: Array, test_x: Array) -> tuple[Array, Array]:
        predict = lambda x: unlearner.predict(state, x)
        return measure.logits(predict, train_x), measure.logits(predict, test_x)

    x = task.splits.train.x, task.splits.test.x
    done = task.compiler.run(f"predict {name}", both, state, *x)
    return *done.result, done.seconds


def _stored(path: pathlib.Path, like: Callable[[], PyTree], make: Callable[[], tuple]) -> tuple:
    """``(arrays, facts)`` of ``make``, from disk if they were made before.

    Args:
      path: a folder for the arrays; the facts, JSON values, lie beside it.
      like: gives the shapes and dtypes of the arrays.
      make: computes both.
    """
    facts_path = path.parent / f"{path.name}.json"
    if path.exists():
        return restore(path, like()), json.loads(facts_path.read_text())
    arrays, facts = make()
    with atomic_write(facts_path) as file:
        file.write(json.dumps(_jsonable(facts)).encode())
    save(path, arrays)  # last: the folder is there only if all is
    return arrays, facts


def _original(task: Task, request: Request, unlearner: Unlearner, name: str = "plain") -> Original:
    """The original model of a seed."""
    call = (jax.random.fold_in(request.key, zlib.crc32(b"original")), task.splits.train)

    def make() -> tuple[State, dict]:
        done = task.compiler.run(f"fit {name}", unlearner.fit, *call)
        return done.result, {"train_s": done.seconds, "compile_s": done.compile_s}

    path = task.config.out / "originals" / f"{name}-seed-{request.seed}"
    state, times = _stored(path, lambda: jax.eval_shape(unlearner.fit, *call), make)
    train_logits, test_logits, _ = _predictions(task, name, unlearner, state)
    scores = measure.scores(train_logits, test_logits, task.splits, request.forget)
    return Original(state, times["train_s"], times["compile_s"], scores)


def _references(task: Task, request: Request) -> References:
    """K models retrained without the requested rows."""
    count, splits = task.config.references, task.splits
    first = jax.random.fold_in(request.key, zlib.crc32(b"original"))
    others = jax.random.fold_in(request.key, zlib.crc32(b"references"))
    keys = jnp.concatenate([first[None], jax.random.split(others, count - 1)])

    def predict(params: Params, x: Array) -> Array:
        return measure.logits(lambda rows: task.model.apply(params, rows), x)

    def make() -> tuple[dict, dict]:
        weights = jnp.broadcast_to(~request.forget, (count, *request.forget.shape))
        stacked = train_many(keys, weights, task.model, splits.train, config=task.config.train)
        models = [jax.tree.map(lambda leaf, k=k: leaf[k], stacked) for k in range(count)]
        scores, logits = [], []
        for params in models:
            train = task.compiler.run("reference train", predict, params, splits.train.x).result
            test = task.compiler.run("reference test", predict, params, splits.test.x).result
            scores.append(measure.scores(train, test, splits, request.forget))
            logits.append(train[request.forget])
        distances = [float(audit.parameter_distance(params, models[0])) for params in models[1:]]
        arrays = {"params": models[0], "forget_logits": jnp.stack(logits)}
        return arrays, {"scores": scores, "distances": distances}

    def like() -> dict:
        params = jax.eval_shape(task.model.init, first, splits.train.x[:1])
        logits = jax.eval_shape(predict, params, splits.train.x[request.forget])
        stacked = jax.ShapeDtypeStruct((count, *logits.shape), logits.dtype)
        return {"params": params, "forget_logits": stacked}

    path = task.config.out / "references" / f"seed-{request.seed}"
    arrays, facts = _stored(path, like, make)
    return References(scores=facts["scores"], distances=facts["distances"], **arrays)


def _reference_record(task: Task, request: Request, references: References) -> dict[str, Any]:
    """What retraining itself scores: the null of every metric."""
    terms = jnp.asarray([measure.frm_terms(values) for values in references.scores])
    record = {
        "run_id": _run_id("references", request.seed),
        "kind": "references",
        "seed": request.seed,
        **task.common,
        "split_hash": data.split_hash(request.forget),
        "n_forget": int(request.forget.sum()),
        "n_references": len(references.scores),
        "scores": references.scores,
        "frm_null": np.asarray(audit.frm_null(terms)).tolist(),
        "jsd_null": np.asarray(audit.jsd_null(references.forget_logits)).tolist(),
        "param_l2_null": references.distances,
    }
    return _jsonable(record)


def _method_record(
    task: Task, request: Request, original: Original, references: References, name: str
) -> dict[str, Any]:
    """Unlearns with one method and measures the result."""
    method, config = registry.get(name), task.configs[name]
    unlearner = registry.make(name, task.model, train=task.config.train, config=config)
    if not method.ordinary_training:
        original = _original(task, request, unlearner, name)
    key = jax.random.fold_in(request.key, zlib.crc32(name.encode()))
    call = (key, original.state, task.splits.train, request.forget)
    done = task.compiler.run(f"unlearn {name}", unlearner.unlearn, *call)
    state = done.result
    train_logits, test_logits, eval_s = _predictions(task, name, unlearner, state)
    scores = measure.scores(train_logits, test_logits, task.splits, request.forget)
    forget = np.asarray(request.forget)
    forget_logits = jnp.asarray(np.asarray(train_logits)[forget])
    reference = jnp.asarray([measure.frm_terms(values) for values in references.scores]).mean(0)
    terms = jnp.asarray(measure.frm_terms(scores))
    record = {
        "run_id": _run_id(name, request.seed),
        "kind": "method",
        "method": name,
        "seed": request.seed,
        **task.common,
        "guarantee": method.guarantee,
        "split_hash": data.split_hash(request.forget),
        "n_forget": int(forget.sum()),
        "n_params": tree.size(state.params),
        "hparams": dataclasses.asdict(config),
        "status": Status(int(state.status)).name,
        **scores,
        "acc_test_before": original.scores["acc_test"],
        "acc_retain_before": original.scores["acc_retain"],
        "acc_forget_before": original.scores["acc_forget"],
        "train_s": original.train_s,
        "train_compile_s": original.compile_s,
        "unlearn_s": done.seconds,
        "compile_s": done.compile_s,
        "total_s": original.train_s + done.seconds,
        "eval_s": eval_s,
        "grads": float(state.grads),
        "peak_mem_bytes": done.peak_bytes,
        "model_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state.params)),
        "param_l2": float(audit.parameter_distance(state.params, references.params)),
        "jsd_forget": float(audit.jsd_to_references(forget_logits, references.forget_logits)),
        "frm": float(audit.frm(terms, reference)),
        "loss_histogram": {
            "log10_edges": measure.LOSS_BINS.tolist(),
            "forget": measure.loss_histogram(forget_logits, task.splits.train.y[forget]),
            "test": measure.loss_histogram(test_logits, task.splits.test.y),
        },
    }
    return _jsonable(record)


def _jsonable(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {str(name): _jsonable(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(entry) for entry in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return str(value) if isinstance(value, pathlib.Path) else value
