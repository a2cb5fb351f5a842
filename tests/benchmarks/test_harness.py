"""The laws of the benchmark harness. Nothing here depends on how long anything takes."""

import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import harness, printing
from benchmarks.harness import Case, Options, Result, Run


class Clock:
    """A clock that moves only when a case says so."""

    def __init__(self):
        self.now = 0.0

    def case(self, log, name, durations):
        left = iter(durations)

        def call():
            log.append(name)
            self.now += next(left)

        return call


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(harness.time, "perf_counter", lambda: clock.now)
    return clock


def run(*seconds):
    return Run(np.array(seconds), 0.0, None)


def test_cases_take_turns_and_the_first_call_does_not_count(clock):
    log = []
    cases = {
        "a": Case(clock.case(log, "a", [9.0] + 7 * [1.0])),
        "b": Case(clock.case(log, "b", [5.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]), per=2.0),
    }
    runs = harness.measure(cases, Options(quick=True))
    assert log == ["a", "b"] * 8
    np.testing.assert_allclose(runs["a"].seconds, np.ones(7))
    np.testing.assert_allclose(runs["b"].seconds, np.arange(1, 8) / 2)
    assert runs["b"].median == 2.0
    assert runs["a"].compile_s == 8.0  # first call less a usual one
    assert runs["b"].compile_s == 1.0  # of a whole call, not of a part


def test_short_turns_go_on_until_the_budget_is_spent(clock):
    log = []
    least, budget = Options(quick=True).repeats
    harness.measure({"a": Case(clock.case(log, "a", 100 * [budget / 20]))}, Options(quick=True))
    assert least < len(log) - 1 == 20


def test_compiled_knows_its_memory_and_its_compile_time():
    case = harness.compiled(lambda x: jnp.stack([x, x]), jnp.ones(1000))
    assert case.compile_s is not None and case.compile_s > 0
    assert case.peak_bytes is not None and case.peak_bytes >= 3 * 4000
    np.testing.assert_array_equal(case.call(), np.ones((2, 1000)))


def test_ratio_is_of_medians_and_its_interval_pairs_the_turns():
    a = run(1.0, 2.0, 30.0)
    b = run(2.0, 4.0, 60.0)  # the same load on both: the ratio is sure
    ratio = harness.ratio({"a": a, "b": b}, "a", "b")
    assert tuple(ratio) == (0.5, 0.5, 0.5)
    apart = harness.ratio({"a": a, "b": run(60.0, 4.0, 2.0)}, "a", "b")
    assert apart.estimate == 0.5 and apart.low < 0.4 and apart.high > 2
    assert tuple(harness.inverse(apart)) == (2.0, 1 / apart.high, 1 / apart.low)


def test_missing_peers_give_none():
    assert harness.peer("no_such_package_here") is None
    assert harness.peer("json") is json
    assert harness.ratio({"ours": run(1.0)}, "ours", "theirs") is None
    assert harness.inverse(None) is None


def test_targets():
    assert harness.at_most(0.7).reached(0.7) and not harness.at_most(0.7).reached(0.71)
    assert harness.at_least(30).reached(31) and not harness.at_least(30).reached(29)


def one(options):
    runs = {"ours": run(1.0, 1.0, 2.0), "theirs": run(4.0, 4.0, 4.0)}
    return Result({"size": 3}, runs, {"vs_theirs": harness.ratio(runs, "ours", "theirs")})


def two(options):
    return Result({}, {}, {"vs_missing": None, "bytes": 12.0})


TARGETS = {"vs_theirs": harness.at_most(0.5), "vs_missing": harness.at_most(1), "bytes": None}


def test_json_and_tables(tmp_path, capsys):
    path = tmp_path / "new" / "out.json"
    out = harness.main("About.", [one, two], TARGETS, ["--quick", "--json", str(path)])
    assert json.loads(path.read_text()) == out
    assert out["metrics"] == {"vs_theirs": 0.25, "vs_missing": None, "bytes": 12.0}
    assert out["intervals"]["vs_theirs"][0] <= 0.25 <= out["intervals"]["vs_theirs"][1]
    assert out["environment"]["jax"]
    assert out["workloads"]["one"]["size"] == 3
    ours = out["workloads"]["one"]["runs"]["ours"]
    assert ours["median_s"] == 1.0 and ours["quartiles_s"] == [1.0, 1.5] and ours["repeats"] == 3
    printed = capsys.readouterr().out
    for text in ("one", "1.5 s", "vs_missing", "null", "<= 0.5", "yes"):
        assert text in printed
    assert list(path.parent.iterdir()) == [path]  # no temporary file stays


def test_only_runs_what_is_asked_for():
    out = harness.main(None, [one, two], TARGETS, ["--only", "two"])
    assert out["metrics"] == {"vs_theirs": None, "vs_missing": None, "bytes": 12.0}
    assert list(out["workloads"]) == ["two"]
    with pytest.raises(SystemExit, match="there are one, two"):
        harness.main(None, [one, two], TARGETS, ["--only", "three"])


def test_a_metric_without_an_entry_in_targets_is_an_error():
    with pytest.raises(ValueError, match="vs_missing"):
        harness.main(None, [two], {"bytes": None}, [])


def test_times_are_printed_with_their_unit():
    assert [printing.seconds(s) for s in (2.5, 0.0123, 4.56e-5, 0.0)] == [
        "2.5 s", "12.3 ms", "45.6 us", "0 ns",
    ]  # fmt: skip


def test_runs_as_a_module_on_one_core(tmp_path):
    """``python -m benchmarks.X`` finds our package, and starts again with one thread."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "True", "1"]


SCRIPT = """
import os
from benchmarks import harness
harness._limit_threads(1)
cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
print(cores, "multi_thread_eigen=false" in os.environ["XLA_FLAGS"], os.environ["OMP_NUM_THREADS"])
"""
