"""The command line, called as a function."""

import pathlib

import pytest

from jaxunlearn import __version__, registry
from jaxunlearn.cli import main
from jaxunlearn.experiments import read_records
from jaxunlearn.models import MODELS

pytestmark = pytest.mark.usefixtures("compiled_in_haste")


def refused(capsys, *argv):
    """What a refused command writes to standard error."""
    with pytest.raises(SystemExit) as stop:
        main([*argv])
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert not out and "Traceback" not in err
    return err


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small comparison, run by the command."""
    out = tmp_path_factory.mktemp("run")
    main(
        f"compare --dataset breast_cancer --model logistic --forget random --fraction 0.2 "
        f"--methods finetune --settings finetune.epochs=2 --seeds 2 --references 3 "
        f"--train.epochs 3 --out {out}".split()
    )
    return out


def test_compare_writes_records_and_report(finished):
    records = read_records(finished)
    assert [r["run_id"] for r in records] == [
        f"{name}/seed-{seed}"
        for seed in range(2)
        for name in ("references", "retrain", "noop", "finetune")
    ]
    assert records[3]["hparams"]["epochs"] == 2
    assert "finetune" in (finished / "report.html").read_text()


def test_report_of_what_is_there(finished, capsys):
    (finished / "report.html").unlink()
    main(["report", str(finished)])
    out = capsys.readouterr().out
    assert "retrain vs retrain" in out and f"Report:  {finished / 'report.html'}" in out
    assert "epochs=3" in (finished / "report.html").read_text()


def test_another_configuration_in_the_same_folder(finished, capsys):
    argv = "compare --dataset breast_cancer --model logistic --fraction 0.3 --out".split()
    err = refused(capsys, *argv, str(finished))
    assert "another configuration" in err and "fraction: 0.2 there, 0.3 now" in err


def test_lists(capsys):
    main(["methods"])
    out = capsys.readouterr().out
    for method in registry.METHODS.values():
        assert f"\n{method.name}\n" in out
    assert "then.learning_rate=" in out
    main(["models"])
    out = capsys.readouterr().out
    assert all(name in out for name in MODELS)


@pytest.mark.parametrize("argv", [["--help"], ["-h"], []])
def test_help(capsys, argv):
    main(argv)
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in ("compare", "report", "methods", "models"))


def test_help_of_compare_names_the_options(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["compare", "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for option in ("dataset", "model", "forget", "fraction", "methods", "settings", "seeds", "out"):
        assert f"--{option} " in out
    assert "--train.epochs " in out


def test_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"jaxunlearn {__version__}\n"


@pytest.mark.parametrize(
    "argv, words",
    [
        ("comprae", ["command='comprae'", "'compare'"]),
        ("compare --methods noop,retrian", ["'retrian'", "Did you mean 'retrain'"]),
        ("compare --model mpl", ["'mpl'", "'mlp'"]),
        ("compare --fraction 1.5", ["fraction=1.5", "between 0 and 1"]),
        ("compare --settings finetune.lr=1", ["'lr'", "learning_rate"]),
        ("report /no/such/folder", ["/no/such/folder", "jaxunlearn compare"]),
    ],
)
def test_bad_input_is_one_line(capsys, argv, words):
    err = refused(capsys, *argv.split())
    assert err.count("\n") == 1 and err.startswith("Error: ")
    assert all(word in err for word in words)


@pytest.mark.parametrize(
    "argv, words",
    [
        ("compare --train.epochs 0", ["epochs=0", "integer", ">= 1"]),
        ("compare --seeds many", ["--seeds", "many"]),
        ("compare --sedes 3", ["--sedes", "--seeds"]),
    ],
)
def test_bad_options_are_explained(capsys, argv, words):
    err = refused(capsys, *argv.split())
    assert all(word in err for word in words)


def test_unknown_dataset_offers_the_nearest(capsys, tmp_path):
    err = refused(capsys, "compare", "--dataset", "digts", "--out", str(tmp_path / "out"))
    assert "'digts'" in err and "'digits'" in err


def test_empty_folder(capsys, tmp_path):
    assert "no records yet" in refused(capsys, "report", str(tmp_path))


def test_interrupted(capsys, monkeypatch):
    def stopped(config):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxunlearn.cli.run_compare", stopped)
    with pytest.raises(SystemExit) as stop:
        main(["compare", "--out", str(pathlib.Path("unused"))])
    assert stop.value.code == 130
    assert "Run the same command to go on" in capsys.readouterr().err
