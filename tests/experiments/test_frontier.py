"""A frontier: its grid, its points against single runs, who beats whom, going on after a stop."""

import csv
import dataclasses
import io
import itertools
import shutil

import numpy as np
import pytest
from rich.console import Console

from jaxunlearn import TrainConfig, cli, registry
from jaxunlearn.experiments import CompareConfig, compare, frontier, read_records
from jaxunlearn.experiments.frontier import (
    FrontierConfig,
    frontier_of,
    print_front,
    write_front,
    write_page,
)
from jaxunlearn.experiments.frontier.config import SWEEPS, settings_of
from jaxunlearn.experiments.frontier.front import AXES, non_dominated
from jaxunlearn.experiments.frontier.run import _groups
from jaxunlearn.methods.conmu import ConMUConfig

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

OPTIONS = {
    "dataset": "breast_cancer",
    "rows": 80,
    "model": "logistic",
    "seeds": 2,
    "references": 3,
    "grid": ("alpha=0,2", "proxy_epochs=0,1"),
    "finetune_grid": ("epochs=1,3", "learning_rate=.01,.1"),
    "settings": ("conmu.batch_size=16", "finetune.batch_size=16"),
    "train": TrainConfig(epochs=3, batch_size=16),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("frontier")
    return out, frontier(FrontierConfig(**OPTIONS, out=out))


def test_records(finished):
    out, records = finished
    assert read_records(out) != [] and len(records) == 2 * (3 + 4 + 4)
    points = [r for r in records if r["kind"] == "point"]
    assert {r["status"] for r in points} == {"OK"}
    for record in points:
        n_r, n_f = 64, 16
        if record["method"] == "finetune":
            assert record["grads"] == record["knobs"]["epochs"] * n_r
        else:
            m = round(n_r * record["kept_retain"]) + round(n_f * record["kept_forget"])
            delta = record["knobs"]["proxy_epochs"]
            assert record["grads"] == pytest.approx(n_r / 3 + delta * n_r + m / 3 + 5 * m, rel=1e-5)
        assert record["grad_share"] == pytest.approx(record["grads"] / (3 * n_r))
        assert record["hparams"]["batch_size"] == 16


def test_a_point_is_what_a_comparison_records(finished, tmp_path):
    """Same seed, same settings: another program, alone, gives the same numbers."""
    _, records = finished
    settings = ("conmu.alpha=2", "conmu.proxy_epochs=1", "finetune.epochs=3")
    same = {k: OPTIONS[k] for k in ("dataset", "rows", "model", "references", "train")}
    rows = compare(
        CompareConfig(
            **same, seeds=1, methods="conmu,finetune", out=tmp_path,
            settings=OPTIONS["settings"] + settings + ("finetune.learning_rate=.1",),
        )
    )  # fmt: skip
    names = {"conmu": "alpha=2,proxy_epochs=1", "finetune": "epochs=3,learning_rate=0.1"}
    for method, name in names.items():
        (alone,) = (r for r in rows if r.get("method") == method)
        (point,) = (
            r
            for r in records
            if r.get("setting") == name and r["method"] == method and not r["seed"]
        )
        assert point["grads"] == pytest.approx(alone["grads"])
        for key in ("acc_test", "acc_forget", "acc_retain", "loss_forget", "jsd_forget", "frm"):
            assert point[key] == pytest.approx(alone[key], rel=2e-3, abs=1e-5), (method, key)
    for fixed in ("noop", "retrain"):
        a, b = (next(r for r in rs if r.get("method") == fixed) for rs in (rows, records))
        assert a["acc_test"] == b["acc_test"] and a["jsd_forget"] == b["jsd_forget"]


def test_goes_on_where_it_stopped_and_may_grow(finished, tmp_path):
    out, records = finished
    folder = shutil.copytree(out, tmp_path / "copy")
    lines = (folder / "records.jsonl").read_bytes().splitlines(keepends=True)
    kept = len(lines) - 5  # killed within a chunk, while writing
    (folder / "records.jsonl").write_bytes(b"".join(lines[:kept]) + lines[kept][:40])
    small = FrontierConfig(**OPTIONS, out=folder)
    again = frontier(small)
    assert [r["run_id"] for r in again] == [r["run_id"] for r in records]
    ids = [r["run_id"] for r in read_records(folder)]
    assert len(ids) == len(set(ids)) == len(records)
    for a, b in zip(again, records, strict=True):
        if a["kind"] == "point":
            assert a["jsd_forget"] == pytest.approx(b["jsd_forget"], rel=1e-3, abs=1e-6)
    more = dataclasses.replace(small, finetune_grid=("epochs=1,3,4", "learning_rate=.01,.1"))
    assert len(frontier(more)) == len(records) + 2 * 2
    changed = dataclasses.replace(small, settings=("conmu.gamma=1", *OPTIONS["settings"]))
    with pytest.raises(ValueError, match="records of another configuration.*base"):
        frontier(changed)


# Who beats whom.


def beaten_by_hand(values):
    """One pair after the other."""
    n = len(values)
    on = [True] * n
    for i, j in itertools.permutations(range(n), 2):
        if all(values[j] <= values[i]) and any(values[j] < values[i]):
            on[i] = False
    return on


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_non_dominated(columns):
    rng = np.random.default_rng(columns)
    for values in (rng.random((30, columns)), rng.integers(3, size=(30, columns))):
        assert non_dominated(values).tolist() == beaten_by_hand(values)


def test_a_nan_beats_nobody_and_is_on_no_front():
    values = np.array([[np.nan, 0.0], [1.0, 1.0], [2.0, 0.5]])
    assert non_dominated(values).tolist() == [False, True, True]


def made_up(seeds=3):
    """Records of three settings: one good, one that the first beats, one like doing nothing."""
    rng = np.random.default_rng(0)
    task = {"dataset": "digits", "arch": "mlp", "n_train": 100, "n_forget": 20, "status": "OK"}
    scores = lambda ta, fa: {
        "acc_test": ta, "acc_forget": fa, "acc_retain": 0.99, "mia": {"efficacy": 1 - fa},
    }  # fmt: skip
    records = []
    for seed in range(seeds):
        noise = lambda: float(rng.normal(0, 1e-4))
        records.append(
            {
                "kind": "references", "run_id": f"references/{seed}", "seed": seed,
                "scores": [scores(0.9 + noise(), 0.9 + noise()) for _ in range(3)],
                "frm_null": [0.9, 0.95, 0.97], "jsd_null": [0.01, 0.011, 0.012],
            }
        )  # fmt: skip
        for name, ta, fa, jsd, frm in (
            ("retrain", 0.9, 0.9, 0.011, 0.95), ("noop", 0.91, 0.99, 0.05, 0.5)
        ):  # fmt: skip
            head = {"kind": "method", "run_id": f"{name}/{seed}", "method": name, "seed": seed}
            records.append(
                {**head, **task, **scores(ta + noise(), fa), "jsd_forget": jsd, "frm": frm}
            )
        for alpha, ta, jsd, frm, cost in (
            (0, 0.905, 0.03, 0.6, 0.1), (1, 0.9, 0.04, 0.7, 0.1), (2, 0.89, 0.06, 0.8, 0.1)
        ):  # fmt: skip
            head = {"kind": "point", "run_id": f"p{alpha}/{seed}", "method": "conmu", "seed": seed}
            knobs = {"setting": f"alpha={alpha}", "knobs": {"alpha": alpha}}
            records.append(
                {**head, **task, **knobs, **scores(ta + noise(), 0.95), "jsd_forget": jsd}
                | {"frm": frm, "grad_share": cost, "grads": 10.0}
            )
    return records


def test_the_front_of_made_up_records():
    front = frontier_of(made_up())
    names = [p.name for p in front.points]
    assert names == ["retrain", "noop", "alpha 0", "alpha 1", "alpha 2"]
    assert [p.on_front["jsd"] for p in front.points] == [True, True, True, False, False]
    assert [p.on_front["frm"] for p in front.points] == [True, True, True, True, True]
    assert [p.sure["jsd"] for p in front.points] == [1, 1, 1, 0, 0]
    for point in front.points:
        assert point.values.keys() == AXES.keys() and point.seeds == 3
    ta = front.points[2].values["acc_test"]
    assert ta.low < ta.estimate < ta.high and ta.estimate == pytest.approx(0.905, abs=1e-3)
    assert front.bands["jsd"].low < 0.011 < front.bands["jsd"].high
    assert (
        front.points[1].values["cost"].estimate == 0
        and front.points[0].values["cost"].estimate == 1
    )


def test_sure_tells_a_close_race():
    """Two settings that swap places from seed to seed are on the front in part of the resamples."""
    records = made_up(seeds=6)
    for record in records:
        if record["kind"] == "point":
            lead = 0.02 if (record["seed"] + record["knobs"]["alpha"]) % 2 else -0.02
            record |= {"jsd_forget": 0.03 + lead, "acc_test": 0.905, "grad_share": 0.1}
    sure = {p.name: p.sure["jsd"] for p in frontier_of(records).points}
    assert all(0.2 < sure[f"alpha {a}"] < 0.95 for a in (0, 1, 2))


def test_unfinished_records():
    with pytest.raises(ValueError, match="records has no references"):
        frontier_of([])
    only_base = [r for r in made_up() if r["kind"] != "point"]
    with pytest.raises(ValueError, match="records has no settings yet"):
        frontier_of(only_base)
    part = [r for r in made_up() if r["seed"] == 0 or r["kind"] != "point"]
    assert frontier_of(part).seeds == (0,) and len(frontier_of(part).points) == 5
    stopped = [r for r in made_up() if r["run_id"] != "p2/1"]  # within the last setting
    assert frontier_of(stopped).seeds == (0, 1, 2) and len(frontier_of(stopped).points) == 4


def test_table_and_csv(tmp_path):
    front = frontier_of(made_up())
    console = Console(width=160, record=True, file=open(tmp_path / "void", "w"))
    with console.file:
        print_front(front, "jsd", console=console)
    text = console.export_text()
    assert "ConMU: alpha 0" in text and "ConMU: alpha 1" not in text
    knobs = text[text.index("Knob by knob") :].splitlines()
    row = next(line for line in knobs if "ConMU: alpha" in line)
    assert [cell.strip() for cell in row.split("│")[2:6]] == ["0", "10.0", "90.5", "30.00"]
    assert "doing nothing" in text and "1 of 3 settings of ConMU" in text
    rows = list(csv.DictReader(io.StringIO(write_front(front, tmp_path / "f.csv").read_text())))
    assert [row["alpha"] for row in rows] == ["", "", "0", "1", "2"]
    assert [row["on_front_jsd"] for row in rows] == ["True", "True", "True", "False", "False"]
    assert float(rows[2]["jsd"]) == pytest.approx(0.03)


def test_the_command(finished, capsys, tmp_path):
    out, _ = finished
    cli.main(["report", str(out)])
    printed = capsys.readouterr().out
    assert "Settings that no other beats" in printed and "frontier.html" in printed
    assert (out / "front.csv").exists() and "<svg" in (out / "frontier.html").read_text()
    with pytest.raises(SystemExit, match="2"):
        cli.main(["frontier", "--method", "conmoo"])
    assert "Did you mean 'conmu'" in capsys.readouterr().err


# Grids.


def test_a_grid_is_every_combination():
    base = ConMUConfig()
    found = settings_of("conmu", base, ("retain.high=.75,1", "alpha=0,3", "epochs=2"))
    assert [s.knobs for s in found] == [
        {"retain.high": h, "alpha": a, "epochs": 2} for h in (0.75, 1) for a in (0, 3)
    ]
    assert found[3].config.retain.high == 1 and found[3].config.retain.low == base.retain.low
    assert found[3].config.alpha == 3 and found[3].config.epochs == 2


def test_default_grids():
    grids = FrontierConfig().grids()
    assert len(grids["conmu"]) == 32 and len(grids["finetune"]) == 25
    assert set(SWEEPS) <= set(registry.METHODS)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"grid": ("alpha",)}, "grid='alpha' must read FIELD=VALUE"),
        ({"grid": ("alpha=",)}, "grid='alpha=' must read FIELD=VALUE"),
        ({"grid": ("alpha=0,0",)}, "has 'alpha=0' twice"),
        ({"grid": ("alpha=0", "alpha=1")}, "alpha has an axis already"),
        ({"grid": ("alpha=-1",)}, "alpha=-1.0 must be a finite number >= 0"),
        ({"grid": ("alhpa=1",)}, "there is no 'alhpa'"),
        ({"grid": ("compat=paper",)}, "'paper' is no number"),
        ({"grid": ("epochs=1.5",)}, "epochs must be of type int"),
        ({"method": "influence"}, "method='influence' is unknown"),
        ({"privacy": "mia"}, "privacy='mia' is unknown"),
        ({"chunk": 0}, "chunk=0 must be an integer"),
        ({"settings": ("gamma=1",)}, "must read METHOD.FIELD=VALUE"),
        ({"settings": ("influence.samples=3",)}, "settings='influence' is unknown"),
        ({"references": 2}, "references=2 must be an integer >= 3"),
    ],
)
def test_bad_frontiers(options, message):
    with pytest.raises(ValueError, match=message):
        FrontierConfig(**options)


def test_seeds_are_grouped_by_memory():
    assert _groups([0, 1, 2, 3], 10) == [[0, 1, 2, 3]]
    assert _groups([0, 1, 2], 2**28) == [[0, 1], [2]]
    assert _groups([5, 6], 2**40) == [[5], [6]]


def test_page_holds_its_data_and_nothing_else(tmp_path):
    page = write_page(frontier_of(made_up()), tmp_path / "page.html").read_text()
    for forbidden in ("http://", "https://", "src=", "@import", "url("):
        rest = page.replace("http://www.w3.org/2000/svg", "")
        assert forbidden not in rest, forbidden
    assert page.count("<tr data-id") == 5
    assert "NaN" not in page
