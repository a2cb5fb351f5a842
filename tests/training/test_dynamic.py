"""Trainings with dynamic trip counts are the ordinary ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import Dataset, TrainConfig, models
from jaxunlearn.training import minimize
from jaxunlearn.training.dynamic import descend

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

N = 41
KEY = jax.random.key(0)
DATA = Dataset(jax.random.normal(KEY, (N, 5)), jax.random.randint(jax.random.key(1), (N,), 0, 3))
MODEL = models.logistic(3)
PARAMS = MODEL.init(KEY, DATA.x)
CHOSEN = jnp.arange(N) % 3 != 0
LOSS = models.cross_entropy(MODEL.apply)


def losses(params, rows):
    examples = jax.tree.map(lambda leaf: leaf[rows], DATA)
    return jax.vmap(LOSS, (None, 0))(params, examples)


def close(a, b):
    for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(u, v, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "how",
    [
        {"schedule": "cosine", "momentum": 0.9, "weight_decay": 0.01, "clip": 0.5},
        {"schedule": "step", "optimizer": "adam", "microbatch": 3},
        {"schedule": "constant", "batch_size": 64},
    ],
)
def test_equals_minimize(how):
    config = TrainConfig(**{"epochs": 5, "batch_size": 8, "learning_rate": 0.1, **how})
    expected = minimize(KEY, LOSS, PARAMS, DATA, weights=CHOSEN, config=config)
    run = jax.jit(
        lambda epochs, rate: descend(
            KEY, losses, PARAMS, CHOSEN, epochs=epochs, rate=rate, config=config
        )
    )
    close(run(5, 0.1), expected)
    with pytest.raises(AssertionError):
        close(run(4, 0.1), expected)


def test_one_program_for_all_lengths_and_no_rows():
    traced = []

    @jax.jit
    def run(epochs, rate, chosen):
        traced.append(1)
        config = TrainConfig(batch_size=8)
        return descend(KEY, losses, PARAMS, chosen, epochs=epochs, rate=rate, config=config)

    moved = run(3, 0.1, CHOSEN)
    with pytest.raises(AssertionError):
        close(moved, PARAMS)
    for epochs, rate, chosen in ((0, 0.1, CHOSEN), (3, 0.0, CHOSEN), (3, 0.1, CHOSEN & False)):
        close(run(epochs, rate, chosen), PARAMS)
    assert len(traced) == 1


def test_members_of_a_vmap_stop_when_they_are_done():
    config = TrainConfig(batch_size=8)
    run = lambda epochs, chosen: descend(
        KEY, losses, PARAMS, chosen, epochs=epochs, rate=0.1, config=config
    )
    epochs = jnp.array([1, 4, 2])
    chosen = jnp.stack([CHOSEN, jnp.arange(N) < 5, jnp.ones(N, bool)])
    many = jax.jit(jax.vmap(run))(epochs, chosen)
    for m in range(3):
        close(jax.tree.map(lambda leaf, m=m: leaf[m], many), jax.jit(run)(epochs[m], chosen[m]))


def test_a_mask_is_kept():
    mask = jax.tree.map(lambda p: (jnp.arange(p.size) % 2).reshape(p.shape).astype(p.dtype), PARAMS)
    start = jax.tree.map(jnp.multiply, PARAMS, mask)
    config = TrainConfig(batch_size=8, weight_decay=0.1)
    after = jax.jit(
        lambda: descend(KEY, losses, start, CHOSEN, epochs=2, rate=0.1, config=config, mask=mask)
    )()
    for a, m in zip(jax.tree.leaves(after), jax.tree.leaves(mask), strict=True):
        assert (a[m == 0] == 0).all() and (a[m == 1] != 0).any()
