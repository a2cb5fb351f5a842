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

from jaxunlearn import audit, registry
from jaxunlearn._files import atomic_write
from jaxunlearn.audit.references import content_hash
from jaxunlearn.data import Splits
from jaxunlearn.experiments import measure
from jaxunlearn.training import TrainConfig
from jaxunlearn.types import Array, Dataset, Model, State, Status, Unlearner


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


def method_of(name: str) -> registry.Method:
    """The registered method; ``finetune@fast`` is ``finetune`` under other settings."""
    return registry.get(name.partition("@")[0])


def unlearner(task: Task, name: str, config: Any) -> Unlearner:
    """The method for this task, without progress bars inside."""
    federation = getattr(config, "federation", None)
    if federation is not None and federation.partition != "iid":
        raise ValueError(
            f"{name} has partition={federation.partition!r}: the laboratory deals the rows of each "
            "of its models to clients anew inside one compiled program, which cannot look at "
            "labels. Audit it with partition='iid'."
        )
    quiet = dataclasses.replace(task.train, progress=False)
    return registry.make(name.partition("@")[0], task.model, train=quiet, config=config)


def keys(task: Task, what: str) -> Array:
    """One key for each model of an arm."""
    key = jax.random.fold_in(task.key, zlib.crc32(what.encode()))
    return jax.vmap(lambda m: jax.random.fold_in(key, m))(jnp.arange(task.config.models))


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:8]


class Bench:
    """Compiled programs and stored blocks of one task.

    The folder's name hangs on all that decides the blocks but the settings of the methods, which
    are in the names of their files.

    Args:
      task: what is audited.
      requests: name -> ``bool[n]``.
      methods: name -> configuration.

    Attributes:
      relearn_target: accuracy on the forgotten rows that counts as relearned, by request name.
    """

    def __init__(self, task: Task, requests: dict[str, Array], methods: dict[str, Any]):
        self.task = task
        self.tags = {name: _short(repr(config).encode()) for name, config in methods.items()}
        self.relearn_target: dict[str, float] = {}
        train, test = task.splits.train, task.splits.test
        self.test = Dataset(*(leaf[: task.config.test_rows] for leaf in test))
        self.train = train
        sizes = dataclasses.replace(task.config, seconds=None)
        asked = b"".join(n.encode() + np.asarray(f).tobytes() for n, f in sorted(requests.items()))
        what = repr(sizes).encode() + asked
        self.digest = content_hash(task.model, train, task.train, task.key, what)
        self._programs: dict[tuple[str, str], Any] = {}

    def blocks(self) -> Iterator[slice]:
        for start in range(0, self.task.config.models, self.task.config.block):
            yield slice(start, start + self.task.config.block)

    def call(
        self, name: str, function: Callable, *mapped, shared: tuple = (), in_turn: bool = False
    ) -> tuple[Any, float]:
        """``function(*shared, *one)`` for each ``one`` along the leading axis of ``mapped``.

        At once, or in turn. Compiled once for each name and shapes; the seconds are those of the
        run alone.
        """
        shapes = [(jnp.shape(leaf), leaf.dtype) for leaf in jax.tree.leaves((shared, mapped))]
        at = name, str(shapes)
        if at not in self._programs:

            def every(shared, mapped):
                one = lambda mine: function(*shared, *mine)
                return jax.lax.map(one, mapped) if in_turn else jax.vmap(one)(mapped)

            self._programs[at] = jax.jit(every).lower(shared, mapped).compile()
        start = time.perf_counter()
        out = jax.block_until_ready(self._programs[at](shared, mapped))
        return out, time.perf_counter() - start

    def path(self, what: str, block: slice) -> pathlib.Path:
        name, _, rest = what.partition("/")
        tag = f"-{self.tags[name]}" if name in self.tags else ""
        file = f"{rest}-{block.start:04}-{block.stop:04}.npz"
        return self.task.folder / self.digest / f"{name}{tag}" / file

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
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return Arm(**arrays, seconds=seconds)

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
    """Writes it, whole or not at all."""
    with atomic_write(path) as file:
        np.savez(file, **arrays)


def load(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads what :func:`save` wrote."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
