"""The page of a frontier: one HTML file with three panels to hover and filter, and a table."""

import json
import math
import os
import pathlib
from html import escape
from importlib import resources
from typing import Any

from jaxunlearn._files import atomic_write
from jaxunlearn.experiments.frontier.front import Frontier, Point

# Short name, axis label, unit, scale, decimals, and whether its axis is logarithmic.
MEASURES = {
    "acc_test": ("TA", "test accuracy (%): utility", "%", 100, 1, False),
    "jsd": ("JSD", "JSD to Retrain on forgotten rows (×10⁻³): privacy", "", 1000, 2, False),
    "frm": ("FRM", "FRM: the paper's privacy score", "", 1, 3, False),
    "cost": ("Cost", "sample gradients, % of Retrain: cost", "%", 100, 1, True),
    "acc_forget": ("FA", "forget accuracy (%)", "%", 100, 1, False),
    "acc_retain": ("RA", "retain accuracy (%)", "%", 100, 1, False),
    "mia": ("MIA", "membership attack, efficacy (%)", "%", 100, 1, False),
}
PANELS = (
    ("Utility and cost", "cost acc_test", "Best: top left."),
    ("Utility and privacy", "privacy acc_test", "Best: top, and to the side of Retrain."),
    ("Privacy and cost", "cost privacy", "Best: left, and at the height of Retrain."),
)
FIXED = ("retrain", "noop")
SHAPES = {"noop": "square", "retrain": "diamond", "finetune": "triangle"}
TITLES = {"noop": "doing nothing", "retrain": "retraining", "conmu": "ConMU", "finetune": "FT"}


def write_page(front: Frontier, path: str | os.PathLike[str]) -> pathlib.Path:
    """Writes the page; it needs nothing else, from the network or the folder.

    Without scripts the table and the text remain.

    Args:
      front: what to show.
      path: of the HTML file; folders are made.

    Returns:
      ``path``.

    Example:
      >>> page = write_page(frontier_of(records), "frontier.html")  # doctest: +SKIP
    """
    path = pathlib.Path(path)
    with atomic_write(path) as file:
        file.write(_page(front).encode())
    return path


def verdict(front: Frontier, privacy: str) -> str:
    """What the front says, in words."""
    settings = [point for point in front.points if point.method not in FIXED]
    noop = next(point for point in front.points if point.method == "noop")
    short = MEASURES[privacy][0]
    text = []
    for method in dict.fromkeys(point.method for point in settings):
        own = [point for point in settings if point.method == method]
        best = [point for point in own if point.on_front[privacy]]
        text.append(f"{len(best)} of {len(own)} settings of {TITLES.get(method, method)}")
    sign = -1 if privacy == "jsd" else 1
    nearer = [
        p
        for p in settings
        if sign * p.values[privacy].estimate > sign * noop.values[privacy].estimate
    ]
    low, high = front.bands[privacy]
    inside = [p for p in settings if low <= p.values[privacy].estimate <= high]
    return (
        f"Beaten by no other in test accuracy, {short} and cost: {' and '.join(text)}. "
        f"{len(nearer)} of {len(settings)} settings are nearer to retrained models than doing "
        f"nothing is ({short}), and {len(inside)} lie where one more retrained model would."
    )


def _page(front: Frontier) -> str:
    folder = resources.files("jaxunlearn.experiments")
    css = folder.joinpath("report.css").read_text()
    css += folder.joinpath("frontier/page.css").read_text()
    script = folder.joinpath("frontier/page.js").read_text()
    task = front.task
    number = lambda name: f"{task[name]:,}" if name in task else "?"
    kind = " of one class" if task.get("forget_mode") == "class" else ""
    title = escape(
        f"Forgetting {number('n_forget')} of {number('n_train')} rows{kind}: "
        f"{task.get('dataset')}, {task.get('arch')}"
    )
    # "<" cannot end the element that holds it.
    data = json.dumps(_data(front), allow_nan=False).replace("<", "\\u003c")
    seeds = len(front.seeds)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{css}</style>
</head>
<body>
<main>
<header>
<p class="eyebrow">jaxunlearn: utility, privacy and cost</p>
<h1>{title}</h1>
<p class="scope">Each point is one setting, the mean of {seeds} {"seed" if seeds == 1 else "seeds"}.
Filled: no other point is at least as good in utility, privacy and cost and better in one. Hollow:
some other is. Doing nothing and retraining compete like any setting. Green: where one more
retrained model would lie, 95%. Bars: 95% intervals over seeds.</p>
<p class="verdict">{escape(verdict(front, "jsd"))}</p>
<noscript><p class="verdict">The panels need scripts; the table below does not.</p></noscript>
</header>
{_form(front)}
<p class="legend">{_legend(front)}</p>
<div class="panels trio">
{_panels()}
</div>
<section>
<h2>Settings</h2>
<p class="lead">Mean ± half a 95% interval over seeds. <b>Sure</b>: in how many of 1,000 resamples
of the seeds the setting is non-dominated. Cost is what the setting alone would cost, in sample
gradients: selection, proxy and fine-tuning.</p>
{_table(front)}
</section>
{_reading()}
<footer>Written by jaxunlearn {escape(str(task.get("jaxunlearn", "")))} from records.jsonl in this
folder.</footer>
</main>
<div id="tip" role="status" hidden></div>
<script type="application/json" id="data">{data}</script>
<script>
{script}</script>
</body>
</html>
"""


def _data(front: Frontier) -> dict[str, Any]:
    finite = lambda value: value if math.isfinite(value) else None
    names = ("short", "label", "unit", "scale", "decimals", "log")
    return {
        "measures": {k: dict(zip(names, values, strict=True)) for k, values in MEASURES.items()},
        "bands": {key: [finite(bound) for bound in band] for key, band in front.bands.items()},
        "points": [
            {
                "id": f"p{number}",
                "method": point.method,
                "kind": point.method,
                "fixed": point.method in FIXED,
                "name": _title(point),
                "knobs": point.knobs,
                "front": point.on_front,
                "sure": point.sure,
                "failed": point.failed,
                "v": {key: [finite(v) for v in value] for key, value in point.values.items()},
            }
            for number, point in enumerate(front.points)
        ],
    }


def _title(point: Point) -> str:
    title = TITLES.get(point.method, point.method)
    return f"{title}: {point.name}" if point.knobs else title


def _knobs(front: Frontier) -> dict[str, dict[str, list[float]]]:
    """The values of each knob of each method that has more than one."""
    found: dict[str, dict[str, set[float]]] = {}
    for point in front.points:
        for knob, value in point.knobs.items():
            found.setdefault(point.method, {}).setdefault(knob, set()).add(value)
    return {
        method: {knob: sorted(values) for knob, values in knobs.items() if len(values) > 1}
        for method, knobs in found.items()
    }


def _form(front: Frontier) -> str:
    knobs = _knobs(front)
    boxes = "".join(
        f'<label class="box"><input type="checkbox" name="method" value="{escape(method)}" checked>'
        f"{escape(TITLES.get(method, method))}</label>"
        for method in knobs
    )
    groups = "".join(
        f"<fieldset><legend>{escape(TITLES.get(method, method))}</legend>"
        + "".join(_select(method, knob, values) for knob, values in own.items())
        + "</fieldset>"
        for method, own in knobs.items()
        if own
    )
    along = "".join(
        f'<option value="{escape(f"{method} {knob}")}">'
        f"{escape(f'{TITLES.get(method, method)}: {knob}')}</option>"
        for method, own in knobs.items()
        for knob in own
    )
    return f"""<form aria-label="What to show">
<fieldset><legend>Show</legend>{boxes}
<label class="box"><input type="checkbox" id="front-only">non-dominated only</label></fieldset>
<fieldset><legend>Axes</legend>
<label>privacy by<select id="privacy"><option value="jsd">JSD to Retrain</option>
<option value="frm">FRM</option></select></label>
<label>join along<select id="along"><option value="">nothing</option>{along}</select></label>
</fieldset>
{groups}
<button type="reset">Reset</button>
<output id="count"></output>
</form>"""


def _select(method: str, knob: str, values: list[float]) -> str:
    options = "".join(f'<option value="{_js(v)}">{v:g}</option>' for v in values)
    return (
        f'<label>{escape(knob)}<select data-method="{escape(method)}" data-knob="{escape(knob)}">'
        f'<option value="">any</option>{options}</select></label>'
    )


def _js(value: float) -> str:
    """A number as JavaScript prints it, for those that knobs are."""
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _legend(front: Frontier) -> str:
    items = []
    for method in dict.fromkeys(point.method for point in front.points):
        shape = SHAPES.get(method, "circle")
        name = escape(TITLES.get(method, method))
        items.append(
            f'<span class="item {escape(method)}"><span class="swatch {shape}"></span>{name}</span>'
        )
    return "".join(items)


def _panels() -> str:
    return "\n".join(
        f'<div class="card"><figure><figcaption><b>{title}.</b> {best}</figcaption>'
        f'<svg class="panel" data-axes="{axes}" role="group" aria-label="{title}"></svg>'
        "</figure></div>"
        for title, axes, best in PANELS
    )


def _table(front: Frontier) -> str:
    heads = "".join(
        f'<th scope="col" title="{escape(m[1])}">{m[0]}</th>' for m in MEASURES.values()
    )
    order = sorted(
        enumerate(front.points),
        key=lambda pair: (
            pair[1].method not in FIXED,
            not pair[1].on_front["jsd"],
            pair[1].values["cost"].estimate,
        ),
    )
    body = "\n".join(_row(f"p{number}", point) for number, point in order)
    return f"""<div class="card table"><table>
<thead><tr><th scope="col">Setting</th>{heads}<th scope="col">Sure</th></tr></thead>
<tbody>
{body}
</tbody></table></div>"""


def _row(name: str, point: Point) -> str:
    cells = ""
    for key, (_, _, _, scale, decimals, _) in MEASURES.items():
        mean, low, high = (scale * value for value in point.values[key])
        half = f' <span class="half">±{(high - low) / 2:.{decimals}f}</span>'
        shown = f"{mean:.{decimals}f}".replace("-", "−") if math.isfinite(mean) else "–"
        cells += f"<td>{shown}{half if math.isfinite(high) and high > low else ''}</td>"
    kind = "front" if point.on_front["jsd"] else ""
    failed = f'<small class="fail">! {escape(point.failed)}</small>' if point.failed else ""
    return (
        f'<tr data-id="{name}" class="{kind}"><th scope="row"><span class="{point.method}">'
        f'<span class="swatch {SHAPES.get(point.method, "")}"></span></span>'
        f"{escape(_title(point))}{failed}</th>{cells}"
        f'<td class="sure">{point.sure["jsd"]:.0%}</td></tr>'
    )


def _reading() -> str:
    return """<section>
<h2>How to read it</h2>
<p>The aim is a model that could have come from training without the rows, at a cost far below that
of training. <b>JSD</b> compares answers on the forgotten rows with those of retrained models, row
by row; retrained models differ among each other too, so the green band is the aim, not 0.
<b>FRM</b> is the paper's score: it compares three averages (forget accuracy, retain accuracy,
efficacy of an attack), counts forget accuracy twice, and can be high for a model that answers each
forgotten row differently from a retrained one. Neither proves that anything was forgotten.</p>
<p>With few seeds the front is uncertain: a setting that is on it in half of the resamples is as
good as its neighbour. Settings chosen here must be reported on other seeds.</p>
</section>"""
