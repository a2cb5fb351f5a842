"""Which settings no other beats in utility, privacy and cost at once, and how sure that is."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.audit.band import Band, gap_band
from jaxunlearn.audit.intervals import Interval, mean_interval
from jaxunlearn.experiments.records import flat

# Where each axis stands in a record, and whether less of it is better.
AXES = {
    "acc_test": ("acc_test", False),
    "jsd": ("jsd_forget", True),
    "frm": ("frm", False),
    "cost": ("grad_share", True),
    "acc_forget": ("acc_forget", True),
    "acc_retain": ("acc_retain", False),
    "mia": ("mia.efficacy", False),
}
PRIVACY = ("jsd", "frm")
DRAWS = 1000


class Point(NamedTuple):
    """One setting over its seeds.

    Attributes:
      method: noop and retrain, too.
      knobs: by name; empty for these two.
      seeds: that it was done on.
      values: mean and 95% t-interval for each of ``AXES``.
      on_front: by measure of privacy, whether no other point is at least as good in utility,
        privacy and cost, and better in one.
      sure: by measure of privacy, the share of resamples of the seeds in which that is so.
      failed: a status that is not OK.
    """

    method: str
    knobs: dict[str, float]
    seeds: int
    values: dict[str, Interval]
    on_front: dict[str, bool]
    sure: dict[str, float]
    failed: str

    @property
    def name(self) -> str:
        return ", ".join(f"{k} {v:g}" for k, v in self.knobs.items()) or self.method


class Frontier(NamedTuple):
    """All that the page and the table show.

    Attributes:
      points: retrain and noop, then all settings.
      bands: for test accuracy, JSD and FRM, where one more retrained model would lie, 95%.
      task: dataset, architecture, rows: what the records agree on.
      seeds: all of them.
    """

    points: tuple[Point, ...]
    bands: dict[str, Band]
    task: dict[str, Any]
    seeds: tuple[int, ...]


def frontier_of(records: Sequence[dict[str, Any]]) -> Frontier:
    """From the records of a frontier, finished or not, to what is shown of them.

    Doing nothing and retraining compete like any setting: a setting that is worse than doing
    nothing in utility and privacy is of no use, however little it cost. Of an unfinished run, the
    settings that are done on all seeds are shown; if there are none, all on the seeds they share.

    Args:
      records: of :func:`~jaxunlearn.experiments.frontier.frontier`.

    Raises:
      ValueError: no references, no retrain or noop, or no settings.

    Example:
      >>> frontier_of([])
      Traceback (most recent call last):
      ValueError: records has no references: run `jaxunlearn frontier` to its first points.
    """
    references = {r["seed"]: r for r in records if r["kind"] == "references"}
    if not references:
        raise ValueError(
            "records has no references: run `jaxunlearn frontier` to its first points."
        )
    members: dict[tuple[str, str], dict[int, dict]] = {}
    for record in records:
        if record["kind"] == "point":
            members.setdefault((record["method"], record["setting"]), {})[record["seed"]] = record
    if not members:
        raise ValueError("records has no settings yet: run `jaxunlearn frontier` again.")
    fixed = {}
    for name, cost in (("retrain", 1.0), ("noop", 0.0)):
        runs = [r for r in records if r["kind"] == "method" and r["method"] == name]
        fixed[name, ""] = {r["seed"]: {**r, "grad_share": cost, "knobs": {}} for r in runs}
    # Of a run that was stopped within a chunk, the setting that it was at has some seeds only.
    everywhere = set.intersection(set(references), *(set(runs) for runs in fixed.values()))
    members = {k: runs for k, runs in members.items() if everywhere <= set(runs)} or members
    members = fixed | members
    common = set.intersection(*(set(runs) for runs in members.values()))
    if not common:
        raise ValueError("records has no seed on which every setting is done: run it to its end.")
    seeds = sorted(common)
    table = np.array(
        [
            [[_number(runs[seed], path) for path, _ in AXES.values()] for seed in seeds]
            for runs in members.values()
        ]
    )
    fronts = {key: _fronts(table, key) for key in PRIVACY}
    points = tuple(
        Point(
            method=method,
            knobs=runs[seeds[0]]["knobs"],
            seeds=len(seeds),
            values={axis: mean_interval(table[i, :, a]) for a, axis in enumerate(AXES)},
            on_front={key: bool(on[i]) for key, (on, _) in fronts.items()},
            sure={key: float(sure[i]) for key, (_, sure) in fronts.items()},
            failed=next((r["status"] for r in runs.values() if r["status"] != "OK"), ""),
        )
        for i, ((method, _), runs) in enumerate(members.items())
    )
    task = {
        name: value
        for name, value in next(iter(members.values()))[seeds[0]].items()
        if name in ("dataset", "arch", "n_train", "n_forget", "forget_mode", "jaxunlearn", "device")
    }
    return Frontier(points, _bands([references[seed] for seed in seeds]), task, tuple(seeds))


def non_dominated(values: np.ndarray) -> np.ndarray:
    """``bool[K]``: rows of ``float[K, D]`` that no other row beats; less is better everywhere.

    A row beats another if it is nowhere worse and somewhere better; equal rows beat each other
    nowhere. A row with a nan beats none and is beaten by all that have none.

    Example:
      >>> non_dominated(np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])).tolist()
      [True, True, False]
    """
    values = np.where(np.isfinite(values).all(-1, keepdims=True), values, np.inf)
    no_worse = (values[:, None] <= values[None]).all(-1)
    better = (values[:, None] < values[None]).any(-1)
    return np.asarray(~(no_worse & better).any(0) & np.isfinite(values).all(-1))


def _fronts(table: np.ndarray, privacy: str) -> tuple[np.ndarray, np.ndarray]:
    """Who is on the front by the means over seeds, and in what share of resamples of them."""
    axes = ("acc_test", privacy, "cost")
    columns = [list(AXES).index(axis) for axis in axes]
    sign = np.array([1.0 if AXES[axis][1] else -1.0 for axis in axes])
    losses = table[:, :, columns] * sign
    seeds = losses.shape[1]
    drawn = np.random.default_rng(0).integers(seeds, size=(DRAWS, seeds))
    share = np.mean([non_dominated(losses[:, some].mean(1)) for some in drawn], axis=0)
    return non_dominated(losses.mean(1)), share


def _bands(references: Sequence[dict[str, Any]]) -> dict[str, Band]:
    """Where one more retrained model would lie: its mean and the band of its gaps."""
    found = {}
    for axis, values, shared in (
        ("acc_test", [[s["acc_test"] for s in r["scores"]] for r in references], False),
        ("acc_forget", [[s["acc_forget"] for s in r["scores"]] for r in references], False),
        ("jsd", [r["jsd_null"] for r in references], True),
        ("frm", [r["frm_null"] for r in references], False),
    ):
        groups = [np.array(group, float) for group in values]
        band, mean = gap_band(groups, shared_pairs=shared), float(np.mean(np.concatenate(groups)))
        top = 1.0 if axis != "jsd" else math.log(2)
        found[axis] = Band(max(mean + band.low, 0.0), min(mean + band.high, top))
    return found


def _number(record: dict[str, Any], path: str) -> float:
    value = flat(record).get(path)
    return math.nan if value is None else float(value)
