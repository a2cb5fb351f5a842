"""PRUNE's benchmark has the keys that it promises, and its tables the paper's numbers."""

import pytest

from benchmarks import prune
from benchmarks.harness import Options
from benchmarks.tables import _prune_paper as prune_paper
from benchmarks.tables import _prune_show
from benchmarks.tables import prune as tables

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
    monkeypatch.setattr(tables, "folder", lambda options: None)
    setting = tables.Setting("digits", tables.Options(epochs=5, rows=300))
    found = tables.points(setting, (5,), 0, peers=False)[5]
    assert list(found) == ["noop", *(f"prune {mode}" for mode in tables.MODES)]
    assert all(list(row) == list(_prune_show.COLUMNS) for row in found.values())
    noop, point = found["noop"], found["prune point"]
    assert noop["A_u"] == noop["A_u before"] > 50 and point["A_u"] == 0
    assert point["A_te"] == noop["A_te"] and point["recall"] < noop["recall"]


def test_the_papers_numbers_are_complete():
    for dataset in ("mnist", "fashion_mnist"):
        by_size = prune_paper.TABLE_III[dataset]
        assert list(by_size) == [100, 200, 300, 500]
        methods = set(prune_paper.TABLE_IV[dataset])
        assert all(set(rows) == methods for rows in by_size.values())
        assert all(len(row) == 4 for rows in by_size.values() for row in rows.values())
        assert all(rows["amnesiac"][3] == 0 for rows in by_size.values())
