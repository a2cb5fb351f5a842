"""The MUter benchmark and table, on the embedded digits."""

import json

import pytest

from benchmarks import muter, muter_picture
from benchmarks.harness import Options
from benchmarks.tables import muter as table


@pytest.fixture(autouse=True)
def without_mnist(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))


@pytest.mark.slow
def test_linear_removal_on_the_embedded_digits():
    result = muter.linear_removal(Options(quick=True))
    assert result.description["data"] == "digits 1 against 7"
    assert result.metrics.keys() <= muter.TARGETS.keys()
    assert result.metrics["kkt_fd_error"] < 1e-6
    assert result.metrics["l2_ratio"] < 0.1 < result.metrics["l2_ratio_paper"]


@pytest.mark.slow
def test_the_table_writes_its_figures_and_does_not_repeat_them(tmp_path, capsys):
    folder = tmp_path / "table"
    table.main(["--folder", str(folder), "--quick"])
    block = json.loads((folder / "logistic-l2.json").read_text())
    line = block["lines"][0]
    assert line["removed"] == 1 and line["Retrain"]["distance"] == 0
    assert line["MUter (ours)"]["distance"] < 0.2 * line["no-op"]["distance"]
    assert "no-op" in capsys.readouterr().out
    before = (folder / "logistic-l2.json").stat().st_mtime_ns
    table.main(["--folder", str(folder), "--quick"])
    assert (folder / "logistic-l2.json").stat().st_mtime_ns == before


def test_the_picture_is_drawn(tmp_path):
    muter_picture.draw(tmp_path / "maximum.png")
    assert (tmp_path / "maximum.png").stat().st_size > 10_000
