"""PCMU's benchmark judges rightly: its attempts find what is not certified."""

import json

import jax
import numpy as np
import pytest

from benchmarks import pcmu as benchmark
from benchmarks.tables import pcmu as table
from jaxunlearn import Dataset, data, models
from jaxunlearn.models import cross_entropy

pytestmark = pytest.mark.usefixtures("compiled_in_haste")


@pytest.fixture(scope="module")
def case():
    train = data.load("digits").train
    rows = Dataset(train.x[:500], train.y[:500])
    model = models.mlp(10, hidden=(4,))
    return cross_entropy(model.apply), model.init(jax.random.key(0), rows.x[:1]), rows


def tried() -> dict[str, int]:
    return dict.fromkeys(benchmark.TRIED, 0)


def test_no_attempt_succeeds(case):
    counts = tried()
    wrong, flips, sure = benchmark._at_random(*case, jax.random.key(0), counts)
    assert wrong == 0 and counts["removals"] == len(flips) == 36
    assert counts["certified for any rows"] > 0
    assert 0 < max(flips) < 1 and 0 < min(sure) < 1
    assert benchmark._every_single_row(*case, counts) == 0 and counts["single rows"] == 500
    assert benchmark._worst_rows(*case, counts) == 0 and counts["worst cases"] > 50


def test_attempts_succeed_against_wrong_certificates(case, monkeypatch):
    """The counts are no zeros by construction: an exaggerated radius or budget is caught."""
    true = benchmark.smoothing.smooth_quantize
    wide = lambda g, *how: (found := true(g, *how))._replace(
        radius=jax.tree.map(lambda r: 2 * r + 1e-3, found.radius)
    )
    monkeypatch.setattr(benchmark.smoothing, "smooth_quantize", wide)
    assert benchmark._at_random(*case, jax.random.key(0), tried())[0] > 0
    certify = benchmark.removal_certificate
    monkeypatch.setattr(benchmark.smoothing, "smooth_quantize", true)
    monkeypatch.setattr(
        benchmark, "removal_certificate", lambda g, n, k, clip: certify(g, 100 * n, k, clip=clip)
    )
    assert benchmark._every_single_row(*case, tried()) > 0
    assert benchmark._at_random(*case, jax.random.key(0), tried())[0] > 0
    exact = benchmark.exact_budget
    monkeypatch.setattr(benchmark, "exact_budget", lambda v: exact(v) + 1)
    assert benchmark._worst_rows(*case, tried()) > 0


def test_table(capsys, tmp_path, monkeypatch):
    splits = data.load("digits")
    monkeypatch.setattr(table._removal.harness, "dataset", lambda name, options: splits)
    monkeypatch.setattr(table, "VARIANTS", {"PCMU": table.VARIANTS["PCMU"]})
    path = tmp_path / "table.json"
    how = "--rows 200 --epochs 2 --seeds 2 --model logistic --requests 20%,class"
    table.main([*how.split(), "--json", str(path)])
    printed = capsys.readouterr().out
    assert "SGD, no unlearning" in printed and "PCMU (paper)" in printed
    found = json.loads(path.read_text())["metrics"]
    error = found["one class.Retrain.error_f"]
    assert error == {"mean": 100.0, "interval": [100.0, 100.0]}  # a class it never saw
    accuracy, error = (found[f"20%.PCMU.{c}"]["mean"] for c in ("accuracy", "error_t"))
    assert accuracy + error == pytest.approx(100) and 20 < accuracy < 100
    assert 0 < found["20%.PCMU.any"]["mean"] <= found["20%.PCMU.random"]["mean"] <= 1


def test_claim():
    values = {"accuracy": 0.5, "error_t": -0.5, "error_r": 3.9, "error_f": 0.9}
    assert table.keeps_claim(values) and not table.keeps_claim(values | {"error_f": -1.1})


def test_papers_rows_hang_together():
    for block in table.PAPER_ROWS.values():
        for accuracy, error, *_, training, unlearning, total in block.values():
            np.testing.assert_allclose(accuracy + error, 100)
            assert training + unlearning == total


def test_bad_request():
    with pytest.raises(SystemExit, match="3%"):
        table.main(["--requests", "3%"])
