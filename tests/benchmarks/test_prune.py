"""PRUNE's benchmark has the keys that it promises, and its tables the paper's numbers."""

import io

import pytest
from rich.console import Console

from benchmarks import prune
from benchmarks.harness import Options
from benchmarks.tables import _prune_paper as prune_paper
from benchmarks.tables import _prune_show
from benchmarks.tables import prune as tables
from jaxunlearn import Dataset, data, models

pytestmark = pytest.mark.usefixtures("compiled_in_haste")


def test_without_mnist_its_metrics_are_null(monkeypatch):
    monkeypatch.setattr(prune, "trained", lambda: None)
    metrics = {**prune.point(Options()).metrics, **prune.region(Options()).metrics}
    assert set(metrics.values()) == {None}
    assert metrics.keys() < prune.TARGETS.keys()
    assert len(prune.TARGETS) == len(metrics) + 3


def test_the_constant_is_optimal():
    result = prune.constant(Options(quick=True))
    assert result.metrics["lp_gap"] <= 1e-6


def test_tables_have_a_row_for_every_method(monkeypatch):
    monkeypatch.setattr(tables, "MODES", ("point",))  # the others compile for seconds
    monkeypatch.setattr(tables, "PEERS", {})
    monkeypatch.setattr(tables, "CLUSTERS", (4,))
    digits = data.load("digits")
    rows, test = (
        Dataset(p.x[:300].reshape(-1, 64), p.y[:300]) for p in (digits.train, digits.test)
    )
    setting = tables.Setting(rows, test, epochs=30, model=models.mlp(10, hidden=(128, 64)))
    found = tables.points(setting, (20,), 0)[20]
    assert list(found) == ["noop", "retrain", "again", "prune point"]
    assert all(list(row) == list(tables.COLUMNS) for row in found.values())
    noop, point, retrain = (found[name] for name in ("noop", "prune point", "retrain"))
    assert noop["A_u"] == noop["A_u before"] == retrain["A_u before"] == 100
    assert point["A_u"] == 0 < retrain["A_u"] < 100
    assert point["A_te"] == noop["A_te"] and point["recall"] < noop["recall"]
    curves = tables.convergence(setting, (20,), 0)
    assert list(curves["clusters"]) == ["4"] and list(curves["sizes"]) == ["20"]
    for curve in [*curves["clusters"].values(), *curves["sizes"].values()]:
        assert curve == sorted(curve, reverse=True) and curve[0] < 100 > curve[-1] == 0
    again = [found["again"][column] for column in tables.AFTER]  # another key and other rows
    assert again != [retrain[column] for column in tables.AFTER]


def test_points_are_summarised_over_seeds():
    row = lambda value: dict.fromkeys(tables.COLUMNS, value)
    seeds = [
        {5: {"noop": row(7.0), "retrain": row(value), "again": row(value + 1)}}
        for value in (1.0, 2.0, 6.0)
    ]
    found = tables.over_seeds(seeds)
    cell = found["points"][5]["retrain"]["A_u"]
    half = 4.302653 * 7**0.5 / 3**0.5  # Student's quantile with 2 degrees of freedom
    assert cell["mean"] == 3 and cell["interval"] == pytest.approx([3 - half, 3 + half])
    assert found["points"][5]["noop"]["A_u"]["interval"] == [7, 7]
    assert list(found["points"][5]) == ["noop", "retrain"]
    low, high = found["one more retrain"][5]["A_u"]
    half = 2.570582 * 5.9**0.5 * (1 + 1 / 6) ** 0.5
    assert [low, high] == pytest.approx([3.5 - half, 3.5 + half])
    assert "unlearn" not in found["one more retrain"][5]
    [text] = [
        line for line in shown({"digits": {"training_s": 1.0, **found}}) if "Retrain," in line
    ]
    assert f"{low:.1f} – {high:.1f}" in text


def test_one_seed_has_no_interval():
    row = dict.fromkeys(tables.COLUMNS, 50.0)
    found = tables.over_seeds([{5: {"noop": row, "retrain": row, "again": row}}])
    assert found["points"][5]["retrain"]["A_u"]["interval"] == [None, None]
    assert found["one more retrain"][5] == {}
    text = "".join(shown({"digits": {"training_s": 1.0, **found}}))
    assert "one seed" in text and "50.0" in text
    assert not any(word in text for word in ("±", "nan", "one more Retrain"))


def shown(out: dict) -> list[str]:
    file = io.StringIO()
    _prune_show.show(out, Console(file=file, width=200))
    return file.getvalue().splitlines()


def test_the_papers_numbers_are_complete():
    for dataset in ("mnist", "fashion_mnist"):
        by_size = prune_paper.TABLE_III[dataset]
        assert list(by_size) == [100, 200, 300, 500]
        methods = set(prune_paper.TABLE_IV[dataset])
        assert all(set(rows) == methods for rows in by_size.values())
        assert all(len(row) == 4 for rows in by_size.values() for row in rows.values())
        assert all(rows["amnesiac"][3] == 0 for rows in by_size.values())
