"""The report of a comparison: one HTML file that needs nothing else."""

import math
import os
import pathlib
from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import Any

from jaxunlearn._files import atomic_write
from jaxunlearn.experiments import lab_report, plots
from jaxunlearn.experiments.metrics import METRICS, Metric
from jaxunlearn.experiments.notes import CAUTION, MARKS, headline, mark, notes, scope, verdict
from jaxunlearn.experiments.records import flat
from jaxunlearn.experiments.summary import Cell, Row, Summary


def write_report(
    summary: Summary,
    path: str | os.PathLike[str],
    *,
    lab: Sequence[dict[str, Any]] = (),
) -> pathlib.Path:
    """Writes the report: table, pictures, how to read them, configuration, guarantees.

    A page without scripts and without anything to load, light or dark as the reader's
    system is. It appears under ``path`` only once it is complete.

    Args:
      summary: what to show.
      path: of the HTML file; folders are made.
      lab: records of the audit laboratory, to be shown too.

    Returns:
      ``path``.
    """
    path = pathlib.Path(path)
    with atomic_write(path) as file:
        file.write(_page(summary, lab).encode())
    return path


def _page(summary: Summary, lab: Sequence[dict[str, Any]]) -> str:
    css = resources.files("jaxunlearn.experiments").joinpath("report.css").read_text()
    title = escape(headline(summary))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{css}</style>
</head>
<body>
<main>
<header>
<p class="eyebrow">jaxunlearn: comparison of unlearning methods</p>
<h1>{title}</h1>
<p class="scope">{escape(scope(summary))}</p>
<p class="verdict">{escape(verdict(summary))}</p>
{_notes(summary)}</header>
{_tables(summary)}
{_pictures(summary)}
{lab_report.sections(lab)}
{_reading(summary)}
{_methods(summary)}
{_settings(summary)}
<footer>Written by jaxunlearn {escape(str(summary.task.get("jaxunlearn", "")))} from
records.jsonl in this folder.</footer>
</main>
</body>
</html>
"""


def _notes(summary: Summary) -> str:
    items = "\n".join(f"<li>{escape(note)}</li>" for note in notes(summary))
    return f'<ul class="notes" aria-label="Notes">\n{items}\n</ul>\n' if items else ""


def _tables(summary: Summary) -> str:
    audit = [metric for metric in METRICS if metric.group != "detail"]
    detail = [metric for metric in METRICS if metric.group == "detail"]
    spread = " ± half its 95% t-interval" if len(summary.seeds) > 1 else ""
    key = " ".join(
        f'<span><b class="mark">{sign}</b> {escape(text)}</span>' for sign, text in MARKS
    )
    return f"""<section>
<h2>Audit against retrained models</h2>
<p class="lead">Upper line: mean over seeds{spread}. Lower line: mean gap to the retrained models of
the same seed, likewise.</p>
{_table(summary, audit)}
<p class="key">{key}</p>
</section>
<section>
<h2>Cost, distance, and power of the attack</h2>
{_table(summary, detail)}
</section>"""


def _table(summary: Summary, metrics: Sequence[Metric]) -> str:
    heads = "".join(
        f'<th scope="col" title="{escape(m.title)}">{escape(m.heading)}</th>' for m in metrics
    )
    body = "\n".join(_row(row, summary, metrics) for row in summary.rows)
    return f"""<div class="card scroll"><table>
<thead><tr><th scope="col">Method</th>{heads}</tr></thead>
<tbody>
{body}
</tbody>
{_null_row(summary, metrics)}</table></div>"""


def _row(row: Row, summary: Summary, metrics: Sequence[Metric]) -> str:
    remarks = [f"! {status}" for status in dict.fromkeys(row.failures.values())]
    if len(row.seeds) < len(summary.seeds):
        remarks.append(f"{len(row.seeds)} of {len(summary.seeds)} seeds")
    under = "".join(f'<small class="fail">{escape(text)}</small>' for text in remarks)
    kind = "failed" if row.broken else row.method if row.method in ("noop", "retrain") else ""
    cells = "".join(_cell(row.cells[metric.key], metric) for metric in metrics)
    return f'<tr class="{kind}"><th scope="row">{escape(row.method)}{under}</th>{cells}</tr>'


def _cell(cell: Cell, metric: Metric) -> str:
    value, half = metric.text(cell.value.estimate), metric.half(cell.value)
    text = f'{value} <span class="half">{half}</span>' if half else value
    if cell.gap is not None and math.isfinite(cell.gap.estimate):
        gap = metric.text(cell.gap.estimate, like=cell.value.estimate, signed=True)
        spread = cell.gap._replace(estimate=cell.value.estimate)
        half = metric.half(spread)
        text += f'<small>{gap} {half} <b class="mark">{mark(cell)}</b></small>'
    kind = ' class="inside"' if mark(cell) == MARKS[0][0] else ""
    return f"<td{kind}>{text}</td>"


def _null_row(summary: Summary, metrics: Sequence[Metric]) -> str:
    if not any(metric.key in summary.null for metric in metrics):
        return ""
    cells = ""
    for metric in metrics:
        null = summary.null.get(metric.key)
        text = "" if null is None else metric.text(null.mean)
        if null is not None and null.band is not None:
            half = metric.text(null.band.high, like=null.mean)
            text += f'<small>±{half} <b class="mark"></b></small>'
        cells += f"<td>{text}</td>"
    banded = any(metric.band for metric in metrics if metric.null)
    under = "<small>mean, 95% band of a single gap</small>" if banded else ""
    return f'<tfoot><tr><th scope="row">retrain vs retrain{under}</th>{cells}</tr></tfoot>\n'


def _pictures(summary: Summary) -> str:
    sections = []
    if summary.null:
        sections.append(
            _figure(
                "Forgetting, utility and cost",
                plots.trade_offs(summary),
                "two",
                "Green: the retrain-vs-retrain bands; where both cross is where a retrained model "
                "would lie. Filled marks are inside the band of JSD, hollow ones outside. The area "
                "of a mark grows with the sample gradients spent, as a share of Retrain's. "
                "Diamond: Retrain; square: no-op. Lines: 95% intervals over seeds.",
            )
        )
        sections.append(
            _figure(
                "Gap to Retrain, metric by metric",
                plots.gaps(summary),
                "three",
                "Mean gap over seeds with its 95% interval. Green: where the gap of one more "
                "retrained model would lie, 95%. An interval that stays on one side of 0 is a "
                "steady shift, inside the band or not. An arrow points to a value off the scale.",
            )
        )
    sections.append(
        _figure(
            "Losses of forgotten and of test rows",
            plots.loss_histograms(summary),
            "four",
            "Filled: forgotten rows; line: test rows; dashed: forgotten rows under Retrain, the "
            "yardstick. All seeds together, density per decade. A model that still "
            "remembers has its filled area to the left of the dashed line.",
        )
    )
    return "\n".join(section for section in sections if section)


def _figure(title: str, pictures: Sequence[str], columns: str, caption: str) -> str:
    if not pictures:
        return ""
    panels = "\n".join(f'<div class="card">{picture}</div>' for picture in pictures)
    return f"""<section>
<h2>{escape(title)}</h2>
<figure style="margin: 0">
<figcaption>{escape(caption)}</figcaption>
<div class="panels {columns}">
{panels}
</div>
</figure>
</section>"""


def _reading(summary: Summary) -> str:
    each = summary.references / max(len(summary.seeds), 1)
    terms = "\n".join(
        f"<dt>{escape(m.short)}</dt><dd><b>{escape(m.title)}.</b> {escape(m.meaning)}</dd>"
        for m in METRICS
    )
    return f"""<section>
<h2>How to read it</h2>
<p>The aim of unlearning is a model that could have come from training without the rows. So no
number is good or bad by itself: it is compared with {each:.3g} models retrained for each seed, and
the gap with what retrained models differ by among each other, the retrain-vs-retrain band. Two rows
are always there: <b>retrain</b>, which is exact, and <b>noop</b>, which does nothing.</p>
<p><b>What a mark means.</b> The method's mean gap lies inside the 95% band of the gaps of
<em>single</em> retrained models. A mean over seeds varies less than a single model, so a small but
steady shift can lie inside. {escape(CAUTION)}</p>
<dl>
{terms}
</dl>
</section>"""


def _methods(summary: Summary) -> str:
    rows = "\n".join(
        f'<tr><th scope="row">{escape(row.method)}</th><td>{escape(row.guarantee)}</td>'
        f"<td>{_pairs(row.hparams)}</td></tr>"
        for row in summary.rows
    )
    columns = "".join(
        f'<th scope="col">{title}</th>' for title in ("Method", "Guarantee", "Settings")
    )
    return f"""<section>
<h2>Methods and what they guarantee</h2>
<div class="card scroll"><table class="text">
<thead><tr>{columns}</tr></thead>
<tbody>
{rows}
</tbody></table></div>
</section>"""


def _settings(summary: Summary) -> str:
    seeds = ", ".join(map(str, summary.seeds))
    values = {**summary.config, "seeds": seeds, **summary.task}
    rows = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{_value(value)}</td></tr>'
        for name, value in values.items()
        if value not in (None, "", [], ())
    )
    return f"""<section>
<h2>Configuration and environment</h2>
<div class="card scroll"><table class="text"><tbody>
{rows}
</tbody></table></div>
</section>"""


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return _pairs(value)
    if isinstance(value, list | tuple):
        return escape(", ".join(map(str, value)))
    return f"<code>{escape(str(value))}</code>"


def _pairs(values: dict[str, Any]) -> str:
    return (
        ", ".join(f"<code>{escape(f'{k}={v}')}</code>" for k, v in flat(values).items()) or "none"
    )
