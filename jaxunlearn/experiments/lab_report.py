"""The laboratory's part of the HTML report: tables, ROC curves, epsilons of single rows."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from jaxunlearn.experiments.drawing import COLOURS, STYLE, place_labels, svg, title_at_left
from jaxunlearn.experiments.lab_audit import EPSILON_EDGES
from jaxunlearn.experiments.lab_columns import COLUMNS, Column, requests_of

SHAPES = {"noop": "s", "retrain": "D"}
FLOOR = 1e-3
CLOSER = (
    "Each mark is a method: how far its accuracy on the forgotten rows lies from that of "
    "retraining, and how well an attack on single rows tells it from retraining. The null, "
    "retraining against retraining, is in the lower left corner: green. A mark to the left and "
    "high up looks forgotten by its accuracy, and is not."
)
CURVES = (
    "Forgotten rows against test rows, all models together, logarithmic axes: the left edge is "
    "what a careful attacker sees. Dashed: a guess."
)
BARS = (
    "Forgotten rows by their epsilon; the last bin holds all beyond, infinity included. Dashed: "
    "retraining against retraining, cut off where it is higher than the picture."
)


def sections(records: Sequence[dict[str, Any]]) -> str:
    """HTML sections: closer is not forgotten, then each request.

    Args:
      records: of :func:`~jaxunlearn.experiments.lab_audit.run`; none give an empty text.
    """
    requests = {r: [one for one in records if one["request"] == r] for r in requests_of(records)}
    with matplotlib.rc_context(STYLE):
        closer = [
            closer_is_not_forgotten(some, request)
            for request, some in requests.items()
            if any("ulira" in record for record in some)
        ]
        parts = [_request(some, request) for request, some in requests.items()]
    if not parts:
        return ""
    terms = "\n".join(
        f"<dt>{escape(c.short)}</dt><dd><b>{escape(c.title)}.</b> {escape(c.meaning)}</dd>"
        for c in COLUMNS
    )
    reading = f"<section>\n<h3>Columns of the laboratory</h3>\n<dl>\n{terms}\n</dl>\n</section>"
    figure = _figure("h2", "Closer is not forgotten", closer, "two", CLOSER)
    return "\n".join([figure, *parts, reading])


def _request(records: Sequence[dict[str, Any]], request: str) -> str:
    curves = [roc(record, request) for record in records if "roc" in record.get("confidence", {})]
    bars = [epsilons(record, request) for record in records if "epsilon" in record]
    bare = [c.short for c in COLUMNS if not any(_known(c, record) for record in records)]
    title = f"Audit laboratory: the {request} request, {records[0]['n_forget']} rows"
    return f"""<section>
<h2>{escape(title)}</h2>
<p class="lead">Upper line: the method. Lower line: retraining against retraining, with as many
models. Shaded: the two 95% intervals meet, so this number cannot tell the method from retraining
({escape(", ".join(bare))} come without an interval and are never shaded).
Methods whose own training differs are compared with that training without the rows.</p>
{_table(records)}
</section>
{_figure("h3", "ROC curves of a threshold on the confidence", curves, "four", CURVES)}
{_figure("h3", "Epsilon of single rows", bars, "four", BARS)}"""


def _table(records: Sequence[dict[str, Any]]) -> str:
    heads = "".join(
        f'<th scope="col" title="{escape(c.title)}. {escape(c.meaning)}">{escape(c.short)}</th>'
        for c in COLUMNS
    )
    return f"""<div class="card scroll"><table>
<thead><tr><th scope="col">Method</th><th scope="col">Models</th>{heads}</tr></thead>
<tbody>
{chr(10).join(_row(record) for record in records)}
</tbody></table></div>"""


def _known(column: Column, record: dict[str, Any]) -> bool:
    """Whether the number and its null have intervals, to be compared by."""
    found = column.value(record)
    return found is not None and all(
        b is not None and not math.isnan(b) for b in [*found[1], *found[2][1:]]
    )


def _row(record: dict[str, Any]) -> str:
    cells = ""
    for column in COLUMNS:
        value, null, clear = column.cells(record)
        kind = ' class="inside"' if _known(column, record) and not clear else ""
        cells += f"<td{kind}>{escape(value)}<small>{escape(null)}</small></td>"
    method = record["method"]
    kind = method if method in SHAPES else ""
    under = "" if record["ok"] == 1 else f"<small>{100 * record['ok']:.0f}% ok</small>"
    return (
        f'<tr class="{kind}"><th scope="row">{escape(method)}{under}</th>'
        f"<td>{record['n_models']}</td>{cells}</tr>"
    )


def _figure(level: str, title: str, pictures: Sequence[str], columns: str, caption: str) -> str:
    if not pictures:
        return ""
    panels = "\n".join(f'<div class="card">{picture}</div>' for picture in pictures)
    return f"""<section>
<{level}>{escape(title)}</{level}>
<figure style="margin: 0">
<figcaption>{escape(caption)}</figcaption>
<div class="panels {columns}">
{panels}
</div>
</figure>
</section>"""


def _colour(method: str) -> str:
    return COLOURS.get(method, COLOURS["method"])


def closer_is_not_forgotten(records: Sequence[dict[str, Any]], request: str) -> str:
    """Gap of the forget accuracy to retraining against U-LiRA's accuracy, a point a method."""
    figure = Figure(figsize=(6.4, 4.4))
    axes = figure.add_subplot()
    title_at_left(figure, f"Closer is not forgotten: {request} request")
    points = []
    for record in records:
        if "ulira" in record:
            gap = 100 * abs(record["acc_forget"][0] - record["acc_forget_null"][0])
            points.append((record, gap, record["ulira"]["value"]))
    nulls = [record["ulira"]["null"] for record, _, _ in points]
    halves = [100 * record["acc_forget_null"][1] for record, _, _ in points]
    right = max(gap for _, gap, _ in points) * 1.08 + 0.5
    if right > 20:  # a method that broke the answers must not flatten all others
        axes.set_xscale("symlog", linthresh=2, linscale=0.6)
        ticks = [t for t in (0, 1, 2, 5, 10, 20, 50, 100) if t < 1.3 * right]
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlim(-0.3, 1.3 * right)
    else:
        axes.set_xlim(-0.03 * right, right)
    axes.set_ylim(min(0.48, *(n[1] for n in nulls)), min(1.02, max(y for *_, y in points) + 0.06))
    corner = max(halves) * math.sqrt(2), max(n[2] for n in nulls)
    axes.axhspan(min(n[1] for n in nulls), corner[1], color=COLOURS["band"], linewidth=0, zorder=0)
    axes.axvspan(0, corner[0], color=COLOURS["band"], linewidth=0, zorder=0)
    axes.grid(True, zorder=0)
    axes.set_axisbelow(True)
    axes.set_xlabel("forget accuracy: distance from retraining (points)")
    axes.set_ylabel("U-LiRA accuracy")
    for record, gap, value in points:
        method, (low, high) = record["method"], record["ulira"]["interval"]
        axes.plot([gap, gap], [low, high], color=_colour(method), linewidth=0.8, alpha=0.5)
        clear = low > record["ulira"]["null"][2]
        axes.scatter(
            [gap], [value], s=34, marker=SHAPES.get(method, "o"), linewidth=1.4, zorder=3,
            facecolor=COLOURS["paper"] if clear else _colour(method), edgecolor=_colour(method),
        )  # fmt: skip
    xs, ys = [gap for _, gap, _ in points], [value for *_, value in points]
    place_labels(axes, xs, ys, [34.0] * len(xs), [record["method"] for record, *_ in points])
    said = "; ".join(f"{r['method']} {g:.1f} points, {v:.3f}" for r, g, v in points)
    return svg(figure, f"closer-{request}", f"Gap of forget accuracy and U-LiRA accuracy. {said}.")


def roc(record: dict[str, Any], request: str) -> str:
    """ROC of the threshold on the confidence, both axes logarithmic."""
    method, found = record["method"], record["confidence"]
    fpr, tpr = (np.maximum(np.array(values), FLOOR / 10) for values in found["roc"])
    figure = Figure(figsize=(2.9, 2.5))
    axes = figure.add_subplot()
    title_at_left(figure, f"{method}: AUC {found['value']:.3f}")
    axes.plot([FLOOR, 1], [FLOOR, 1], color=COLOURS["muted"], linewidth=0.8, linestyle=(0, (4, 3)))
    axes.step(fpr, tpr, where="post", color=_colour(method), linewidth=1.4)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(FLOOR, 1)
    axes.set_ylim(FLOOR, 1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator([0.001, 0.01, 0.1, 1]))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    axes.grid(True)
    axes.set_xlabel("test rows mistaken")
    axes.set_ylabel("forgotten rows found")
    alt = (
        f"ROC of {method}: AUC {found['value']:.3f}, {100 * found['tpr_at_1fpr']:.1f}% found at 1% "
        f"and {100 * found['tpr_at_01fpr']:.1f}% at 0.1% mistaken."
    )
    return svg(figure, f"roc-{request}-{method}", alt)


def epsilons(record: dict[str, Any], request: str) -> str:
    """Forgotten rows by epsilon, with the null's."""
    method, found = record["method"], record["epsilon"]
    figure = Figure(figsize=(2.9, 1.9))
    axes = figure.add_subplot()
    title_at_left(figure, method)
    counts, null = (np.array(found[n]) for n in ("histogram", "null_histogram"))
    counts, null = counts / counts.sum(), null / null.sum()
    axes.stairs(counts, EPSILON_EDGES, fill=True, color=_colour(method), alpha=0.4, linewidth=0)
    axes.stairs(null, EPSILON_EDGES, color=COLOURS["retrain"], linewidth=1.2, linestyle=(0, (3, 2)))
    axes.set_xlim(0, EPSILON_EDGES[-1])
    axes.set_ylim(0, 1.08 * max(counts.max(), 0.25))
    axes.set_xticks([0, 1, 2, 3, 4, 5], ["0", "1", "2", "3", "4", "5+"])
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))
    axes.set_xlabel("ε of the row")
    alt = (
        f"Epsilon of single rows under {method}: median {min(found['value'], 99):.2f}, "
        f"{100 * found['infinite']:.0f}% told apart without an error; null median "
        f"{found['null'][0]:.2f}."
    )
    return svg(figure, f"epsilon-{request}-{method}", alt)
