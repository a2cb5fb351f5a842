"""The laboratory on a small comparison: what it stores, what it finds, how it goes on."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import Dataset, TrainConfig, audit, data, models, registry
from jaxunlearn.baselines import FineTuneConfig
from jaxunlearn.baselines.federated.fedavg import FedAvgConfig
from jaxunlearn.cli import main
from jaxunlearn.experiments import lab, lab_audit, lab_groups, lab_report
from jaxunlearn.experiments.lab import LabConfig, Task
from jaxunlearn.experiments.lab_columns import COLUMNS, print_lab
from jaxunlearn.experiments.lab_run import audit_run, read_audit
from jaxunlearn.federated.federation import Federation
from jaxunlearn.methods.muter import MuterConfig
from jaxunlearn.primitives.adversarial import PGDConfig

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

SMALL = LabConfig(models=16, block=8, shadows=8, targets=20, test_rows=60, relearn_steps=8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A comparison, finished and audited by the command line."""
    out = tmp_path_factory.mktemp("run")
    main(
        f"compare --dataset digits --rows 120 --model mlp --methods noop --seeds 1 "
        f"--references 3 --train.epochs 40 --out {out}".split()
    )
    main(
        f"audit --run {out} --models 16 --block 8 --shadows 8 --targets 20 --test-rows 60 "
        f"--relearn-steps 8".split()
    )
    return out


@pytest.fixture(scope="module")
def records(run):
    return {(r["method"], r["request"]): r for r in read_audit(run)}


def test_records(records):
    assert list(records) == [
        (method, request)
        for method in ("retrain", "noop")
        for request in ("random", "vulnerable")
    ]  # fmt: skip
    noop = records["noop", "random"]
    assert noop["n_models"] == 16 and noop["n_forget"] == 24 and noop["ok"] == 1
    assert set(lab_audit.REPORTS) <= set(noop)
    for key in lab_audit.REPORTS:
        low, high = noop[key]["interval"]
        assert low <= noop[key]["value"] <= high and len(noop[key]["null"]) == 3
    assert sum(noop["epsilon"]["histogram"]) == sum(noop["epsilon"]["null_histogram"]) == 24


def test_doing_nothing_is_seen_and_retraining_is_not(records):
    noop, retrain = records["noop", "random"], records["retrain", "random"]
    assert noop["ulira"]["interval"][0] > noop["ulira"]["null"][2]
    assert abs(retrain["ulira"]["value"] - 0.5) < 0.08 < noop["ulira"]["value"] - 0.5
    assert noop["epsilon"]["value"] > 2 * retrain["epsilon"]["value"]
    assert noop["acc_forget"][0] > noop["acc_forget_null"][0] + 0.05
    assert noop["relearn"]["interval"][1] < noop["relearn"]["null"][1]
    # The vulnerable rows are those that a model gets wrong without having seen them.
    vulnerable = records["noop", "vulnerable"]
    gap = lambda r: r["acc_forget"][0] - r["acc_forget_null"][0]
    assert gap(vulnerable) > gap(noop)


def test_report_and_table(run, records, capsys):
    main(["report", str(run)])
    page = (run / "report.html").read_text()
    for text in ("Closer is not forgotten", "ROC curves", "Epsilon of single rows", "vulnerable"):
        assert text in page
    assert page.count('aria-label="ROC of') == 4 and "<script" not in page
    out = capsys.readouterr().out
    assert "Audit laboratory, vulnerable request: 24 rows" in out
    assert "(Apart, TPR@0.1%, RULI vuln., RULI prot. come without an interval" in page
    assert all(page.count(f"<dt>{column.short}</dt><dd>") == 1 for column in COLUMNS)
    assert lab_report.sections([]) == ""


def test_a_diverged_model_is_wrong_and_does_not_answer_0():
    logits = np.full((1, 4, 3), np.nan)
    assert lab_audit._hits(logits, np.zeros(4, int)).tolist() == [0.0]
    assert lab_audit._hits(np.zeros((1, 4, 3)), np.zeros(4, int)).tolist() == [1.0]


def test_a_number_never_stands_alone(records, capsys):
    for record in records.values():
        for column in COLUMNS:
            value, null, _ = column.cells(record)
            assert value and null
    print_lab([{**next(iter(records.values())), "ulira": None}])
    assert "–" in capsys.readouterr().out


def test_done_is_not_done_again(run, records, monkeypatch):
    monkeypatch.setattr(lab.Bench, "call", None)  # any work would call it
    again = audit_run(run, config=SMALL, progress=False)
    assert {(r["method"], r["request"]): r for r in again} == records


def test_what_cannot_be_audited(tmp_path, capsys):
    for argv, words in (
        (["audit", "--run", str(tmp_path / "no")], "There is no folder"),
        (["audit", "--run", str(tmp_path)], "has no records of methods yet"),
        (["audit", "--run", str(tmp_path), "--models", "4"], "4 models in each arm"),
        (["audit", "--run", str(tmp_path), "--models", "20"], "must be a multiple of block=16"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        assert stop.value.code == 2
        assert words in capsys.readouterr().err


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    splits = data.load("breast_cancer")
    rows = Dataset(splits.train.x[:60], splits.train.y[:60])
    train = TrainConfig(epochs=3, batch_size=20)
    config = dataclasses.replace(SMALL, relearn_steps=0, targets=8)
    return Task(
        "small", splits._replace(train=rows), models.logistic(2), train, jax.random.key(0),
        tmp_path_factory.mktemp("lab"), config,
    )  # fmt: skip


REQUESTS = {"random": jnp.arange(60) % 6 == 0}


def test_a_method_is_answered_on_the_originals_of_its_group(task):
    """Against one model at a time: its training, its request, its predictions."""
    name, config = "finetune@fast", FineTuneConfig(epochs=2, learning_rate=0.1)
    methods = {name: config}
    bench = lab.Bench(task, REQUESTS, methods)
    lab_audit.prepare(bench, REQUESTS)
    lab_groups.run_group(bench, "plain", methods, REQUESTS, None)
    found = bench.arm(f"{name}/random")
    key = jax.random.fold_in(jax.random.fold_in(task.key, ord("A")), 11)
    unlearner = registry.make("finetune", task.model, train=task.train, config=config)
    state = unlearner.fit(key, task.splits.train)
    own = lab.keys(task, f"unlearn {name} random")[11]
    state = unlearner.unlearn(own, state, task.splits.train, REQUESTS["random"])
    gone = np.flatnonzero(REQUESTS["random"])
    expected = unlearner.predict(state, task.splits.train.x[gone])
    np.testing.assert_allclose(found.forget_logits[11], expected, atol=1e-4)
    assert found.forget_logits.shape == (16, 10, 2) and found.test_logits.shape == (16, 60, 2)


@pytest.mark.slow
def test_killed_between_blocks(task, monkeypatch):
    methods = {"sisa": registry.get("sisa").config}
    whole = lab.Bench(task, REQUESTS, methods)
    run = lambda bench: lab_groups.run_group(bench, "sisa", methods, REQUESTS, None)
    saved, save = [], lab.save

    def deadly(path, **arrays):
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(path)
        save(path, **arrays)

    monkeypatch.setattr(lab, "save", deadly)
    with pytest.raises(KeyboardInterrupt):
        run(whole)
    monkeypatch.setattr(lab, "save", save)
    before = [path.stat().st_mtime_ns for path in saved]
    run(lab.Bench(task, REQUESTS, methods))
    assert [path.stat().st_mtime_ns for path in saved] == before
    arms = [whole.arm(f"{what}/random") for what in ("sisa", "sisa/A", "sisa/B")]
    assert [len(arm.ok) for arm in arms] == [16] * 3
    # References of its own training: each arm differs, and none is the unlearned one.
    assert not np.allclose(arms[1].forget_logits, arms[2].forget_logits)
    # Exact unlearning: U-LiRA cannot tell.
    y = np.asarray(task.splits.train.y)[np.flatnonzero(REQUESTS["random"])]
    u, a, b = (audit.member_scores(arm.forget_logits, y) for arm in arms)
    assert abs(audit.ulira(u, a, null=b).value - 0.5) < 0.08


@pytest.mark.slow
def test_a_slow_method_gets_fewer_models(task, monkeypatch):
    methods = {"logit_mask@slow": registry.get("logit_mask").config}
    short = task._replace(config=dataclasses.replace(task.config, seconds=1e-9))
    bench = lab.Bench(short, REQUESTS, methods)
    lab_groups.run_group(bench, "logit_mask@slow", methods, REQUESTS, None)
    assert bench.stored("logit_mask@slow/random") == 1
    assert bench.path("x/y", slice(0, 8)) != lab.Bench(
        task, {"random": REQUESTS["random"][::-1]}, {}
    ).path("x/y", slice(0, 8))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:adversarial training stopped")
def test_methods_that_share_a_training_train_once(task, monkeypatch):
    """MUter and Newton: one training, and of each what its own unlearner would answer."""
    config = MuterConfig(newton_steps=3, attack=PGDConfig(steps=2, refine=1))
    methods = {"muter": config, "muter_newton": config}
    (group,) = {registry.get(name).training(config) for name in methods}
    short = task._replace(config=dataclasses.replace(task.config, models=8))
    bench = lab.Bench(short, REQUESTS, methods)
    called, call = [], bench.call
    monkeypatch.setattr(
        bench, "call", lambda name, *a, **k: called.append(name) or call(name, *a, **k)
    )
    lab_groups.run_group(bench, group, methods, REQUESTS, None)
    assert called.count(f"fit {group}") == 1 and called.count(f"retrain {group}") == 2
    gone = np.flatnonzero(REQUESTS["random"])
    for name in methods:
        unlearner = registry.make(name, task.model, train=task.train, config=config)
        state = unlearner.fit(lab.keys(short, "originals")[5], task.splits.train)
        own = lab.keys(short, f"unlearn {name} random")[5]
        state = unlearner.unlearn(own, state, task.splits.train, REQUESTS["random"])
        expected = unlearner.predict(state, task.splits.train.x[gone])
        found = bench.arm(f"{name}/random").forget_logits[5]
        np.testing.assert_allclose(found, expected, atol=1e-3)


def test_clients_by_label_are_refused(task):
    config = FedAvgConfig(federation=Federation(partition="dirichlet"))
    with pytest.raises(ValueError, match="fedavg has partition='dirichlet': the laboratory deals"):
        lab.unlearner(task, "fedavg", config)


def test_the_game():
    """Half of the targets out, the other half in and to be unlearned, as `removed` says."""
    splits = data.load("breast_cancer")
    rows = Dataset(splits.train.x[:60], splits.train.y[:60])
    task = Task("t", splits._replace(train=rows), None, None, None, None, SMALL)  # type: ignore
    order = np.random.default_rng(0).permutation(60)
    play = lab_groups.game(task, order)
    assert play.targets.tolist() == [*order[:10], *order[-10:]]
    assert play.rows.shape == (16, 50) and (play.removed.sum(0) == 8).all()
    for m in range(16):
        seen, asked = set(play.rows[m]), set(play.rows[m][play.forget[m]])
        removed = set(play.targets[play.removed[m]])
        assert asked == removed and set(range(60)) - seen == set(play.targets) - removed


def test_configurations_come_back_from_records():
    for name, method in registry.METHODS.items():
        stored = json.loads(json.dumps(dataclasses.asdict(method.config), default=str))
        assert lab_audit.config_of(name, stored) == method.config, name
