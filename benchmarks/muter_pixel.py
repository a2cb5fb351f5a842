"""MUter on the last layer of a small network, with the attack on the pixels.

As in the paper: pretrained on half of the classes, frozen but for the last layer, which is trained
adversarially on the other half. One experiment trains to the optimum, unlearns in every way and
compares with training again without the rows.
"""

import functools
import time
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from benchmarks.harness import Case, compiled
from jaxunlearn import Dataset, TrainConfig, data
from jaxunlearn.methods import muter
from jaxunlearn.models import Conv
from jaxunlearn.primitives.adversarial import PGDConfig, pgd, refine
from jaxunlearn.primitives.balls import L2Ball, LInfBox
from jaxunlearn.primitives.curvature import total_matrix
from jaxunlearn.primitives.gradients import gradient_sum
from jaxunlearn.primitives.inner import inspect
from jaxunlearn.primitives.last_layer import LastLayer
from jaxunlearn.primitives.solve import CG
from jaxunlearn.training import fit
from jaxunlearn.training.adversarial import Trained, adversarial_newton
from jaxunlearn.types import Model

L2 = 1e-3
ACTIVATIONS = {"tanh": nn.tanh, "relu": nn.relu, "softplus": nn.softplus}


class _Net(nn.Module):
    act: str

    @nn.compact
    def __call__(self, x):
        act = ACTIVATIONS[self.act]
        x = act(Conv(8, (3, 3), strides=2, padding=((1, 1), (1, 1)))(x))
        x = act(nn.Dense(16)(x.reshape(x.shape[0], -1)))
        return nn.Dense(5)(x)


@functools.cache
def network(act: str) -> Model:
    """A convolution, a dense layer of 16, and the last layer: 5 classes."""
    net = _Net(act)

    def apply(params, x) -> Any:
        return net.apply({"params": params}, x)

    return Model(lambda key, x: net.init(key, x)["params"], apply)


class Problem(NamedTuple):
    """The frozen network's loss of its last layer, and the rows."""

    loss_fn: Any
    predict: Any
    start: Any
    train: Dataset
    test: Dataset


@functools.cache
def pretrained(act: str) -> Problem:
    """Pretrains on the embedded digits 5-9 and gives the problem on 0-4, in float64.

    One network for all seeds, which draw rows and starts: what is compiled holds its weights.
    """
    splits, model = data.load("digits"), network(act)

    def half(split, large):
        x, y = np.asarray(split.x, np.float64), np.asarray(split.y)
        some = (y >= 5) == large
        return Dataset(jnp.asarray(x[some]), jnp.asarray(y[some] - 5 * large))

    core = half(splits.train, True)
    config = TrainConfig(epochs=40, batch_size=32, learning_rate=0.05)
    params = fit(
        jax.random.key(0), model, core._replace(x=core.x.astype(jnp.float32)), config=config
    )
    frozen = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)

    def predict(head, x):
        return model.apply({**frozen, "Dense_1": head}, x)

    def loss_fn(head, row):
        z = predict(head, row.x[None])[0]
        squares = sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(head))
        return jax.nn.logsumexp(z) - z[row.y] + L2 / 2 * squares

    start = frozen["Dense_1"]
    return Problem(loss_fn, predict, start, half(splits.train, False), half(splits.test, False))


def problem(act: str, seed: int, rows: int | None = None) -> Problem:
    """:func:`pretrained` on some of the rows, from another start."""
    it, rng = pretrained(act), np.random.default_rng(seed)
    order = np.sort(rng.permutation(it.train.y.size)[:rows])
    start = jax.tree.map(lambda leaf: jnp.asarray(0.1 * rng.normal(size=leaf.shape)), it.start)
    return it._replace(start=start, train=Dataset(it.train.x[order], it.train.y[order]))


def robust_accuracy(it: Problem, head, ball) -> float:
    """Test accuracy under PGD-20 from two random starts, in float64."""
    config = PGDConfig(steps=20, restarts=2)
    found = pgd(jax.random.key(1), it.loss_fn, head, it.test, ball=ball, config=config)
    logits = it.predict(head, it.test.x + found.delta)
    return float((logits.argmax(-1) == it.test.y).mean())


def clean_accuracy(it: Problem, head) -> float:
    return float((it.predict(head, it.test.x).argmax(-1) == it.test.y).mean())


def distance(a, b) -> float:
    return float(jnp.linalg.norm(ravel_pytree(a)[0] - ravel_pytree(b)[0]))


def optimum(it: Problem, ball, seed: int, *, steps: int) -> Trained:
    """The adversarial training, from what PGD with two random starts finds."""
    search = PGDConfig(steps=10, restarts=2)
    found = pgd(jax.random.key(seed), it.loss_fn, it.start, it.train, ball=ball, config=search)
    given = it.loss_fn, it.start, it.train, found.delta
    return adversarial_newton(*given, ball=ball, tolerance=1e-10, steps=steps)


def retrained(it: Problem, ball, start: Trained, forget, *, steps: int) -> Trained:
    """The same without some rows, from the old optimum and its maxima."""
    given = it.loss_fn, start.params, it.train, start.inner.delta
    return adversarial_newton(*given, ball=ball, weights=~forget, tolerance=1e-10, steps=steps)


def experiment(
    act: str,
    radius: float,
    seed: int,
    *,
    box: bool = False,
    rows: int | None = None,
    removals: tuple[int, ...] = (1, 5, 10),
    steps: int = 25,
    robust: bool = True,
    compare: bool = True,
    free: bool = False,
) -> dict[str, Any]:
    """One network, radius and seed: how well everything converged, and all distances.

    Args:
      act: the activation.
      radius: of the ball, or with ``box`` of the box within [0, 1].
      seed: of the start, of the rows and of the requests.
      rows: of the training, all by default.
      removals: rows asked for.
      steps: Newton steps of the training, at most.
      robust: robust accuracies too.
      compare: also the methods that MUter is compared with.
      free: also without the matrix.
    """
    it = problem(act, seed, rows)
    ball = LInfBox(radius) if box else L2Ball(radius)
    n = it.train.y.size
    original = optimum(it, ball, seed, steps=steps)
    head, delta = original.params, original.inner.delta
    prepare = functools.partial(muter.prepare, it.loss_fn, head, it.train, ball=ball, tolerance=1.0)
    memory, direct = prepare(delta), prepare(delta, rule=muter.RULES["muter_newton_delta"])
    figures = memory.diagnostics
    out: dict[str, Any] = {
        "network": act,
        "ball": type(ball).__name__,
        "radius": radius,
        "seed": seed,
        "rows": n,
        "gradient": float(original.gradient),
        "inner_residual": float(figures.inner_residual),
        "inner_curvature": float(figures.inner_curvature),
        "fallback": int(figures.fallback),
        **_product_errors(it, head, delta, ball, {"kkt": memory, "direct": direct}, seed),
    }
    if robust:
        out["clean"] = clean_accuracy(it, head)
        out["robust"] = robust_accuracy(it, head, ball)
    raw = pgd(jax.random.key(99), it.loss_fn, head, it.train, ball=ball, config=PGDConfig(10))
    better = refine(it.loss_fn, head, it.train, raw.delta, ball=ball, steps=3)
    memories = {"muter": memory, "muter, PGD-10 raw": prepare(raw.delta)}
    memories["muter, PGD-10 refined"] = prepare(better.delta)
    memories["muter_newton_delta"] = direct
    for name in list(muter.RULES)[1:] if compare else ():
        memories[name] = prepare(delta, rule=muter.RULES[name])
    out["removals"] = {}
    rng = np.random.default_rng(seed)
    for k in removals:
        forget = jnp.zeros(n, bool).at[rng.permutation(n)[:k]].set(True)
        again, seconds = timed(lambda f=forget: retrained(it, ball, original, f, steps=steps))
        line: dict[str, Any] = {"retrain_gradient": float(again.gradient)}
        line["noop"] = distance(head, again.params)
        line["seconds"] = {"retrain": seconds}
        for name, prepared in memories.items():
            rule = muter.RULES.get(name, muter.RULES["muter"])
            remove = functools.partial(
                muter.remove, it.loss_fn, prepared, it.train, forget, ball=ball, rule=rule
            )
            (w, after), line["seconds"][name] = timed(remove)
            line[name] = distance(w, again.params)
            if name == "muter":
                fresh = muter.refresh(it.loss_fn, w, after, it.train, ball=ball)
                line["muter + refresh"] = distance(fresh, again.params)
                line["flipped"] = _changed(it, head, delta, ball, again)
                if robust:
                    line["clean"] = clean_accuracy(it, w)
                    line["clean_retrain"] = clean_accuracy(it, again.params)
                    line["robust"] = robust_accuracy(it, w, ball)
                    line["robust_retrain"] = robust_accuracy(it, again.params, ball)
                if free:
                    given = it.loss_fn, prepare(delta, dense=False), it.train, forget
                    other, after = muter.remove(*given, ball=ball, solver=CG(tol=1e-10))
                    line["matrix-free"] = distance(other, w) / distance(head, w)
                    line["iterations"] = int(after.diagnostics.iterations)
        out["removals"][str(k)] = line
    return out


def _product_errors(it: Problem, head, delta, ball, memories, seed) -> dict[str, float]:
    """Relative errors of the matrices' products against central differences of the gradient."""
    flat, unravel = ravel_pytree(head)

    def danskin(w):
        inner = refine(it.loss_fn, unravel(w), it.train, delta, ball=ball, steps=8)
        at = Dataset(it.train.x + inner.delta, it.train.y)
        return ravel_pytree(gradient_sum(it.loss_fn, unravel(w), at))[0]

    v = np.random.default_rng(seed).normal(size=flat.size)
    v, step = jnp.asarray(v / np.linalg.norm(v)), 1e-5
    truth = (danskin(flat + step * v) - danskin(flat - step * v)) / (2 * step)
    wrong = lambda matrix: float(jnp.linalg.norm(matrix @ v - truth) / jnp.linalg.norm(truth))
    return {f"fd_{name}": wrong(memory.matrix) for name, memory in memories.items()}


def _changed(it: Problem, head, delta, ball, again) -> int:
    """Coordinates of all rows that are at a bound of the box before or after, and not both."""
    if not isinstance(ball, LInfBox):
        return 0
    before = inspect(it.loss_fn, head, it.train, delta, ball=ball).active
    return int((before != again.inner.active).sum())


def matrix_cases(rows: int = 128) -> tuple[dict[str, Case], float]:
    """A dense last layer's matrix in closed form and as that of any loss; how far they differ.

    14 x 14 pixels, 64 features, 10 classes, float32.
    """
    rng, ball = np.random.default_rng(0), L2Ball(0.3)
    below = jnp.asarray(0.1 * rng.normal(size=(196, 64)), jnp.float32)
    loss_fn = LastLayer(lambda x: jnp.tanh(x @ below), l2=L2)
    head = {"kernel": jnp.asarray(rng.normal(size=(64, 10)), jnp.float32), "bias": jnp.zeros(10)}
    x, y = jnp.asarray(rng.uniform(size=(rows, 196)), jnp.float32), rng.integers(0, 10, rows)
    train = Dataset(x, jnp.asarray(y))
    config = PGDConfig(steps=10, refine=3)
    delta = pgd(jax.random.key(0), loss_fn, head, train, ball=ball, config=config).delta
    unknown = lambda head, row: loss_fn(head, row)
    cases, found = {}, []
    for name, loss in {"closed form": loss_fn, "any loss": unknown}.items():
        matrix = functools.partial(total_matrix, loss, ball=ball)
        cases[name] = compiled(matrix, head, train, delta)
        found.append(cases[name].call())
    return cases, float(jnp.abs(found[0] - found[1]).max() / jnp.abs(found[1]).max())


def timed(call):
    """What a call gives, and the seconds of its second run."""
    jax.block_until_ready(call())
    begin = time.perf_counter()
    out = jax.block_until_ready(call())
    return out, time.perf_counter() - begin
