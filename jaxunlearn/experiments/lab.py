"""Many models of every method: what the audit laboratory looks at.

A *group* is a set of methods whose models are trained alike: their M originals are trained once,
and each method answers each request on all of them, vmapped, in blocks. What is kept of a model
is its logits on the forgotten rows and on some test rows, its accuracy on the kept rows and its
relearn time; a block of them is a file, so that a killed run goes on.

A method is compared with models of *its own training* without the rows: ordinary retraining for
most, and where a method trains by another rule, that rule on the remaining rows.
"""

import dataclasses
import hashlib
import pathlib
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _progress, audit, registry
from jaxunlearn._files import atomic_write
from jaxunlearn.audit.references import content_hash
from jaxunlearn.data import Splits
from jaxunlearn.experiments import measure
from jaxunlearn.training import TrainConfig
from jaxunlearn.types import Array, Dataset, Model, State, Status, Unlearner

RETRAIN = "retrain"


@dataclasses.dataclass(frozen=True)
class LabConfig:
    """How large the laboratory is.

    Attributes:
      models: M, in each arm; a multiple of block.
      block: models at once, and in one file.
      seconds: a method whose own training is slow gets as many blocks as fit into so many seconds
        (one at least) in each arm; the table says how many models that were. None for no limit.
      shadows: models trained on random halves, to find the most exposed rows.
      targets: rows that RULI looks at, half of them the most exposed, half the most protected.
      test_rows: of the test set, for population attacks.
      relearn_steps: the cap of the relearn time; 0 leaves it out.
    """

    models: int = 128
    block: int = 16
    seconds: float | None = None
    shadows: int = 64
    targets: int = 200
    test_rows: int = 500
    relearn_steps: int = 50

    def __post_init__(self):
        from jaxunlearn import _validate
        from jaxunlearn.audit.report import enough

        _validate.whole(models=self.models, block=self.block, test_rows=self.test_rows)
        _validate.whole(8, shadows=self.shadows)
        _validate.whole(4, targets=self.targets)
        _validate.whole(0, relearn_steps=self.relearn_steps)
        enough(self.models)
        if self.models % self.block or self.block < 8:
            raise ValueError(
                f"models={self.models!r} must be a multiple of block={self.block!r}, which must be "
                "at least 8."
            )


class Task(NamedTuple):
    """Rows, model and how it is trained.

    Attributes:
      name: for progress bars.
      splits: rows.
      model: see :class:`jaxunlearn.Model`.
      train: how the ordinary training goes.
      key: of everything random.
      folder: where blocks are kept.
      config: how large it all is.
    """

    name: str
    splits: Splits
    model: Model
    train: TrainConfig
    key: Array
    folder: pathlib.Path
    config: LabConfig


class Arm(NamedTuple):
    """M models and what is kept of each.

    Attributes:
      forget_logits: ``float32[M, f, C]``, on the forgotten rows.
      test_logits: ``float32[M, t, C]``.
      acc_retain: ``float32[M]``.
      relearn: ``int32[M]``; -1 where it was not measured.
      ok: ``bool[M]``, status OK or BEYOND_CERTIFICATE.
      seconds: of the run, compiled already.
    """

    forget_logits: np.ndarray
    test_logits: np.ndarray
    acc_retain: np.ndarray
    relearn: np.ndarray
    ok: np.ndarray
    seconds: float


class Game(NamedTuple):
    """RULI's design: each model saw all rows but half of the targets, and unlearns the other half.

    Attributes:
      targets: ``int[T]`` row numbers, the most exposed first.
      removed: ``bool[M, T]``, whether the model was trained on the target and unlearns it.
      rows: ``int[M, n - T / 2]``, the rows of each model's training.
      forget: ``bool[M, n - T / 2]``, the request among them.
    """

    targets: np.ndarray
    removed: np.ndarray
    rows: np.ndarray
    forget: np.ndarray


def method_of(name: str) -> registry.Method:
    """The registered method; ``finetune@fast`` is ``finetune`` under other settings."""
    return registry.get(name.partition("@")[0])


def unlearner(task: Task, name: str, config: Any) -> Unlearner:
    """The method for this task, without progress bars inside."""
    quiet = dataclasses.replace(task.train, progress=False)
    return registry.make(method_of(name).name, task.model, train=quiet, config=config)


def group_of(name: str, config: Any) -> str:
    """Methods of one group share their originals."""
    method = method_of(name)
    if method.ordinary_training:
        return "plain"
    if isinstance(config, registry.PrunedConfig):
        return f"pruned-{hashlib.sha256(repr(config.pruning).encode()).hexdigest()[:8]}"
    return f"{name}-{hashlib.sha256(repr(config).encode()).hexdigest()[:8]}"


def keys(task: Task, what: str) -> Array:
    """One key for each model of an arm."""
    key = jax.random.fold_in(task.key, zlib.crc32(what.encode()))
    return jax.vmap(lambda m: jax.random.fold_in(key, m))(jnp.arange(task.config.models))


def game(task: Task, order: np.ndarray) -> Game:
    """RULI's design for the most and least exposed rows; ``order`` has all rows, exposed first."""
    half = task.config.targets // 2
    targets = np.concatenate([order[:half], order[-half:]])
    count, n = len(targets), len(order)
    rng = np.random.default_rng(zlib.crc32(b"ruli"))
    removed = np.zeros((task.config.models, count), bool)
    for pair in range(0, task.config.models, 2):  # complementary, so every row is in half of them
        drawn = rng.permutation(count) < count // 2
        removed[pair], removed[pair + 1 : pair + 2] = drawn, ~drawn
    kept, forget = [], []
    for gone in removed:
        out = np.zeros(n, bool)
        out[targets[~gone]] = True
        rows = np.flatnonzero(~out)
        kept.append(rows)
        forget.append(np.isin(rows, targets[gone]))
    return Game(targets, removed, np.stack(kept), np.stack(forget))


class Bench:
    """Compiled programs and stored blocks of one task.

    Attributes:
      task: what is audited.
      relearn_target: accuracy on the forgotten rows that counts as relearned, by request name.
    """

    def __init__(self, task: Task):
        self.task = task
        self.relearn_target: dict[str, float] = {}
        train, test = task.splits.train, task.splits.test
        self.test = Dataset(*(leaf[: task.config.test_rows] for leaf in test))
        self.train = train
        self.digest = content_hash(task.model, train, task.train, task.key, b"lab")
        self._programs: dict[str, Any] = {}

    def blocks(self) -> Iterator[slice]:
        for start in range(0, self.task.config.models, self.task.config.block):
            yield slice(start, start + self.task.config.block)

    def call(self, name: str, function: Callable, *mapped, shared: tuple = ()) -> tuple[Any, float]:
        """``function(*shared, *one)`` for each ``one`` along the leading axis of ``mapped``.

        Compiled once for each name and shapes; the seconds are those of the run alone.
        """
        shapes = [(jnp.shape(leaf), leaf.dtype) for leaf in jax.tree.leaves((shared, mapped))]
        at = name, str(shapes)
        if at not in self._programs:
            axes = (None,) * len(shared) + (0,) * len(mapped)
            program = jax.jit(jax.vmap(function, in_axes=axes))
            self._programs[at] = program.lower(*shared, *mapped).compile()
        start = time.perf_counter()
        out = jax.block_until_ready(self._programs[at](*shared, *mapped))
        return out, time.perf_counter() - start

    def path(self, what: str, block: slice) -> pathlib.Path:
        return self.task.folder / self.digest / f"{what}-{block.start:04}-{block.stop:04}.npz"

    def arm(self, what: str, blocks: int | None = None) -> Arm:
        """What is stored, of the first so many blocks."""
        found = []
        for block in list(self.blocks())[:blocks]:
            path = self.path(what, block)
            if not path.exists():
                break
            found.append(load(path))
        parts = [dict(one) for one in found]
        seconds = sum(float(one.pop("seconds")) for one in parts)
        return Arm(*(np.concatenate([p[f] for p in parts]) for f in Arm._fields[:-1]), seconds)

    def stored(self, what: str) -> int:
        """How many blocks there are, from the first on."""
        count = 0
        for block in self.blocks():
            if not self.path(what, block).exists():
                break
            count += 1
        return count

    def measure(
        self, what: str, block: slice, who: str, un: Unlearner, states: State, rows: np.ndarray,
        seconds: float, *, relearn: str | None = None,
    ) -> None:  # fmt: skip
        """Stores what is kept of a block of models of ``who``; ``rows`` are looked at."""
        forget_rows = np.asarray(rows)
        keep = np.ones(self.train.y.shape[0], bool)
        keep[forget_rows] = False

        def one(train, test_x, index, keep, state):
            predict = lambda x: un.predict(state, x)
            everything = measure.logits(predict, train.x)
            hits = audit.accuracy(everything, train.y, weights=keep)
            return everything[index], measure.logits(predict, test_x), hits

        shared = self.train, self.test.x, jnp.asarray(forget_rows), jnp.asarray(keep)
        (inside, outside, hits), _ = self.call(f"predict {who}", one, states, shared=shared)

        status = np.asarray(states.status)
        ok = (status == Status.OK) | (status == Status.BEYOND_CERTIFICATE)
        again = np.full(len(ok), -1, np.int32)
        if relearn is not None and self.task.config.relearn_steps and self._is_model(states):
            again = self._relearn(states, forget_rows, relearn)
        save(
            self.path(what, block),
            forget_logits=np.asarray(inside, np.float32),
            test_logits=np.asarray(outside, np.float32),
            acc_retain=np.asarray(hits, np.float32),
            relearn=again,
            ok=ok,
            seconds=np.float64(seconds),
        )

    def plain_states(self, params: Any, block: slice) -> State:
        """States of models that were trained in the ordinary way, those of a block."""
        params = jax.tree.map(lambda leaf: leaf[block], params)
        count, n = block.stop - block.start, self.train.y.shape[0]
        zeros = jnp.zeros(count)
        return State(params, jnp.zeros((count, n), bool), (), zeros, zeros.astype(jnp.int32), ())

    def keep_originals(self, params: Any) -> None:
        for block in self.blocks():
            leaves = enumerate(jax.tree.leaves(params))
            save(
                self.path("plain/originals", block),
                **{f"{i}": np.asarray(leaf[block]) for i, leaf in leaves},
            )

    def originals(self, block: slice) -> State:
        """Ordinary models trained on all rows."""
        found = load(self.path("plain/originals", block))
        like = jax.eval_shape(self.task.model.init, jax.random.key(0), self.train.x[:1])
        leaves = [jnp.asarray(found[f"{i}"]) for i in range(len(jax.tree.leaves(like)))]
        params = jax.tree.unflatten(jax.tree.structure(like), leaves)
        return self.plain_states(params, slice(0, block.stop - block.start))

    def _is_model(self, states: State) -> bool:
        """Whether the parameters are those of one model, so that they can be trained on."""
        like = jax.eval_shape(self.task.model.init, jax.random.key(0), self.train.x[:1])
        shapes = lambda tree, cut: jax.tree.map(lambda leaf: jnp.shape(leaf)[cut:], tree)
        return shapes(states.params, 1) == shapes(like, 0)

    def _relearn(self, states: State, rows: np.ndarray, name: str) -> np.ndarray:
        forgotten = Dataset(self.train.x[rows], self.train.y[rows])
        target = self.relearn_target[name]

        def one(forgotten, params):
            return audit.relearn_steps(
                self.task.model.apply, params, forgotten, target=target,
                steps=self.task.config.relearn_steps,
            )  # fmt: skip

        found, _ = self.call(f"relearn {name}", one, states.params, shared=(forgotten,))
        return np.asarray(found)


def save(path: pathlib.Path, **arrays) -> None:
    with atomic_write(path) as file:
        np.savez(file, **arrays)


def load(path: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def run_group(
    bench: Bench,
    group: str,
    methods: dict[str, Any],
    requests: dict[str, Array],
    play: Game | None,
) -> None:
    """Everything of one group that is missing: references if it has its own, answers, the game.

    Args:
      bench: of the task.
      group: its name.
      methods: name -> configuration.
      requests: name -> ``bool[n]``.
      play: RULI's design, or None to leave it out.
    """
    own = group != "plain" and method_of(next(iter(methods))).own_training
    arms = [f"{name}/{request}" for name in methods for request in requests]
    if own:
        arms += [f"{group}/{which}/{request}" for which in "AB" for request in requests]
    arms += [f"{name}/game" for name in methods] if play is not None else []
    spent = 0.0
    limit = bench.task.config.seconds
    title = f"{bench.task.name}: {group}"
    for number, block in enumerate(_progress.track(list(bench.blocks()), title)):
        todo = [arm for arm in arms if not bench.path(arm, block).exists()]
        if number and limit is not None and group != "plain":
            # What the first blocks took, compilation left out, says whether another one fits.
            if spent * (number + 1) / number > limit * len(arms):
                break
        if todo:
            spent += _run_block(bench, group, methods, requests, play, block, set(todo), own)
        else:
            spent += sum(float(load(bench.path(arm, block))["seconds"]) for arm in arms)


def _run_block(bench, group, methods, requests, play, block, todo, own) -> float:
    task = bench.task
    first = next(iter(methods))
    units = {name: unlearner(task, name, config) for name, config in methods.items()}
    trainer = units[first]
    some = lambda what: keys(task, what)[block]
    spent = 0.0
    answers = {arm for arm in todo if arm.split("/")[0] in methods and not arm.endswith("/game")}
    if answers:
        states, seconds = _originals(bench, group, trainer, some("originals"), block)
        spent += seconds
        for name, unit in units.items():
            for request, forget in requests.items():
                what = f"{name}/{request}"
                if what not in answers:
                    continue

                def answer(train, forget, key, state, unit=unit):
                    return unit.unlearn(key, state, train, forget)

                after, took = bench.call(
                    f"unlearn {name}", answer, some(f"unlearn {name} {request}"), states,
                    shared=(bench.train, forget),
                )  # fmt: skip
                bench.measure(
                    what, block, name, unit, after, np.flatnonzero(forget), took, relearn=request
                )
                spent += took

    for which in "AB" if own else "":
        for request, forget in requests.items():
            what = f"{group}/{which}/{request}"
            if what not in todo:
                continue
            rest = np.flatnonzero(~np.asarray(forget))
            kept = Dataset(bench.train.x[rest], bench.train.y[rest])
            fit = lambda kept, key: trainer.fit(key, kept)
            after, took = bench.call(
                f"retrain {group}", fit, some(f"retrain {which}"), shared=(kept,)
            )
            bench.measure(
                what, block, first, trainer, after, np.flatnonzero(forget), took, relearn=request
            )
            spent += took

    games = {arm for arm in todo if arm.endswith("/game")}
    if games and play is not None:
        spent += _play(bench, group, units, play, block, games, some)
    return spent


def _originals(bench: Bench, group: str, trainer: Unlearner, some: Array, block: slice):
    """Models trained on all rows; ordinary ones are those of the references."""
    if group == "plain":
        return bench.originals(block), 0.0
    fit = lambda train, key: trainer.fit(key, train)
    return bench.call(f"fit {group}", fit, some, shared=(bench.train,))


def _play(bench, group, units, play: Game, block: slice, games: set[str], some) -> float:
    """RULI's game for one block: train on the seen rows, unlearn, look at all targets."""
    train = bench.train
    seen, forget = jnp.asarray(play.rows[block]), jnp.asarray(play.forget[block])
    rows = lambda index: Dataset(train.x[index], train.y[index])
    trainer = next(iter(units.values()))
    fit = lambda key, index: trainer.fit(key, rows(index))
    states, spent = bench.call(f"game fit {group}", fit, some("game"), seen)
    for name, unit in units.items():
        what = f"{name}/game"
        if what not in games:
            continue

        def answer(key, state, index, gone, unit=unit):
            return unit.unlearn(key, state, rows(index), gone)

        after, took = bench.call(f"game {name}", answer, some(f"game {name}"), states, seen, forget)
        bench.measure(what, block, name, unit, after, play.targets, took)
        spent += took
    return spent
