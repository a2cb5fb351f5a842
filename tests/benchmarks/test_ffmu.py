"""FFMU's benchmark and table: that they can fail, and that rows land where they belong."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import ffmu as benchmark
from benchmarks.harness import Options
from benchmarks.tables import ffmu as table
from jaxunlearn import data, models
from jaxunlearn.federated import partition

pytestmark = pytest.mark.usefixtures("compiled_in_haste")


def test_removals_leave_what_they_say():
    part = partition.iid(0, 200, benchmark.CLIENTS)
    y = jnp.arange(200) % 10
    gone = [~np.asarray(benchmark.removal(jax.random.key(1), i, part, y)) for i in range(5)]
    assert gone[0].sum() == 2 and set(np.flatnonzero(gone[0])) in map(set, part.rows.tolist())
    assert gone[1].sum() == 20 and 5 < gone[2].sum() < 40
    assert len(set(np.asarray(y)[gone[3]])) == 1 and gone[3].sum() == 20
    assert gone[4].sum() == 1


def test_a_gap_is_seen_and_none_is_made_up(monkeypatch):
    model = models.logistic(3)
    x = jnp.ones((4, 2))
    params = model.init(jax.random.key(0), x)
    before = jax.tree.map(lambda p: jnp.full(p.shape, 2.0), params)
    before["Dense_0"]["kernel"] = before["Dense_0"]["kernel"].at[:, 0].set(-2.0)
    after = jax.tree.map(jnp.negative, before)
    gap = lambda a, b: benchmark.output_gap(
        jax.random.key(0), params, a, b, x, 1.0, model=model, sigma=0.5
    )
    assert gap(before, before) == 0 and gap(before, after) > 0.5


@pytest.mark.slow
def test_soundness_counts_violations(monkeypatch):
    splits = data.load("digits")
    few = splits._replace(
        train=jax.tree.map(lambda leaf: np.tile(leaf, (7,) + (1,) * (leaf.ndim - 1)), splits.train)
    )
    monkeypatch.setattr(benchmark.harness, "dataset", lambda name, options: few)
    monkeypatch.setattr(benchmark, "DRAWS", 2)
    monkeypatch.setattr(benchmark, "ROWS", 200)
    found = benchmark.soundness(Options())
    assert found.metrics["bound_violations"] == 0 and found.description["draws"] == 12
    assert 0 < found.metrics["bound_sigma1"] <= 1
    nothing = lambda *args: benchmark.client_certificate(
        jnp.zeros((2, 1)), jnp.zeros(1), 1.0
    )._replace(bound=jnp.float32(1e-6))
    monkeypatch.setattr(benchmark, "removal_certificate", nothing)
    assert benchmark.soundness(Options()).metrics["bound_violations"] > 0


@pytest.mark.slow
def test_table(capsys, tmp_path, monkeypatch):
    splits = data.load("digits")
    monkeypatch.setattr(table._removal.harness, "dataset", lambda name, options: splits)
    how = "--rows 120 --clients 3 --rounds 2 --seeds 2 --model logistic --requests 20%"
    how = [*how.split(), "--out", str(tmp_path / "kept")]
    table.main([*how, "--json", str(tmp_path / "table.json")])
    printed = capsys.readouterr().out
    assert "FedAvg, no unlearning" in printed and "FedEraser (paper)" in printed
    found = json.loads((tmp_path / "table.json").read_text())
    accuracy, error = (found["metrics"][f"20%.UN.{c}"]["mean"] for c in ("accuracy", "error_t"))
    assert accuracy + error == pytest.approx(100)
    assert found["metrics"]["20%.FFMU.unlearning_s"]["mean"] > 0
    assert found["paper"]["20%.FFMU"]["accuracy"] == 84.55
    assert 0 < found["metrics"]["20%.FFMU.removal bound"]["mean"] <= 1
    # Again: everything is there already, and other options are refused.
    monkeypatch.setattr(table, "_one", lambda *args: pytest.fail("it was kept"))
    table.main(how)
    with pytest.raises((SystemExit, ValueError), match="rows"):
        table.main([*how, "--rows", "150"])


def test_papers_rows_hang_together():
    for block in table.PAPER_ROWS.values():
        for accuracy, error, *_, training, unlearning, total in block.values():
            np.testing.assert_allclose(accuracy + error, 100)
            assert abs(training + unlearning - total) <= 1


def test_bad_request():
    with pytest.raises(SystemExit, match="3%"):
        table.main(["--requests", "3%"])
