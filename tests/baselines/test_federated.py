"""FedEraser and UN against plain loops that keep everything."""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import Dataset, TrainConfig, data, models
from jaxunlearn.baselines.federated import (
    FedAvgConfig,
    FedEraserConfig,
    ReverseSGDConfig,
    climb,
    fedavg,
    federaser,
    reverse_sgd,
)
from jaxunlearn.baselines.federated.fedavg import unlearner as fedavg_unlearner
from jaxunlearn.federated import FEDAVG, forget_client, gather, partition, round_updates
from jaxunlearn.federated.federation import Federation
from jaxunlearn.models import cross_entropy

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

N, K = 40, 4
DATA = Dataset(*(jnp.asarray(part[:N]) for part in data.load("digits").train))
PART = partition.dirichlet(3, np.asarray(DATA.y), K, alpha=2.0)
MODEL = models.logistic(10)
LOSS = cross_entropy(MODEL.apply)
TRAIN = TrainConfig(epochs=6, batch_size=8, learning_rate=0.2, momentum=0.0, schedule="constant")
FEDERATION = Federation(clients=K, local_epochs=2)
KEY, AGAIN = jax.random.key(0), jax.random.key(9)
REQUESTS = {
    "a client": forget_client(PART, 1),
    "rows of all": jnp.arange(N) % 5 == 0,
}


def norm(leaf):
    return float(np.sqrt(np.sum(np.square(np.asarray(leaf, float)))))


def mean(updates, counts):
    return jax.tree.map(lambda u: np.average(u, axis=0, weights=np.asarray(counts)), updates)


CASES = [
    ("method", "a client"),
    ("code", "rows of all"),
    pytest.param("method", "rows of all", marks=pytest.mark.slow),
    pytest.param("code", "a client", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("mode", "request_name"), CASES)
def test_federaser_is_the_loop_that_keeps_all_updates(mode, request_name):
    forget = REQUESTS[request_name]
    config = FedEraserConfig(FEDERATION, interval=2, ratio=0.4, mode=mode)
    method = federaser.unlearner(MODEL, TRAIN, config, partition=PART)
    state = method.fit(KEY, DATA)
    found = method.unlearn(AGAIN, state, DATA, forget)

    plan = FEDERATION.config(TRAIN)
    key = jax.random.split(KEY)[1]
    everyone, fewer = gather(DATA, PART), gather(DATA, PART, keep=~forget)
    w = MODEL.init(jax.random.split(KEY)[0], DATA.x[:1])
    start, old = w, []
    for t in range(plan.rounds):
        sent = round_updates(key, LOSS, w, everyone, round=t, config=plan)
        old.append(jax.tree.map(np.asarray, sent))
        w = jax.tree.map(lambda p, u: p - u, w, mean(sent, everyone.counts))
    chex.assert_trees_all_close(state.params, w, atol=1e-5)

    assert plan.rounds == 3 and math.ceil(0.4 * 2) == 1
    short = dataclasses.replace(plan, local=dataclasses.replace(plan.local, epochs=1))
    m = start
    for t in (0, 2):
        new = mean(round_updates(AGAIN, LOSS, m, fewer, round=t, config=short), fewer.counts)
        length = mean(old[t], fewer.counts)
        if mode == "code":
            length = jax.tree.map(np.subtract, length, mean(old[t], everyone.counts))
        m = jax.tree.map(lambda p, v, u: p - norm(u) * v / norm(v), m, new, length)
    chex.assert_trees_all_close(found.params, m, atol=2e-4)
    assert found.grads == 2 * int((~forget).sum())
    assert jax.tree.leaves(state.memory[1])[0].shape == (2, K, K)


def test_climb_is_the_loop():
    """Ascent with momentum, clipping, projection and a stop, on a quadratic, in NumPy."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 3)).astype(np.float32)
    rows = Dataset(jnp.asarray(x), jnp.zeros(6, int))
    forget = jnp.array([True, False, True, False, True, False])
    loss_fn = lambda params, row: 0.5 * jnp.sum((params - row.x) ** 2)
    center, leaver = np.array([0.1, -0.2, 0.3]), np.array([0.0, -0.1, 0.2])
    for square, stop in ((0.05, None), (10.0, 0.4), (10.0, None)):
        config = ReverseSGDConfig(
            learning_rate=0.1, momentum=0.5, clip=0.6, batch_size=8, epochs=7, stop=stop
        )
        found = climb(
            KEY,
            loss_fn,
            jnp.asarray(center, jnp.float32),
            jnp.asarray(leaver, jnp.float32),
            rows,
            forget,
            square=jnp.float32(square),
            config=config,
        )
        w, velocity = center.copy(), np.zeros(3)
        for _ in range(7):
            g = -(w - x[np.asarray(forget)].mean(0))
            g *= min(1, 0.6 / np.linalg.norm(g))
            velocity = 0.5 * velocity + g
            w = w - 0.1 * velocity
            away = w - center
            w = center + away * min(1, np.sqrt(square) / np.linalg.norm(away))
            if stop and np.sum((w - leaver) ** 2) > stop:
                break
        np.testing.assert_allclose(found, w, rtol=1e-5)
        assert np.sum((np.asarray(found) - center) ** 2) <= square * 1.001


@pytest.mark.parametrize(
    "request_name", ["a client", pytest.param("rows of all", marks=pytest.mark.slow)]
)
def test_un_climbs_from_the_others_model_and_is_repaired(request_name):
    forget = REQUESTS[request_name]
    config = ReverseSGDConfig(FEDERATION, epochs=3, batch_size=4, inits=3, repair=0)
    method = reverse_sgd.unlearner(MODEL, TRAIN, config, partition=PART)
    state = method.fit(KEY, DATA)
    found = method.unlearn(AGAIN, state, DATA, forget)
    everyone = gather(DATA, PART)
    before, changes = state.memory
    local = [jax.tree.map(lambda b, c, k=k: b - c[k], before, changes) for k in range(K)]
    chex.assert_trees_all_close(
        state.params, mean(jax.tree.map(lambda *w: np.stack(w), *local), everyone.counts), atol=1e-5
    )
    center = leaver = state.params
    if request_name == "a client":
        others = [k for k in range(K) if k != 1]
        stacked = jax.tree.map(lambda *w: np.stack(w), *[local[k] for k in others])
        center = mean(stacked, everyone.counts[np.array(others)])
        leaver = local[1]
    # MODEL starts at zero whatever the key: the radius is the length of the reference itself.
    square = sum(norm(leaf) ** 2 for leaf in jax.tree.leaves(center)) / 3
    key = jax.random.split(AGAIN)[0]
    one = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)
    expected = climb(
        key, LOSS, one(center), one(leaver), DATA, forget, square=jnp.float32(square), config=config
    )
    chex.assert_trees_all_close(found.params, expected, atol=1e-5)
    loss = lambda params: float(jax.vmap(lambda r: LOSS(params, r))(DATA)[forget].mean())
    assert loss(found.params) > loss(center) + 1e-3  # it climbs

    mended = reverse_sgd.unlearner(
        MODEL, TRAIN, dataclasses.replace(config, repair=2), partition=PART
    )
    after = mended.unlearn(AGAIN, state, DATA, forget)
    kept = lambda params: float(jax.vmap(lambda r: LOSS(params, r))(DATA)[~forget].mean())
    assert kept(after.params) < kept(found.params)
    assert after.grads == found.grads + 2 * 2 * int((~forget).sum())


def test_fedavg_without_rows_is_a_federation_without_them():
    """A client that is removed leaves the training of the others, bit for bit."""
    forget = REQUESTS["a client"]
    method = FedAvgConfig(FEDERATION)
    found = fedavg(KEY, MODEL, DATA, keep=~forget, partition=PART, config=TRAIN, method=method)
    garbled = Dataset(jnp.where(forget[:, None, None, None], 7.0, DATA.x), DATA.y)
    again = fedavg(KEY, MODEL, garbled, keep=~forget, partition=PART, config=TRAIN, method=method)
    chex.assert_trees_all_equal(found.params, again.params)
    unlearner = fedavg_unlearner(MODEL, TRAIN, method, partition=PART)
    state = unlearner.unlearn(KEY, unlearner.fit(AGAIN, DATA), DATA, forget)
    chex.assert_trees_all_equal(state.params, found.params)
    assert state.grads == 6 * int((~forget).sum())


def test_fedavg_says_what_its_own_rounds_cost():
    rounds = dataclasses.replace(FEDERATION, rounds=2, participants=1)
    method = fedavg_unlearner(MODEL, TRAIN, FedAvgConfig(rounds), partition=PART)
    state = method.fit(KEY, DATA)
    assert float(state.grads) == 2 * 2 * N / K  # rounds, local epochs; a client of K
    after = method.unlearn(AGAIN, state, DATA, REQUESTS["a client"])
    assert float(after.grads) == 2 * 2 * (N - PART.counts[1]) / K


def test_fedavg_with_server_momentum():
    plain, moved = FedAvgConfig(FEDERATION), FedAvgConfig(FEDERATION, server_momentum=0.5)
    assert plain.rule is FEDAVG and moved.rule.server is moved.rule.server
    ends = [
        fedavg(KEY, MODEL, DATA, partition=PART, config=TRAIN, method=m).params
        for m in (plain, moved)
    ]
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(*ends, atol=1e-3)


BAD = {
    "interval": (lambda: FedEraserConfig(interval=0), "interval=0"),
    "ratio": (lambda: FedEraserConfig(ratio=1.5), "ratio=1.5 must be at most 1"),
    "mode": (lambda: FedEraserConfig(mode="cod"), "Did you mean 'code'"),
    "stop": (lambda: ReverseSGDConfig(stop=0.0), "stop=0.0"),
    "repair": (lambda: ReverseSGDConfig(repair=-1), "repair=-1"),
    "momentum": (lambda: FedAvgConfig(server_momentum=1.0), "must be below 1"),
    "some clients": (
        lambda: federaser.unlearner(
            MODEL, TRAIN, FedEraserConfig(dataclasses.replace(FEDERATION, participants=2))
        ),
        "participants=2 does not go with federaser",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()
