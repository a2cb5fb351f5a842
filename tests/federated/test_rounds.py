"""Rounds against a plain NumPy loop over clients, and what a round may not depend on."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxunlearn import Dataset, TrainConfig, checkpoint, data, models
from jaxunlearn.federated import (
    FEDAVG,
    FederatedConfig,
    Rule,
    advance,
    begin,
    gather,
    partition,
    round_updates,
)
from jaxunlearn.federated.aggregate import clipped_mean, coordinate_median, weighted_mean
from jaxunlearn.federated.rounds import CHOICE, client_key
from jaxunlearn.methods import ffmu
from jaxunlearn.models import cross_entropy
from jaxunlearn.training.fit import shuffled

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

N, K = 50, 5
TRAIN = data.load("digits").train
DATA = Dataset(TRAIN.x[:N], TRAIN.y[:N])
PART = partition.dirichlet(0, np.asarray(DATA.y), K, alpha=1.0)
MODEL = models.logistic(10)
LOSS = cross_entropy(MODEL.apply)
LOCAL = TrainConfig(epochs=2, batch_size=4, learning_rate=0.1, momentum=0.0, schedule="step")
CONFIG = FederatedConfig(rounds=4, local=LOCAL, chunk=2)
KEY = jax.random.key(3)
START = MODEL.init(jax.random.key(0), DATA.x[:1])


def gradient(w, b, x, y):
    """Of the mean cross-entropy of a linear model, in float64."""
    logits = x @ w + b
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    return x.T @ p / len(y), p.mean(0)


def numpy_rounds(*, keep=None, participants=None, quantize=None, rounds=4, rule="fedavg"):
    """FedAvg, or FFMU with a local and a server quantizer and rates .02 and .01, row by row."""
    x, y = np.asarray(DATA.x, float).reshape(N, -1), np.asarray(DATA.y)
    keep = np.ones(N, bool) if keep is None else np.asarray(keep)
    w, b = np.zeros((64, 10)), np.zeros(10)
    for t in range(rounds):
        factor = 1.0 if t / 4 < 0.5 else 0.1 if t / 4 < 0.75 else 0.01
        counts = np.array([keep[own[:c]].sum() for own, c in zip(*PART, strict=True)])
        clients = range(K)
        if participants:
            draw = jax.random.fold_in(jax.random.fold_in(KEY, t), CHOICE)
            clients = np.asarray(shuffled(draw, K, last=jnp.asarray(counts == 0)))[:participants]
        sent, weights = [], []
        for k in clients:
            own = PART.rows[k]
            there = (np.arange(own.size) < PART.counts[k]) & keep[own]
            if not there.any():
                continue
            wk, bk, total = w.copy(), b.copy(), []
            for e in range(2):
                order_key = jax.random.fold_in(client_key(KEY, t, int(k)), e)
                order = np.asarray(shuffled(order_key, own.size, last=jnp.asarray(~there)))
                rows = own[order[: there.sum()]]
                # Batches are cut at the padded positions, so all but the last are full.
                for i in range(0, len(rows), 4):
                    gw, gb = gradient(wk, bk, x[rows[i : i + 4]], y[rows[i : i + 4]])
                    total.append((gw, gb))
                    if quantize:
                        gw, gb, rate = quantize(gw), quantize(gb), 0.02
                    else:
                        rate = 0.1
                    wk, bk = wk - rate * factor * gw, bk - rate * factor * gb
            weights.append(there.sum())
            mean = [np.mean([g[i] for g in total], axis=0) for i in (0, 1)]
            sent.append(mean if rule == "ffmu" else (w - wk, b - bk))
        dw, db = (np.average([s[i] for s in sent], axis=0, weights=weights) for i in (0, 1))
        if rule == "ffmu":
            dw, db = 0.01 * factor * quantize(dw), 0.01 * factor * quantize(db)
        w, b = w - dw, b - db
    return w, b


def run(clients, config=CONFIG, rule=FEDAVG, **how):
    return advance(
        KEY,
        LOSS,
        begin(START, clients.number.size, rule=rule),
        clients,
        config=config,
        rule=rule,
        **how,
    )


def assert_is(server, expected, tolerance=2e-6):
    w, b = expected
    np.testing.assert_allclose(server.params["Dense_0"]["kernel"], w, atol=tolerance)
    np.testing.assert_allclose(server.params["Dense_0"]["bias"], b, atol=tolerance)


@pytest.fixture(scope="module")
def clients():
    return gather(DATA, PART)


@pytest.fixture(scope="module")
def fedavg(clients):
    return run(clients)


def test_fedavg_is_the_loop(fedavg):
    assert_is(fedavg, numpy_rounds())
    assert int(fedavg.round) == 4 and not fedavg.rejected.any()
    unweighted = numpy_rounds(keep=np.arange(N) != 3)
    with pytest.raises(AssertionError):
        assert_is(fedavg, unweighted)


def test_ffmu_is_the_loop(clients):
    """Soft at sigma = 1 and lam = 1, where it differs from the gradient by far."""
    from scipy.stats import norm

    quantize = lambda g: norm.cdf(g - 0.5) - norm.cdf(-g - 0.5)
    config = ffmu.FFMUConfig(
        sigma=1.0,
        local="soft",
        server="soft",
        local_rate=0.02,
        server_rate=0.01,
        server_momentum=0.0,
        schedule="step",
    )
    local = TrainConfig(epochs=2, batch_size=4, learning_rate=0.02, momentum=0.0, schedule="step")
    found = run(clients, FederatedConfig(4, local, chunk=3), ffmu.rule(config))
    assert_is(found, numpy_rounds(quantize=quantize, rule="ffmu"))


def test_removed_rows_are_not_read_and_clients_without_rows_do_not_count():
    leaves = np.zeros(N, bool)
    leaves[PART.rows[1][: PART.counts[1]]] = True  # a whole client
    leaves[PART.rows[0][:2]] = True
    broken = Dataset(jnp.where(leaves[:, None, None, None], jnp.nan, DATA.x), DATA.y)
    found = run(gather(broken, PART, keep=~jnp.asarray(leaves)))
    assert_is(found, numpy_rounds(keep=~leaves))
    assert not found.rejected.any()


def test_sampled_clients_are_the_loop(clients):
    config = FederatedConfig(4, LOCAL, participants=3, chunk=2)
    assert_is(run(clients, config), numpy_rounds(participants=3))


@pytest.mark.parametrize("chunk", [1, 3, None])
def test_chunks_change_nothing(clients, fedavg, chunk):
    found = run(clients, FederatedConfig(4, LOCAL, chunk=chunk))
    chex.assert_trees_all_close(found, fedavg, atol=1e-6)


def test_a_training_that_stopped_goes_on(clients, fedavg, tmp_path):
    half = run(clients, rounds=2)
    checkpoint.save(tmp_path / "server", half)
    half = checkpoint.restore(tmp_path / "server", jax.eval_shape(lambda: half))
    chex.assert_trees_all_equal(advance(KEY, LOSS, half, clients, config=CONFIG), fedavg)
    with pytest.raises(ValueError, match="rounds=3 is more than the 2 that are left"):
        advance(KEY, LOSS, half, clients, config=CONFIG, rounds=3)


def test_updates_are_what_is_aggregated(clients, fedavg):
    updates = round_updates(KEY, LOSS, fedavg.before, clients, round=3, config=CONFIG)
    share = clients.counts / clients.counts.sum()
    mean = jax.tree.map(lambda u: jnp.tensordot(share, u, axes=1), updates)
    chex.assert_trees_all_close(mean, fedavg.update, atol=1e-7)
    chex.assert_trees_all_close(
        jax.tree.map(jnp.subtract, fedavg.before, fedavg.params), fedavg.update, atol=1e-7
    )


def test_an_update_that_is_not_finite_is_rejected_and_named(clients):
    """Client 2 overflows: every round counts it, and the others train as if it were not there."""
    x = clients.data.x.at[2].set(3e38)
    found = run(clients._replace(data=Dataset(x, clients.data.y)))
    assert found.rejected.tolist() == [0, 0, 4, 0, 0]
    gone = jnp.ones(N, bool).at[PART.rows[2]].set(False)
    chex.assert_trees_all_close(found.params, run(gather(DATA, PART, keep=gone)).params, atol=1e-6)


def test_server_momentum_is_the_optimizer_it_says(clients):
    rule = Rule(server=optax.trace(0.5), rate=0.7)
    found = run(clients, rule=rule)
    w = jax.tree.map(np.asarray, START)
    velocity = jax.tree.map(np.zeros_like, w)
    for t in range(4):
        sent = round_updates(KEY, LOSS, w, clients, round=t, config=CONFIG)
        share = np.asarray(clients.counts / clients.counts.sum())
        mean = jax.tree.map(lambda u, s=share: np.tensordot(s, u, axes=1), sent)
        velocity = jax.tree.map(lambda v, m: 0.5 * v + m, velocity, mean)
        w = jax.tree.map(lambda p, v: p - 0.7 * v, w, velocity)
    chex.assert_trees_all_close(found.params, w, atol=2e-6)


AGGREGATORS = {
    "mean": (weighted_mean, lambda u, w: np.average(u, axis=0, weights=w)),
    "median": (coordinate_median, lambda u, w: np.median(u[w > 0], axis=0)),
    "clipped": (
        lambda: clipped_mean(1.5),
        lambda u, w: np.average(
            u * np.minimum(1, 1.5 / np.linalg.norm(u, axis=1))[:, None], axis=0, weights=w
        ),
    ),
}


@pytest.mark.parametrize("name", AGGREGATORS)
def test_aggregators(name):
    made, expected = AGGREGATORS[name]
    rng = np.random.default_rng(0)
    updates, weights = rng.normal(size=(6, 4)).astype(np.float32), np.array([1, 2, 0, 4, 1, 1.0])
    aggregator = made()
    sums = aggregator.start(jnp.zeros(4), 6)
    for some in (slice(0, 2), slice(2, 4), slice(4, 6)):
        sums = aggregator.add(
            sums, jnp.asarray(updates[some]), jnp.asarray(weights[some], jnp.float32)
        )
    np.testing.assert_allclose(aggregator.finish(sums), expected(updates, weights), rtol=1e-5)
    empty = aggregator.add(aggregator.start(jnp.zeros(4), 2), jnp.ones((2, 4)), jnp.zeros(2))
    assert aggregator.finish(empty).tolist() == [0] * 4
    assert made() is made()


def test_another_aggregator_in_a_round(clients):
    found = run(clients, rounds=1, aggregator=coordinate_median())
    sent = round_updates(KEY, LOSS, START, clients, round=0, config=CONFIG)
    expected = jax.tree.map(lambda p, u: p - np.median(u, axis=0), START, sent)
    chex.assert_trees_all_close(found.params, expected, atol=1e-7)


BAD = {
    "rounds": (lambda c: FederatedConfig(rounds=0), "rounds=0"),
    "chunk": (lambda c: FederatedConfig(chunk=0), "chunk=0"),
    "participants": (lambda c: FederatedConfig(participants=-1), "participants=-1"),
    "upload": (lambda c: run(c, rule=Rule(upload="chang")), "Did you mean 'change'"),
    "other rule": (
        lambda c: advance(
            KEY, LOSS, begin(START, K), c, config=CONFIG, rule=Rule(server=optax.trace(0.5))
        ),
        "server was begun under another rule",
    ),
    "nobody": (lambda c: run(c._replace(weights=0 * c.weights)), "no row of non-zero weight"),
    "clip": (lambda c: clipped_mean(0.0), "norm=0.0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, clients):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call(clients)
