"""Rows with wrong labels must be memorised, and so are the exposed ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import Dataset, TrainConfig, data, models

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

N, WRONG = 150, 15
MODEL, KEY = models.mlp(10, hidden=(24,)), jax.random.key(0)
OPTIONS = {"config": TrainConfig(epochs=60, batch_size=30, learning_rate=0.1), "shadows": 16}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("shadows")


@pytest.fixture(scope="module")
def rows():
    train = data.load("digits").train
    y = train.y[:N].at[:WRONG].add(1) % 10
    return Dataset(train.x[:N], y)


def request(make, rows, cache, fraction=0.1):
    return np.asarray(make(KEY, rows, MODEL, fraction, cache=cache, **OPTIONS))


def test_wrong_labels_are_found(rows, cache):
    chosen = request(data.forget_vulnerable, rows, cache)
    assert chosen.dtype == bool and chosen.sum() == WRONG
    assert chosen[:WRONG].sum() >= 6  # 1.5 by chance
    assert request(data.forget_protected, rows, cache)[:WRONG].sum() == 0


def test_mixed_is_half_of_each_and_the_order_is_that_of_the_scores(rows, cache):
    found = data.row_vulnerability(KEY, rows, MODEL, cache=cache, **OPTIONS)
    order = np.argsort(-found)
    vulnerable, protected, mixed = (
        np.flatnonzero(request(make, rows, cache, 0.2))
        for make in (data.forget_vulnerable, data.forget_protected, data.forget_mixed)
    )
    assert set(vulnerable) == set(order[:30]) and set(protected) == set(order[-30:])
    assert set(mixed) == set(order[:15]) | set(order[-15:])


def test_one_pass_serves_all(rows, cache, monkeypatch):
    request(data.forget_vulnerable, rows, cache)
    import sys

    module = sys.modules["jaxunlearn.audit.references"]
    monkeypatch.setattr(module, "_train_block", None)  # any training would call it
    request(data.forget_mixed, rows, cache)


@pytest.mark.parametrize("fraction", [0.0, 1.0, 1e-4])
def test_bad_fraction(rows, cache, fraction):
    with pytest.raises(ValueError, match="fraction"):
        data.forget_vulnerable(KEY, rows, MODEL, fraction, cache=cache, **OPTIONS)


def test_not_a_random_request(rows, cache):
    drawn = data.forget_random(KEY, rows.y, 0.1)
    assert not jnp.array_equal(drawn, request(data.forget_vulnerable, rows, cache))
