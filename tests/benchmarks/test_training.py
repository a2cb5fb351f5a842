"""The training benchmark measures the same work on all sides, and runs without its peers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import harness, training
from benchmarks.harness import Case, Options, Run
from jaxunlearn import TrainConfig, models
from jaxunlearn.models import cross_entropy
from jaxunlearn.primitives.gradients import per_sample_norms
from jaxunlearn.training import minimize


@pytest.fixture
def untimed(monkeypatch):
    """Workloads that compile and time nothing: every case takes a second."""
    seconds = lambda cases, options=None: {
        n: Run(np.ones(3), 0.0, c.peak_bytes) for n, c in cases.items()
    }
    monkeypatch.setattr(harness, "measure", seconds)
    monkeypatch.setattr(harness, "compiled", lambda f, *a, per=1.0: Case(lambda: None, per, 1.0, 8))


def test_without_peers_their_metrics_are_null(monkeypatch, untimed):
    monkeypatch.setattr(harness, "peer", lambda name: None)
    metrics = {}
    for workload in (training.cnn_step, training.many, training.per_sample):
        metrics |= workload(Options()).metrics
    assert metrics.keys() == training.TARGETS.keys()
    missing = {"cnn_step_vs_torch", "per_sample_vs_opacus", "per_sample_vs_torch_func"}
    assert {key for key, value in metrics.items() if value is None} == missing
    assert metrics["scan_vs_loop"].estimate == 1.0


def test_the_loop_of_jitted_steps_trains_as_the_one_jit_does(key):
    rows, model = training.images(16), models.logistic(10)
    params = model.init(key, rows.x[:1])
    config = TrainConfig(epochs=3, batch_size=16, learning_rate=0.1, schedule="constant")
    loop = training.step_loop(model, params, rows, config, np.arange(16))
    want = minimize(key, cross_entropy(model.apply), params, rows, config=config)
    for _ in range(2):  # donation must not eat the parameters that it starts from
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), loop(), want)
    shorter = dataclasses.replace(config, epochs=2)
    other = minimize(key, cross_entropy(model.apply), params, rows, config=shorter)
    difference = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), loop(), other)
    assert max(jax.tree.leaves(difference)) > 1e-3


def test_the_loop_takes_only_the_rows_it_is_given(key):
    rows, model = training.images(8), models.logistic(10)
    poisoned = rows._replace(x=rows.x.at[4:].set(jnp.nan))
    config = TrainConfig(epochs=2, batch_size=2, schedule="constant")
    params = model.init(key, rows.x[:1])
    loop = training.step_loop(model, params, poisoned, config, np.arange(4))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(loop()))


@pytest.mark.filterwarnings("ignore")  # what torch warns of is not ours
class TestTorch:
    @pytest.fixture
    def torch_cnn(self):
        pytest.importorskip("torch")
        from benchmarks import torch_cnn

        return torch_cnn

    @pytest.fixture
    def network(self):
        rows, model = training.images(8), models.cnn(10)
        return rows, model, model.init(jax.random.key(3), rows.x[:1])

    def test_is_the_same_function(self, torch_cnn, network):
        rows, model, params = network
        theirs = torch_cnn.logits(torch_cnn.network(params), rows)
        np.testing.assert_allclose(model.apply(params, rows.x), theirs, atol=1e-5)

    def test_takes_the_same_steps_in_every_setting(self, torch_cnn, network):
        _, model, params = network
        config = TrainConfig(epochs=1, batch_size=8, learning_rate=0.1, schedule="constant")

        def difference(setting, momentum):
            make = lambda rows, setting: torch_cnn.trainer(
                params, rows, setting=setting, batch=8, learning_rate=0.1, momentum=momentum
            )
            return training._difference(make, setting, model, params, config)

        for setting in torch_cnn.SETTINGS:
            assert difference(setting, config.momentum) < 1e-4
        assert difference(setting, 0.5) > 1e-3

    def test_has_the_same_per_sample_gradients(self, torch_cnn, network):
        pytest.importorskip("opacus")
        rows, model, params = network
        norms = jax.jit(lambda p, r: per_sample_norms(cross_entropy(model.apply), p, r))
        ours = norms(params, rows)
        for way in (torch_cnn.func_gradients, torch_cnn.opacus_gradients):
            np.testing.assert_allclose(torch_cnn.norms(way(params, rows)()), ours, rtol=1e-4)
