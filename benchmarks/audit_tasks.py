"""The two tasks of the audit benchmark: digits, and 2,000 rows of Fashion-MNIST."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from benchmarks.harness import Options
from jaxunlearn import Dataset, TrainConfig, data, models
from jaxunlearn.audit import logit_confidence
from jaxunlearn.data import Splits
from jaxunlearn.experiments.lab import LabConfig, Task
from jaxunlearn.types import Model

FOLDER = pathlib.Path("runs/benchmark_audit")
ROWS = 2000
# Methods with a training of their own get as many models as fit into so many seconds an arm.
CONFIG = LabConfig(seconds=8.0)


def digits_task(config: LabConfig = CONFIG) -> Task:
    """1,347 rows of 8 x 8, a hidden layer of 32: 40 epochs, after which it has memorised them."""
    train = TrainConfig(epochs=40, batch_size=128, learning_rate=0.1)
    splits, model = data.load("digits"), models.mlp(10, hidden=(32,))
    return Task("digits", splits, model, train, jax.random.key(0), FOLDER, config)


def fashion_task(options: Options, config: LabConfig = CONFIG) -> Task | None:
    """2,000 rows, pooled to 14 x 14, a hidden layer of 64, 30 epochs; None without the data."""
    found = harness.dataset("fashion_mnist", options)
    if found is None:
        return None

    def pooled(part: Dataset, rows: int) -> Dataset:
        x = np.asarray(part.x[:rows], np.float32).reshape(rows, 14, 2, 14, 2).mean((2, 4))
        return Dataset(jnp.asarray(x[..., None]), jnp.asarray(part.y[:rows], jnp.int32))

    splits = Splits(*found)._replace(train=pooled(found.train, ROWS), test=pooled(found.test, 1000))
    train = TrainConfig(epochs=30, batch_size=100, learning_rate=0.1)
    model = models.mlp(10, hidden=(64,))
    return Task("fashion_mnist", splits, model, train, jax.random.key(0), FOLDER, config)


def plain_scores(model: Model, params, rows: Dataset, index: np.ndarray) -> np.ndarray:
    """Logit confidences ``[M, n]`` of some rows under ordinary models."""
    x, y = rows.x[index], rows.y[index]
    one = lambda p: logit_confidence(model.apply(p, x), y)
    return np.asarray(jax.jit(lambda ps: jax.lax.map(one, ps, batch_size=16))(params))
