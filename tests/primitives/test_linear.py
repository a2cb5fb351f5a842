"""Linear models: closed forms against autodiff and brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import Dataset
from jaxunlearn.primitives import linear
from jaxunlearn.primitives.balls import L2Ball, LInfBox
from jaxunlearn.primitives.curvature import total_matrix

N, D, L2 = 60, 6, 1e-2
BALLS = [L2Ball(0.3), LInfBox(0.15, None), LInfBox(0.15, (-1.0, 1.0))]

pytestmark = pytest.mark.usefixtures("float64", "compiled_in_haste")


@pytest.fixture(scope="module")
def rows() -> Dataset:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, D))
    y = x @ rng.normal(size=D) + rng.normal(size=N) > 0
    return Dataset(jnp.asarray(x), jnp.asarray(y.astype(np.int32)))


@pytest.fixture(scope="module")
def w():
    return jnp.asarray(np.random.default_rng(1).normal(size=D))


def value(loss, w, row, delta=0.0):
    y, s = 2 * row.y - 1, (row.x + delta) @ w
    plain = jnp.log1p(jnp.exp(-y * s)) if loss == "logistic" else 0.5 * (s - y) ** 2
    return plain + L2 / 2 * w @ w


@pytest.mark.parametrize("loss", linear.LOSSES)
@pytest.mark.parametrize("ball", BALLS, ids=str)
def test_the_maximum_is_one(rows, w, loss, ball):
    found = linear.maximum(w, rows, ball=ball, loss=loss).delta
    ours = jax.vmap(lambda r, d: value(loss, w, r, d))(rows, found)
    np.testing.assert_allclose(
        ours, linear.losses(w, rows, ball=ball, loss=loss, l2=L2), rtol=1e-12
    )
    drawn = jax.vmap(lambda k, x: jax.vmap(lambda k: ball.draw(k, x))(jax.random.split(k, 300)))
    points = drawn(jax.random.split(jax.random.key(0), N), rows.x)
    points = jax.vmap(lambda x, p: jax.vmap(lambda v: ball.extreme(x, v))(p))(rows.x, points)
    others = jax.vmap(lambda r, p: jax.vmap(lambda d: value(loss, w, r, d))(p))(rows, points)
    assert (ours[:, None] >= others - 1e-12).all()


@pytest.mark.parametrize("loss", linear.LOSSES)
@pytest.mark.parametrize("ball", BALLS[:2], ids=str)
def test_the_kkt_matrix_is_the_hessian_of_the_robust_loss(rows, w, loss, ball):
    delta = linear.maximum(w, rows, ball=ball, loss=loss).delta
    ours = linear.pieces(w, rows, delta, ball=ball, loss=loss, l2=L2)
    robust = lambda w: linear.losses(w, rows, ball=ball, loss=loss, l2=L2).sum()
    np.testing.assert_allclose(linear.matrix(ours), jax.hessian(robust)(w), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(ours.gradient.sum(0), jax.grad(robust)(w), rtol=1e-9)


@pytest.mark.parametrize("loss", linear.LOSSES)
@pytest.mark.parametrize("mode", ["kkt", "direct", "paper", "fisher"])
def test_pieces_are_the_general_matrices(rows, w, loss, mode):
    ball, weights = BALLS[0], jnp.arange(N) / N
    delta = linear.maximum(w, rows, ball=ball, loss=loss).delta
    parts = linear.pieces(w, rows, delta, ball=ball, mode=mode, loss=loss, l2=L2)
    one = lambda w, row: value(loss, w, row)
    want = total_matrix(one, w, rows, delta, ball=ball, mode=mode, weights=weights)
    ours = linear.matrix(parts, weights)
    np.testing.assert_allclose(ours, want, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(linear.product(parts, w, weights), ours @ w, rtol=1e-9)


def test_code_mode_inverts_the_series_of_w_alone(rows, w):
    delta = linear.maximum(w, rows, ball=BALLS[0]).delta
    parts = linear.pieces(w, rows, delta, ball=None, mode="code", l2=L2)
    i, y = 3, 2 * rows.y - 1
    x = np.asarray(rows.x[i] + delta[i])
    p = 1 / (1 + np.exp(float(y[i] * (x @ w))))
    d, e = p * (1 - p), -float(y[i]) * p
    series = sum(np.linalg.matrix_power(np.eye(D) - np.outer(w, w), j) for j in range(3))
    cross = d * np.outer(w, x) + e * np.eye(D)
    want = d * np.outer(x, x) + L2 * np.eye(D) - cross.T @ (series / d) @ cross
    one = jnp.zeros(N).at[i].set(1.0)
    np.testing.assert_allclose(linear.matrix(parts, one), want, rtol=1e-8)


def test_bad_input(rows, w):
    with pytest.raises(ValueError, match="flatten the rows"):
        linear.maximum(w[:3], rows, ball=BALLS[0])
    with pytest.raises(ValueError, match=r"loss='hinge' is unknown"):
        linear.losses(w, rows, ball=BALLS[0], loss="hinge")
    with pytest.raises(ValueError, match="needs the ball"):
        linear.pieces(w, rows, 0 * rows.x, ball=None)
