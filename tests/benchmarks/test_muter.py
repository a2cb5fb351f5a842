"""The MUter benchmark and table, on the embedded digits."""

import io
import json

import pytest
from rich.console import Console

from benchmarks import muter, muter_picture
from benchmarks.harness import Options
from benchmarks.tables import _muter_pixel
from benchmarks.tables import muter as table
from jaxunlearn.methods.muter import RULES


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
    run = line["runs"][0]
    assert line["removed"] == 1 and run["Retrain"]["distance"] == 0
    assert run["MUter (ours)"]["distance"] < 0.2 * run["no-op"]["distance"]
    assert run["Retrain, other start"]["distance"] < 1e-3 * run["no-op"]["distance"]
    printed = capsys.readouterr().out
    assert "no-op" in printed and "ridge, LInfBox" in printed and "rows at kinks" in printed
    before = (folder / "logistic-l2.json").stat().st_mtime_ns
    table.main(["--folder", str(folder), "--quick"])
    assert (folder / "logistic-l2.json").stat().st_mtime_ns == before


def test_the_table_of_networks_shows_intervals_warnings_and_noise():
    line = {"noop": 2.0, "retrain_gradient": 0.0, "seconds": {"retrain": 1.0}, "matrix-free": 1e-9}
    line |= {"iterations": 7, "muter + refresh": 0.02, "muter, PGD-10 raw": 1.0}
    line |= {"muter, PGD-10 refined": 0.2, **dict.fromkeys(RULES, 0.1)}
    line |= dict.fromkeys(("clean", "clean_retrain", "robust", "robust_retrain"), 0.9)
    line["seconds"] |= dict.fromkeys(RULES, 0.001)
    run = {"gradient": 1e-12, "inner_residual": 0.0, "fallback": 3, "fd_kkt": 1e-9}
    run |= {"fd_direct": 0.2, "removals": {"1": line}}
    twice = {**line, "muter": 0.4}
    case = {"setting": {"act": "tanh", "radius": 0.15, "box": False}, "warnings": ["stopped early"]}
    case |= {"runs": [run, {**run, "removals": {"1": twice}}]}
    case["warnings"].append("stopped later")
    case["noise"] = [{"sigma": 0.01, "distance": 0.3, "clean": 0.9, "robust": 0.7}]
    console = Console(width=200, record=True, file=io.StringIO())
    _muter_pixel.show([case], console)
    text = console.export_text()
    # The geometric mean of .05 and .2, and Student's interval of two logarithms.
    assert "0.1 [1.5e-05, 6.7e+02]" in text
    for said in (
        "tanh-l2-0.15 warned: stopped early (and 1 like it)",
        "noise 0.01",
        "(7 steps)",
        "2 of 2",
    ):
        assert said in text


def test_the_picture_is_drawn(tmp_path):
    muter_picture.draw(tmp_path / "maximum.png")
    assert (tmp_path / "maximum.png").stat().st_size > 10_000
