"""PRUNE's Tables III, IV and V and Figures 3 to 5, with our modes, its peers and its own numbers.

    python -m benchmarks.tables prune [--seeds N] [--data-dir DIR] [--quick] [--json PATH]

One network for each dataset and seed; every method answers the same requests. All is over seeds,
each with its own training key and requested rows: means with intervals, and where one more
retrained network would lie. Times are of compiled programs, one run each, over that of one training
by the same program as the retraining; on a CPU they are seconds of the process, so that the load of
other programs does not count.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console

from benchmarks.tables import _prune_show
from benchmarks.tables._prune_setting import COLUMNS, Setting, clock, timed, vgg_style
from jaxunlearn import Dataset, Model, TrainConfig, data, registry
from jaxunlearn._files import atomic_write
from jaxunlearn._progress import track
from jaxunlearn.audit.band import null_band
from jaxunlearn.audit.intervals import mean_interval
from jaxunlearn.baselines import AmnesiacConfig, FeatureUnlearningConfig, SISAConfig, mask_logits
from jaxunlearn.experiments.environment import environment
from jaxunlearn.methods.prune import (
    PruneClassConfig,
    PruneConfig,
    multipoint,
    prune_class,
    prune_rows,
)

MODES = ("point", "replace", "region", "paper")
PEERS = {
    "sisa": SISAConfig(),
    "amnesiac": AmnesiacConfig(record=False),
    "feature_unlearning": FeatureUnlearningConfig(batch=256),
}
AFTER = ("A_te", "A_res", "A_u", "recall", "TPR@1%")  # columns of the retrained network alone
CLASS_COLUMNS = ("A_u asked", "A_u", "A_tes_u", "A_res", "A_tes_r", "patches", "time")
ROUNDS = (1, 2, 3, 4)
CLUSTERS = (1, 2, 3, 4, 5)
Part = Literal["points", "convergence", "classes", "features"]


@dataclasses.dataclass(frozen=True)
class Options:
    """Attributes:
    data_dir: of TFDS; ../shared/tfds if that is there and this is not given.
    datasets: of 28 x 28 images.
    parts: points are Tables III and IV and Figure 3, convergence Figures 4 and 5, classes Table V,
        features the network with a feature extractor.
    seeds: each draws its own parameters, orders and requested rows.
    sizes: points to unlearn; the paper has 100, 200, 300 and 500.
    epochs: of every training, with Adam at 1e-3.
    rows: training rows, all by default.
    feature_rows: rows, of training and of test, for the network with a feature extractor, which
        takes 8 epochs.
    class_rows: requested rows of a class.
    class_patches: patches for it at most.
    quick: a few thousand rows, two sizes and two classes, no feature extractor.
    json: also write everything as JSON to this file.
    figure: also draw Figure 3 into this file, of the largest size, and 4 and 5 if they are made.
    """

    data_dir: pathlib.Path | None = None
    datasets: tuple[str, ...] = ("mnist", "fashion_mnist")
    parts: tuple[Part, ...] = ("points", "convergence", "classes", "features")
    seeds: int = 3
    sizes: tuple[int, ...] = (500,)
    epochs: int = 3
    rows: int | None = None
    feature_rows: int = 2000
    class_rows: int = 300
    class_patches: int = 40
    quick: bool = False
    json: pathlib.Path | None = None
    figure: pathlib.Path | None = None


def load(name: str, options: Options, *, images: int | None = None):
    """Training and test set, flat; or some images of both."""
    found = data.load(name, data_dir=folder(options))
    if images is not None:
        return [Dataset(part.x[:images], part.y[:images]) for part in (found.train, found.test)]
    return [
        Dataset(part.x[:rows].reshape(len(part.x[:rows]), -1), part.y[:rows])
        for part, rows in ((found.train, options.rows), (found.test, None))
    ]


def folder(options: Options) -> pathlib.Path | None:
    shared = pathlib.Path(__file__).parents[3] / "shared" / "tfds"
    return options.data_dir or (shared if shared.is_dir() else None)


@functools.cache
def peer(name: str, model: Model, config: TrainConfig):
    return registry.make(name, model, train=config, config=PEERS[name])


@functools.cache
def patching(how: PruneConfig):
    return functools.partial(prune_rows, target=None, config=how)


def points(setting: Setting, sizes: Sequence[int], seed: int) -> dict:
    """Tables III and IV, Figure 3 of one seed: every method at every size of the request.

    ``again`` is for the null: another retraining, with its own key and its own requested rows.
    """
    n, out = len(setting.train.y), {}
    order = np.random.default_rng(seed).permutation(n)
    key, again = (jax.random.fold_in(setting.key, i) for i in (1, 2))
    fitted = {}
    for name in PEERS:
        method = peer(name, setting.model, setting.config)
        if name == "feature_unlearning":  # repairs the network that there is
            shape = jax.eval_shape(method.fit, key, setting.train)
            state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shape)
            fitted[name] = state._replace(params=setting.params), setting.seconds
        else:
            fitted[name] = timed(method.fit, setting.key, setting.train)
    for size in sizes:
        rows = np.sort(order[:size])
        forget = data.forget_indices(rows, n)
        report = functools.partial(setting.row, rows=rows)
        found = {"noop": report(setting.base, setting.base, fit_s=setting.seconds, unlearn_s=0)}
        asked = {"retrain": (key, rows), "again": (again, np.sort(order[size : 2 * size]))}
        for name, (fresh, gone) in asked.items():
            params, seconds = setting.fit(fresh, np.asarray(data.forget_indices(gone, n)))
            after = setting.logits(functools.partial(setting.model.apply, params))
            found[name] = setting.row(
                setting.base, after, gone, fit_s=setting.seconds, unlearn_s=seconds
            )
        for name, (state, fit_s) in fitted.items():
            method = peer(name, setting.model, setting.config)
            before = setting.logits(functools.partial(method.predict, state))
            now, seconds = timed(method.unlearn, key, state, setting.train, forget)
            after = setting.logits(functools.partial(method.predict, now))
            kept = sum(leaf.nbytes for leaf in jax.tree.leaves(state.memory))
            found[name] = report(before, after, fit_s=fit_s, unlearn_s=seconds, kept=kept)
        x, y, everyone = setting.inputs[0][rows], setting.train.y[rows], jnp.ones(size, bool)
        for mode in MODES:
            how = PruneConfig(mode=mode, low=setting.low, high=setting.high)
            made, seconds = timed(patching(how), setting.layers, x, y, everyone, key)
            after = setting.patched(made.patches)
            kept = sum(leaf.nbytes for leaf in jax.tree.leaves(made.patches))
            found[f"prune {mode}"] = report(
                setting.base, after, fit_s=setting.seconds, unlearn_s=seconds, kept=kept
            )
        out[size] = found
    return out


def over_seeds(found: Sequence[dict]) -> dict[str, dict]:
    """Means with 95% intervals, and where one more retraining would lie in each column."""
    points, null = {}, {}
    for size, methods in found[0].items():
        values = {
            name: {c: [seed[size][name][c] for seed in found] for c in COLUMNS} for name in methods
        }
        again = values.pop("again", None)
        points[size] = {
            name: {c: _interval(v) for c, v in row.items()} for name, row in values.items()
        }
        null[size] = {}
        if again is not None and len(found) > 1:  # two of each seed
            pool = {c: values["retrain"][c] + again[c] for c in AFTER}
            null[size] = {c: list(null_band(v)) for c, v in pool.items()}
    return {"points": points, "one more retrain": null}


def _interval(values: list[float]) -> dict:
    mean, *bounds = mean_interval(values)
    return {
        "mean": mean,
        "interval": [v if np.isfinite(v) else None for v in bounds],
        "seeds": values,
    }


@functools.cache
def rounds_of(how: PruneConfig):
    return functools.partial(multipoint, config=how)


def convergence(setting: Setting, sizes: Sequence[int], seed: int) -> dict[str, dict]:
    """Figures 4 and 5: A_u after each round of Algorithm 1, in %, by K and by points."""
    order = np.random.default_rng(seed).permutation(len(setting.train.y))

    def left(size: int, clusters: int) -> list[float]:
        rows = np.sort(order[:size])
        x, y = setting.inputs[0][rows], setting.train.y[rows]
        known = setting.base[0][rows].argmax(-1) == y
        how = PruneConfig(
            mode="paper",
            low=setting.low,
            high=setting.high,
            clusters=clusters,
            rounds=ROUNDS[-1],
            share=0.999,  # the rounds after the paper's .97 are of interest too
        )
        made, _ = timed(rounds_of(how), setting.layers, x, y, known, setting.key)
        when, known = np.asarray(made.rounds), np.asarray(known)
        still = [known & ((when == 0) | (when > number)) for number in ROUNDS]
        return [100 * float(some.mean()) for some in still]

    first = min(sizes)
    return {
        "clusters": {str(k): left(first, k) for k in CLUSTERS},
        "sizes": {str(size): left(size, 4) for size in sizes},
    }


def traces(found: Sequence[dict]) -> dict[str, dict]:
    """:func:`convergence` over seeds: an interval for every round."""
    return {
        part: {
            value: [_interval([seed[part][value][i] for seed in found]) for i in range(len(trace))]
            for value, trace in curves.items()
        }
        for part, curves in found[0].items()
    }


def classes(setting: Setting, options: Options, labels: Sequence[int]) -> dict[str, dict]:
    """Table V of one seed: means over classes, each unlearned from the same network.

    The retraining is without the whole class; patches are for its first ``class_rows``.
    """
    y = [np.asarray(part.y) for part in (setting.train, setting.test)]
    rows: dict[str, list] = {}
    for label in labels:
        asked = np.flatnonzero(y[0] == label)[: options.class_rows]
        own = [part == label for part in y]

        def note(name, logits, patches=0.0, seconds=0.0, asked=asked, own=own):
            right = [
                np.asarray(some.argmax(-1)) == part for some, part in zip(logits, y, strict=True)
            ]
            shares = (
                right[0][asked],
                right[0][own[0]],
                right[1][own[1]],
                right[0][~own[0]],
                right[1][~own[1]],
            )
            numbers = [100 * float(share.mean()) for share in shares]
            rows.setdefault(name, []).append([*numbers, patches, seconds / setting.seconds])

        note("before", setting.base)
        params, seconds = setting.fit(jax.random.fold_in(setting.key, 1), own[0])
        apply = functools.partial(setting.model.apply, params)
        note("retrain", setting.logits(apply), seconds=seconds)
        for scale in (1.0, 2.0):
            how = PruneClassConfig(
                radius_scale=scale,
                low=setting.low,
                high=setting.high,
                capacity=options.class_patches,
            )
            start = clock()
            made = jax.block_until_ready(
                prune_class(
                    setting.layers, setting.inputs[0][asked], setting.train.y[asked], config=how
                )
            )
            seconds = clock() - start
            name = f"prune_class, {scale:g} x certified radius"
            note(name, setting.patched(made.patches), float(made.count), seconds)
        mask = jnp.arange(10) == label
        note("logit mask", [mask_logits(logits, mask) for logits in setting.base])
    return {
        name: dict(zip(CLASS_COLUMNS, np.mean(values, 0).tolist(), strict=True))
        for name, values in rows.items()
    }


def means(found: Sequence[dict]) -> dict[str, dict]:
    """Table V over seeds."""
    return {
        name: {c: _interval([seed[name][c] for seed in found]) for c in row}
        for name, row in found[0].items()
    }


def run(options: Options) -> Iterator[tuple[str, dict[str, Any]]]:
    """One dataset and seed after the other, by name, with what there is so far."""
    if options.quick:
        options = dataclasses.replace(
            options,
            rows=4000,
            sizes=(20, 50),
            epochs=2,
            class_rows=60,
            class_patches=8,
            parts=tuple(part for part in options.parts if part != "features"),
        )
    labels = (0, 1) if options.quick else range(10)
    yield "options", {name: str(value) for name, value in dataclasses.asdict(options).items()}
    seeds = range(options.seeds)
    for name in options.datasets if set(options.parts) - {"features"} else ():
        rows = load(name, options)
        found: dict[str, list] = {"points": [], "convergence": [], "classes": []}
        for seed in track(seeds, name):
            setting = Setting(*rows, epochs=options.epochs, seed=seed)
            block: dict[str, Any] = {"training_s": setting.seconds}
            if "points" in options.parts:
                found["points"].append(points(setting, options.sizes, seed))
                block |= over_seeds(found["points"])
            if "convergence" in options.parts:
                found["convergence"].append(convergence(setting, options.sizes, seed))
                block["convergence"] = traces(found["convergence"])
            if "classes" in options.parts:
                found["classes"].append(classes(setting, options, labels))
                block["classes"] = means(found["classes"])
            yield name, block
    if "features" in options.parts:
        rows = load("fashion_mnist", options, images=options.feature_rows)
        behind = []
        for seed in track(seeds, "behind convolutions"):
            setting = Setting(*rows, epochs=8, seed=seed, model=vgg_style())
            behind.append(points(setting, (100,), seed))
            yield (
                "fashion_mnist, convolutional",
                {"training_s": setting.seconds, **over_seeds(behind)},
            )
    yield "environment", environment()


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = tyro.cli(
        Options, args=argv, prog="python -m benchmarks.tables prune", description=__doc__
    )
    if options.seeds < 1:
        raise SystemExit(f"--seeds {options.seeds}: at least 1, and 2 for intervals.")
    if options.figure is not None and "points" not in options.parts:
        raise SystemExit("--figure draws the times of points: leave them among --parts.")
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
