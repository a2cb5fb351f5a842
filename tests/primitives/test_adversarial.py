"""Inner maxima against closed forms, brute force and finite differences, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import Dataset
from jaxunlearn.primitives.adversarial import PGDConfig, fgsm, pgd, refine
from jaxunlearn.primitives.balls import L2Ball, LInfBox
from jaxunlearn.primitives.curvature import (
    gauss_newton_product,
    softmax_factors,
    softmax_product,
    total_matrix,
    total_product,
)
from jaxunlearn.primitives.inner import follow, inner_curvature, inspect
from jaxunlearn.primitives.solve import CG

pytestmark = pytest.mark.usefixtures("float64", "compiled_in_haste")

N, D, L = 14, 5, 3
BALL = L2Ball(0.4)


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def rows(rng) -> Dataset:
    return Dataset(jnp.asarray(rng.normal(size=(N, D))), jnp.asarray(rng.integers(0, L, N)))


@pytest.fixture(scope="module")
def w(rng):
    return jnp.asarray(rng.normal(size=(D, L)))


def softmax(w, row):
    z = row.x @ w
    return jax.nn.logsumexp(z) - z[row.y]


def bowl(w, row):
    """Its maximum lies inside the ball, at ``w / 10``."""
    return -jnp.sum((row.x - w / 10) ** 2)


@pytest.fixture(scope="module")
def delta(w, rows):
    found = pgd(jax.random.key(0), softmax, w, rows, ball=BALL, config=PGDConfig(refine=6))
    assert found.residual.max() < 1e-12 and bool(found.active.all())
    return found.delta


@pytest.mark.slow
def test_maxima_beat_a_grid_of_points(w, rows, delta, rng):
    points = rng.normal(size=(4000, D))
    points = BALL.radius * points / np.linalg.norm(points, axis=1, keepdims=True)
    each = jax.vmap(lambda row: jax.vmap(lambda p: softmax(w, row._replace(x=row.x + p)))(points))
    top = each(rows).max(1)
    ours = jax.vmap(lambda x, y: softmax(w, Dataset(x, y)))(rows.x + delta, rows.y)
    # One local maximum in a dozen may not be the best one; none may be beaten by much.
    assert (ours >= top - 1e-9).mean() > 0.85 and (ours >= top - 0.1).all()


@pytest.mark.parametrize("ball", [BALL, LInfBox(0.2)], ids=str)
def test_attacks_stay_in_the_ball_and_climb(w, rows, ball):
    inside = Dataset(jax.nn.sigmoid(rows.x), rows.y)
    value = lambda d: jax.vmap(lambda x, y: softmax(w, Dataset(x, y)))(inside.x + d, inside.y)
    rough = pgd(jax.random.key(1), softmax, w, inside, ball=ball)
    fine = refine(softmax, w, inside, rough.delta, ball=ball)
    one = fgsm(softmax, w, inside, ball=ball)
    for found in (rough, fine, one):
        for d, x in zip(found.delta, inside.x, strict=True):
            np.testing.assert_allclose(ball.project(x, d), d, atol=1e-12)
            if isinstance(ball, LInfBox):
                assert jnp.abs(d).max() <= 0.2 + 1e-12
                assert ball.clip is None or ((x + d >= 0) & (x + d <= 1 + 1e-12)).all()
            else:
                assert jnp.linalg.norm(d) <= 0.4 + 1e-12
    assert (value(rough.delta) > value(jnp.zeros_like(inside.x))).all()
    assert (value(fine.delta) >= value(rough.delta) - 1e-12).all()
    assert fine.residual.max() < 1e-9


@pytest.mark.slow
def test_restarts_never_lose(w, rows):
    value = lambda d: jax.vmap(lambda x, y: softmax(w, Dataset(x, y)))(rows.x + d, rows.y)
    one, many = (
        pgd(jax.random.key(2), softmax, w, rows, ball=BALL, config=PGDConfig(3, restarts=r))
        for r in (1, 6)
    )
    assert value(many.delta).mean() > value(one.delta).mean()


def test_residual_is_zero_at_a_maximum_only(w, rows, delta):
    assert inspect(softmax, w, rows, -delta, ball=BALL).residual.min() > 0.5
    assert inspect(softmax, w, rows, delta, ball=BALL).residual.max() < 1e-12


def test_curvature_is_the_smallest_eigenvalue_on_the_tangent(w, rows, delta):
    ours = inner_curvature(softmax, w, rows, delta, ball=BALL)
    for i in range(3):
        value = lambda d, i=i: softmax(w, Dataset(rows.x[i] + d, rows.y[i]))
        g, a, u = jax.grad(value)(delta[i]), jax.hessian(value)(delta[i]), delta[i] / BALL.radius
        basis = np.linalg.svd(np.asarray(u)[None])[2][1:].T
        k = basis.T @ (float(u @ g) / BALL.radius * np.eye(D) - np.asarray(a)) @ basis
        np.testing.assert_allclose(ours[i], np.linalg.eigvalsh(k)[0], rtol=1e-8)
    free = inner_curvature(softmax, w, rows, jnp.zeros_like(delta), ball=LInfBox(0.1, None))
    assert (free <= 1e-12).all()  # the loss is convex in delta: no maximum inside


def tracked(loss_fn, w, row, delta, ball):
    """The inner maximum found anew at w, from a neighbouring one: the oracle for `follow`."""
    one = Dataset(row.x[None], row.y[None])
    return refine(loss_fn, w, one, delta[None], ball=ball, steps=12).delta[0]


@pytest.mark.parametrize("where", ["sphere", "inside", "box"])
def test_follow_is_the_derivative_of_the_maximum(w, rows, delta, rng, where):
    row = Dataset(rows.x[0], rows.y[0])
    if where == "sphere":
        loss_fn, at, ball, d = softmax, w, BALL, delta[0]
    else:
        loss_fn, at, row = bowl, w[:, 0], Dataset(jnp.zeros(D), jnp.array(0))
        # In the box some coordinates are free and others held.
        ball = L2Ball(2.0) if where == "inside" else LInfBox(0.06, None)
        d = tracked(bowl, at, row, jnp.zeros(D), ball)
        held = int(ball.active(row.x, d).sum())
        assert held == 0 if where == "inside" else 0 < held < D
    v = jnp.asarray(rng.normal(size=at.shape))
    h = 1e-5
    up, down = (tracked(loss_fn, at + s * h * v, row, d, ball) for s in (1, -1))
    yes, solver = jnp.array(True), CG(tol=1e-13)
    moved = lambda w: follow(loss_fn, w, row, d, yes, ball, solver)
    np.testing.assert_allclose(jax.jvp(moved, (at,), (v,))[1], (up - down) / (2 * h), atol=1e-7)
    still = lambda w: follow(loss_fn, w, row, d, jnp.array(False), ball, solver)
    assert not jax.jvp(still, (at,), (v,))[1].any()


def danskin(w, rows, delta):
    found = refine(softmax, w, rows, delta, ball=BALL, steps=12)
    at = Dataset(rows.x + found.delta, rows.y)
    return jax.grad(lambda w: jax.vmap(softmax, (None, 0))(w, at).sum())(w)


def test_the_kkt_product_is_the_total_derivative_and_the_others_are_not(w, rows, delta, rng):
    v = jnp.asarray(rng.normal(size=w.shape))
    h = 1e-5
    truth = (danskin(w + h * v, rows, delta) - danskin(w - h * v, rows, delta)) / (2 * h)
    error = lambda mode: float(
        jnp.linalg.norm(total_product(softmax, w, rows, delta, v, ball=BALL, mode=mode) - truth)
        / jnp.linalg.norm(truth)
    )
    assert error("kkt") < 1e-8
    assert error("direct") > 0.05 and error("paper") > 0.5 and error("fisher") > 0.05


def test_in_a_box_with_free_coordinates_the_product_is_the_total_derivative_too(rng):
    """Rows at the clip, coordinates at bounds and between them: a loss with maxima inside."""

    def wave(w, row):
        return jnp.sum(jnp.sin(2 * (row.x @ w))) - jnp.sum(row.x**2)

    x = np.where(rng.random((N, D)) < 0.3, np.round(rng.random((N, D))), rng.random((N, D)))
    rows, w = Dataset(jnp.asarray(x), jnp.zeros(N, jnp.int32)), jnp.asarray(rng.normal(size=(D, L)))
    ball = LInfBox(0.25)
    found = pgd(jax.random.key(0), wave, w, rows, ball=ball, config=PGDConfig(refine=10))
    strict = inner_curvature(wave, w, rows, found.delta, ball=ball) > 1e-3
    strict &= found.residual < 1e-9
    assert strict.sum() > N / 2 and 0 < (~found.active[strict]).sum() < found.active[strict].size

    def danskin(w):
        again = refine(wave, w, rows, found.delta, ball=ball, steps=12)
        at = Dataset(rows.x + again.delta, rows.y)
        g = jax.vmap(jax.grad(wave), (None, 0))(w, at)
        return jnp.tensordot(strict.astype(g.dtype), g, 1)

    v, h = jnp.asarray(rng.normal(size=w.shape)), 1e-6
    truth = (danskin(w + h * v) - danskin(w - h * v)) / (2 * h)
    how = {"ball": ball, "weights": strict}
    ours = total_product(wave, w, rows, found.delta, v, **how)
    direct = total_product(wave, w, rows, found.delta, v, mode="direct", **how)
    size = jnp.linalg.norm(truth)
    assert jnp.linalg.norm(ours - truth) < 1e-6 * size
    assert jnp.linalg.norm(direct - truth) > 0.05 * size
    matrix = total_matrix(wave, w, rows, found.delta, **how)
    np.testing.assert_allclose((matrix @ v.ravel()).reshape(v.shape), ours, rtol=1e-7)


@pytest.mark.parametrize("mode", ["kkt", "direct", "paper", "fisher"])
def test_products_are_those_of_the_dense_matrix(w, rows, delta, rng, mode):
    v = jnp.asarray(rng.normal(size=w.shape))
    weights = jnp.asarray(rng.random(N)).at[:5].set(0.0)
    trusted = jnp.arange(N) % 3 > 0
    how = {"ball": BALL, "mode": mode, "weights": weights, "trusted": trusted}
    product = total_product(softmax, w, rows, delta, v, **how, chunk=4)
    matrix = total_matrix(softmax, w, rows, delta, **how, chunk=3)
    np.testing.assert_allclose((matrix @ v.ravel()).reshape(v.shape), product, rtol=1e-8)


def test_paper_mode_is_equation_16(w, rows, delta):
    value = lambda w, d: softmax(w.reshape(D, L), Dataset(rows.x[0] + d, rows.y[0]))
    flat, d = w.ravel(), delta[0]
    a, c = jax.hessian(value, 1)(flat, d), jax.jacfwd(jax.grad(value, 1))(flat, d)
    series = sum(np.linalg.matrix_power(np.eye(D) - np.asarray(a), j) for j in range(3))
    want = jax.hessian(value)(flat, d) - c.T @ series @ c
    one = jnp.zeros(N).at[0].set(1.0)
    ours = total_matrix(softmax, w, rows, delta, mode="paper", weights=one)
    np.testing.assert_allclose(ours, want, rtol=1e-9)


def test_softmax_factors_give_the_general_product(w, rows, delta, rng):
    v, weights = jnp.asarray(rng.normal(size=w.shape)), jnp.asarray(rng.random(N))
    factors = softmax_factors(w, rows.x, rows.y, delta, ball=BALL)
    ours = softmax_product(w, factors, v, weights=weights)
    want = total_product(softmax, w, rows, delta, v, ball=BALL, weights=weights)
    np.testing.assert_allclose(ours, want, rtol=1e-8)


def test_gauss_newton_is_the_hessian_where_logits_are_linear(w, rows, rng):
    v = jnp.asarray(rng.normal(size=w.shape))
    ours = gauss_newton_product(lambda w, x: x @ w, w, rows, v, chunk=4)
    want = total_product(softmax, w, rows, jnp.zeros_like(rows.x), v, mode="direct")
    np.testing.assert_allclose(ours, want, rtol=1e-9)


def test_rows_of_weight_zero_are_not_read(w, rows, delta):
    v = jnp.ones_like(w)
    bad = rows._replace(x=rows.x.at[:8].set(jnp.nan))
    weights = jnp.arange(N) >= 8
    read = jax.jit(
        lambda x: total_matrix(
            softmax, w, rows._replace(x=x), delta, ball=BALL, weights=weights, chunk=2
        )
    )
    np.testing.assert_allclose(read(bad.x), read(rows.x), rtol=1e-12)
    assert jnp.isfinite(total_product(softmax, w, rows, delta, v, ball=BALL)).all()


BAD = {
    "a radius of 0": (lambda w, r, d: L2Ball(0.0), "radius=0.0 must be a finite number > 0"),
    "a negative radius": (lambda w, r, d: LInfBox(-1.0), "radius=-1.0 must be"),
    "an empty range": (lambda w, r, d: LInfBox(1.0, (1.0, 0.0)), "low < high"),
    "no steps": (lambda w, r, d: PGDConfig(steps=0), "steps=0 must be an integer >= 1"),
    "no ball": (lambda w, r, d: total_product(softmax, w, r, d, w), "needs the ball"),
    "an unknown mode": (
        lambda w, r, d: total_matrix(softmax, w, r, d, mode="kkr"),
        "mode='kkr' is unknown. Did you mean 'kkt'",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input(w, rows, delta, what):
    call, message = BAD[what]
    with pytest.raises(ValueError, match=message):
        call(w, rows, delta)


def test_a_row_without_a_maximum_is_seen(w, rows):
    saddle = jnp.zeros_like(rows.x)  # convex in delta, so inside there is none
    assert (inner_curvature(softmax, w, rows, saddle, ball=BALL) <= 0).all()
    assert (inspect(softmax, w, rows, saddle, ball=BALL).residual > 0.5).all()


def test_derivatives_of_products_flow(w, rows, delta):
    def size(t):
        p = total_product(softmax, w, rows, delta, w, ball=BALL, weights=t * jnp.ones(N))
        return jnp.vdot(p, w)

    np.testing.assert_allclose(jax.grad(size)(2.0), size(1.0), rtol=1e-9)
