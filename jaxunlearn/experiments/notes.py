"""What a summary says in words: the verdict, and what keeps its numbers from saying more."""

import math
from collections.abc import Iterable

from jaxunlearn.experiments.metrics import BY_KEY, METRICS
from jaxunlearn.experiments.summary import Cell, Summary
from jaxunlearn.types import Status

# The columns that the verdict looks at: what was kept, what was forgotten, and how it looks.
VERDICT = ("acc_test", "acc_forget", "jsd")

MARKS = (
    ("•", "the mean gap to Retrain lies inside the 95% band of single retrain-vs-retrain gaps"),
    ("◐", "inside too, but a steady shift: the 95% interval of the mean gap excludes 0"),
    ("◦", "inside too, but so is the no-op row: this column cannot show forgetting here"),
)
# What the marks leave open.
CAUTION = (
    "In TA and RA a mark says only that nothing was lost. No mark is evidence that a method is "
    "equal to retraining. With one seed, one in twenty exact methods lies outside the band; with "
    "five, practically none: more seeds do not sharpen the mark. Look then whether the interval of "
    "the gap excludes 0 (◐), which chance alone does in one of twenty cells."
)


def mark(cell: Cell) -> str:
    """The mark of a cell; nothing outside the band or where there is none."""
    (inside, _), (steady, _), (blind, _) = MARKS
    if not cell.inside:
        return ""
    return steady if cell.steady else blind if cell.blind else inside


def headline(summary: Summary) -> str:
    """What was compared.

    Example:
      >>> task = {"dataset": "digits", "arch": "mlp", "n_train": 1347, "n_forget": 269}
      >>> headline(Summary((), {}, (), 0, task, {}))
      'Unlearning 269 of 1,347 rows: digits, mlp'
    """
    task = summary.task
    forget, n = _number(task.get("n_forget")), _number(task.get("n_train"))
    kind = " of one class" if task.get("forget_mode") == "class" else ""
    return f"Unlearning {forget} of {n} rows{kind}: {task.get('dataset')}, {task.get('arch')}"


def scope(summary: Summary) -> str:
    """How much was run."""
    methods, seeds = len(summary.rows), len(summary.seeds)
    return (
        f"{_count(methods, 'method')} on {_count(seeds, 'seed')}. Each seed draws its own request, "
        "initial parameters and order of rows, and every method is compared with models retrained "
        f"without the requested rows: {summary.references} in all."
    )


def verdict(summary: Summary) -> str:
    """Which methods are inside the null band of test accuracy, forget accuracy and JSD at once."""
    names = _listed(BY_KEY[key].short for key in VERDICT)
    rows = [row for row in summary.rows if row.method not in ("noop", "retrain")]
    good = [row for row in rows if all(row.cells[key].inside for key in VERDICT)]
    passed = [row.method for row in good]
    shifted = [row.method for row in good if any(row.cells[key].steady for key in VERDICT)]
    text = ""
    noop = summary.row("noop")
    if noop is not None and all(noop.cells[key].inside for key in VERDICT):
        return (
            f"No conclusion: doing nothing lies inside the retrain-vs-retrain band of {names} "
            "itself, so no method can be told to have forgotten here. Train longer, use a larger "
            "model, or forget a class."
        )
    if rows:
        which = f": {_listed(passed)}" if passed else ""
        text = f"{len(passed) or 'None'} of {_count(len(rows), 'method')} "
        text += f"{'lie' if len(passed) > 1 else 'lies'} inside the retrain-vs-retrain band of "
        text += f"{names} at once{which}. "
        text += f"With a steady shift all the same: {_listed(shifted)}. " if shifted else ""
    for name, title in (("retrain", "Retrain itself"), ("noop", "Doing nothing")):
        row = summary.row(name)
        if row is not None:
            out = [BY_KEY[key].short for key in VERDICT if not row.cells[key].inside]
            text += (
                f"{title} is outside for {_listed(out)}. "
                if out
                else (f"{title} is inside all {len(VERDICT)}. ")
            )
    return text.strip()


def notes(summary: Summary) -> list[str]:
    """What a reader must know before trusting the numbers; most serious first."""
    return [
        *_runs(summary),
        *_yardstick(summary),
        *_own_training(summary),
        *_blind(summary),
        *_attack(summary),
        *_sample(summary),
        *_machines(summary),
    ]


def advice(status: str) -> str:
    """What to make of a row with a status that is not OK."""
    if status == Status.BEYOND_CERTIFICATE.name:
        return "its numbers stand, but nothing is certified about the whole request."
    return "its row is not to be trusted."


def _runs(summary: Summary) -> Iterable[str]:
    for row in summary.rows:
        for status in dict.fromkeys(row.failures.values()):
            seeds = [str(seed) for seed, found in row.failures.items() if found == status]
            yield f"{row.method} reported {status} for seed {_listed(seeds)}: {advice(status)}"
    for row in summary.rows:
        keys = [m for m in METRICS if not m.ratio and math.isnan(row.cells[m.key].value.estimate)]
        if keys:
            yield (
                f"{row.method} has runs without a finite value of "
                f"{_listed(m.short for m in keys)}: no mean is given, "
                "since leaving those runs out would flatter it."
            )
    missing = [
        f"{row.method} ({len(row.seeds)} of {len(summary.seeds)} seeds)"
        for row in summary.rows
        if len(row.seeds) < len(summary.seeds)
    ]
    absent = [name for name in ("noop", "retrain") if summary.row(name) is None]
    if missing or absent:
        yield (
            f"Unfinished: {_listed(missing + [f'{name} (no seed)' for name in absent])}. "
            "Run the same command to go on."
        )
    if not summary.references:
        yield "No retrained models yet: there are no gaps and no bands."


def _yardstick(summary: Summary) -> Iterable[str]:
    retrain = summary.row("retrain")
    if retrain is None:
        return
    outside = [m.short for m in METRICS if retrain.cells[m.key].inside is False]
    if outside:
        yield (
            f"Retrain, which is exact, lies outside the band of {_listed(outside)} itself: "
            "do not judge the others by it here."
        )


def _own_training(summary: Summary) -> Iterable[str]:
    names = [row.method for row in summary.rows if row.own_training]
    if names:
        yield (
            f"{_listed(names)} {'trains' if len(names) == 1 else 'train'} in another way than "
            "Retrain and the references: gaps and bands compare the trainings too, and a place "
            "inside the band, or outside, may come from that alone."
        )


def _blind(summary: Summary) -> Iterable[str]:
    noop = summary.row("noop")
    if noop is None:
        return
    blind = [m for m in METRICS if noop.cells[m.key].blind]
    if not blind:
        return
    text = f"Doing nothing lies inside the band of {_listed(m.short for m in blind)}: "
    text += "there a place inside the band (◦) is no sign of forgetting."
    if "jsd" in {m.key for m in blind}:  # FRM's band alone may be wide by its MIA
        text += (
            " This task can hardly show forgetting: the original is too close to retrained models. "
            "Train longer, use a larger model, or forget a class."
        )
    yield text


def _attack(summary: Summary) -> Iterable[str]:
    shadow = summary.null.get("shadow")
    if shadow is not None and shadow.mean < 0.55:
        yield (
            f"The membership attack has almost no power: on retrained models it is right on "
            f"{100 * shadow.mean:.1f}% of the rows it was trained on (50% is chance). "
            "MIA and FRM, which counts it, say little here; look at JSD and AUC."
        )
    mia = summary.null.get("mia")
    if mia is None or mia.band is None:
        return
    if mia.mean < 0.1 or mia.band.high > mia.mean / 2:
        factor = math.exp(-0.01 / mia.mean) if mia.mean > 0 else 0.0
        yield (
            f"FRM hangs on one ratio: it divides by Retrain's MIA, which is {100 * mia.mean:.1f}% "
            f"and varies by ±{100 * mia.band.high:.1f} points from one retrained model to another. "
            f"One point of MIA multiplies FRM by {factor:.2f}."
        )


def _sample(summary: Summary) -> Iterable[str]:
    seeds = len(summary.seeds)
    if seeds < 5:
        yield (
            f"Only {_count(seeds, 'seed')}: intervals are "
            f"{'missing' if seeds < 2 else 'wide and uncertain'}. Five are a start; to see a "
            "difference of .05 in FRM takes some two dozen."
        )
    if 0 < summary.references < 5 * seeds:
        yield (
            f"Only {summary.references / seeds:.3g} retrained models a seed: the bands are rough. "
            "Use five or more."
        )


def _machines(summary: Summary) -> Iterable[str]:
    mixed = [
        name
        for name in ("device", "cpu", "n_threads", "jax", "jaxunlearn", "git")
        if isinstance(summary.task.get(name), tuple)
    ]
    if mixed:
        yield f"The records differ in {_listed(mixed)}: their times are not comparable."


def _number(value) -> str:
    """A count with commas; the range of a tuple of them."""
    if isinstance(value, tuple):
        return f"{min(value):,}–{max(value):,}"
    return f"{value:,}" if isinstance(value, int) else "?"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _listed(names: Iterable[str]) -> str:
    *first, last = [*names] or [""]
    return f"{', '.join(first)} and {last}" if first else last
