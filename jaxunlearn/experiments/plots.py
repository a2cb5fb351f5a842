"""The report's pictures, as SVG to stand inside an HTML page.

Small pictures, one a panel: the page lays them out, in as many columns as there is room.
"""

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxunlearn.audit.band import Band
from jaxunlearn.audit.intervals import Interval
from jaxunlearn.experiments.drawing import (
    COLOURS,
    STYLE,
    drawable,
    place_labels,
    scale,
    svg,
    title_at_left,
)
from jaxunlearn.experiments.metrics import BY_KEY, Metric
from jaxunlearn.experiments.summary import Row, Summary

SHAPES = {"noop": "s", "retrain": "D"}


def trade_offs(summary: Summary) -> list[str]:
    """Divergence from Retrain on the forgotten rows, against test accuracy and against speed."""
    with matplotlib.rc_context(STYLE):
        return [_trade_off(summary, "acc_test"), _trade_off(summary, "speedup")]


def gaps(summary: Summary) -> list[str]:
    """For each metric with a band: every method's gap to Retrain with its interval."""
    with matplotlib.rc_context(STYLE):
        return [
            _gaps(summary, BY_KEY[key], null.band)
            for key, null in summary.null.items()
            if null.band is not None and math.isfinite(null.band.high)
        ]


def loss_histograms(summary: Summary) -> list[str]:
    """For each method, Retrain first: losses of the forgotten rows and of the test rows."""
    rows = [row for row in summary.rows if row.histogram is not None]
    rows.sort(key=lambda row: row.method != "retrain")
    if not rows:
        return []
    densities = [_densities(row) for row in rows]
    top = 1.1 * max(float(values.max()) for pair in densities for values in pair)
    filled = np.flatnonzero(sum(values for pair in densities for values in pair))
    edges = rows[0].histogram["log10_edges"]  # type: ignore[index]
    limits = edges[filled[0]], edges[filled[-1] + 1]
    yardstick = densities[0][0] if rows[0].method == "retrain" else None
    with matplotlib.rc_context(STYLE):
        return [
            _losses(row, pair, edges, limits, top, yardstick)
            for row, pair in zip(rows, densities, strict=True)
        ]


def _colour(row: Row) -> str:
    return COLOURS.get(row.method, COLOURS["method"])


def _fill(row: Row, inside: bool | None) -> str:
    """Filled inside the band, hollow outside: no colour needs to be told apart."""
    return _colour(row) if inside else COLOURS["paper"]


def _trade_off(summary: Summary, across: str) -> str:
    figure = Figure(figsize=(5.3, 4.1))
    axes = figure.add_subplot()
    x_metric, y_metric = BY_KEY[across], BY_KEY["jsd"]
    points = []
    for row in summary.rows:
        x, y = row.cells[across].value, row.cells["jsd"].value
        x = x if across == "speedup" else _error(x)
        if drawable(x.estimate) and drawable(y.estimate):
            points.append((row, x, y))
    title = {"acc_test": "Privacy and utility", "speedup": "Privacy and speed"}[across]
    xs = [x.estimate * x_metric.scale for _, x, _ in points]
    ys = [y.estimate * y_metric.scale for _, _, y in points]
    title_at_left(figure, title)
    axes.set_ylabel("JSD to Retrain, forgotten rows (×10⁻³ nat)")
    axes.set_xlabel("speed-up over Retrain" if across == "speedup" else "test error (%)")
    bands = {}
    for name, metric in (("y", y_metric), ("x", x_metric)):
        null = summary.null.get(metric.key)
        if null is None or null.band is None or not math.isfinite(null.band.high):
            continue
        low, high = (null.mean + bound for bound in null.band)
        if metric.key == "acc_test":
            low, high = 1 - high, 1 - low
        bands[name] = low * metric.scale, high * metric.scale
    scale(axes, "x", [*xs, *bands.get("x", ()), *([1.0] if across == "speedup" else [])])
    scale(axes, "y", [*ys, *bands.get("y", ())])
    for name, (low, high) in bands.items():
        span = axes.axhspan if name == "y" else axes.axvspan
        floor = (axes.get_ylim() if name == "y" else axes.get_xlim())[0]
        span(max(low, floor), high, color=COLOURS["band"], linewidth=0, zorder=0)
    if across == "speedup":
        axes.axvline(1, color=COLOURS["muted"], linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    axes.grid(True, zorder=0)
    axes.set_axisbelow(True)
    sizes = [_size(row) for row, _, _ in points]
    for (row, x, y), across_value, value, size in zip(points, xs, ys, sizes, strict=True):
        style = {"color": _colour(row), "linewidth": 0.8, "alpha": 0.4, "zorder": 2}
        if math.isfinite(y.low):
            low, high = max(y.low * y_metric.scale, axes.get_ylim()[0]), y.high * y_metric.scale
            axes.plot([across_value] * 2, [low, high], **style)
        if math.isfinite(x.low):
            low, high = max(x.low * x_metric.scale, axes.get_xlim()[0]), x.high * x_metric.scale
            axes.plot([low, high], [value] * 2, **style)
        axes.scatter(
            [across_value], [value], s=size, marker=SHAPES.get(row.method, "o"),
            facecolor=_fill(row, row.cells["jsd"].inside), edgecolor=_colour(row),
            linewidth=1.4, zorder=3 if row.method not in SHAPES else 4,
        )  # fmt: skip
    place_labels(axes, xs, ys, sizes, [row.method for row, _, _ in points])
    described = "; ".join(
        f"{row.method}: {axes.get_xlabel()} {x:.3g}, JSD {y:.3g}"
        for (row, _, _), x, y in zip(points, xs, ys, strict=True)
    )
    return svg(figure, f"trade-off-{across}", f"{title}. {described}.")


def _error(accuracy: Interval) -> Interval:
    """Accuracy with bounds as error: on a logarithmic axis 96 and 97% are apart, and 10% fits."""
    return Interval(1 - accuracy.estimate, 1 - accuracy.high, 1 - accuracy.low)


def _size(row: Row) -> float:
    """Area of a mark: sample gradients spent, as a share of Retrain's."""
    speedup = row.cells["grad_speedup"].value.estimate
    return 26 + 90 * min(1 / speedup if math.isfinite(speedup) else 0, 1.5)


def _gaps(summary: Summary, metric: Metric, band: Band) -> str:
    shown = [(row, row.cells[metric.key], row.cells[metric.key].gap) for row in summary.rows]
    rows = [(row, cell, gap) for row, cell, gap in shown if gap is not None]
    figure = Figure(figsize=(3.9, 0.85 + 0.235 * len(rows)))
    axes = figure.add_subplot()
    unit = f" ({'points' if metric.unit == '%' else metric.unit})" if metric.unit else ""
    title_at_left(figure, f"{metric.short} · {metric.title}")
    axes.set_xlabel(f"gap to Retrain{unit}")
    axes.axvspan(*(bound * metric.scale for bound in band), color=COLOURS["band"], linewidth=0)
    axes.axvline(0, color=COLOURS["muted"], linewidth=0.8)
    reach = _reach([gap for _, _, gap in rows], band) * metric.scale
    axes.set_xlim(-reach, reach)
    described = []
    for height, (row, cell, interval) in enumerate(rows):
        gap, low, high = (value * metric.scale for value in interval)
        text = metric.text(interval.estimate, like=cell.value.estimate, signed=True)
        place = "inside" if cell.inside else "outside"
        described.append(f"{row.method} {text}, {place} the band")
        if not math.isfinite(gap):
            axes.text(0, height, "no value", ha="center", va="center", color=COLOURS["muted"])
            continue
        if abs(gap) > reach:  # off the scale: an arrow, and the number
            side = math.copysign(1, gap)
            axes.plot([side * 0.965 * reach], [height], marker=">" if side > 0 else "<",
                      color=_colour(row), markersize=6, clip_on=False)  # fmt: skip
            axes.text(side * 0.9 * reach, height, text, va="center", fontsize=8,
                      ha="right" if side > 0 else "left", color=COLOURS["ink"])  # fmt: skip
            continue
        if math.isfinite(low):
            axes.plot(np.clip([low, high], -reach, reach), [height] * 2, color=_colour(row))
        axes.plot([gap], [height], marker=SHAPES.get(row.method, "o"), markersize=6,
                  markerfacecolor=_fill(row, cell.inside), markeredgecolor=_colour(row),
                  markeredgewidth=1.4, linestyle="none")  # fmt: skip
    axes.set_yticks(range(len(rows)), [row.method for row, _, _ in rows])
    axes.tick_params(axis="y", length=0, labelcolor=COLOURS["ink"])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(True, axis="x")
    axes.set_axisbelow(True)
    return svg(
        figure, f"gap-{metric.key}", f"{metric.title}, gap to Retrain. {'; '.join(described)}."
    )


def _reach(gaps: Sequence[Interval], band: Band) -> float:
    """How far the axis goes: a method that broke the model must not flatten all others."""
    ends = sorted(
        max(abs(end) for end in gap if math.isfinite(end))
        for gap in gaps
        if math.isfinite(gap.estimate)
    )
    typical = ends[int(0.75 * (len(ends) - 1))] if ends else 0.0
    floor = max(2.5 * band.high, 2 * typical)
    return 1.12 * max([floor / 2.5, *(end for end in ends if end <= floor)]) or 1.0


def _densities(row: Row) -> tuple[np.ndarray, np.ndarray]:
    """Shares per decade of loss, of forgotten and of test rows."""
    histogram = row.histogram
    assert histogram is not None
    width = np.diff(histogram["log10_edges"])
    forget, test = (histogram[name] / max(histogram[name].sum(), 1) for name in ("forget", "test"))
    return forget / width, test / width


def _losses(row: Row, densities, edges, limits, top: float, yardstick) -> str:
    forget, test = densities
    figure = Figure(figsize=(2.9, 1.9))
    axes = figure.add_subplot()
    axes.stairs(forget, edges, fill=True, color=_colour(row), alpha=0.35, linewidth=0)
    axes.stairs(test, edges, color=COLOURS["ink"], linewidth=1)
    if yardstick is not None and row.method != "retrain":
        dashed = {"linewidth": 1.2, "linestyle": (0, (3, 2))}
        axes.stairs(yardstick, edges, color=COLOURS["retrain"], **dashed)
    title_at_left(figure, row.method)
    axes.set_xlim(*limits)
    axes.set_ylim(0, top)
    ticks = [t for t in range(-6, 3, 2) if limits[0] <= t <= limits[1]]
    axes.set_xticks(ticks, [{0: "1", 2: "100"}.get(t, f"10{_raised(t)}") for t in ticks])
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("loss (nat)")
    share = [float(np.sum(d * np.diff(edges) * (edges[1:] <= -2))) for d in densities]
    alt = (
        f"Losses under {row.method}: {100 * share[0]:.0f}% of the forgotten and "
        f"{100 * share[1]:.0f}% of the test rows are below 0.01."
    )
    return svg(figure, f"loss-{row.method}", alt)


def _raised(number: int) -> str:
    return str(number).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
