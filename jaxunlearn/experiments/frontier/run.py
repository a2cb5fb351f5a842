"""Runs a frontier: all settings on all seeds by vmap, each point stored when its chunk is done.

Originals, requests, retrained models, and the rows of retraining and of doing nothing are those of
``jaxunlearn compare``, and so are the measures: a point is what ``compare`` would have recorded for
that setting and seed, but for its wall time, which many settings at once do not have. The cost is
counted in sample gradients.
"""

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _progress, audit, tree
from jaxunlearn._grid import Swept
from jaxunlearn.experiments import measure, notes, trained
from jaxunlearn.experiments.compare import (
    frm_terms,
    prepare,
    request_of,
    run_id_of,
    run_seed,
    unlearner_of,
    warn,
)
from jaxunlearn.experiments.frontier.config import SWEEPS, FrontierConfig, Setting
from jaxunlearn.experiments.records import Records, jsonable, locked
from jaxunlearn.experiments.trained import References, Request, Task
from jaxunlearn.types import Params, Status

# Bytes of noise (as much as the data for each seed) that the seeds of one program may take.
SEED_BYTES = 2**29


def frontier(config: FrontierConfig) -> list[dict[str, Any]]:
    """Runs what is missing of a frontier and returns all records of it.

    Args:
      config: what to run, and where to put the results.

    Returns:
      The records of the references, of retrain and noop, and of every setting, for each seed.

    Cost: ``references + 2`` trainings a seed, and the settings. Memory: see
    :func:`jaxunlearn.methods.conmu.sweep`; ``config.chunk`` bounds it further.

    Raises:
      ValueError: as :func:`jaxunlearn.experiments.compare`.

    Example:
      >>> records = frontier(FrontierConfig(seeds=10, out="runs/trilemma"))  # doctest: +SKIP
    """
    task, grids = prepare(config), config.grids()
    config = dataclasses.replace(config, out=task.config.out)
    seeds = list(range(config.first_seed, config.first_seed + config.seeds))
    base = [run_id_of(name, seed) for seed in seeds for name in ("references", *task.configs)]
    points = [point_id(s, seed) for grid in grids.values() for s in grid for seed in seeds]
    with locked(config.out), _progress.showing(config.train.progress) as display:
        records = Records(config.out, config.fingerprint())
        bar = display.add_task("runs", total=len(base) + len(points)) if display else None
        for seed in seeds:
            run_seed(task, seed, records, display, bar)
        for group in _groups(seeds, task.splits.train.x.nbytes):
            for grid in grids.values():
                _run_grid(task, config, grid, group, records, display, bar)
    return [records.by_id[run_id] for run_id in (*base, *points)]


def point_id(setting: Setting, seed: int) -> str:
    """The run id of a setting and seed."""
    return run_id_of(f"{setting.method}[{setting.name}]", seed)


def _groups(seeds: list[int], data_bytes: int) -> list[list[int]]:
    size = max(1, min(len(seeds), SEED_BYTES // max(1, data_bytes)))
    return [seeds[start : start + size] for start in range(0, len(seeds), size)]


def _run_grid(
    task: Task,
    config: FrontierConfig,
    grid: Sequence[Setting],
    seeds: list[int],
    records: Records,
    display,
    bar,
) -> None:
    """Everything that is missing of one method's grid, on some seeds."""
    method = grid[0].method
    missing = [s for s in grid if any(point_id(s, seed) not in records for seed in seeds)]
    if display is not None:
        there = len(seeds) * (len(grid) - len(missing))
        display.update(bar, description=f"{method}: {len(grid)} settings", advance=there)
    if not missing:
        return
    requests = [request_of(task, seed) for seed in seeds]
    references = [trained.references(task, request) for request in requests]
    originals = [
        trained.original(task, request, unlearner_of(task, "noop"), "plain").state.params
        for request in requests
    ]
    parts = SWEEPS[method].run(
        jnp.stack([_key(request, method) for request in requests]),
        task.model,
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *originals),
        task.splits.train,
        jnp.stack([request.forget for request in requests]),
        [setting.config for setting in missing],
        train=dataclasses.replace(config.train, progress=False),
        chunk=config.chunk,
    )
    for part in parts:
        for record in _points(task, missing, part, requests, references, records):
            if record["run_id"] not in records:
                records.append(record)
            if record["status"] != "OK":
                warn(f"{record['run_id']}: {notes.advice(record['status'])}", display)
            if display is not None:
                display.update(bar, advance=1)


def _key(request: Request, method: str) -> jax.Array:
    """As ``compare`` draws it."""
    return jax.random.fold_in(request.key, zlib.crc32(method.encode()))


def _points(
    task: Task,
    settings: Sequence[Setting],
    part: Swept,
    requests: Sequence[Request],
    references: Sequence[References],
    records: Records,
):
    """The record of each member of a chunk."""
    for row, number in enumerate(part.settings):
        of_setting = jax.tree.map(lambda leaf, row=row: leaf[row], part.params)
        train_logits, test_logits = _predictions(task, of_setting)
        for column, (request, refs) in enumerate(zip(requests, references, strict=True)):
            facts = {name: float(value[row, column]) for name, value in part.facts.items()}
            record = _point(
                task, settings[number], request, refs, train_logits[column], test_logits[column],
                grads=float(part.grads[row, column]), status=int(part.status[row, column]),
                retrain=records.by_id[run_id_of("retrain", request.seed)],
            )  # fmt: skip
            yield jsonable(record | facts)


def _predictions(task: Task, params: Params) -> tuple[np.ndarray, np.ndarray]:
    """Logits of one setting's models, of all seeds, on training and test rows."""

    def both(params: Params, train_x, test_x):
        predict = lambda x: jax.vmap(
            lambda p: measure.logits(lambda rows: task.model.apply(p, rows), x)
        )(params)
        return predict(train_x), predict(test_x)

    seeds = jax.tree.leaves(params)[0].shape[0]
    x = task.splits.train.x, task.splits.test.x
    done = task.compiler.run(f"predict {seeds}", both, params, *x)
    train_logits, test_logits = done.result
    return np.asarray(train_logits), np.asarray(test_logits)


def _point(
    task: Task, setting: Setting, request: Request, references: References,
    train_logits: np.ndarray, test_logits: np.ndarray, *, grads: float, status: int,
    retrain: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """One setting on one seed: what it scores, and what it cost."""
    forget = np.asarray(request.forget)
    scores = measure.scores(
        jnp.asarray(train_logits), jnp.asarray(test_logits), task.splits, request.forget
    )
    forget_logits = jnp.asarray(train_logits[forget])
    terms = frm_terms(references).mean(0)
    return {
        "run_id": point_id(setting, request.seed),
        "kind": "point",
        "method": setting.method,
        "setting": setting.name,
        "knobs": setting.knobs,
        "seed": request.seed,
        **task.common,
        "n_forget": int(forget.sum()),
        "n_params": tree.size(references.params),
        "hparams": dataclasses.asdict(setting.config),
        "status": Status(status).name,
        **scores,
        "grads": grads,
        "grad_share": grads / retrain["grads"],
        "jsd_forget": float(audit.jsd_to_references(forget_logits, references.forget_logits)),
        "frm": float(audit.frm(jnp.asarray(measure.frm_terms(scores)), terms)),
    }
