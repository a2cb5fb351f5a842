"""A comparison that is killed, at any step, ends with the records it would have had."""

import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import types
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import TrainConfig, audit, data, fit, models, registry
from jaxunlearn.checkpoint import restore
from jaxunlearn.experiments import CompareConfig, Records, compare, measure, read_records, trained
from jaxunlearn.experiments import compare as compare_function
from jaxunlearn.experiments.records import locked
from jaxunlearn.experiments.timing import Compiler
from jaxunlearn.federated.federation import Federation
from jaxunlearn.training import PruningConfig

module = sys.modules[compare_function.__module__]
pytestmark = pytest.mark.usefixtures("compiled_in_haste")

TIMES = {"train_s", "train_compile_s", "unlearn_s", "compile_s", "total_s", "eval_s"}
RATIOS = {"retrain_s", "speedup"}
PAGE = pathlib.Path(__file__).parents[2] / "docs" / "records.md"
OPTIONS = {
    "dataset": "breast_cancer",
    "rows": 60,
    "model": "mlp",
    "methods": "finetune,noop+pruning,finetune+pruning",
    "settings": ("finetune.epochs=2", "finetune.learning_rate=0.1"),
    "seeds": 1,
    "references": 3,
    "train": TrainConfig(epochs=2, batch_size=16),
}
NAMES = ["references", "retrain", "noop", "finetune", "noop+pruning", "finetune+pruning"]


@pytest.fixture(scope="module", autouse=True)
def one_compiler():
    """All comparisons here share what is compiled, for time."""
    shared, original = Compiler(), module.Compiler
    module.Compiler = lambda: shared
    yield
    module.Compiler = original


@pytest.fixture(scope="module")
def finished(one_compiler, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    return out, compare(CompareConfig(**OPTIONS, out=out))


def untimed(records):
    left_out = TIMES | RATIOS | {"git"}  # someone may commit between two runs
    return [{k: v for k, v in r.items() if k not in left_out} for r in records]


def test_records(finished):
    out, records = finished
    assert [r["run_id"] for r in records] == [f"{name}/seed-0" for name in NAMES]
    assert read_records(out) == records
    null, retrain, noop, finetune, pruned, pruned_finetune = records
    assert len(null["scores"]) == len(null["param_l2_null"]) == null["n_references"] == 3
    for record in records[1:]:
        assert record.keys() == noop.keys() and record.keys() >= TIMES
        assert all(record[name] > 0 for name in TIMES - {"compile_s", "train_compile_s"})
        assert record["split_hash"] == null["split_hash"]
        assert record["n_forget"] == 12 and record["n_train"] == 60
        assert record["status"] == "OK"
        assert 0 <= record["acc_test"] <= 1 and 0 < record["frm"] <= 1
        assert sum(record["loss_histogram"]["forget"]) == 12
    for name in ("acc_test", "acc_retain", "acc_forget"):
        assert noop[name] == noop[f"{name}_before"] == finetune[f"{name}_before"]
    assert noop["grads"] == 0 and finetune["grads"] == 2 * 48 and retrain["grads"] == 2 * 48
    assert finetune["hparams"]["learning_rate"] == 0.1
    assert pruned["loss_test"] != noop["loss_test"]  # its original is another one
    assert pruned["acc_test"] == pruned_finetune["acc_test_before"]
    for score in (*null["scores"], *records[1:]):
        for group in ("test", "retain", "forget"):
            assert score[f"err_{group}"] == 1 - score[f"acc_{group}"]
        assert score["mia"]["recall"] == pytest.approx(1 - score["mia"]["efficacy"])
    for record in records[1:]:
        assert record["frm_null_mean"] == pytest.approx(np.mean(null["frm_null"]))
        assert record["frm_null_ci"] == pytest.approx(audit.null_band(null["frm_null"]))


def test_models_of_other_shapes_have_no_distance():
    """SISA has a model for each shard: its record, and the table, do without."""
    one, shards = {"w": jnp.ones(2)}, {"w": jnp.ones((5, 2))}
    assert module._distance(one, {"w": jnp.zeros(2)}) == pytest.approx(2**0.5)
    assert module._distance(shards, one) is None and module._distance({}, one) is None


def test_costs_are_compared_with_retraining_of_the_same_seed(finished):
    _, (_, retrain, noop, finetune, *_) = finished
    assert all(retrain[name] is None for name in (*RATIOS, "grad_speedup"))
    assert finetune["retrain_s"] == retrain["unlearn_s"]
    assert finetune["speedup"] == retrain["unlearn_s"] / finetune["unlearn_s"]
    assert finetune["grad_speedup"] == 1 and noop["grad_speedup"] is None


@pytest.mark.skipif(not PAGE.exists(), reason="the documentation is not installed")
def test_every_field_of_a_record_is_explained(finished):
    _, (null, *runs) = finished

    def fields(section):
        listed = re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)
        assert len(listed) == len(set(listed))
        return set(listed)

    both, method, references = PAGE.read_text().split("\n## ")[1:4]
    assert not fields(both) & (fields(method) | fields(references))
    inner = {"mia", "loss_histogram"}  # listed entry by entry
    for run in runs:
        names = {name for name in run if name not in inner}
        names |= {f"{name}.{entry}" for name in inner for entry in run[name]}
        assert names == fields(both) | fields(method)
    assert set(null) == fields(both) | fields(references)
    measured = {name for name in fields(method) if name.partition("_")[0] in {"acc", "err", "loss"}}
    measured = {n for n in measured if not n.endswith("_before") and "." not in n} | {"mia"}
    assert all(set(score) == measured for score in null["scores"])


def test_references_start_elsewhere_but_for_the_one_that_distances_are_to(finished):
    out, (null, *_) = finished
    config = CompareConfig(**OPTIONS, out=out)
    train = data.load("breast_cancer").train
    train = train._replace(x=jnp.asarray(train.x[:60]), y=jnp.asarray(train.y[:60]))
    model, forget = models.mlp(2), data.load_split(out / "requests" / "seed-0.npz")
    key = jax.random.fold_in(jax.random.key(0), 0)
    start = jax.random.fold_in(key, zlib.crc32(b"original"))
    keys = jax.random.split(jax.random.fold_in(key, zlib.crc32(b"references")), 3)
    same, *fresh = [
        fit(k, model, train, weights=~forget, config=config.train) for k in (start, *keys)
    ]
    logits = jnp.stack([model.apply(params, train.x[forget]) for params in fresh])
    like = {"params": same, "forget_logits": logits}
    stored = restore(out / "references" / "seed-0", like)
    for mine, theirs in zip(jax.tree.leaves(like), jax.tree.leaves(stored), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-5)
    distances = [float(audit.parameter_distance(params, same)) for params in fresh]
    np.testing.assert_allclose(null["param_l2_null"], distances, rtol=1e-3)
    np.testing.assert_allclose(null["jsd_null"], audit.jsd_null(logits), rtol=1e-2)


def test_methods_that_train_alike_share_their_original(finished):
    out, _ = finished
    folders = [path.name for path in (out / "originals").iterdir() if path.is_dir()]
    assert len(folders) == 2 and "plain-seed-0" in folders
    default, then, other = (
        registry.get("finetune+pruning").training(config)
        for config in (
            registry.get("finetune+pruning").config,
            registry.get("noop+pruning").config,
            registry.PrunedConfig(pruning=PruningConfig(rate=0.5)),
        )
    )
    assert default == then != other and f"{default}-seed-0" in folders


def test_original_is_reproduced_from_what_is_stored(finished):
    """The request on disk is the one in the records, and names the forgotten rows."""
    out, records = finished
    forget = data.load_split(out / "requests" / "seed-0.npz")
    assert data.split_hash(forget) == records[0]["split_hash"]
    assert int(forget.sum()) == 12


def test_done_is_not_done_again(finished, monkeypatch):
    out, records = finished
    monkeypatch.setattr(trained, "references", None)  # any work would call it
    assert compare(CompareConfig(**OPTIONS, out=out)) == records


def test_methods_and_seeds_may_grow(finished, tmp_path):
    _, records = finished
    few = {**OPTIONS, "methods": "", "settings": ()}
    compare(CompareConfig(**few, out=tmp_path))
    more = compare(CompareConfig(**{**OPTIONS, "seeds": 2}, out=tmp_path))  # with settings
    assert untimed(more)[:6] == untimed(records)
    assert len(more) == 12
    assert more[6]["split_hash"] != more[0]["split_hash"]  # a seed draws its own request
    assert len(compare(CompareConfig(**few, out=tmp_path))) == 3
    second = CompareConfig(**{**OPTIONS, "first_seed": 1}, out=tmp_path)
    assert compare(second) == more[6:]


def test_other_settings_of_a_method_that_has_records(finished):
    out, records = finished
    other = {**OPTIONS, "settings": ("finetune.epochs=2", "finetune.learning_rate=0.2")}
    with pytest.raises(ValueError, match=r"settings .finetune.learning_rate: 0.1 there, 0.2 now"):
        compare(CompareConfig(**other, out=out))
    assert read_records(out) == records
    # What is not asked for is not in the way.
    asked = {**other, "methods": "noop+pruning", "settings": ()}
    assert [r["method"] for r in compare(CompareConfig(**asked, out=out))[1:]] == [
        "retrain", "noop", "noop+pruning"
    ]  # fmt: skip


def test_two_runs_in_one_folder(finished):
    out, records = finished
    config = CompareConfig(**OPTIONS, out=out)
    with locked(out):
        with pytest.raises(ValueError, match="another run is using this folder"):
            compare(config)
    assert compare(config) == records


def test_logits_in_batches_are_those_of_all_rows():
    x = jax.random.normal(jax.random.key(0), (2 * measure.BATCH + 3, 4))
    np.testing.assert_array_equal(measure.logits(lambda rows: rows[:, :2], x), x[:, :2])


class Killed(BaseException):
    """Nothing in the library catches it, as nothing catches a SIGKILL."""


def test_killed_at_every_step(finished, tmp_path, monkeypatch):
    """Before and after whatever reaches the disk, a half-written record included."""
    survived = set()

    def deadly(function, label):
        def run(*args, **options):
            step = function.__name__, label(*args)
            for moment in ("before", "after"):
                if moment == "after":
                    result = function(*args, **options)
                if (step, moment) not in survived:
                    survived.add((step, moment))
                    if (function.__name__, moment) == ("append", "before"):
                        with open(tmp_path / "records.jsonl", "a") as file:
                            file.write(json.dumps(args[1])[:50])
                    raise Killed
            return result

        return run

    path = lambda path, *_: pathlib.Path(path).name
    monkeypatch.setattr(trained, "save", deadly(trained.save, path))
    monkeypatch.setattr(trained, "atomic_write", deadly(trained.atomic_write, path))
    monkeypatch.setattr(module.data, "save_split", deadly(data.save_split, path))
    monkeypatch.setattr(Records, "append", deadly(Records.append, lambda _, r: r["run_id"]))
    config = CompareConfig(**OPTIONS, out=tmp_path)
    deaths = 0
    while True:
        try:
            records = compare(config)
            break
        except Killed:
            deaths += 1
    # One request; two originals and the references, each with facts and arrays; six records.
    assert deaths == 2 * (1 + 2 * 3 + 6)
    assert untimed(records) == untimed(finished[1])
    assert read_records(tmp_path) == records
    assert not list(tmp_path.rglob("*.tmp"))


def test_killed_by_the_system(finished, tmp_path):
    script = f"""
import jax
from jaxunlearn import TrainConfig
from jaxunlearn.experiments import CompareConfig, compare
jax.config.update("jax_disable_most_optimizations", True)
options = {OPTIONS!r}
compare(CompareConfig(**options, out={str(tmp_path)!r}))
"""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    process = subprocess.Popen(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": path}
    )
    records = tmp_path / "records.jsonl"
    deadline = time.monotonic() + 300
    while not (records.exists() and records.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None, "ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 2 <= len(read_records(tmp_path)) < 6
    resumed = compare(CompareConfig(**OPTIONS, out=tmp_path))
    assert untimed(resumed) == untimed(finished[1])


def test_a_method_that_diverges_is_recorded_with_a_warning(tmp_path, capsys):
    options = {
        **OPTIONS,
        "methods": "gradient_ascent",
        "settings": ("gradient_ascent.learning_rate=1e30",),
    }
    records = compare(CompareConfig(**options, out=tmp_path))
    assert records[-1]["status"] == "NOT_FINITE"
    assert records[-1]["param_l2"] is None  # JSON has no infinity
    assert [r.get("status", "OK") for r in records[:-1]] == ["OK"] * 3
    assert "gradient_ascent/seed-0: NOT_FINITE" in capsys.readouterr().out


def test_class_request(tmp_path):
    options = {**OPTIONS, "methods": "noop", "settings": (), "forget": "class", "label": 1}
    config = CompareConfig(**options, fraction=0.5, out=tmp_path)
    compare(config)
    forget = np.asarray(data.load_split(tmp_path / "requests" / "seed-0.npz"))
    y = np.asarray(data.load("breast_cancer").train.y[:60])
    assert set(y[forget]) == {1}
    assert forget.sum() == round(0.5 * (y == 1).sum())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"dataset": "breast_cancr"}, "breast_cancer"),
        ({"rows": 427}, r"rows=427 exceeds the 426 training rows of breast_cancer"),
        ({"forget": "class", "label": 2}, r"label=2 has no rows. Labels: \[0, 1\]"),
        ({"fraction": 1e-3}, r"fraction=0.001"),
        ({"model": "cnn"}, r"x has shape \(1, 30\), but cnn takes images"),
    ],
)
def test_what_does_not_suit_the_data_claims_no_folder(tmp_path, change, message):
    config = CompareConfig(**{**OPTIONS, **change}, out=tmp_path / "out")
    with pytest.raises(ValueError, match=message):
        compare(config)
    assert not (tmp_path / "out").exists()


def test_folder_of_another_configuration(finished):
    out, records = finished
    other = dataclasses.replace(CompareConfig(**OPTIONS, out=out), fraction=0.3)
    with pytest.raises(ValueError, match="another configuration .fraction: 0.2 there, 0.3 now"):
        compare(other)
    assert read_records(out) == records


class TestCompiler:
    def test_compiles_once_and_times_apart(self):
        traced = []

        def double(x):
            traced.append(x)
            return 2 * x

        compiler = Compiler()
        first = compiler.run("double", double, jax.numpy.arange(3))
        second = compiler.run("double", double, jax.numpy.arange(3) + 1)
        assert len(traced) == 1
        np.testing.assert_array_equal(first.result, [0, 2, 4])
        np.testing.assert_array_equal(second.result, [2, 4, 6])
        assert first.compile_s == second.compile_s > first.seconds > 0

    def test_peak_covers_arguments_results_and_temporaries(self):
        x = jax.numpy.ones((256, 256))
        done = Compiler().run("product", lambda x: x @ x, x)
        assert done.peak_bytes is None or 2 * x.nbytes <= done.peak_bytes < 3 * x.nbytes


FEDERATED = [name for name, row in registry.METHODS.items() if hasattr(row.config, "federation")]


@pytest.mark.parametrize("name", FEDERATED)
def test_clients_by_label_are_dealt_before_anything_is_compiled(name):
    """A compiled training cannot look at the labels; only shapes are computed here."""
    federation = Federation(clients=3, partition="dirichlet", alpha=5.0)
    config = dataclasses.replace(registry.get(name).config, federation=federation)
    model, splits = models.logistic(2), data.load("breast_cancer")
    train = TrainConfig(epochs=2)
    task = types.SimpleNamespace(
        configs={name: config},
        model=model,
        splits=splits,
        config=types.SimpleNamespace(train=train),
    )
    made = module.unlearner_of(task, name)
    key, forget = jax.random.key(0), jnp.arange(len(splits.train.y)) == 3
    state = jax.eval_shape(module.trainer_of(task, name).fit, key, splits.train)
    assert jax.eval_shape(made.unlearn, key, state, splits.train, forget).removed.shape
    plain = registry.make(name, model, train=train, config=config)
    with pytest.raises(ValueError, match="kind='dirichlet' looks at the labels"):
        jax.eval_shape(plain.fit, key, splits.train)
