"""Influence steps against dense solves in float64, an exact case, and the published recursion."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import Dataset, Status, data, models
from jaxunlearn.baselines import (
    InfluenceConfig,
    WoodFisherConfig,
    influence,
    influence_woodfisher,
)
from jaxunlearn.baselines.influence import _influence

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

N = 30
KEY = jax.random.key(0)
MODEL = models.mlp(10, hidden=(4,))
LOSS = models.cross_entropy(MODEL.apply)
FORGET = np.isin(np.arange(N), [0, 1, 7, 20])


@pytest.fixture(scope="module")
def rows() -> Dataset:
    train = data.load("digits").train
    return Dataset(train.x[:N], train.y[:N])


@pytest.fixture(scope="module")
def params(rows):
    return MODEL.init(KEY, rows.x)


@pytest.fixture(scope="module")
def grads(params, rows) -> np.ndarray:
    """``float64[n, P]`` by jax.grad alone."""
    each = jax.jit(jax.vmap(jax.grad(LOSS), (None, 0)))(params, rows)
    return flat(each, N)


def flat(tree, *lead) -> np.ndarray:
    leaves = [np.asarray(leaf, np.float64).reshape(*lead, -1) for leaf in jax.tree.leaves(tree)]
    return np.concatenate(leaves, axis=-1)


def step(after, before) -> np.ndarray:
    return flat(after) - flat(before)


def direction(grads, forget, retain):
    m, kept = forget.sum(), retain.sum()
    return m / (m + kept) * (grads[forget].mean(0) - grads[retain].mean(0))


def dense(grads, forget, retain, damping):
    g = grads[retain]
    fisher = g.T @ g / len(g)
    v = direction(grads, forget, retain)
    return np.linalg.solve(fisher + damping * np.eye(len(v)), v)


@pytest.mark.parametrize("damping", [1e-2, 1.0])
@pytest.mark.parametrize("removed_before", [(), (3, 5)])
def test_equals_the_dense_solve(params, rows, grads, damping, removed_before):
    gone = np.isin(np.arange(N), removed_before)
    retain = ~FORGET & ~gone
    config = InfluenceConfig(damping=damping, scale=0.5)  # all retained rows enter
    after = influence(KEY, LOSS, params, rows, FORGET, retain=jnp.asarray(retain), config=config)
    expected = 0.5 * dense(grads, FORGET, retain, damping)
    found = step(after, params)
    assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected)
    wrong = 0.5 * dense(grads, FORGET, np.ones(N, bool), damping)  # Fisher of all rows
    assert np.linalg.norm(found - wrong) > 1e-2 * np.linalg.norm(expected)


def test_sampled_rows_are_retained_ones(params, rows, grads):
    """With fewer rows in the Fisher matrix: the same, for one of the samples of that size."""
    few = np.isin(np.arange(N), [2, 9, 15])
    forget, retain = jnp.asarray(FORGET), jnp.asarray(few)
    outs = [
        step(
            influence(
                jax.random.key(k), LOSS, params, rows, forget, retain=retain,
                config=InfluenceConfig(samples=2, damping=1e-2),
            ),
            params,
        )
        for k in range(6)
    ]  # fmt: skip
    v = direction(grads, FORGET, few)
    solved = []
    for pair in ([2, 9], [2, 15], [9, 15]):
        g = grads[pair]
        solved.append(np.linalg.solve(g.T @ g / 2 + 1e-2 * np.eye(len(v)), v))
    far = lambda a, b: np.linalg.norm(a - b) / np.linalg.norm(b)
    near = np.array([[far(out, one) < 1e-3 for one in solved] for out in outs])
    assert near.any(1).all()
    assert near.any(0).sum() > 1  # the key chooses


def test_is_newtons_step_where_fisher_is_the_curvature():
    """Removal from a one-hot mean has a closed form: the remaining mean.

    With loss ``|params - x|^2 / 2`` and rows ``x = +-c e_j`` in equal numbers around the
    optimum, Fisher of the retained rows is near a multiple of the identity, so that
    the step points from the old mean to the new one.
    """
    c, copies, d = 2.0, 50, 3
    axes = np.concatenate([np.eye(d), -np.eye(d)]) * c
    x = np.repeat(axes, copies, axis=0)
    loss_fn = lambda params, row: 0.5 * jnp.sum((params - row.x) ** 2)
    forget = np.zeros(len(x), bool)
    forget[:3] = True  # three rows at c e_1
    exact = x[~forget].mean(0)  # the old mean is 0
    some = Dataset(jnp.asarray(x), jnp.zeros(len(x), int))
    # Each gradient is -x, Fisher is c^2 / d (up to the rows that left); so scale by that.
    config = InfluenceConfig(damping=1e-4, scale=c**2 / d)
    found = influence(KEY, loss_fn, jnp.zeros(d), some, jnp.asarray(forget), config=config)
    np.testing.assert_allclose(found, exact, atol=0.03 * np.abs(exact).max())
    assert np.abs(exact).max() > 0.01


def test_leave_some_out_of_logistic_regression_is_second_order():
    """At the true parameters Fisher is the Hessian: the step comes within a few percent of
    the retrained optimum, and doing nothing does not."""
    rng = np.random.default_rng(0)
    n, d, damping = 900, 3, 1e-4
    x = rng.normal(size=(n, d))
    truth = np.array([1.0, -1.0, 0.5])
    y = (rng.random(n) < 1 / (1 + np.exp(-x @ truth))).astype(int)
    x, sign = x.astype(np.float32), 2 * y - 1

    def optimum(keep):
        w = np.zeros(d)
        for _ in range(30):
            p = 1 / (1 + np.exp(sign[keep] * (x[keep] @ w)))  # probability of the other label
            gradient = -(x[keep] * (sign[keep] * p)[:, None]).mean(0)
            hessian = (x[keep] * (p * (1 - p))[:, None]).T @ x[keep] / keep.sum()
            w -= np.linalg.solve(hessian, gradient)
        return w

    loss_fn = lambda w, row: jnp.logaddexp(0.0, -(2 * row.y - 1) * (row.x @ w))
    forget = np.zeros(n, bool)
    forget[np.argsort(-x[:, 0] * sign)[:20]] = True  # all lean the same way
    before, retrained = optimum(np.ones(n, bool)), optimum(~forget)
    config = InfluenceConfig(damping=damping, samples=n)
    with jax.enable_x64(True):
        after = influence(
            KEY, loss_fn, jnp.asarray(before), Dataset(x.astype(float), y), forget, config=config
        )
    missed = np.linalg.norm(np.asarray(after) - retrained)
    assert missed < 0.1 * np.linalg.norm(before - retrained)


def test_mask_confines_the_step(params, rows, grads):
    mask = jax.tree.map(
        lambda p: jnp.asarray(np.arange(p.size).reshape(p.shape) % 2, p.dtype), params
    )
    pruned = jax.tree.map(jnp.multiply, params, mask)
    inside = flat(mask) == 1
    each = jax.jit(jax.vmap(jax.grad(LOSS), (None, 0)))(pruned, rows)
    grads = flat(each, N) * inside
    config = InfluenceConfig(damping=1e-2)
    newton = influence(KEY, LOSS, pruned, rows, FORGET, config=config, mask=mask)
    for after in (newton, influence_woodfisher(LOSS, pruned, rows, FORGET, mask=mask)):
        assert (flat(after)[~inside] == 0).all()
    found = step(newton, pruned)
    expected = dense(grads, FORGET, ~FORGET, 1e-2)
    assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected)


def published_recursion(grads, v, terms, constant):
    """The official code, line by line, for one gradient after the other."""
    k_vec, o_vec = v.copy(), None
    for idx, sample_grad in enumerate(grads):
        if idx == 0:
            o_vec = sample_grad.copy()
            continue
        tmp = o_vec @ sample_grad
        k_vec -= (k_vec @ sample_grad) / (constant + tmp) * o_vec
        o_vec -= tmp / (constant + tmp) * o_vec
        if idx > terms - 1:
            break
    return k_vec


@pytest.mark.parametrize("terms", [5, 1000])
def test_woodfisher_equals_the_published_recursion(params, rows, grads, terms):
    config = WoodFisherConfig(scale=3.0, terms=terms)
    after = influence_woodfisher(LOSS, params, rows, FORGET, config=config)
    v = direction(grads, FORGET, ~FORGET)
    expected = published_recursion(grads[~FORGET], v, terms, terms)
    np.testing.assert_allclose(step(after, params) / 3.0, expected, atol=2e-6)
    if terms == 5:  # where the recursion matters, it can be told from plain first order
        assert np.abs(expected - v).max() > 1e-3


def test_woodfisher_applies_no_curvature(params, rows, grads):
    """What it adds to the first-order step is parallel to one single gradient."""
    config = WoodFisherConfig(scale=1.0, terms=5)
    found = step(influence_woodfisher(LOSS, params, rows, FORGET, config=config), params)
    added = found - direction(grads, FORGET, ~FORGET)
    first = grads[~FORGET][0]
    cosine = added @ first / np.linalg.norm(added) / np.linalg.norm(first)
    np.testing.assert_allclose(abs(cosine), 1.0, atol=1e-5)
    other = grads[~FORGET][1]
    assert abs(added @ other) < 0.99 * np.linalg.norm(added) * np.linalg.norm(other)


def test_rows_removed_before_stay_out_of_woodfisher(params, rows):
    gone = np.isin(np.arange(N), [2, 3])
    retain = jnp.asarray(~FORGET & ~gone)
    other = Dataset(rows.x.at[2:4].set(0.3), rows.y)
    a, b = (influence_woodfisher(LOSS, params, d, FORGET, retain=retain) for d in (rows, other))
    chex.assert_trees_all_equal(a, b)


def test_low_precision_parameters(rows):
    """The solve is done in float32, and the result is cast back."""
    low = Dataset(rows.x.astype(jnp.bfloat16), rows.y)
    params = MODEL.init(KEY, low.x)
    for after in (
        influence(KEY, LOSS, params, low, FORGET),
        influence_woodfisher(LOSS, params, low, FORGET),
    ):
        assert {leaf.dtype for leaf in jax.tree.leaves(after)} == {jnp.dtype(jnp.bfloat16)}
        chex.assert_tree_all_finite(after)


def test_a_solve_that_fails_says_so(params, rows):
    """A damping far below the rounding of float32 leaves nothing to factorise."""
    twice = Dataset(jnp.concatenate([rows.x, rows.x]), jnp.concatenate([rows.y, rows.y]))
    forget = jnp.asarray(np.concatenate([FORGET, FORGET]))
    run = lambda damping: _influence(
        KEY, LOSS, params, twice, forget, ~forget, InfluenceConfig(damping=damping), None
    )
    assert run(1e-30).status != Status.OK
    assert run(1e-2).status == Status.OK


def test_bad_input(params, rows):
    for bad, message in {
        "length": (FORGET[:-1], r"forget has shape \(29,\)"),
        "dtype": (FORGET.astype(int), "forget has dtype int64"),
        "all": (np.ones(N, bool), "forget leaves none of the 30"),
    }.values():
        with pytest.raises(ValueError, match=message):
            influence(KEY, LOSS, params, rows, bad)
        with pytest.raises(ValueError, match=message):
            influence_woodfisher(LOSS, params, rows, bad)
    for options in ({"damping": 0.0}, {"scale": -1.0}, {"samples": 0}, {"damping": float("nan")}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}="):
            InfluenceConfig(**options)
    for options in ({"scale": 0.0}, {"terms": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}="):
            WoodFisherConfig(**options)
