"""The audit benchmark: its truth, its calibration, its table."""

import numpy as np
import pytest
from scipy import integrate, stats

pytest.importorskip("benchmarks.harness")
from benchmarks import audit, audit_methods
from benchmarks.harness import Options
from jaxunlearn import registry


def test_true_epsilon_has_that_delta():
    """Delta is the excess of one density over e^epsilon times the other, integrated."""
    for shift, delta in ((1.0, 0.1), (2.0, 1e-3)):
        epsilon = audit.true_epsilon(shift, delta)
        excess = lambda x, s=shift, e=epsilon: max(
            0.0, stats.norm.pdf(x - s) - np.exp(e) * stats.norm.pdf(x)
        )
        found, _ = integrate.quad(excess, -10, 20, limit=500, points=[epsilon / shift + shift / 2])
        assert found == pytest.approx(delta, rel=1e-4)


def test_calibration():
    result = audit.calibration(Options(quick=True))
    assert set(result.metrics) == {"epsilon_coverage", "epsilon_tightness"}
    for key, value in result.metrics.items():
        assert audit.TARGETS[key].reached(getattr(value, "estimate", value))


def test_every_registered_method_is_audited():
    chosen = audit_methods.chosen()
    assert {name.partition("@")[0] for name in chosen} == set(registry.METHODS)
    plain = [registry.get(name.partition("@")[0]).ordinary_training for name in chosen]
    assert plain == sorted(plain, reverse=True)  # the shared originals first


def record(method: str, **more):
    report = {"value": 0.7, "interval": [0.69, 0.71], "null": [0.5, 0.49, 0.51]}
    pair = lambda value: [value, 0.01]
    return {
        "method": method, "request": "random", "n_models": 128, "ok": 0.5,
        "acc_test": pair(0.8), "acc_retain": pair(0.9), "acc_forget": pair(0.7),
        "acc_test_null": pair(0.81), "acc_retain_null": pair(0.91), "acc_forget_null": pair(0.75),
        "ulira": report, "epsilon": {**report, "infinite": 0.25, "null_infinite": 0.0},
        "quality": report, "confidence": report, **more,
    }  # fmt: skip


def test_table():
    lines = audit_methods.table([record("noop"), record("finetune", ulira=None)])
    assert lines[0] == "**random request**" and len(lines) == 8
    cells = [line.count("|") for line in lines if line.startswith("|")]
    assert set(cells) == {len(audit_methods.HEADS) + 1}
    assert lines[4].startswith(
        "| `noop` | 128 | 50% | 80.0 | 90.0 | −5.0 | **0.700** | 0.70 | 25% |"
    )
    assert "| – |" in lines[5]
    assert lines[6].startswith("| *retrain vs retrain* | 128 |  | 81.0 | 91.0 | 0 | 0.500 |")
