"""The baselines that take training steps: what they minimise, and on which rows."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import Dataset, TrainConfig, data, fit, minimize, models, registry
from jaxunlearn.baselines import (
    FineTuneConfig,
    GradientAscentConfig,
    finetune,
    gradient_ascent,
    influence,
    retrain,
)
from jaxunlearn.registry import PrunedConfig
from jaxunlearn.training import PruningConfig

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

N = 30
KEY = jax.random.key(0)
MODEL = models.mlp(10, hidden=(4,))
LOSS = models.cross_entropy(MODEL.apply)
FORGET = jnp.arange(N) < 4


@pytest.fixture(scope="module")
def rows() -> Dataset:
    train = data.load("digits").train
    return Dataset(train.x[:N], train.y[:N])


@pytest.fixture(scope="module")
def params(rows):
    return MODEL.init(KEY, rows.x)


def mean_gradient(params, rows, chosen):
    mean = lambda p: jnp.mean(jax.vmap(LOSS, (None, 0))(p, jax.tree.map(lambda v: v[chosen], rows)))
    return jax.jit(jax.grad(mean))(params)


def test_finetune_is_training_on_the_retained_rows(params, rows):
    config = FineTuneConfig(epochs=3, batch_size=8, learning_rate=0.1)
    train = TrainConfig(
        epochs=3,
        batch_size=8,
        learning_rate=0.1,
        momentum=0.9,
        weight_decay=5e-4,
        schedule="constant",
    )
    found = finetune(KEY, LOSS, params, rows, FORGET, config=config)
    expected = minimize(KEY, LOSS, params, rows, weights=~FORGET, config=train)
    chex.assert_trees_all_close(found, expected, atol=1e-6)
    retain = ~FORGET & (jnp.arange(N) > 10)
    fewer = finetune(KEY, LOSS, params, rows, FORGET, retain=retain, config=config)
    expected = minimize(KEY, LOSS, params, rows, weights=retain, config=train)
    chex.assert_trees_all_close(fewer, expected, atol=1e-6)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(found, fewer, atol=1e-3)


def test_gradient_ascent_is_one_step_uphill_on_the_forgotten_rows(params, rows):
    """One full batch, so momentum has not begun: ``params + rate (gradient - decay params)``."""
    config = GradientAscentConfig(epochs=1, batch_size=64, learning_rate=0.1, weight_decay=0.01)
    found = gradient_ascent(KEY, LOSS, params, rows, FORGET, config=config)
    uphill = mean_gradient(params, rows, np.asarray(FORGET))
    # Weight decay pulls to zero still, though the loss is negated: as published.
    expected = jax.tree.map(lambda p, g: p + 0.1 * g - 0.1 * 0.01 * p, params, uphill)
    chex.assert_trees_all_close(found, expected, atol=1e-6)
    loss = lambda p: float(jax.vmap(LOSS, (None, 0))(p, rows)[:4].mean())
    assert loss(found) > loss(params) + 0.01


def test_gradient_ascent_looks_at_no_other_row(params, rows):
    other = Dataset(rows.x.at[4:].set(3e38), rows.y)
    config = GradientAscentConfig(epochs=2, batch_size=3, learning_rate=0.1)
    a, b = (gradient_ascent(KEY, LOSS, params, d, FORGET, config=config) for d in (rows, other))
    chex.assert_tree_all_finite(a)
    chex.assert_trees_all_equal(a, b)


def test_retrain_is_training_with_the_same_start(rows):
    config = TrainConfig(epochs=2, batch_size=8)
    found = retrain(KEY, MODEL, rows, FORGET, config=config)
    expected = fit(KEY, MODEL, rows, weights=~FORGET, config=config)
    chex.assert_trees_all_equal(found, expected)


@pytest.mark.parametrize("name", [n for n in registry.METHODS if n.endswith("+pruning")])
def test_pruned_weights_stay_zero(rows, name):
    """Through training, a request and another one; and as many of them as asked for."""
    train = TrainConfig(epochs=2, batch_size=8, weight_decay=0.01)
    unlearner = registry.make(
        name, MODEL, train=train, config=PrunedConfig(PruningConfig(rate=0.75, rewind=0.5))
    )
    state = unlearner.fit(KEY, rows)
    kernels = [layer["kernel"] for layer in state.memory.values()]
    ones, size = (sum(f(kernel) for kernel in kernels) for f in (jnp.sum, jnp.size))
    assert size - ones == int(0.75 * size)
    first = unlearner.unlearn(KEY, state, rows, FORGET)
    second = unlearner.unlearn(KEY, first, rows, jnp.arange(N) == 9)
    for after in (state, first, second):
        chex.assert_trees_all_equal(after.memory, state.memory)
        outside = jax.tree.map(lambda p, m: p * (1 - m), after.params, after.memory)
        assert all((leaf == 0).all() for leaf in jax.tree.leaves(outside))
        assert all((leaf != 0).any() for leaf in jax.tree.leaves(after.params))


def test_grads_count_the_rows_looked_at(rows):
    train = TrainConfig(epochs=2, batch_size=8)
    configs = {
        "noop": (None, 0),
        "retrain": (None, 2 * (N - 4)),
        "finetune": (FineTuneConfig(epochs=3), 3 * (N - 4)),
        "gradient_ascent": (GradientAscentConfig(epochs=5), 5 * 4),
    }
    for name, (config, expected) in configs.items():
        unlearner = registry.make(name, MODEL, train=train, config=config)
        state = unlearner.fit(KEY, rows)
        assert state.grads == 2 * N
        assert unlearner.unlearn(KEY, state, rows, FORGET).grads == expected


def test_a_method_that_diverges_says_so(rows):
    config = GradientAscentConfig(epochs=50, learning_rate=1e6, batch_size=1)
    unlearner = registry.make("gradient_ascent", MODEL, train=TrainConfig(epochs=1), config=config)
    after = unlearner.unlearn(KEY, unlearner.fit(KEY, rows), rows, FORGET)
    assert after.status.item() == 1  # NOT_FINITE


@pytest.mark.parametrize("config", [FineTuneConfig, GradientAscentConfig])
@pytest.mark.parametrize(
    "field, value", [("learning_rate", -1.0), ("epochs", 0), ("batch_size", 0), ("momentum", 1.0)]
)
def test_bad_configuration_is_refused_when_it_is_made(config, field, value):
    with pytest.raises(ValueError, match=f"{field}={value}"):
        config(**{field: value})


def test_bad_requests(params, rows):
    runs = [
        lambda forget: finetune(KEY, LOSS, params, rows, forget),
        lambda forget: gradient_ascent(KEY, LOSS, params, rows, forget),
        lambda forget: retrain(KEY, MODEL, rows, forget),
    ]
    for run in runs:
        with pytest.raises(ValueError, match=r"forget has shape \(29,\), but must be \(30,\)"):
            run(FORGET[:-1])
        with pytest.raises(ValueError, match="forget has dtype int32"):
            run(FORGET.astype(jnp.int32))
        with pytest.raises(ValueError, match="forget leaves none of the 30 training rows"):
            run(jnp.ones(N, bool))
    with pytest.raises(ValueError, match="forget names none of the 30 training rows"):
        gradient_ascent(KEY, LOSS, params, rows, jnp.zeros(N, bool))


@pytest.mark.parametrize("method", [gradient_ascent, influence])
def test_a_request_for_nobody(method):
    some = Dataset(jnp.ones((4, 2)), jnp.zeros(4, jnp.int32))
    loss_fn = lambda params, row: jnp.sum((params - row.x) ** 2)
    with pytest.raises(ValueError, match="forget names none of the 4 training rows"):
        method(jax.random.key(0), loss_fn, jnp.zeros(2), some, jnp.zeros(4, bool))
