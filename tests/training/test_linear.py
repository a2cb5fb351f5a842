"""Robust linear models: every optimum is proved by its subgradient, in NumPy alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import Dataset
from jaxunlearn.primitives import linear
from jaxunlearn.primitives.balls import L2Ball, LInfBox
from jaxunlearn.training.linear import minimise

N, D, L2 = 60, 6, 1e-2
BALLS = {
    "clean": None,
    "sphere": L2Ball(0.3),
    "box": LInfBox(0.15, None),
    "clipped box": LInfBox(0.15, (-1.0, 1.0)),
    "wide box": LInfBox(0.3, None),
}

pytestmark = pytest.mark.usefixtures("float64", "compiled_in_haste")


@pytest.fixture(scope="module")
def rows() -> Dataset:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, D))
    y = x @ rng.normal(size=D) + rng.normal(size=N) > 0
    return Dataset(jnp.asarray(x), jnp.asarray(y.astype(np.int32)))


def certificate(out, rows: Dataset, ball, loss: str, weights) -> float:
    """How far 0 is from the subdifferential of the mean loss, from its definition in words."""
    x, y, w, mix = (np.asarray(a) for a in (rows.x, 2 * rows.y - 1, out.w, out.mix))
    low = high = np.zeros_like(x)
    size = np.linalg.norm(w)
    if isinstance(ball, LInfBox):
        low, high = (np.asarray(jax.vmap(ball.bounds)(rows.x)[i]) for i in (0, 1))
        up = np.where(w > 0, high, np.where(w < 0, low, 0.0))  # to the highest score
        down = np.where(w > 0, low, np.where(w < 0, high, 0.0))
    else:
        up = np.zeros_like(x) + (0 if ball is None else ball.radius) * w / size
        down = -up
    total, slack = np.zeros_like(w), np.zeros_like(w)
    for i in range(len(y)):
        ends = [x[i] + up[i], x[i] + down[i]]
        scores = [end @ w for end in ends]
        if loss == "logistic":
            losses = [np.log1p(np.exp(-y[i] * s)) for s in scores]
            slopes = [-y[i] / (1 + np.exp(y[i] * s)) for s in scores]
        else:
            losses, slopes = [(s - y[i]) ** 2 / 2 for s in scores], [s - y[i] for s in scores]
        share = [(1 + mix[i]) / 2, (1 - mix[i]) / 2]
        assert 0 <= share[0] <= 1
        if ball is not None and weights[i]:
            # Only ends of largest loss have a share.
            assert share[0] < 1e-12 or losses[0] > losses[1] - 1e-9
            assert share[1] < 1e-12 or losses[1] > losses[0] - 1e-9
        for part, end, slope in zip(share, ends, slopes, strict=True):
            total += weights[i] * part * slope * end
            # Where w_j is 0 the perturbation may be anything between its bounds.
            slack += weights[i] * part * np.abs(slope) * (high - low)[i] / 2
            middle = (high + low)[i] / 2
            total += weights[i] * part * slope * np.where(w == 0, middle, 0.0)
    total = total / weights.sum() + L2 * w
    slack = np.where(w == 0, slack / weights.sum(), 0.0)
    return float(np.maximum(np.abs(total) - slack, 0.0).max())


@pytest.mark.parametrize("loss", linear.LOSSES)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "box" else n for n in BALLS]
)
def test_zero_is_a_subgradient_at_the_end_and_nowhere_near(rows, loss, name):
    ball, weights = BALLS[name], (np.arange(N) % 7 > 0) * 1.0
    how = {"ball": ball, "loss": loss, "l2": L2, "weights": weights, "tolerance": 1e-12}
    out = minimise(rows, **how)
    assert bool(out.converged) and out.gradient <= 1e-12
    assert certificate(out, rows, ball, loss, weights) < 1e-10
    kinks = (np.abs(out.mix) < 1).sum()
    assert kinks == 0 or (loss == "ridge" and ball is not None)
    vanished = (np.asarray(out.w) == 0).sum()
    assert vanished == 0 or isinstance(ball, LInfBox)
    if name == "wide box":
        assert vanished > 0 and (kinks > 0) == (loss == "ridge")
    moved = out._replace(w=jnp.where(out.w == 0, 0.0, out.w * 1.001))
    if not kinks:
        assert certificate(moved, rows, ball, loss, weights) > 1e-6
    # The robust loss is convex, so that is a proof; still, nothing around is lower.
    value = jax.jit(
        jax.vmap(lambda w: weights @ linear.losses(w, rows, ball=ball, loss=loss, l2=L2))
    )
    around = np.asarray(out.w)[None] + 1e-4 * np.random.default_rng(0).normal(size=(200, D))
    assert (value(around) >= value(out.w[None])).all()


def test_a_warm_start_with_its_kinks_is_short(rows):
    how = {"ball": BALLS["sphere"], "loss": "ridge", "l2": L2, "tolerance": 1e-12}
    first = minimise(rows, **how)
    assert (np.abs(first.mix) < 1).any()
    again = minimise(rows, **how, start=first)
    np.testing.assert_allclose(again.w, first.w, atol=1e-11)
    assert again.steps < first.steps / 2
    # From far away Newton's method would end at the kink of the norm.
    far = minimise(rows, **how, start=10 * jnp.asarray(np.random.default_rng(3).normal(size=D)))
    np.testing.assert_allclose(far.w, first.w, atol=1e-10)


@pytest.mark.parametrize("loss", ["ridge", pytest.param("logistic", marks=pytest.mark.slow)])
def test_a_ball_so_large_that_nothing_can_be_said(rows, loss):
    """0 is the optimum, at the kink of the norm, where Newton's method would run in circles."""
    center = np.linalg.norm((2 * np.asarray(rows.y) - 1) @ np.asarray(rows.x) / N)
    above, below = (
        minimise(rows, ball=L2Ball(center * s), loss=loss, l2=L2) for s in (1.001, 0.98)
    )
    assert not above.w.any() and bool(above.converged) and above.gradient == 0
    assert below.w.any() and bool(below.converged)
    value = lambda w: linear.losses(w, rows, ball=L2Ball(center * 1.001), loss=loss, l2=L2).mean()
    for scale in (1e-4, 1e-2, 1.0):
        for w in np.random.default_rng(1).normal(size=(20, D)):
            assert value(jnp.asarray(scale * w)) > value(jnp.zeros(D))


def test_in_float32_it_says_how_far_it_came(rows):
    narrow = Dataset(rows.x.astype(jnp.float32), rows.y)
    out = minimise(narrow, ball=BALLS["wide box"], loss="ridge", l2=L2, tolerance=1e-5)
    assert out.w.dtype == jnp.float32 and bool(out.converged)


@pytest.mark.slow
def test_weights_are_removal(rows):
    keep = jnp.arange(N) % 4 > 0
    for ball in (BALLS["sphere"], BALLS["box"]):
        for loss in linear.LOSSES:
            how = {"ball": ball, "loss": loss, "l2": L2, "tolerance": 1e-12}
            fewer = jax.tree.map(lambda leaf: leaf[keep], rows)
            weighted = minimise(rows, **how, weights=keep).w
            np.testing.assert_allclose(weighted, minimise(fewer, **how).w, atol=1e-9)


def test_no_optimum_is_no_convergence(rows):
    apart = rows._replace(x=rows.x.at[:, 0].set(10.0 * (2 * rows.y - 1)))
    out = minimise(apart, ball=L2Ball(0.1), l2=0.0, tolerance=1e-12, steps=15)
    assert not bool(out.converged)


def test_bad_input(rows):
    with pytest.raises(ValueError, match="labels from 0 to 2"):
        minimise(rows._replace(y=rows.y.at[0].set(2)), ball=L2Ball(0.3), l2=L2)
    with pytest.raises(ValueError, match=r"loss='hinge' is unknown"):
        minimise(rows, ball=L2Ball(0.3), loss="hinge", l2=L2)
    with pytest.raises(ValueError, match="l2=-1"):
        minimise(rows, ball=L2Ball(0.3), l2=-1.0)
    with pytest.raises(ValueError, match="dtype uint8: convert it"):
        minimise(rows._replace(x=rows.x.astype(jnp.uint8)), ball=L2Ball(0.3), l2=L2)
    with pytest.raises(ValueError, match="flatten the rows"):
        minimise(rows._replace(x=rows.x.reshape(N, 2, 3)), ball=L2Ball(0.3), l2=L2)
    with pytest.raises(ValueError, match="steps=0"):
        minimise(rows, ball=L2Ball(0.3), l2=L2, steps=0)
    fewer = minimise(jax.tree.map(lambda leaf: leaf[:30], rows), ball=L2Ball(0.3), l2=L2)
    with pytest.raises(ValueError, match="start is the optimum of 30 rows"):
        minimise(rows, ball=L2Ball(0.3), l2=L2, start=fewer)
