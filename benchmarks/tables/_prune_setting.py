"""A dataset with a network trained on it, what PRUNE's tables measure there, and the time taken."""

import functools
import time
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import Dataset, Model, TrainConfig, data, models
from jaxunlearn.audit import loss, tpr_at_fpr, yeom_recall
from jaxunlearn.models import Conv, max_pool
from jaxunlearn.primitives import regions, splits
from jaxunlearn.primitives.patches import apply_patched
from jaxunlearn.training import fit
from jaxunlearn.types import Array

COLUMNS = (
    "A_te",
    "A_res",
    "A_u before",
    "A_u",
    "recall before",
    "recall",
    "TPR@1%",
    "fit",
    "unlearn",
    "MB",
)
MODEL = models.mlp(10, hidden=(256, 256))


class _VGGStyle(nn.Module):
    @nn.compact
    def __call__(self, x):
        for channels in (16, 32):
            for _ in range(2):
                x = nn.relu(Conv(channels, (3, 3), padding=((1, 1), (1, 1)))(x))
            x = max_pool(x)
        x = x.reshape(x.shape[0], -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(256)(x))
        return nn.Dense(10)(x)


def vgg_style() -> Model:
    """Two blocks of two 3 x 3 convolutions and a pooling, then dense 256, 256 and 10.

    M_p and M_c of the paper's VGG16 on CIFAR-10 in small. (The VGG-16 of `jaxunlearn.models` ends
    in one dense layer, which has no regions.)
    """
    module = _VGGStyle()
    return Model(
        lambda key, x: module.init(key, jnp.zeros((1, *x.shape[1:]), x.dtype))["params"],
        lambda params, x: cast(Array, module.apply({"params": params}, x)),
    )


_PROGRAMS: dict[Any, Callable] = {}


def clock() -> float:
    """Seconds of this process on a CPU, whatever else runs there; else of the wall."""
    return time.process_time() if jax.default_backend() == "cpu" else time.perf_counter()


def compiled(function: Callable, *args) -> Callable:
    """One program for a function and shapes, whatever the seed and the dataset."""
    leaves, tree = jax.tree.flatten(args)
    key = function, tree, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    if key not in _PROGRAMS:
        _PROGRAMS[key] = jax.jit(function).lower(*args).compile()
    return _PROGRAMS[key]


def timed(function: Callable, *args) -> tuple[Any, float]:
    """Compiled first, then run once: result and seconds."""
    program = compiled(function, *args)
    start = clock()
    result = jax.block_until_ready(program(*args))
    return result, clock() - start


@functools.cache
def training(model: Model, config: TrainConfig) -> Callable:
    """Parameters from a key, rows and their weights."""
    return lambda key, rows, keep: fit(key, model, rows, weights=keep, config=config)


class Setting:
    """One dataset and its original network: what every method is measured against."""

    def __init__(
        self, train: Dataset, test: Dataset, *, epochs: int, seed: int = 0, model: Model = MODEL
    ):
        self.train, self.test, self.model = train, test, model
        self.config = TrainConfig(
            epochs=epochs, optimizer="adam", learning_rate=1e-3, schedule="constant"
        )
        self.key = jax.random.key(seed)
        self.params, self.seconds = self.fit(self.key, np.zeros(len(train.y), bool))
        self.parts = splits.split(self.model)
        self.layers = regions.dense_layers(self.parts.head(self.params))
        embed = jax.jit(self.parts.features)
        self.inputs = [
            self._chunks(functools.partial(embed, self.params), p.x)
            for p in (self.train, self.test)
        ]
        self.base = [regions.preactivations(self.layers, x)[1] for x in self.inputs]
        self.low, self.high = 0.0, float(max(x.max() for x in self.inputs))

    def fit(self, key, forget):
        """A training without some rows, and its seconds."""
        keep = jnp.asarray(~forget, jnp.float32)
        return timed(training(self.model, self.config), key, self.train, keep)

    @staticmethod
    def _chunks(call, x):
        size = 5000 if x.ndim == 2 else 250  # a convolution of 5000 images takes gigabytes
        return jnp.concatenate([call(x[i : i + size]) for i in range(0, len(x), size)])

    def logits(self, apply) -> list:
        """On training and test set, of a function of inputs as the network takes them."""
        call = jax.jit(apply)
        return [self._chunks(call, part.x) for part in (self.train, self.test)]

    def patched(self, patches):
        return [apply_patched(self.layers, patches, x)[1] for x in self.inputs]

    def row(self, before, after, rows, *, fit_s, unlearn_s, kept=0) -> dict[str, float]:
        """The numbers of one method, from its logits on training and test set."""
        forget = data.forget_indices(rows, len(self.train.y))
        right = [
            [
                np.asarray(logits.argmax(-1) == p.y)
                for logits, p in zip(pair, (self.train, self.test), strict=True)
            ]
            for pair in (before, after)
        ]
        train_loss = [loss(pair[0], self.train.y) for pair in (before, after)]
        recall = [
            float(yeom_recall(some, some[rows], train_weights=~forget)) for some in train_loss
        ]
        gone = np.asarray(forget)
        values = (
            100 * right[1][1].mean(),
            100 * right[1][0][~gone].mean(),
            100 * right[0][0][gone].mean(),
            100 * right[1][0][gone].mean(),
            100 * recall[0],
            100 * recall[1],
            100 * float(tpr_at_fpr(train_loss[1][rows], loss(after[1], self.test.y))),
            fit_s / self.seconds,
            unlearn_s / self.seconds,
            kept / 1e6,
        )
        return dict(zip(COLUMNS, map(float, values), strict=True))
