"""From records to what a table or a report shows: means, intervals, gaps, null bands.

Pure: records in, :class:`Summary` out.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.audit.band import Band, gap_band
from jaxunlearn.audit.intervals import Interval, mean_interval
from jaxunlearn.experiments.metrics import METRICS, Metric
from jaxunlearn.types import Status

LEVEL = 0.95


class Cell(NamedTuple):
    """One method and metric.

    Attributes:
      value: mean over seeds between the bounds of its 95% t-interval; nan if a run has no value.
      gap: mean over seeds of the value minus the mean of that seed's references, with interval;
        None for metrics without a null.
      inside: whether the mean gap lies inside the null band; None where there is none.
      steady: it is inside, but its interval excludes 0: a shift that one model would not show.
      blind: it is inside, but so is that of doing nothing, in a metric that should show forgetting.
    """

    value: Interval
    gap: Interval | None = None
    inside: bool | None = None
    steady: bool = False
    blind: bool = False


class Null(NamedTuple):
    """What retraining itself scores: mean over all references, and the band of its gaps."""

    mean: float
    band: Band | None


class Row(NamedTuple):
    """One method: ``seeds`` done, ``failures`` by seed, and summed loss histograms."""

    method: str
    guarantee: str
    hparams: dict[str, Any]
    seeds: tuple[int, ...]
    failures: dict[int, str]
    cells: dict[str, Cell]
    histogram: dict[str, np.ndarray] | None
    own_training: bool = False

    @property
    def broken(self) -> bool:
        """Whether its numbers are not to be trusted; a certificate that ends short spoils none."""
        return bool(set(self.failures.values()) - {Status.BEYOND_CERTIFICATE.name})


class Summary(NamedTuple):
    """All that a table or a report shows.

    Attributes:
      rows: no-op, Retrain, then the others in the order of the records.
      null: by metric key, for those metrics that have references.
      seeds: all seeds with any record.
      references: retrained models, all seeds together.
      task: dataset, architecture, rows, device, versions: what the records agree on.
      config: of the comparison, if given.
    """

    rows: tuple[Row, ...]
    null: dict[str, Null]
    seeds: tuple[int, ...]
    references: int
    task: dict[str, Any]
    config: dict[str, Any]

    def row(self, method: str) -> Row | None:
        """The row of that method, or None."""
        return next((row for row in self.rows if row.method == method), None)


def summarise(
    records: Sequence[dict[str, Any]], *, config: dict[str, Any] | None = None
) -> Summary:
    """Means over seeds, their intervals, gaps to Retrain, and null bands.

    The gap of a method in one seed is its value minus the mean of the K references of that seed
    (same request). The null of that gap is one more retrained model: with s^2 the variance of the
    references around their seeds' means, pooled over S seeds, the band is
    ``+- t_{S(K-1)} s sqrt(1 + 1/K)``, the 95% prediction interval for a *single* retrained
    model. The leave-one-out gaps of the references are ``K / (K - 1)`` times those deviations;
    taken for S K independent values they would give a band up to 1.25 times as wide (S = 1, K = 5).
    FRM and JSD compare models already: theirs is the same band of each reference's own value
    against the others, for JSD with the factor of :func:`~jaxunlearn.audit.jsd_null`.

    A method's mean over S seeds varies less than a single model. So inside the band means: no
    further from Retrain than a single retrained model may well be. It is not evidence of
    equality. With one seed, one in twenty exact methods lies outside; with five practically none
    (S = K = 5: one in 7,000), and a small but steady shift lies inside too. So ``steady`` tells
    the cells whose interval excludes 0: one in twenty of an exact method, for any S >= 2.

    Args:
      records: as :func:`~jaxunlearn.experiments.read_records` gives them, finished or not; of
        records with the same ``run_id`` the last counts.
      config: the comparison's configuration, to be shown with the results.

    Raises:
      ValueError: no records.
    """
    if not records:
        raise ValueError("records is empty: there is nothing to summarise.")
    records = list({record["run_id"]: record for record in records}.values())
    references = {r["seed"]: r for r in records if r["kind"] == "references"}
    runs: dict[str, dict[int, dict]] = {"noop": {}, "retrain": {}}
    for record in records:
        if record["kind"] == "method":
            runs.setdefault(record["method"], {})[record["seed"]] = record
    nulls = {m.key: _nulls(m, references) for m in METRICS if m.null}
    null = {m.key: _null(m, nulls[m.key]) for m in METRICS if nulls.get(m.key)}

    def row(name: str, seeds: Sequence[int]) -> Row | None:
        done = {seed: runs[name][seed] for seed in seeds if seed in runs[name]}
        return _row(name, done, runs["retrain"], nulls, null) if done else None

    rows = []
    for name in runs:
        if found := row(name, list(runs[name])):
            # Doing nothing on the same seeds: with others it might fall on the other side.
            rows.append(_blind(found, row("noop", found.seeds)))
    return Summary(
        rows=tuple(rows),
        null=null,
        seeds=tuple(sorted({record["seed"] for record in records})),
        references=sum(len(record["scores"]) for record in references.values()),
        task=_common(records),
        config=config or {},
    )


def _get(record: dict, path: str) -> float:
    """The number at a dotted path; nan where the record has none."""
    value: Any = record
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return math.nan if value is None else float(value)


def _nulls(metric: Metric, references: dict[int, dict]) -> dict[int, np.ndarray]:
    """What the references of each seed score."""
    if metric.null == "scores":
        lists = {s: [_get(one, metric.path) for one in r["scores"]] for s, r in references.items()}
    else:
        lists = {s: r.get(metric.null) or [] for s, r in references.items()}
    return {seed: np.array(values, float) for seed, values in lists.items() if values}


def _null(metric: Metric, values: dict[int, np.ndarray]) -> Null:
    groups = list(values.values())
    mean = float(np.concatenate(groups).mean())
    if not metric.band:
        return Null(mean, None)
    return Null(mean, gap_band(groups, level=LEVEL, shared_pairs=metric.shared_pairs))


def _row(
    name: str,
    runs: dict[int, dict],
    retrain: dict[int, dict],
    nulls: dict[str, dict[int, np.ndarray]],
    null: dict[str, Null],
) -> Row:
    cells = {
        metric.key: _cell(metric, runs, retrain, nulls.get(metric.key, {}), null.get(metric.key))
        for metric in METRICS
    }
    seeds = tuple(sorted(runs))
    failures = {s: runs[s]["status"] for s in seeds if runs[s].get("status", "OK") != "OK"}
    first = runs[seeds[0]]
    guarantee, hparams = first.get("guarantee", ""), first.get("hparams", {})
    return Row(
        method=name,
        guarantee=guarantee,
        hparams=hparams,
        seeds=seeds,
        failures=failures,
        cells=cells,
        histogram=_histogram(list(runs.values())),
        own_training=first.get("own_training", False),
    )


def _cell(
    metric: Metric,
    runs: dict[int, dict],
    retrain: dict[int, dict],
    references: dict[int, np.ndarray],
    null: Null | None,
) -> Cell:
    values = {seed: _get(record, metric.path) for seed, record in runs.items()}
    if metric.ratio:
        yardstick = {seed: _get(record, metric.path) for seed, record in retrain.items()}
        both = values.keys() & yardstick.keys()
        values = {s: yardstick[s] / values[s] if values[s] else math.nan for s in sorted(both)}
    if not values:
        return Cell(Interval(math.nan, math.nan, math.nan))
    value = mean_interval(list(values.values()), level=LEVEL)
    gaps = [values[s] - references[s].mean() for s in values if s in references]
    if null is None or null.band is None or not gaps:
        return Cell(value)
    gap = mean_interval(gaps, level=LEVEL)
    known = math.isfinite(gap.estimate) and math.isfinite(null.band.high)
    # The slack is for rounding: with equal references the band is a point, as is the interval of
    # equal gaps.
    inside = null.band.low - 1e-9 <= gap.estimate <= null.band.high + 1e-9 if known else None
    steady = bool(inside) and (gap.low > 1e-9 or gap.high < -1e-9)
    return Cell(value, gap, inside, steady)


def _blind(row: Row, noop: Row | None) -> Row:
    """Marks the cells whose place inside the band says nothing, since no-op lies inside too."""
    if noop is None:
        return row
    keys = {m.key for m in METRICS if m.group == "forgetting" and noop.cells[m.key].inside}
    cells = {
        key: cell._replace(blind=bool(cell.inside and key in keys))
        for key, cell in row.cells.items()
    }
    return row._replace(cells=cells)


def _histogram(records: list[dict]) -> dict[str, np.ndarray] | None:
    """Loss counts of all seeds together."""
    found = [record["loss_histogram"] for record in records if record.get("loss_histogram")]
    if not found:
        return None
    return {
        "log10_edges": np.array(found[0]["log10_edges"]),
        "forget": np.sum([one["forget"] for one in found], axis=0),
        "test": np.sum([one["test"] for one in found], axis=0),
    }


def _common(records: list[dict]) -> dict[str, Any]:
    """Plain values by name; a tuple of all of them where the records differ."""
    names = (
        "dataset", "arch", "n_train", "n_forget", "n_params", "forget_mode", "device", "n_devices",
        "cpu", "n_threads", "python", "jax", "jaxlib", "jaxunlearn", "git",
    )  # fmt: skip
    found = {n: list(dict.fromkeys(r[n] for r in records if r.get(n) is not None)) for n in names}
    return {n: v[0] if len(v) == 1 else tuple(v) for n, v in found.items() if v}
