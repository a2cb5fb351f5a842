"""The laboratory for a finished comparison: ``jaxunlearn audit --run DIR``."""

import dataclasses
import json
import os
import pathlib
from typing import Any

import jax
import numpy as np

from jaxunlearn import _progress, data
from jaxunlearn._files import atomic_write
from jaxunlearn.experiments import lab_audit
from jaxunlearn.experiments.compare import prepared
from jaxunlearn.experiments.config import CompareConfig
from jaxunlearn.experiments.lab import LabConfig, Task
from jaxunlearn.experiments.records import CONFIG, jsonable, locked, read_records
from jaxunlearn.training import TrainConfig

AUDIT = "audit.json"


def audit_run(
    run: str | os.PathLike[str],
    *,
    config: LabConfig = LabConfig(),
    data_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Audits every method of a comparison by many models, and stores the result beside it.

    Under the request of its first seed and, for random requests, under the most exposed rows,
    as many of them. Killed and called again, it goes on.

    Args:
      run: the folder given to ``compare``.
      config: how many models, and so on.
      data_dir: folder of prepared TFDS sets, as for ``compare``.
      progress: show bars.

    Returns:
      A record for each method and request, as in ``audit.json``.

    Raises:
      FileNotFoundError: no such folder.
      ValueError: a comparison without records, or another run in the folder.
    """
    run = pathlib.Path(run)
    records = read_records(run)
    made = [record for record in records if record["kind"] == "method"]
    if not made:
        raise ValueError(f"run={str(run)!r} has no records of methods yet: finish compare first.")
    compared = _config(run, data_dir)
    splits, model = prepared(compared)
    seed = min(record["seed"] for record in made)
    methods = {r["method"]: lab_audit.config_of(r["method"], r["hparams"]) for r in made}
    n = splits.train.y.shape[0]
    size = dataclasses.replace(config, targets=min(config.targets, n // 4 // 2 * 2))
    task = Task(
        name=compared.dataset,
        splits=splits,
        model=model,
        train=dataclasses.replace(compared.train, progress=False),
        key=jax.random.fold_in(jax.random.key(0), seed),
        folder=run / "audit",
        config=size,
    )
    with locked(run), _progress.showing(progress):
        order = lab_audit.exposed_first(task)
        forget = data.load_split(run / "requests" / f"seed-{seed}.npz")
        requests = {compared.forget: forget}
        if compared.forget == "random":
            requests["vulnerable"] = lab_audit.vulnerable(order, int(np.asarray(forget).sum()))
        found = jsonable(lab_audit.run(task, methods, requests, order))
        with atomic_write(run / AUDIT) as file:
            file.write(json.dumps(found, indent=1).encode())
    return found


def read_audit(run: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The laboratory's records of a comparison; none if it was not audited.

    Example:
      >>> read_audit("no/such/folder")
      []
    """
    path = pathlib.Path(run) / AUDIT
    return json.loads(path.read_text()) if path.exists() else []


def _config(run: pathlib.Path, data_dir) -> CompareConfig:
    """What the comparison was, from its folder."""
    values = json.loads((run / CONFIG).read_text())
    train = TrainConfig(**values.pop("train"))
    names = {field.name for field in dataclasses.fields(CompareConfig)}
    known = {name: value for name, value in values.items() if name in names}
    return CompareConfig(
        **known, train=train, out=run, data_dir=None if data_dir is None else pathlib.Path(data_dir)
    )
