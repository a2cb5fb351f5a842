"""The report is one sound HTML file, and the table never cuts a number."""

import html.parser
import io
import re
from collections import Counter

import numpy as np
import pytest
from rich.console import Console

from jaxunlearn.experiments.metrics import METRICS
from jaxunlearn.experiments.notes import MARKS, mark
from jaxunlearn.experiments.report import write_report
from jaxunlearn.experiments.summary import summarise
from jaxunlearn.experiments.table import print_table

VOID = {"meta", "br", "hr", "img", "link", "input"}


def scores(rng, shift=0.0):
    return {
        "acc_test": float(rng.normal(0.96 + shift, 0.004)),
        "acc_retain": float(rng.normal(0.99, 0.001)),
        "acc_forget": float(rng.normal(0.95 - shift, 0.004)),
        "mia": {
            "efficacy": float(rng.uniform(0.05, 0.09)),
            "shadow_acc": 0.53,
            "auc": float(rng.normal(0.51, 0.01)),
            "tpr_at_1fpr": float(rng.uniform(0, 0.02)),
        },
    }


def made_up(names, *, seeds=3, references=5):
    """Records as ``compare`` writes them, with values drawn at random."""
    rng = np.random.default_rng(0)
    common = {"dataset": "digits", "arch": "mlp", "n_train": 1347, "n_forget": 269, "jax": "0.10"}
    records = []
    for seed in range(seeds):
        records.append(
            {
                "run_id": f"references/seed-{seed}",
                "kind": "references",
                "seed": seed,
                **common,
                "scores": [scores(rng) for _ in range(references)],
                "frm_null": rng.uniform(0.8, 0.95, references).tolist(),
                "jsd_null": rng.uniform(0.0015, 0.0025, references).tolist(),
                "param_l2_null": rng.uniform(18, 20, references - 1).tolist(),
            }
        )
        for number, name in enumerate(names):
            counts = rng.multinomial(200, np.full(40, 1 / 40))
            records.append(
                {
                    "run_id": f"{name}/seed-{seed}",
                    "kind": "method",
                    "method": name,
                    "seed": seed,
                    **common,
                    "guarantee": "exact" if name == "retrain" else "none",
                    "hparams": {"epochs": 5, "then": {"rate": 0.1}},
                    "status": "OK",
                    **scores(rng, -0.01 * number),
                    "unlearn_s": float(rng.uniform(0.01, 1)),
                    "compile_s": 1.5,
                    "grads": 0.0 if name == "noop" else 1000.0 * (1 + number),
                    "peak_mem_bytes": 700_000,
                    "param_l2": 3.0,
                    "frm": float(rng.uniform(0.3, 0.9)),
                    "jsd_forget": float(np.exp(rng.uniform(-6.5, -2))),
                    "loss_histogram": {
                        "log10_edges": np.linspace(-6, 2, 41).tolist(),
                        "forget": counts.tolist(),
                        "test": rng.permutation(counts).tolist(),
                    },
                }
            )
    return records


class Page(html.parser.HTMLParser):
    """Tags, ids, links and text of a page; fails on tags that do not close."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.links, self.labels, self.words = [], [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values[name] for name in ("src", "href", "xlink:href") if name in values]
        self.links += re.findall(r"url\(([^)]*)\)", " ".join(v or "" for v in values.values()))
        if tag == "svg":
            self.labels.append((values.get("role"), values.get("aria-label")))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def page(records, tmp_path, **options):
    path = write_report(summarise(records, **options), tmp_path / "deep" / "report.html")
    assert path == tmp_path / "deep" / "report.html"
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def test_one_file_that_loads_nothing(tmp_path):
    names = ["noop", "retrain", "finetune", "gradient_ascent"]
    text, found = page(made_up(names), tmp_path)
    assert "script" not in found.tags and "http" not in text and "@import" not in text
    assert found.links and all(link.startswith("#") for link in found.links)
    assert {link[1:] for link in found.links} <= set(found.ids)


def test_pictures(tmp_path):
    names = ["noop", "retrain", "finetune", "gradient_ascent"]
    text, found = page(made_up(names), tmp_path)
    assert len(set(found.ids)) == len(found.ids)
    banded = sum(metric.band for metric in METRICS if metric.null)
    assert len(found.labels) == 2 + banded + len(names)
    assert all(role == "img" and label for role, label in found.labels)
    assert any("finetune" in label and "JSD" in label for _, label in found.labels)
    assert "<style" in text and found.tags.count("style") == 1
    # Text stays text: the name stands in both trade-offs, every gap and its own histogram.
    assert sum(word.strip() == "gradient_ascent" for word in found.words) >= 2 + banded + 1


def test_names_from_records_cannot_become_markup(tmp_path):
    evil = "a<b>&\"'$x_1$"
    text, found = page(made_up(["noop", "retrain", evil]), tmp_path, config={"<i>": {"<u>": "&"}})
    assert "<b>&" not in text and "<i>" not in text and "<u>" not in text
    assert sum(word.strip() == evil for word in found.words) >= 10
    assert len(set(found.ids)) == len(found.ids)


def test_all_methods_settings_and_configuration_are_there(tmp_path):
    names = ["noop", "retrain", *(f"method_{i}" for i in range(18))]
    text, found = page(made_up(names), tmp_path, config={"train": {"epochs": 77}})
    heads = [word for word in found.words if word in names]
    assert set(heads) == set(names)
    assert "then.rate=0.1" in text and "epochs=77" in text
    for metric in METRICS:
        assert metric.heading in found.words and metric.title + "." in found.words


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_unfinished_jobs_have_a_report(count, tmp_path):
    records = made_up(["noop", "retrain", "finetune"], seeds=1)[:count]
    text, _ = page(records, tmp_path)
    assert ("Unfinished" in text) == (count < 3)


def test_failed_runs_are_flagged_and_numbers_missing(tmp_path):
    records = made_up(["noop", "retrain", "bad"])
    for record in records:
        if record.get("method") == "bad":
            record |= {"status": "NOT_FINITE", "acc_test": None, "jsd_forget": None, "frm": None}
    text, found = page(records, tmp_path)
    assert "! NOT_FINITE" in found.words
    assert "no value" in " ".join(found.words) and "nan" not in " ".join(found.words)


def printed(records, width, encoding="utf-8"):
    buffer = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
    console = Console(file=buffer, width=width)
    print_table(summarise(records), console=console)
    buffer.flush()
    return buffer.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("width", [70, 80, 100, 120, 200])
def test_no_number_is_cut_at_any_width(width):
    names = ["noop", "retrain", "influence_woodfisher", "gradient_ascent+pruning"]
    records = made_up(names)
    text = printed(records, width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for row in summarise(records).rows:
        for metric in METRICS:
            assert metric.text(row.cells[metric.key].value.estimate) in text
    headings = re.split(r"\s\s+|\n", text)
    assert all(headings.count(metric.heading) == 1 for metric in METRICS)


def test_rows_in_order_and_null_row_last():
    lines = printed(made_up(["finetune", "retrain", "noop"]), 120).splitlines()
    first = [line.split("  ")[0] for line in lines if line and line[0] != " "]
    start = first.index("noop")
    assert [name for name in first[start:] if name][:4] == [
        "noop", "retrain", "finetune", "retrain vs retrain"
    ]  # fmt: skip


def test_marks_in_table_and_report_are_those_of_the_summary(tmp_path):
    records = made_up(["noop", "retrain", "finetune"])
    summary = summarise(records)
    cells = [cell for row in summary.rows for cell in row.cells.values()]
    table = printed(records, 200).split("Upper line")[0]
    expected = Counter(mark(cell) for cell in cells)
    assert {sign: table.count(sign) for sign, _ in MARKS} == {s: expected[s] for s, _ in MARKS}
    assert all(expected[sign] for sign, _ in MARKS)
    text, _ = page(records, tmp_path)
    body = text.split('<p class="key">')[0]
    assert all(body.count(f'<b class="mark">{sign}</b>') == expected[sign] for sign, _ in MARKS)


def test_plain_terminals_and_names_with_brackets():
    text = printed(made_up(["noop", "retrain", "a[bold]b"]), 120, encoding="ascii")
    assert "a[bold]b" in text and "+-" in text and "?" not in text
