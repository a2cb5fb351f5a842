"""The models of a seed that every method shares: trained once, stored, and read back after."""

import json
import pathlib
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn import audit, data, registry
from jaxunlearn._files import atomic_write
from jaxunlearn.checkpoint import restore, save
from jaxunlearn.experiments import measure
from jaxunlearn.experiments.config import TaskConfig
from jaxunlearn.experiments.timing import Compiler
from jaxunlearn.training import train_many
from jaxunlearn.types import Array, Model, Params, PyTree, State, Unlearner


class Task(NamedTuple):
    """What stays the same for all seeds."""

    config: TaskConfig
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
    """K retrained models, and one more from the initial parameters of the original.

    That one is nearer to the original than any other, so it serves for distances between
    parameters alone: by what the K say of it, methods that start from the original would look
    closer to retraining than they are.

    Attributes:
      forget_logits: ``float[K, n_forget, C]``.
      scores: of each of the K.
      params: of the one more.
      distances: of the K to it.
    """

    forget_logits: Array
    scores: list[dict[str, Any]]
    params: Params
    distances: list[float]


def predictions(task: Task, name: str, unlearner: Unlearner, state: State) -> tuple:
    """Logits on all training rows and all test rows, and the seconds that they took."""

    def both(state: State, train_x: Array, test_x: Array) -> tuple[Array, Array]:
        predict = lambda x: unlearner.predict(state, x)
        return measure.logits(predict, train_x), measure.logits(predict, test_x)

    x = task.splits.train.x, task.splits.test.x
    done = task.compiler.run(f"predict {name}", both, state, *x)
    return *done.result, done.seconds


def original(task: Task, request: Request, unlearner: Unlearner, name: str) -> Original:
    """The original model of a seed, ``name`` being what determines it beside the seed."""
    call = (jax.random.fold_in(request.key, zlib.crc32(b"original")), task.splits.train)

    def make() -> tuple[State, dict]:
        done = task.compiler.run(f"fit {name}", unlearner.fit, *call)
        return done.result, {"train_s": done.seconds, "compile_s": done.compile_s}

    path = task.config.out / "originals" / f"{name}-seed-{request.seed}"
    state, times = _stored(path, lambda: jax.eval_shape(unlearner.fit, *call), make)
    train_logits, test_logits, _ = predictions(task, name, unlearner, state)
    scores = measure.scores(train_logits, test_logits, task.splits, request.forget)
    return Original(state, times["train_s"], times["compile_s"], scores)


def adopted(task: Task, found: Original, name: str) -> Original:
    """An original with what one of the methods that share its training keeps of it."""
    adopt = registry.get(name).adopter(task.model, task.configs[name])
    if adopt is None:
        return found
    done = task.compiler.run(f"adopt {name}", adopt, found.state, task.splits.train)
    return found._replace(
        state=done.result,
        train_s=found.train_s + done.seconds,
        compile_s=found.compile_s + done.compile_s,
    )


def references(task: Task, request: Request) -> References:
    """K models retrained without the requested rows, and the one that starts as the original."""
    count, splits = task.config.references, task.splits
    same_start = jax.random.fold_in(request.key, zlib.crc32(b"original"))
    others = jax.random.fold_in(request.key, zlib.crc32(b"references"))
    keys = jnp.concatenate([same_start[None], jax.random.split(others, count)])

    def predict(params: Params, x: Array) -> Array:
        return measure.logits(lambda rows: task.model.apply(params, rows), x)

    def make() -> tuple[dict, dict]:
        weights = jnp.broadcast_to(~request.forget, (count + 1, *request.forget.shape))
        stacked = train_many(keys, weights, task.model, splits.train, config=task.config.train)
        first, *models = (
            jax.tree.map(lambda leaf, k=k: leaf[k], stacked) for k in range(len(keys))
        )
        scores, logits = [], []
        for params in models:
            train = task.compiler.run("reference train", predict, params, splits.train.x).result
            test = task.compiler.run("reference test", predict, params, splits.test.x).result
            scores.append(measure.scores(train, test, splits, request.forget))
            logits.append(train[request.forget])
        distances = [float(audit.parameter_distance(params, first)) for params in models]
        arrays = {"params": first, "forget_logits": jnp.stack(logits)}
        return arrays, {"scores": scores, "distances": distances}

    def like() -> dict:
        params = jax.eval_shape(task.model.init, same_start, splits.train.x[:1])
        logits = jax.eval_shape(predict, params, splits.train.x[request.forget])
        stacked = jax.ShapeDtypeStruct((count, *logits.shape), logits.dtype)
        return {"params": params, "forget_logits": stacked}

    path = task.config.out / "references" / f"seed-{request.seed}"
    arrays, facts = _stored(path, like, make)
    return References(scores=facts["scores"], distances=facts["distances"], **arrays)


def _stored(path: pathlib.Path, like: Callable[[], PyTree], make: Callable[[], tuple]) -> tuple:
    """``(arrays, facts)`` of ``make``, from disk if they were made before.

    Args:
      path: a folder for the arrays; the facts, JSON values and nan, lie beside it.
      like: gives the shapes and dtypes of the arrays.
      make: computes both.
    """
    facts_path = path.parent / f"{path.name}.json"
    if path.exists():
        return restore(path, like()), json.loads(facts_path.read_text())
    arrays, facts = make()
    with atomic_write(facts_path) as file:
        file.write(json.dumps(facts).encode())
    save(path, arrays)  # last: the folder is there only if all is
    return arrays, facts
