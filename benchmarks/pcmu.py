"""PCMU: what a smoothed and quantized step costs, and what its certificate is worth."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from benchmarks.harness import Case, Options, Result
from benchmarks.training import images
from jaxunlearn import Dataset, TrainConfig, models
from jaxunlearn.audit import accuracy, intervals
from jaxunlearn.certify.budget import exact_budget, removal_certificate
from jaxunlearn.kernels import monte_carlo_votes, smooth_quantize
from jaxunlearn.methods.pcmu import PCMUConfig, pcmu, train
from jaxunlearn.models import cross_entropy
from jaxunlearn.primitives import smoothing
from jaxunlearn.primitives.gradients import (
    gradient_range,
    gradient_sum,
    per_sample_gradients,
)
from jaxunlearn.training import minimize, train_many
from jaxunlearn.types import Array, Params, PyTree

TARGETS = {
    "step_vs_sgd": harness.at_most(1.05),
    "step_vs_sgd_mlp": harness.at_most(1.05),
    "update_vs_sgd_update_11m": harness.at_most(1.10),
    "quantize_radius_vs_copy": harness.at_most(10),
    "cohen_radius_vs_copy": harness.at_most(200),
    "exact_vs_mc1000": harness.at_least(1000),
    "violations": harness.at_most(0),
    "certified_fraction_k1": harness.at_least(0.80),
    "accuracy_vs_sgd": harness.at_least(-0.01),
}
SIGMA, LAM = 0.1, 0.01  # the paper's default
COORDINATES = 11_000_000  # about those of a ResNet-18


def step(options: Options) -> Result:
    """A training step of PCMU over one of plain SGD, whole trainings in one jit."""
    steps, batch = 20, 128
    rows, key = images(steps * batch), jax.random.key(1)
    plain = TrainConfig(
        epochs=1, batch_size=batch, learning_rate=0.003, schedule="constant", momentum=0.0
    )
    direction = pcmu(SIGMA, LAM)
    cases: dict[str, Case] = {}
    for name in ("cnn", "mlp"):
        model = models.get(name, 10)
        params, loss_fn = model.init(jax.random.key(0), rows.x[:1]), cross_entropy(model.apply)
        for rule, how in (("sgd", None), ("pcmu", direction)):

            def fitted(params, rows, loss_fn=loss_fn, how=how):
                return minimize(key, loss_fn, params, rows, config=plain, direction=how)

            cases[f"{name}, {rule}"] = harness.compiled(fitted, params, rows, per=steps)
    runs = harness.measure(cases, options)
    metrics = {
        "step_vs_sgd": harness.ratio(runs, "cnn, pcmu", "cnn, sgd"),
        "step_vs_sgd_mlp": harness.ratio(runs, "mlp, pcmu", "mlp, sgd"),
    }
    return Result({"batch": batch, "steps a call": steps}, runs, metrics)


class Donated:
    """A call whose results take the memory of its donated arguments, time after time."""

    def __init__(self, function: Callable, donated: tuple[Array, ...], *fixed: Array):
        self.program = jax.jit(
            function, donate_argnums=tuple(range(len(donated))), keep_unused=True
        )
        self.state, self.fixed = donated, fixed

    def __call__(self) -> tuple[Array, ...]:
        self.state = self.program(*self.state, *self.fixed)
        return self.state


def coordinates(options: Options) -> Result:
    """Eleven million coordinates: updates, quantization with radii, and Monte Carlo."""
    new = lambda dtype=jnp.float32: jnp.zeros(COORDINATES, dtype)
    g = 1e-3 * jax.random.normal(jax.random.key(0), (COORDINATES,))
    quantize = functools.partial(smooth_quantize, sigma=SIGMA, lam=LAM)
    sign = pcmu(SIGMA, LAM)

    def update(w, g):
        return (w - 0.003 * jnp.asarray(sign.update(g, sign.init(w))[0]),)

    def exact(g, q, radius):
        found = quantize(g)
        return g, found.q, found.radius_exact

    def cohen(g, q, radius, radius_exact):
        found = quantize(g)
        return g, found.q, found.radius, found.radius_exact

    few = COORDINATES // 1000
    draw = functools.partial(monte_carlo_votes, sigma=SIGMA, lam=LAM, samples=1000)
    votes = jax.jit(lambda g: draw(g, jax.random.key(1)))
    cases = {
        "copy in place": Case(Donated(lambda w: (w * 1.0001,), (new(),))),
        "w -= lr g": Case(Donated(lambda w, g: (w - 0.003 * g,), (new(),), g)),
        "w -= lr S'(g)": Case(Donated(update, (new(),), g)),
        "q and exact radius": Case(Donated(exact, (g + 0, new(jnp.int8), new()))),
        "q and both radii": Case(Donated(cohen, (g + 0, new(jnp.int8), new(), new()))),
        "1000 votes, scaled": Case(lambda: votes(g[:few]), per=few / COORDINATES),
    }
    runs = harness.measure(cases, options)
    metrics = {
        "update_vs_sgd_update_11m": harness.ratio(runs, "w -= lr S'(g)", "w -= lr g"),
        "quantize_radius_vs_copy": harness.ratio(runs, "q and exact radius", "copy in place"),
        "cohen_radius_vs_copy": harness.ratio(runs, "q and both radii", "copy in place"),
        "exact_vs_mc1000": harness.inverse(
            harness.ratio(runs, "q and exact radius", "1000 votes, scaled")
        ),
    }
    description = {"coordinates": COORDINATES, "votes timed on": few, "buffers": "donated"}
    return Result(description, runs, metrics)


def soundness(options: Options) -> Result:
    """Removals at fixed parameters: does anything change that was certified?"""
    splits = harness.dataset("fashion_mnist", options)
    if splits is None:
        missing = {"violations": None, "certified_fraction_k1": None}
        return Result({"skipped": "fashion_mnist is not prepared"}, {}, missing)
    n, steps = 2000, (0, 60, 240)
    many, rows = (
        Dataset(jnp.asarray(splits.train.x[:size]), jnp.asarray(splits.train.y[:size]))
        for size in (15_000, n)
    )
    model = models.mlp(10, hidden=(64,))
    loss_fn = cross_entropy(model.apply)
    tried: dict[str, int] = dict.fromkeys(TRIED, 0)
    violations, fractions, flipped, certified = 0, [], [], []
    for count in steps:
        params = model.init(jax.random.split(jax.random.key(0))[0], rows.x[:1])
        if count:
            config = TrainConfig(epochs=count // 30, batch_size=500)
            params = train(jax.random.key(0), model, many, config=config)
        found = _at_random(loss_fn, params, rows, jax.random.key(0), tried)
        violations += found[0]
        flipped, certified = [*flipped, *found[1]], [*certified, *found[2]]
        violations += _every_single_row(loss_fn, params, rows, tried)
        violations += _worst_rows(loss_fn, params, rows, tried)
        fractions.append(_clipped_fraction(loss_fn, params, rows))
    description: dict[str, Any] = {
        "rows": n,
        "model": f"mlp, 64 hidden, after {steps} steps of PCMU on 15,000 rows",
        **tried,
        "coordinates flipped, 5/10/20% removed": _ranges(flipped),
        "share certified, 5/10/20% removed": _ranges(certified),
        "certified for k=1, by checkpoint": [round(f, 3) for f in fractions],
    }
    metrics = {"violations": violations, "certified_fraction_k1": min(fractions)}
    return Result(description, {}, metrics)


FRACTIONS, DRAWS = (0.05, 0.1, 0.2), 12
TRIED = ("removals", "certified for any rows", "single rows", "worst cases")


def _at_random(loss_fn, params, rows: Dataset, key: Array, tried: dict[str, int]):
    """Random rows leave: what was certified, for so many rows or by the radius, must stay."""
    n = rows.y.shape[0]
    bounds = gradient_range(loss_fn, params, rows, chunk=50)
    mean = bounds.mean
    found = smoothing.smooth_quantize(mean, SIGMA, LAM)

    @jax.jit
    def judge(keep, mean, found, certified):
        kept = gradient_sum(loss_fn, params, rows, weights=keep, chunk=500)
        after = jax.tree.map(lambda s: s / keep.sum(), kept)
        classes = smoothing.smooth_quantize(after, SIGMA, LAM).q

        def count(before, after, q, new, radius, any_rows):
            sure, changed = jnp.abs(after - before) < radius, q != new
            wrong = ((sure | any_rows) & changed).sum()
            return jnp.stack([wrong, changed.sum(), sure.sum(), any_rows.sum()])

        counts = jax.tree.map(count, mean, after, found.q, classes, found.radius, certified)
        return sum(jax.tree.leaves(counts))

    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    wrong, flips, sures = 0, [], []
    for fraction in FRACTIONS:
        k = round(fraction * n)
        certified = removal_certificate(mean, n, k, clip=(bounds.low, bounds.high)).certified
        for draw in jax.random.split(jax.random.fold_in(key, round(1000 * fraction)), DRAWS):
            keep = jax.random.permutation(draw, n) >= k
            bad, flip, sure, any_rows = map(
                int, judge(keep.astype(jnp.float32), mean, found, certified)
            )
            tried["certified for any rows"] += any_rows
            wrong, flips, sures = wrong + bad, [*flips, flip / size], [*sures, sure / size]
            tried["removals"] += 1
    return wrong, flips, sures


def _ranges(values: list[float]) -> list[str]:
    """Smallest and largest share for each fraction removed."""
    by_fraction = np.array(values).reshape(-1, len(FRACTIONS), DRAWS)
    return [f"{v.min():.3f}-{v.max():.3f}" for v in by_fraction.transpose(1, 0, 2)]


def _every_single_row(loss_fn, params, rows: Dataset, tried: dict[str, int]) -> int:
    """Each row leaves in turn; what the certificate for k = 1 covers must not change."""
    n, C = rows.y.shape[0], _quantile_clip(loss_fn, params, rows)
    mean = _clipped_mean(loss_fn, params, rows, C)
    sure = removal_certificate(mean, n, 1, clip=C).certified

    def one(row):
        g = jax.tree.map(lambda v: jnp.clip(v, -C, C), jax.grad(loss_fn)(params, row))
        after = jax.tree.map(lambda m, v: (n * m - v) / (n - 1), mean, g)
        wrong = jax.tree.map(
            lambda m, a, s: (s & (jnp.sign(m) != jnp.sign(a))).sum(), mean, after, sure
        )
        return sum(jax.tree.leaves(wrong))

    tried["single rows"] += n
    return int(jax.jit(lambda rows: jax.lax.map(one, rows, batch_size=50).sum())(rows))


def _worst_rows(loss_fn, params, rows: Dataset, tried: dict[str, int]) -> int:
    """The exact budget of the last layer's coordinates: its worst rows leave, in float64."""
    last = sorted(params)[-1]
    only = lambda p, row: loss_fn({**params, last: p}, row)
    v = np.asarray(per_sample_gradients(only, params[last], rows, chunk=200)["kernel"])
    v = v.reshape(v.shape[0], -1).astype(np.float64)
    k_max = np.asarray(exact_budget(v))
    n, sign = len(v), np.sign(v.sum(0))
    worst_first = -np.sort(-v * sign, axis=0)
    left = (v * sign).sum(0) - np.cumsum(worst_first, axis=0)  # after 1, 2, ... removals
    columns = np.arange(v.shape[1])
    rounding = 1e-12 * np.abs(v).sum(0)  # of sums in another order, where the rest cancels
    kept = np.where(k_max > 0, left[np.maximum(k_max - 1, 0), columns] > -rounding, True)
    broken = np.where(k_max < n - 1, left[np.minimum(k_max, n - 1), columns] <= rounding, True)
    alive = sign != 0
    tried["worst cases"] += 2 * int(alive.sum())
    return int((~kept & alive).sum() + (~broken & alive).sum())


def _quantile_clip(loss_fn, params, rows: Dataset) -> float:
    """The 99% quantile of the sizes in 200 rows' gradients."""
    some = jax.tree.map(lambda leaf: leaf[:200], rows)
    grads = jax.tree.leaves(per_sample_gradients(loss_fn, params, some))
    return float(np.quantile(np.abs(np.concatenate([np.ravel(v) for v in grads])), 0.99))


def _clipped_mean(loss_fn, params: Params, rows: Dataset, C: float) -> PyTree:
    """Mean of the gradients with every coordinate of every row clipped to C."""
    n = rows.y.shape[0]

    def add(total, row):
        g = jax.vmap(lambda row: jax.grad(loss_fn)(params, row))(row)
        return jax.tree.map(lambda t, v: t + jnp.clip(v, -C, C).sum(0), total, g), None

    parts = jax.tree.map(lambda leaf: leaf.reshape(-1, 50, *leaf.shape[1:]), rows)
    zero = jax.tree.map(jnp.zeros_like, params)
    total = jax.jit(lambda parts: jax.lax.scan(add, zero, parts)[0])(parts)
    return jax.tree.map(lambda t: t / n, total)


def _clipped_fraction(loss_fn, params, rows: Dataset) -> float:
    C = _quantile_clip(loss_fn, params, rows)
    mean = _clipped_mean(loss_fn, params, rows, C)
    return float(removal_certificate(mean, rows.y.shape[0], 1, clip=C).fraction)


# Around the best of each: no better one lies outside.
SGD = {0.0: (0.2, 0.4, 0.8), 0.9: (0.08, 0.16, 0.32, 0.64)}


def learning(options: Options) -> Result:
    """Test accuracy after the same epochs: PCMU with its defaults, SGD with its best setting."""
    splits = harness.dataset("fashion_mnist", options)
    if splits is None:
        return Result({"skipped": "fashion_mnist is not prepared"}, {}, {"accuracy_vs_sgd": None})
    n, seeds = 10_000, 3
    rows = Dataset(jnp.asarray(splits.train.x[:n]), jnp.asarray(splits.train.y[:n]))
    test, model = jax.tree.map(jnp.asarray, splits.test), models.mlp(10, hidden=(128,))
    keys = jax.random.split(jax.random.key(0), seeds)
    weights = jnp.ones((seeds, n))
    score = jax.jit(jax.vmap(lambda params: accuracy(model.apply(params, test.x), test.y)))
    config = TrainConfig(epochs=12, batch_size=500, momentum=0.0)
    found = {}
    for schedule in ("step", "cosine"):
        for momentum, rates in SGD.items():
            for rate in rates:
                how = dataclasses.replace(
                    config, learning_rate=rate, momentum=momentum, schedule=schedule
                )
                trained = train_many(keys, weights, model, rows, config=how)
                found[f"SGD {schedule}, momentum {momentum}, rate {rate}"] = score(trained)
    best = max(found, key=lambda name: float(found[name].mean()))
    trained = [train(key, model, rows, config=config) for key in keys]
    ours = f"PCMU, rate {PCMUConfig().rate}"
    found[ours] = score(jax.tree.map(lambda *p: jnp.stack(p), *trained))
    means = {name: round(float(v.mean()), 4) for name, v in found.items()}
    # Paired: the same initial parameters, rows and orders.
    difference = intervals.mean_interval(np.asarray(found[ours] - found[best]))
    description = {
        "rows": n,
        "epochs": config.epochs,
        "seeds": seeds,
        "model": "mlp, 128 hidden",
        "best SGD": best,
    }
    plain = max(value for name, value in means.items() if "momentum 0.0" in name)
    description |= {"best SGD without momentum": plain, best: means[best], ours: means[ours]}
    return Result(description, {}, {"accuracy_vs_sgd": difference})


if __name__ == "__main__":
    harness.main(__doc__, [step, coordinates, soundness, learning], TARGETS)
