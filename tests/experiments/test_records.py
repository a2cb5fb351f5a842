"""Records on disk: whole lines only, one configuration a folder."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from jaxunlearn.experiments import Records, read_records
from jaxunlearn.experiments.records import jsonable, locked

CONFIG = {"rows": 60, "model": "mlp", "train": {"epochs": 2}, "label": None}


def test_appended_records_are_read_back_in_order(tmp_path):
    records = Records(tmp_path / "new" / "folder", CONFIG)
    assert "a" not in records
    for run_id, value in (("b", 0.1), ("a", None)):
        records.append({"run_id": run_id, "value": value})
    assert "a" in records and "c" not in records
    written = read_records(tmp_path / "new" / "folder")
    assert written == [{"run_id": "b", "value": 0.1}, {"run_id": "a", "value": None}]
    again = Records(tmp_path / "new" / "folder", CONFIG)
    assert list(again.by_id.values()) == written


def test_every_cut_of_the_last_line_is_dropped_and_what_follows_is_whole(tmp_path):
    records = Records(tmp_path, CONFIG)
    records.append({"run_id": "a", "text": "one\ntwo"})
    whole = (tmp_path / "records.jsonl").read_bytes()
    assert whole.count(b"\n") == 1  # the newline in the text is escaped
    last = json.dumps({"run_id": "b", "value": 1}).encode()
    for length in range(1, len(last) + 1):  # without its newline even the full line is not whole
        (tmp_path / "records.jsonl").write_bytes(whole + last[:length])
        assert [r["run_id"] for r in read_records(tmp_path)] == ["a"]
        resumed = Records(tmp_path, CONFIG)
        assert list(resumed.by_id) == ["a"]
        resumed.append({"run_id": "c"})
        assert [r["run_id"] for r in read_records(tmp_path)] == ["a", "c"]


def test_nan_is_refused_and_nothing_is_written(tmp_path):
    records = Records(tmp_path, CONFIG)
    with pytest.raises(ValueError):
        records.append({"run_id": "a", "value": float("nan")})
    assert read_records(tmp_path) == []
    assert "a" not in records


def test_another_configuration_is_refused_with_what_differs(tmp_path):
    Records(tmp_path, CONFIG).append({"run_id": "a"})
    other = {**CONFIG, "rows": 70, "train": {"epochs": 3}}
    with pytest.raises(ValueError) as error:
        Records(tmp_path, other)
    message = str(error.value)
    assert f"out='{tmp_path}' has records of another configuration" in message
    assert "rows: 60 there, 70 now" in message
    assert "train: {'epochs': 2} there, {'epochs': 3} now" in message
    assert "model" not in message
    missing = {name: value for name, value in CONFIG.items() if name != "model"}
    with pytest.raises(ValueError, match="model: 'mlp' there, None now"):
        Records(tmp_path, missing)
    assert [r["run_id"] for r in read_records(tmp_path)] == ["a"]
    Records(tmp_path, dict(reversed(CONFIG.items())))  # order does not matter


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.1


@dataclasses.dataclass(frozen=True)
class Settings:
    samples: int | None = None
    then: Inner = Inner()


def test_other_settings_are_refused_by_method_and_field(tmp_path):
    records = Records(tmp_path, CONFIG)
    records.append({"run_id": "references/seed-0"})
    for method in ("a", "b"):
        record = {"run_id": method, "method": method, "hparams": dataclasses.asdict(Settings())}
        records.append(jsonable(record))
    again = Records(tmp_path, CONFIG)
    again.refuse_other_settings({"a": Settings(), "b": Settings(), "c": Settings(samples=3)})
    for changed, message in (
        (Settings(then=Inner(0.2)), r"of b under other settings \(b.then.rate: 0.1 there, 0.2 now"),
        (Settings(samples=3), r"b.samples: None there, 3 now"),
        (Inner(), r"b.rate: None there, 0.1 now"),
    ):
        with pytest.raises(ValueError, match=message):
            again.refuse_other_settings({"a": Settings(), "b": changed})


def test_a_lock_is_exclusive_and_ends_with_its_process(tmp_path):
    pytest.importorskip("fcntl")
    folder = tmp_path / "new"
    with locked(folder), pytest.raises(ValueError, match="another run is using this folder"):
        with locked(folder):
            pass
    script = (
        "import sys; from jaxunlearn.experiments.records import locked\n"
        "with locked(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
    )
    with other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match="another run"), locked(folder):
            pass
        other.kill()
        other.wait()
    with locked(folder):
        pass


def test_no_records(tmp_path):
    assert read_records(tmp_path) == []
    with pytest.raises(FileNotFoundError, match="There is no folder .*nowhere"):
        read_records(tmp_path / "nowhere")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"out='.*notes.txt' cannot be used as a folder"):
        Records(tmp_path / "notes.txt", CONFIG)
    assert (tmp_path / "notes.txt").read_text() == "mine"
