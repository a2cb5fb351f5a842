"""PRUNE: patches of 500 MNIST images, their certificates against HiGHS, and what the gate costs.

MNIST is taken from TFDS's default folder, or from ../shared/tfds; without it the keys that need it
are null.
"""

import functools
import pathlib
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from benchmarks.harness import Case, Options, Result, Run
from jaxunlearn import Dataset, TrainConfig, data, models
from jaxunlearn._progress import track
from jaxunlearn.audit import Interval
from jaxunlearn.certify import highs, patch_check
from jaxunlearn.certify.region_bound import region_bound
from jaxunlearn.kernels import region_gate
from jaxunlearn.methods.prune import Outcome, PruneConfig, prune, runner_up
from jaxunlearn.primitives import patch_files, regions
from jaxunlearn.primitives.patches import apply_patched, collisions
from jaxunlearn.training import fit
from jaxunlearn.types import Params

TARGETS = {
    "flipped": harness.at_least(500),
    "changed_elsewhere": harness.at_most(0),
    "time_vs_train": harness.at_most(0.01),
    "bytes_per_patch": harness.at_most(128),
    "bound_violations": harness.at_most(0),
    "bound_gap": harness.at_most(0.03),
    "region_vs_highs": harness.at_least(50),
    "check_ms": harness.at_most(10),
    "gate_vs_explicit": harness.at_least(100),
    "patched_vs_base": harness.at_most(5),
    "lp_gap": harness.at_most(1e-6),
}
POINTS = 500
SOLVED = 20  # by HiGHS, which takes seconds each
MODEL = models.mlp(10, hidden=(256, 256))
CONFIG = TrainConfig(epochs=10, optimizer="adam", learning_rate=1e-3, schedule="constant")
FOLDERS = (None, pathlib.Path(__file__).parents[2] / "shared" / "tfds")


class Trained(NamedTuple):
    """A network on MNIST, flat images, the requested rows, and the seconds that training took."""

    params: Params
    train: Dataset
    test: Dataset
    rows: np.ndarray
    run: Run


@functools.cache
def trained() -> Trained | None:
    """784-256-256-10, 10 epochs of Adam; None without the data."""
    for folder in FOLDERS:
        try:
            splits = data.load("mnist", data_dir=folder)
            break
        except FileNotFoundError:
            continue
    else:
        return None
    train, test = (
        Dataset(part.x.reshape(len(part.x), -1), part.y) for part in (splits.train, splits.test)
    )
    case = harness.compiled(
        lambda key, rows: fit(key, MODEL, rows, config=CONFIG), jax.random.key(0), train
    )
    start = time.perf_counter()
    params = jax.block_until_ready(case.call())
    run = Run(np.array([time.perf_counter() - start]), case.compile_s or 0.0, case.peak_bytes)
    _, logits = regions.preactivations(params, train.x)
    # A network that errs at a row has nothing to unlearn there: requests are of rows that it knows.
    right = np.flatnonzero(np.asarray(logits.argmax(-1) == train.y))
    rows = np.random.default_rng(0).choice(right, POINTS, replace=False)
    return Trained(params, train, test, np.sort(rows), run)


def point(options: Options) -> Result:
    """The default mode: time, flips, and every other output of training and test set."""
    given = trained()
    if given is None:
        return _nothing("flipped", "changed_elsewhere", "time_vs_train", "bytes_per_patch")
    params, train, test, rows, run = given
    x, y = train.x[rows], train.y[rows]
    runs = harness.measure({"500 patches": Case(lambda: prune(params, x, y))}, options)
    made = prune(params, x, y)
    flipped = np.isin(made.outcome, (Outcome.FLIPPED, Outcome.SHARED))
    reached = [
        {c.row for c in collisions(params, made.patches, part.x, own=own)}
        for part, own in ((train, jnp.asarray(rows)), (test, None))
    ]
    changed = [_changed(params, made.patches, part.x) for part in (train, test)]
    elsewhere = len(changed[0] - set(rows.tolist()) - reached[0]) + len(changed[1] - reached[1])
    used = sum(leaf.nbytes for leaf in jax.tree.leaves(made.patches)) + 4 * POINTS  # its row
    ratio = runs["500 patches"].median / run.median
    quartiles = [second / run.median for second in runs["500 patches"].quartiles]
    metrics = {
        "flipped": float(flipped.sum()),
        "changed_elsewhere": float(elsewhere),
        "time_vs_train": Interval(ratio, *quartiles),
        "bytes_per_patch": used / POINTS,
    }
    description = {
        "collisions": len(reached[0]) + len(reached[1]),
        "train accuracy": _accuracy(params, train),
        "test accuracy": _accuracy(params, test),
        "interval of time_vs_train": "quartiles of the patching, one training",
    }
    return Result(description, {"training": run, **runs}, metrics)


def _accuracy(params, rows: Dataset) -> float:
    return float((regions.preactivations(params, rows.x)[1].argmax(-1) == rows.y).mean())


def _changed(params, patches, x) -> set[int]:
    """Rows whose logits differ in any way, both from one program."""
    base, now = map(np.asarray, apply_patched(params, patches, x))
    return set(np.flatnonzero((base != now).any(1)).tolist())


def region(options: Options) -> Result:
    """Certified patches: bounds against HiGHS's optima, time, and the checker."""
    given = trained()
    if given is None:
        return _nothing("bound_violations", "bound_gap", "region_vs_highs", "check_ms")
    params, train, _, rows, _ = given
    layers = regions.dense_layers(params)
    x, y = train.x[rows], train.y[rows]
    config = PruneConfig(mode="region", low=0.0, high=1.0)
    certify = lambda: jax.block_until_ready(prune(params, x, y, config=config))
    start = time.perf_counter()
    made = certify()
    first = time.perf_counter() - start
    start = time.perf_counter()
    certify()
    ours = Run(np.array([time.perf_counter() - start]), first, None)

    bits = regions.activation_pattern(params, x[:SOLVED])
    target = runner_up(regions.preactivations(params, x[:SOLVED])[1], y[:SOLVED])
    found = region_bound(params, bits, target, low=0.0, high=1.0)
    best, seconds = [], []
    for k in track(range(SOLVED), "HiGHS"):
        start = time.perf_counter()
        active = np.asarray(regions.unpack(bits[k], regions.neurons(params)))
        best.append(highs.support(highs.region(layers, active), int(target[k]), 0.0, 1.0))
        seconds.append(time.perf_counter() - start)
    theirs = Run(np.array(seconds), 0.0, None)
    optima, bounds = np.array(best), np.asarray(found.bound, np.float64)
    gap = bounds.max(1) / optima.max(1) - 1

    file = patch_files.PatchFile(
        jax.tree.map(np.asarray, made.patches),
        patch_files.model_hash(params),
        config.sharpness,
        config.margin,
        rows.astype(np.int32),
        np.zeros(784),
        np.ones(784),
        np.asarray(made.dual),
    )
    weights = [tuple(map(np.asarray, layer)) for layer in layers]
    few = file._replace(
        patches=jax.tree.map(lambda leaf: leaf[:50], file.patches),
        rows=file.rows[:50],
        dual=np.asarray(made.dual)[:50],
    )
    checking = harness.measure(
        {"one check": Case(lambda: patch_check.check(few, weights), 50)}, options
    )
    checked = patch_check.check(file, weights)
    runs = {"500 certified patches": ours, "one patch by HiGHS": theirs, **checking}
    speed = POINTS * theirs.median / ours.median
    low, high = (POINTS * side / ours.median for side in theirs.quartiles)
    metrics = {
        "bound_violations": float((bounds < optima - 1e-9).sum()),
        "bound_gap": float(np.median(gap)),
        "region_vs_highs": Interval(speed, low, high),
        "check_ms": 1e3 * checking["one check"].median,
    }
    description = {
        "iterations": config.iterations,
        "patches by HiGHS": SOLVED,
        "largest gap": float(gap.max()),
        "certificates that hold": f"{sum(c.valid for c in checked)} of {len(checked)}",
        "interval of region_vs_highs": "quartiles of HiGHS's patches",
    }
    return Result(description, runs, metrics)


def evaluation(options: Options) -> Result:
    """500 patches on 1000 inputs: one product, explicit half-spaces, the network alone."""
    rng = np.random.default_rng(0)
    batch, explicit = 1000, 10
    params = MODEL.init(jax.random.key(0), jnp.zeros((1, 784)))
    x = jnp.asarray(rng.random((batch, 784), np.float32))
    made = prune(params, x[:POINTS], MODEL.apply(params, x[:POINTS]).argmax(-1))
    faces = [regions.linear_region(params, x[k]) for k in range(explicit)]
    a, b = (jnp.stack(leaves) for leaves in zip(*faces, strict=True))

    def half_spaces(x, a, b):
        """Lemma 2 on b - A x, a patch at a time."""

        def one(face):
            inside = face[1][None] - x @ face[0].T
            step = jnp.clip(1000.0 * inside + 1, 0, 1)
            return jax.nn.relu(step.sum(-1) - step.shape[-1] + 1)

        return jax.lax.map(one, (a, b)).T

    def gates(params, bits, x):
        return region_gate(regions.preactivations(params, x)[0], bits)

    own = jax.jit(half_spaces)(x, a, b), jax.jit(gates)(params, made.patches.bits[:explicit], x)
    cases = {
        "network": harness.compiled(MODEL.apply, params, x),
        "gates": harness.compiled(gates, params, made.patches.bits, x),
        "patched network": harness.compiled(
            lambda p, patches, x: apply_patched(p, patches, x)[1], params, made.patches, x
        ),
        "half-spaces": harness.compiled(half_spaces, x, a, b, per=explicit / POINTS),
    }
    runs = harness.measure(cases, options)
    metrics = {
        "gate_vs_explicit": harness.inverse(harness.ratio(runs, "gates", "half-spaces")),
        "patched_vs_base": harness.ratio(runs, "patched network", "network"),
    }
    both = [np.asarray(leaf) == 1 for leaf in own]
    description = {
        "patches": POINTS,
        "inputs": batch,
        "half-spaces timed": f"{explicit} patches, times {POINTS // explicit}",
        "same rows inside": bool((both[0] == both[1]).all()),
    }
    return Result(description, runs, metrics)


def constant(options: Options) -> Result:
    """Eq. 7 in full, by HiGHS, against the constant."""
    rng = np.random.default_rng(0)
    digits = data.load("digits").train
    model = models.mlp(10, hidden=(10, 10))
    config = TrainConfig(epochs=10)
    # 4 x 4 pixels: the robust programme grows with (neurons + pixels) times classes.
    pooled = digits.x.reshape(-1, 4, 2, 4, 2).mean((2, 4)).reshape(-1, 16)
    params = fit(jax.random.key(0), model, Dataset(pooled, digits.y), config=config)
    layers = regions.dense_layers(params)
    gaps, seconds = [], []
    for row in rng.choice(len(pooled), 3 if options.quick else 6, replace=False):
        z, logits = regions.preactivations(params, pooled[row])
        found = highs.region(layers, np.asarray(z > 0))
        target = int(np.argsort(logits)[-2])
        best = highs.constant(highs.support(found, target, 0.0, 1.0), 0.1)
        start = time.perf_counter()
        affine = highs.robust(found, target, 0.1, 0.0, 1.0)
        seconds.append(time.perf_counter() - start)
        gaps.append(abs(best - affine))
    runs = {"robust programme": Run(np.array(seconds), 0.0, None)}
    return Result({"network": "16-10-10-10", "points": len(gaps)}, runs, {"lp_gap": max(gaps)})


def _nothing(*keys: str) -> Result:
    return Result({"missing": "MNIST"}, {}, dict.fromkeys(keys))


if __name__ == "__main__":
    harness.main(__doc__, [point, region, evaluation, constant], TARGETS)
