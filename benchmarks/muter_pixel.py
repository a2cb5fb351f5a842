"""MUter on the last layer of a small network, with the attack on the pixels.

As in the paper: pretrained on half of the classes, frozen but for the last layer, which is trained
adversarially on the other half. One experiment trains to the optimum, unlearns in every way and
compares with training again without the rows.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxunlearn import Dataset, TrainConfig, data
from jaxunlearn.methods import muter
from jaxunlearn.models import Conv
from jaxunlearn.primitives.adversarial import PGDConfig, pgd, refine
from jaxunlearn.primitives.balls import L2Ball, LInfBox
from jaxunlearn.training import fit
from jaxunlearn.training.adversarial import adversarial_newton
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


def distance(a, b) -> float:
    return float(jnp.linalg.norm(ravel_pytree(a)[0] - ravel_pytree(b)[0]))


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
) -> dict[str, Any]:
    """One network, radius and seed: how well everything converged, and all distances."""
    it = problem(act, seed, rows)
    ball = LInfBox(radius) if box else L2Ball(radius)
    n = it.train.y.size
    search = PGDConfig(steps=10, restarts=2)
    found = pgd(jax.random.key(seed), it.loss_fn, it.start, it.train, ball=ball, config=search)
    train = functools.partial(
        adversarial_newton, it.loss_fn, ball=ball, tolerance=1e-10, steps=steps
    )
    original = train(it.start, it.train, found.delta)
    head, delta = original.params, original.inner.delta
    flat, unravel = ravel_pytree(head)
    prepare = functools.partial(muter.prepare, it.loss_fn, head, it.train, ball=ball, tolerance=1.0)
    memory = prepare(delta)

    def danskin(w):
        inner = refine(it.loss_fn, unravel(w), it.train, delta, ball=ball, steps=8)
        at = Dataset(it.train.x + inner.delta, it.train.y)
        total = lambda w: jax.vmap(it.loss_fn, (None, 0))(unravel(w), at).sum()
        return jax.grad(total)(w)

    rng = np.random.default_rng(seed)
    v = rng.normal(size=flat.size)
    v = jnp.asarray(v / np.linalg.norm(v))
    step = 1e-5
    difference = (danskin(flat + step * v) - danskin(flat - step * v)) / (2 * step)
    direct = prepare(delta, rule=muter.RULES["muter_newton_delta"]).matrix
    wrong = lambda matrix: float(
        jnp.linalg.norm(matrix @ v - difference) / jnp.linalg.norm(difference)
    )
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
        "fd_kkt": wrong(memory.matrix),
        "fd_direct": wrong(direct),
    }
    if robust:
        out["clean"] = float((it.predict(head, it.test.x).argmax(-1) == it.test.y).mean())
        out["robust"] = robust_accuracy(it, head, ball)
    out["removals"] = {}
    raw = pgd(jax.random.key(99), it.loss_fn, head, it.train, ball=ball, config=PGDConfig(10))
    better = refine(it.loss_fn, head, it.train, raw.delta, ball=ball, steps=3)
    memories = {"muter": (memory, muter.RULES["muter"])}
    memories["muter, PGD-10 raw"] = prepare(raw.delta), muter.RULES["muter"]
    memories["muter, PGD-10 refined"] = prepare(better.delta), muter.RULES["muter"]
    names = muter.RULES if compare else ("muter", "muter_newton_delta")
    for name in list(names)[1:]:
        memories[name] = prepare(delta, rule=muter.RULES[name]), muter.RULES[name]
    for k in removals:
        forget = jnp.zeros(n, bool).at[rng.permutation(n)[:k]].set(True)
        again = train(head, it.train, delta, weights=~forget)
        line = {"retrain_gradient": float(again.gradient), "noop": distance(head, again.params)}
        for name, (prepared, rule) in memories.items():
            w, after = muter.remove(it.loss_fn, prepared, it.train, forget, ball=ball, rule=rule)
            line[name] = distance(w, again.params)
            if name == "muter":
                fresh = muter.refresh(it.loss_fn, w, after, it.train, ball=ball)
                line["muter + refresh"] = distance(fresh, again.params)
                if robust:
                    line["robust"] = robust_accuracy(it, w, ball)
                    line["robust_retrain"] = robust_accuracy(it, again.params, ball)
        out["removals"][str(k)] = line
    return out
