"""What the laboratory trains: groups of methods with one training, and RULI's game.

Each block of models is done for the whole group before the next begins, so that originals are
trained once and a group that is slow can stop at as many blocks as its time allows.
"""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxunlearn import _progress
from jaxunlearn.audit.references import balanced_halves
from jaxunlearn.experiments.lab import Bench, Task, keys, load, method_of, unlearner
from jaxunlearn.types import Array, Dataset, State, Unlearner


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


def game(task: Task, order: np.ndarray) -> Game:
    """RULI's design for the most and least exposed rows; ``order`` has all rows, exposed first."""
    half = task.config.targets // 2
    targets = np.concatenate([order[:half], order[-half:]])
    count, n = len(targets), len(order)
    rng = np.random.default_rng(zlib.crc32(b"ruli"))
    removed = balanced_halves(rng, task.config.models, count)
    kept, forget = [], []
    for gone in removed:
        out = np.zeros(n, bool)
        out[targets[~gone]] = True
        rows = np.flatnonzero(~out)
        kept.append(rows)
        forget.append(np.isin(rows, targets[gone]))
    return Game(targets, removed, np.stack(kept), np.stack(forget))


class Group(NamedTuple):
    """Methods whose models are trained alike.

    Attributes:
      name: of the group.
      trainer: whose ``fit`` trains for all.
      units: method name -> its unlearner.
      adopters: method name -> what makes the trainer's states its own; None where they are.
      varying: models are trained one after the other, see :class:`jaxunlearn.registry.Method`.
    """

    name: str
    trainer: Unlearner
    units: dict[str, Unlearner]
    adopters: dict[str, Callable[[State, Dataset], State] | None]
    varying: bool


def group_of(task: Task, name: str, methods: dict[str, Any]) -> Group:
    """The group of that name; ``methods`` are names and configurations."""
    first, config = next(iter(methods.items()))
    return Group(
        name,
        unlearner(task, method_of(first).trainer, config),
        {n: unlearner(task, n, config) for n, config in methods.items()},
        {n: method_of(n).adopter(task.model, config) for n, config in methods.items()},
        method_of(first).varying,
    )


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
    members, spent = group_of(bench.task, group, methods), 0.0
    limit = bench.task.config.seconds
    title = f"{bench.task.name}: {group}"
    for number, block in enumerate(_progress.track(list(bench.blocks()), title)):
        todo = [arm for arm in arms if not bench.path(arm, block).exists()]
        if number and limit is not None and group != "plain":
            # What the first blocks took, compilation left out, says whether another one fits.
            if spent * (number + 1) / number > limit * len(arms):
                break
        if todo:
            spent += _run_block(bench, members, requests, play, block, set(todo), own)
        else:
            spent += sum(float(load(bench.path(arm, block))["seconds"]) for arm in arms)


def _run_block(bench, group: Group, requests, play, block, todo, own) -> float:
    some = lambda what: keys(bench.task, what)[block]
    spent = 0.0
    names = [name for name in group.units if any(f"{name}/{r}" in todo for r in requests)]
    if names:
        states, seconds = _originals(bench, group, some("originals"), block)
        spent += seconds
        for name in names:
            unit, adopt, kept = group.units[name], group.adopters[name], states
            if adopt is not None:
                one = lambda train, state, adopt=adopt: adopt(state, train)
                kept, took = bench.call(f"adopt {name}", one, states, shared=(bench.train,))
                spent += took
            for request, forget in requests.items():
                what = f"{name}/{request}"
                if what not in todo:
                    continue

                def answer(train, forget, key, state, unit=unit):
                    return unit.unlearn(key, state, train, forget)

                after, took = bench.call(
                    f"unlearn {name}", answer, some(f"unlearn {name} {request}"), kept,
                    shared=(bench.train, forget),
                )  # fmt: skip
                bench.measure(
                    what, block, name, unit, after, np.flatnonzero(forget), took, relearn=request
                )
                spent += took

    for which in "AB" if own else "":
        for request, forget in requests.items():
            what = f"{group.name}/{which}/{request}"
            if what not in todo:
                continue
            rest = np.flatnonzero(~np.asarray(forget))
            kept = Dataset(bench.train.x[rest], bench.train.y[rest])
            fit = lambda kept, key: group.trainer.fit(key, kept)
            after, took = bench.call(
                f"retrain {group.name}", fit, some(f"retrain {which}"), shared=(kept,),
                in_turn=group.varying,
            )  # fmt: skip
            bench.measure(
                what, block, group.name, group.trainer, after, np.flatnonzero(forget), took,
                relearn=request,
            )  # fmt: skip
            spent += took

    games = {arm for arm in todo if arm.endswith("/game")}
    if games and play is not None:
        spent += _play(bench, group, play, block, games, some)
    return spent


def _originals(bench: Bench, group: Group, some: Array, block: slice):
    """Models trained on all rows; ordinary ones are those of the references."""
    if group.name == "plain":
        return bench.originals(block), 0.0
    fit = lambda train, key: group.trainer.fit(key, train)
    return bench.call(f"fit {group.name}", fit, some, shared=(bench.train,), in_turn=group.varying)


def _play(bench, group: Group, play: Game, block: slice, games: set[str], some) -> float:
    """RULI's game for one block: train on the seen rows, unlearn, look at all targets."""
    train = bench.train
    seen, forget = jnp.asarray(play.rows[block]), jnp.asarray(play.forget[block])
    rows = lambda index: Dataset(train.x[index], train.y[index])
    fit = lambda key, index: group.trainer.fit(key, rows(index))
    states, spent = bench.call(
        f"game fit {group.name}", fit, some("game"), seen, in_turn=group.varying
    )
    for name, unit in group.units.items():
        what = f"{name}/game"
        if what not in games:
            continue

        def answer(key, state, index, gone, unit=unit, adopt=group.adopters[name]):
            state = state if adopt is None else adopt(state, rows(index))
            return unit.unlearn(key, state, rows(index), gone)

        after, took = bench.call(f"game {name}", answer, some(f"game {name}"), states, seen, forget)
        bench.measure(what, block, name, unit, after, play.targets, took)
        spent += took
    return spent
