"""PRUNE's Tables III, IV and V and Figures 3 to 5, with our modes, its peers and its own numbers.

    python -m benchmarks.tables prune [--data-dir DIR] [--quick] [--json PATH] [--figure PATH]

One network for each dataset and seed; every method answers the same requests. Times are of
compiled programs, one run each, over that of one training by the same program as the retraining;
on a CPU they are seconds of the process, so that the load of other programs does not count.
"""

import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console

from benchmarks.tables import _prune_paper as prune_paper
from benchmarks.tables import _prune_show
from jaxunlearn import Dataset, TrainConfig, data, models, registry
from jaxunlearn._files import atomic_write
from jaxunlearn.audit import loss, tpr_at_fpr, yeom_recall
from jaxunlearn.baselines import AmnesiacConfig, FeatureUnlearningConfig, SISAConfig, mask_logits
from jaxunlearn.experiments.environment import environment
from jaxunlearn.methods.prune import PruneConfig, prune_rows
from jaxunlearn.methods.prune_class import PruneClassConfig, prune_class
from jaxunlearn.primitives import regions, splits
from jaxunlearn.primitives.patches import apply_patched
from jaxunlearn.training import fit

MODES = ("point", "replace", "region", "paper")


@dataclasses.dataclass(frozen=True)
class Options:
    """Attributes:
    data_dir: of TFDS; ../shared/tfds if that is there and this is not given.
    datasets: of 28 x 28 images.
    sizes: points to unlearn.
    epochs: of every training, with Adam at 1e-3.
    rows: training rows, all by default.
    class_rows: requested rows of a class.
    class_patches: patches for it at most.
    features: also the network with a feature extractor, on Fashion-MNIST.
    seed: of training and requests.
    quick: a few thousand rows, two sizes and two classes.
    json: also write everything as JSON to this file.
    figure: also draw Figures 3 to 5 into this file.
    """

    data_dir: pathlib.Path | None = None
    datasets: tuple[str, ...] = ("mnist", "fashion_mnist")
    sizes: tuple[int, ...] = (100, 200, 300, 500)
    epochs: int = 3
    rows: int | None = None
    class_rows: int = 300
    class_patches: int = 40
    features: bool = True
    seed: int = 0
    quick: bool = False
    json: pathlib.Path | None = None
    figure: pathlib.Path | None = None


def clock() -> float:
    """Seconds of this process on a CPU, whatever else runs there; else of the wall."""
    return time.process_time() if jax.default_backend() == "cpu" else time.perf_counter()


def timed(function: Callable, *args) -> tuple[Any, float]:
    """Compiled first, then run once: result and seconds."""
    program = jax.jit(function).lower(*args).compile()
    start = clock()
    result = jax.block_until_ready(program(*args))
    return result, clock() - start


class Setting:
    """One dataset and its original network: what every method is measured against."""

    def __init__(self, name: str, options: Options, model=None):
        loaded = data.load(name, data_dir=folder(options))
        count = options.rows or len(loaded.train.x)
        flat = lambda x: x if model else x.reshape(len(x), -1)
        self.train = Dataset(flat(loaded.train.x[:count]), loaded.train.y[:count])
        self.test = Dataset(flat(loaded.test.x), loaded.test.y)
        self.model = model or models.mlp(10, hidden=(256, 256))
        self.config = TrainConfig(
            epochs=options.epochs, optimizer="adam", learning_rate=1e-3, schedule="constant"
        )
        self.key = jax.random.key(options.seed)
        self.fit = (
            jax.jit(
                lambda key, rows, keep: fit(key, self.model, rows, weights=keep, config=self.config)
            )
            .lower(self.key, self.train, jnp.ones(count))
            .compile()
        )
        start = clock()
        self.params = jax.block_until_ready(self.fit(self.key, self.train, jnp.ones(count)))
        self.seconds = clock() - start
        self.parts = splits.split(self.model)
        self.layers = regions.dense_layers(self.parts.head(self.params))
        embed = jax.jit(self.parts.features)
        self.inputs = [
            self._chunks(functools.partial(embed, self.params), p.x)
            for p in (self.train, self.test)
        ]
        self.base = [regions.preactivations(self.layers, x)[1] for x in self.inputs]
        self.low, self.high = 0.0, float(max(x.max() for x in self.inputs))

    @staticmethod
    def _chunks(call, x, size=5000):
        return jnp.concatenate([call(x[i : i + size]) for i in range(0, len(x), size)])

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
        return dict(zip(_prune_show.COLUMNS, map(float, values), strict=True))


def folder(options: Options) -> pathlib.Path | None:
    shared = pathlib.Path(__file__).parents[3] / "shared" / "tfds"
    return options.data_dir or (shared if shared.is_dir() else None)


def logits_of(setting: Setting, apply) -> list:
    call = jax.jit(apply)
    return [setting._chunks(call, part.x) for part in (setting.train, setting.test)]


def points(setting: Setting, sizes: Sequence[int], seed: int, *, peers: bool = True) -> dict:
    """Tables III and IV, Figure 3: every method at every size of the request."""
    n, out = len(setting.train.y), {}
    order = np.random.default_rng(seed).permutation(n)
    model, config, key = setting.model, setting.config, jax.random.key(seed + 1)
    peer = {}
    if peers:
        for name, how in (("sisa", SISAConfig()), ("amnesiac", AmnesiacConfig(record=False))):
            method = registry.make(name, model, train=config, config=how)
            state, seconds = timed(method.fit, setting.key, setting.train)
            program = (
                jax.jit(method.unlearn)
                .lower(key, state, setting.train, data.forget_indices([0], n))
                .compile()
            )
            peer[name] = method, state, seconds, program
        method = registry.make(
            "feature_unlearning", model, train=config, config=FeatureUnlearningConfig(batch=256)
        )
        first = registry.make("noop", model, train=config).fit  # only for the shape of its state
        shape = jax.eval_shape(first, key, setting.train)
        state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shape)
        state = state._replace(params=setting.params)
        program = (
            jax.jit(method.unlearn)
            .lower(key, state, setting.train, data.forget_indices([0], n))
            .compile()
        )
        peer["feature_unlearning"] = method, state, setting.seconds, program
    for size in sizes:
        rows = np.sort(order[:size])
        forget = data.forget_indices(rows, n)
        report = functools.partial(setting.row, rows=rows)
        found = {"noop": report(setting.base, setting.base, fit_s=setting.seconds, unlearn_s=0)}
        if peers:
            start = clock()
            again = jax.block_until_ready(
                setting.fit(key, setting.train, (~forget).astype(jnp.float32))
            )
            seconds = clock() - start
            after = logits_of(setting, functools.partial(model.apply, again))
            found["retrain"] = report(setting.base, after, fit_s=setting.seconds, unlearn_s=seconds)
        for name, (method, state, fit_s, program) in peer.items():
            before = logits_of(setting, functools.partial(method.predict, state))
            start = clock()
            now = jax.block_until_ready(program(key, state, setting.train, forget))
            seconds = clock() - start
            after = logits_of(setting, functools.partial(method.predict, now))
            kept = sum(leaf.nbytes for leaf in jax.tree.leaves(state.memory))
            found[name] = report(before, after, fit_s=fit_s, unlearn_s=seconds, kept=kept)
        x, y, everyone = setting.inputs[0][rows], setting.train.y[rows], jnp.ones(size, bool)
        for mode in MODES:
            how = PruneConfig(mode=mode, low=setting.low, high=setting.high)
            patch = functools.partial(prune_rows, target=None, config=how)
            made, seconds = timed(patch, setting.layers, x, y, everyone, key)
            after = setting.patched(made.patches)
            kept = sum(leaf.nbytes for leaf in jax.tree.leaves(made.patches))
            found[f"prune {mode}"] = report(
                setting.base, after, fit_s=setting.seconds, unlearn_s=seconds, kept=kept
            )
        out[size] = found
    return out


def convergence(setting: Setting, sizes: Sequence[int], seed: int) -> dict[str, dict]:
    """Figures 4 and 5: what is left to forget after each round of Algorithm 1."""
    order = np.random.default_rng(seed).permutation(len(setting.train.y))
    key, rounds = jax.random.key(seed), (1, 2, 3, 4)

    def left(size: int, clusters: int) -> list[float]:
        rows = np.sort(order[:size])
        x, y = setting.inputs[0][rows], setting.train.y[rows]
        found = []
        for count in rounds:
            how = PruneConfig(
                mode="paper",
                low=0.0,
                high=setting.high,
                clusters=clusters,
                rounds=count,
                share=0.999,
            )
            made = prune_rows(setting.layers, x, y, jnp.ones(size, bool), key, None, config=how)
            answer = apply_patched(setting.layers, made.patches, x)[1].argmax(-1)
            found.append(100 * float((answer == y).mean()))
        return found

    first = min(sizes)
    return {
        "clusters": {str(k): left(first, k) for k in (1, 2, 3, 4, 5)},
        "sizes": {str(size): left(size, 4) for size in sizes},
    }


def classes(setting: Setting, options: Options, labels: Sequence[int]) -> dict[str, dict]:
    """Table V: patches for a class at two radii, and its logit masked; means over classes."""
    y = [np.asarray(part.y) for part in (setting.train, setting.test)]
    rows: dict[str, list] = {}
    for label in labels:
        asked = np.flatnonzero(y[0] == label)[: options.class_rows]

        def numbers(logits, label=label, asked=asked):
            right = [
                np.asarray(some.argmax(-1)) == part for some, part in zip(logits, y, strict=True)
            ]
            own = [part == label for part in y]
            return [
                100 * float(v)
                for v in (
                    right[0][asked].mean(),
                    right[0][own[0]].mean(),
                    right[1][own[1]].mean(),
                    right[0][~own[0]].mean(),
                    right[1][~own[1]].mean(),
                )
            ]

        rows.setdefault("before", []).append([*numbers(setting.base), 0, 0])
        for scale in (1.0, 2.0):
            how = PruneClassConfig(
                radius_scale=scale, low=0.0, high=setting.high, capacity=options.class_patches
            )
            x = setting.inputs[0][asked]
            start = clock()
            made = jax.block_until_ready(
                prune_class(setting.layers, x, setting.train.y[asked], config=how)
            )
            seconds = (clock() - start) / setting.seconds
            row = [*numbers(setting.patched(made.patches)), int(made.count), seconds]
            rows.setdefault(f"prune_class, {scale:g} x certified radius", []).append(row)
        mask = jnp.arange(10) == label
        masked = [mask_logits(logits, mask) for logits in setting.base]
        rows.setdefault("logit mask", []).append([*numbers(masked), 0, 0])
    names = ("A_u asked", "A_u", "A_tes_u", "A_res", "A_tes_r", "patches", "time")
    return {
        name: {
            "mean": dict(zip(names, np.mean(values, 0).tolist(), strict=True)),
            "deviation": dict(zip(names, np.std(values, 0).tolist(), strict=True)),
        }
        for name, values in rows.items()
    }


def run(options: Options) -> Iterator[tuple[str, dict[str, Any]]]:
    """One part after the other, by name, as it is done: points come before the rest."""
    if options.quick:
        options = dataclasses.replace(
            options,
            rows=4000,
            sizes=(20, 50),
            epochs=2,
            class_rows=60,
            class_patches=8,
            features=False,
        )
    labels = (0, 1) if options.quick else range(10)
    yield "options", {name: str(value) for name, value in dataclasses.asdict(options).items()}
    for name in options.datasets:
        setting = Setting(name, options)
        block: dict[str, Any] = {"training_s": setting.seconds}
        block["points"] = points(setting, options.sizes, options.seed)
        yield name, block
        block["convergence"] = convergence(setting, options.sizes, options.seed)
        block["classes"] = classes(setting, options, labels)
        yield name, block
    if options.features:
        small = dataclasses.replace(options, rows=20000, epochs=3)
        setting = Setting("fashion_mnist", small, model=prune_paper.vgg_style())
        found = points(setting, options.sizes[:1], options.seed, peers=False)
        yield (
            "fashion_mnist, convolutional",
            {"training_s": setting.seconds, "points": found},
        )
    yield "environment", environment()


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = tyro.cli(
        Options, args=argv, prog="python -m benchmarks.tables prune", description=__doc__
    )
    out: dict[str, Any] = {}
    for name, part in run(options):
        out[name] = part
        if options.json is not None:  # what is done is kept if the rest is not waited for
            with atomic_write(options.json) as file:
                file.write(json.dumps(out, indent=1).encode())
    console = Console()
    _prune_show.show(out, console if console.is_terminal else Console(width=190))
    if options.figure is not None:
        _prune_show.draw(out, options.figure)
    return out
