"""FFMU: its smoothed model against enumeration and draws, its answers to requests."""

import dataclasses
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import Dataset, Model, Status, TrainConfig, data, models, registry
from jaxunlearn.certify.federated import function_gap_bound
from jaxunlearn.federated import forget_client, forget_rows, gather, partition, round_updates
from jaxunlearn.federated.federation import Federation
from jaxunlearn.methods import ffmu
from jaxunlearn.methods.ffmu import FFMUConfig, Smoothed, predict_smoothed
from jaxunlearn.models import cross_entropy
from jaxunlearn.primitives.smoothing import ternary_threshold

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

N, K = 48, 4
DATA = Dataset(*(jnp.asarray(part[:N]) for part in data.load("digits").train))
MODEL = models.logistic(10)
TRAIN = TrainConfig(epochs=3, batch_size=8)
PART = partition.dirichlet(1, np.asarray(DATA.y), K, alpha=2.0)
# lam small enough for the quantizer to be the sign, also at sigma = 1.
CONFIG = FFMUConfig(
    Federation(clients=K, local_epochs=1), sigma=1.0, lam=0.5, server_momentum=0.0, samples=16
)
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def method():
    return ffmu.unlearner(MODEL, TRAIN, CONFIG, partition=PART)


@pytest.fixture(scope="module")
def state(method):
    return method.fit(KEY, DATA)


def test_the_smoothed_model_is_the_mean_over_all_quantized_gradients():
    """Three coordinates: all 27 values of Q(G + e), with their probabilities by scipy."""
    from scipy.stats import norm

    g, sigma, lam, rate = np.array([0.3, -0.1, 0.02]), 0.4, 0.3, 0.7
    w, x = np.array([0.2, -0.4, 1.0]), np.array([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]])
    chance = lambda t: {
        1: norm.sf((lam / 2 - t) / sigma),
        -1: norm.cdf((-lam / 2 - t) / sigma),
        0: norm.cdf((lam / 2 - t) / sigma) - norm.cdf((-lam / 2 - t) / sigma),
    }
    exact = 0.0
    for q in itertools.product((-1, 0, 1), repeat=3):
        logit = x @ (w - rate * np.array(q))
        exact = exact + np.prod([chance(t)[c] for t, c in zip(g, q, strict=True)]) / (
            1 + np.exp(-logit)
        )
    apply_fn = lambda params, x: jnp.stack([jnp.zeros(x.shape[0]), x @ params], axis=1)
    some = Smoothed(jnp.asarray(w, jnp.float32), jnp.asarray(g, jnp.float32), jnp.float32(rate))
    draws = 20_000
    found = predict_smoothed(
        KEY, apply_fn, some, jnp.asarray(x, jnp.float32), sigma=sigma, lam=lam, samples=draws
    )
    error = 4 * 0.5 / np.sqrt(draws)
    np.testing.assert_allclose(found[:, 1], exact, atol=error)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-4)
    # A law nearby, a step a fifth longer, is told apart.
    wrong = some._replace(rate=jnp.float32(1.2 * rate))
    other = predict_smoothed(
        KEY, apply_fn, wrong, jnp.asarray(x, jnp.float32), sigma=sigma, lam=lam, samples=draws
    )
    assert np.abs(other[:, 1] - exact).max() > error


def test_it_tends_to_the_step_of_the_quantized_gradient_as_sigma_vanishes():
    """The paper's Theorem 5."""
    g = jnp.array([[0.3, -0.2]])
    some = Smoothed(jnp.zeros((1, 2)), g, jnp.float32(0.5))
    out = predict_smoothed(
        KEY, lambda p, x: x @ p, some, jnp.ones((1, 1)), sigma=1e-3, lam=0.1, samples=8
    )
    np.testing.assert_allclose(out, jax.nn.softmax(-0.5 * jnp.sign(g)), rtol=1e-6)


def test_a_request_changes_nothing_but_what_is_said(method, state):
    forget = forget_client(PART, 2)
    after = method.unlearn(jax.random.key(1), state, DATA, forget)
    chex.assert_trees_all_equal((after.params, after.memory), (state.params, state.memory))
    chex.assert_trees_all_equal(
        method.predict(after, DATA.x[:5]), method.predict(state, DATA.x[:5])
    )
    found = after.certificate
    assert found.covers and Status(int(after.status)) == Status.OK
    # The round without the client, from the mean alone and by taking it again.
    np.testing.assert_allclose(found.removal.bound, found.leaving.bound[2], rtol=1e-3)
    assert state.certificate.removal.bound == 0 < found.removal.bound < 0.5


def test_the_certificate_is_about_the_round_that_was_taken(state):
    """Gradients of the last round recomputed by hand; distances in float64."""
    clients = gather(DATA, PART)
    config, rule = ffmu.plan(TRAIN, CONFIG), ffmu.rule(CONFIG)
    key = jax.random.split(KEY)[1]
    sent = round_updates(
        key,
        cross_entropy(MODEL.apply),
        state.memory.before,
        clients,
        round=config.rounds - 1,
        config=config,
        rule=rule,
    )
    flat = np.concatenate(
        [np.asarray(u, float).reshape(K, -1) for u in jax.tree.leaves(sent)], axis=1
    )
    mean = np.average(flat, axis=0, weights=PART.counts)
    aggregated = np.concatenate(
        [np.ravel(u) for u in jax.tree.leaves(state.memory.smoothed.gradient)]
    )
    np.testing.assert_allclose(aggregated, mean, atol=1e-6)
    distance = np.linalg.norm(flat - mean, axis=1)
    np.testing.assert_allclose(state.certificate.clients.distance, distance, rtol=1e-3)
    d = max(np.linalg.norm(a - b) for a in flat for b in flat)
    np.testing.assert_allclose(
        state.certificate.clients.paper, (K - 1) * d / (np.sqrt(2 * np.pi) * K), rtol=1e-3
    )
    # The step that was taken is the quantized mean.
    step = jax.tree.map(jnp.subtract, state.memory.before, state.params)
    moved = np.concatenate([np.ravel(u) for u in jax.tree.leaves(step)])
    assert ternary_threshold(1.0, 0.5) == 0
    size, clear = np.abs(moved).max(), np.abs(mean) > 1e-6
    assert size > 0 and clear.mean() > 0.5
    np.testing.assert_allclose(moved[clear], size * np.sign(mean)[clear], atol=1e-6)


def test_with_momentum_the_smoothed_model_begins_where_the_step_began():
    """Without noise it is the trained model; another start is not."""
    config = FFMUConfig(CONFIG.federation, sigma=1e-7, lam=0.0, samples=2)
    method = ffmu.unlearner(MODEL, TRAIN, config, partition=PART)
    state = method.fit(KEY, DATA)
    expected = jax.nn.log_softmax(MODEL.apply(state.params, DATA.x))
    np.testing.assert_allclose(method.predict(state, DATA.x), expected, atol=1e-4)
    step = jax.tree.map(jnp.subtract, state.memory.before, state.params)
    steps = {round(float(v), 5) for v in jnp.abs(step["Dense_0"]["kernel"]).ravel()}
    assert len(steps) > 2  # the last step is no sign: momentum is in it


def test_with_some_clients_chosen_the_smoothed_model_is_still_of_the_round():
    """Where it begins does not depend on whose updates the trained model took its step along."""
    chosen = dataclasses.replace(CONFIG.federation, participants=1)
    config = FFMUConfig(chosen, sigma=1e-7, lam=0.0, server_momentum=0.0, samples=2)
    method = ffmu.unlearner(MODEL, TRAIN, config, partition=PART)
    state = method.fit(KEY, DATA)
    rate = state.memory.smoothed.rate
    # Without noise O(q) is one step of the sign from where the clients began.
    stepped = jax.tree.map(
        lambda p, g: p - rate * jnp.sign(g), state.memory.before, state.memory.smoothed.gradient
    )
    expected = jax.nn.log_softmax(MODEL.apply(stepped, DATA.x))
    np.testing.assert_allclose(method.predict(state, DATA.x), expected, atol=1e-5)
    trained = jax.nn.log_softmax(MODEL.apply(state.params, DATA.x))
    assert np.abs(trained - expected).max() > 1e-3  # the trained model took another step


def test_a_client_that_was_left_out_of_the_last_round():
    """One of its rows overflows: no claim about it, and larger shares for the others."""
    model = Model(MODEL.init, lambda params, x: MODEL.apply(params, 10 * x))
    huge = DATA._replace(x=DATA.x.at[PART.rows[2, 0]].set(3e38))
    method = ffmu.unlearner(model, TRAIN, CONFIG, partition=PART)
    state = method.fit(KEY, huge)
    found = state.certificate
    assert state.status == Status.OK and found.clients.paper_vacuous
    for certificate in (found.clients, found.leaving):
        assert jnp.isfinite(certificate.distance).tolist() == [True, True, False, True]
        assert certificate.bound[2] == 1
    after = method.unlearn(jax.random.key(1), state, huge, forget_client(PART, 0))
    np.testing.assert_allclose(
        after.certificate.removal.distance, found.leaving.distance[0], rtol=1e-3
    )


def test_outputs_move_less_than_the_bound_for_real_removals(method, state):
    """Rows of clients leave the last round; the smoothed outputs are compared, noise in common."""
    config, rule = ffmu.plan(TRAIN, CONFIG), ffmu.rule(CONFIG)
    loss_fn, key = cross_entropy(MODEL.apply), jax.random.split(KEY)[1]
    rng, largest = np.random.default_rng(0), 0.0
    for _ in range(6):
        keep = jnp.asarray(rng.random(N) > 0.3)
        fewer = gather(DATA, PART, keep=keep)
        sent = round_updates(
            key, loss_fn, state.memory.before, fewer, round=2, config=config, rule=rule
        )
        share = fewer.counts / fewer.counts.sum()
        without = jax.tree.map(lambda u, s=share: jnp.tensordot(s, u, axes=1), sent)
        after = method.unlearn(jax.random.key(1), state, DATA, ~keep)
        out = [
            predict_smoothed(
                jax.random.key(5),
                MODEL.apply,
                Smoothed(state.memory.before, g, jnp.float32(0.2)),
                DATA.x,
                sigma=1.0,
                samples=400,
            )
            for g in (state.memory.smoothed.gradient, without)
        ]
        gap = float(jnp.abs(out[0] - out[1]).max())
        bound = float(after.certificate.removal.bound)
        distance = (
            sum(
                float(jnp.sum(jnp.square(a - b)))
                for a, b in zip(
                    *map(jax.tree.leaves, (state.memory.smoothed.gradient, without)), strict=True
                )
            )
            ** 0.5
        )
        np.testing.assert_allclose(bound, function_gap_bound(distance, 1.0), rtol=1e-3)
        assert gap < bound
        largest = max(largest, gap / bound)
    assert largest > 0.05  # the outputs do move


@pytest.mark.slow
def test_beyond_the_certificate_where_it_says_nothing():
    forget = forget_rows(PART, 0, PART.rows[0, :2])
    # At the paper's sigma most of it is vacuous; and without draws the answers are another model's.
    for config in (
        FFMUConfig(CONFIG.federation, sigma=0.001, samples=4),
        FFMUConfig(CONFIG.federation, sigma=1.0),
    ):
        method = ffmu.unlearner(MODEL, TRAIN, config, partition=PART)
        state = method.fit(KEY, DATA)
        assert state.status == Status.OK
        after = method.unlearn(KEY, state, DATA, forget)
        assert after.status == Status.BEYOND_CERTIFICATE
        assert bool(after.certificate.removal.vacuous) == (config.sigma < 1)


def test_smoothed_answers_are_log_probabilities(method, state):
    logits = method.predict(state, DATA.x[:7])
    np.testing.assert_allclose(jnp.exp(logits).sum(1), 1, rtol=1e-5)
    plain = ffmu.unlearner(MODEL, TRAIN, FFMUConfig(CONFIG.federation, sigma=1.0), partition=PART)
    chex.assert_trees_all_equal(plain.predict(state, DATA.x), MODEL.apply(state.params, DATA.x))


def test_ffmu_n_averages_models():
    config = FFMUConfig(CONFIG.federation, server="fedavg")
    assert ffmu.rule(config).upload == "change"
    method = registry.make("ffmu_n", MODEL, train=TRAIN, config=config)
    state = method.fit(KEY, DATA)
    after = method.unlearn(KEY, state, DATA, jnp.arange(N) < 3)
    chex.assert_trees_all_equal(after.params, state.params)
    assert after.certificate == () and after.grads == 0


def test_presets():
    assert ffmu.PAPER.federation.clients == 100 and ffmu.PAPER.federation.rounds == 200
    plan = ffmu.plan(ffmu.PAPER_TRAIN, ffmu.PAPER)
    assert (plan.rounds, plan.local.epochs, plan.local.batch_size) == (200, 2, 50)
    assert ffmu.PAPER.sigma == 0.1 and ffmu.PAPER.rates == (0.1, 0.1)
    assert ffmu.plan(TrainConfig(epochs=7), FFMUConfig()).rounds == 4


@pytest.mark.slow
def test_defaults_train():
    rows = Dataset(*(jnp.asarray(part[:600]) for part in data.load("digits").train))
    test, model = data.load("digits").test, models.mlp(10, hidden=(16,))
    server = ffmu.train(KEY, model, rows, config=TrainConfig(epochs=60), method=FFMUConfig())
    assert (model.apply(server.params, test.x).argmax(-1) == test.y).mean() > 0.8


BAD = {
    "sigma": (lambda: FFMUConfig(sigma=0.0), "sigma=0.0 must be a finite number > 0"),
    "sigma below": (lambda: FFMUConfig(sigma=-0.1), "sigma=-0.1"),
    "lam": (lambda: FFMUConfig(lam=-1.0), "lam=-1.0"),
    "participants": (
        lambda: Federation(clients=3, participants=4),
        "participants=4 is more than clients=3",
    ),
    "K = 1": (lambda: Federation(clients=1), "clients=1 has nobody to average with"),
    "partition": (lambda: Federation(partition="idd"), "Did you mean 'iid'"),
    "local": (lambda: FFMUConfig(local="sampled"), "local='sampled' is unknown"),
    "server": (lambda: FFMUConfig(server="fedavgg"), "Did you mean 'fedavg'"),
    "rate": (lambda: FFMUConfig(server_rate=0.0), "server_rate=0.0"),
    "momentum": (lambda: FFMUConfig(server_momentum=1.0), "server_momentum=1.0 must be below 1"),
    "samples": (lambda: FFMUConfig(server="fedavg", samples=5), "smooths nothing"),
    "draws": (
        lambda: predict_smoothed(
            KEY, MODEL.apply, Smoothed({}, {}, jnp.float32(1)), DATA.x, sigma=1.0, samples=0
        ),
        "samples=0",
    ),
    "other clients": (
        lambda: ffmu.unlearner(MODEL, TRAIN, FFMUConfig(Federation(clients=3)), partition=PART).fit(
            KEY, DATA
        ),
        "partition has 4 clients, but the configuration has 3",
    ),
    "more clients": (
        lambda: ffmu.unlearner(MODEL, TRAIN, FFMUConfig(Federation(clients=N + 1))).fit(KEY, DATA),
        "clients=49 is more than the 48 rows",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()
