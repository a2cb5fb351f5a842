"""MUter against exact retraining, in float64, on a softmax layer."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import Dataset, Status, TrainConfig, models
from jaxunlearn.methods import muter
from jaxunlearn.methods.muter import MuterConfig, adopt, unlearner
from jaxunlearn.methods.muter.unlearner import _last_layer
from jaxunlearn.primitives.adversarial import PGDConfig, pgd
from jaxunlearn.primitives.balls import L2Ball, LInfBox
from jaxunlearn.primitives.last_layer import LastLayer
from jaxunlearn.primitives.solve import CG, Cholesky, solve_block
from jaxunlearn.training.adversarial import adversarial_newton
from jaxunlearn.types import Model

N, D, L, L2 = 120, 5, 3, 1e-2
BALL = L2Ball(0.3)

pytestmark = pytest.mark.usefixtures("float64", "compiled_in_haste")


def loss_fn(w, row):
    z = row.x @ w
    return jax.nn.logsumexp(z) - z[row.y] + L2 / 2 * jnp.sum(w * w)


@pytest.fixture(scope="module")
def rows() -> Dataset:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, D))
    y = (x @ rng.normal(size=(D, L)) + rng.normal(size=(N, L))).argmax(1)
    return Dataset(jnp.asarray(x), jnp.asarray(y))


@pytest.fixture(scope="module")
def trained(rows):
    start = jnp.asarray(0.1 * np.random.default_rng(1).normal(size=(D, L)))
    found = pgd(jax.random.key(0), loss_fn, start, rows, ball=BALL)
    out = adversarial_newton(loss_fn, start, rows, found.delta, ball=BALL, tolerance=1e-12)
    assert bool(out.converged)
    return out


@pytest.fixture(scope="module")
def memory(rows, trained):
    return muter.prepare(loss_fn, trained.params, rows, trained.inner.delta, ball=BALL)


def forget_of(*numbers):
    return jnp.zeros(N, bool).at[jnp.asarray(numbers)].set(True)


FEW = (3, 40, 77, 101)


@pytest.fixture(scope="module")
def retrained(rows, trained):
    given = loss_fn, trained.params, rows, trained.inner.delta
    keep = ~forget_of(*FEW)
    return adversarial_newton(*given, ball=BALL, weights=keep, tolerance=1e-12).params


def test_lands_close_to_retraining_and_the_paper_does_not(rows, trained, memory, retrained):
    w, forget = trained.params, forget_of(*FEW)
    noop = float(jnp.linalg.norm(w - retrained))
    ours, after = muter.remove(loss_fn, memory, rows, forget, ball=BALL)
    assert float(jnp.linalg.norm(ours - retrained)) < 0.12 * noop
    assert after.status == Status.OK and after.diagnostics.fallback == 0
    assert after.diagnostics.residual < 1e-12 and after.diagnostics.decrease > 0
    again = muter.refresh(loss_fn, ours, after, rows, ball=BALL)
    assert jnp.linalg.norm(again - retrained) < 0.2 * jnp.linalg.norm(ours - retrained)
    rule = muter.RULES["muter_paper"]
    given = loss_fn, w, rows, trained.inner.delta
    theirs = muter.prepare(*given, ball=BALL, rule=rule)
    step, flagged = muter.remove(loss_fn, theirs, rows, forget, ball=BALL, rule=rule)
    assert flagged.status == Status.INDEFINITE
    assert float(jnp.linalg.norm(step - retrained)) > 0.8 * noop


def test_the_optimum_of_a_quadratic_loss_is_met_exactly():
    """Squares to a centre, moved away by the radius: removal has a closed form."""
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.normal(size=(9, 1)) + 5.0)
    rows, ball = Dataset(x, jnp.zeros(9, jnp.int32)), LInfBox(0.5, None)
    square = lambda w, row: 0.5 * jnp.sum((w - row.x) ** 2)
    delta = 0.5 * jnp.sign(x - 0.0)  # all rows above w: pushed up
    w = (x + delta).mean(0)
    memory = muter.prepare(square, w, rows, delta, ball=ball, rule=muter.Rule("direct"))
    forget = jnp.arange(9) < 2
    ours, _ = muter.remove(square, memory, rows, forget, ball=ball, rule=muter.Rule("direct"))
    np.testing.assert_allclose(ours, (x + delta)[2:].mean(0), rtol=1e-12)


def test_one_by_one_is_at_once(rows, memory):
    at_once, _ = muter.remove(loss_fn, memory, rows, forget_of(*FEW), ball=BALL)
    after = memory
    for i in reversed(FEW):
        # Rows removed before are ignored.
        one, after = muter.remove(loss_fn, after, rows, forget_of(i, FEW[-1]), ball=BALL)
    np.testing.assert_allclose(one, at_once, rtol=1e-10)
    np.testing.assert_array_equal(after.removed, forget_of(*FEW))


@pytest.mark.slow
def test_without_the_matrix_the_same(rows, trained, memory):
    given = loss_fn, trained.params, rows, trained.inner.delta
    free = muter.prepare(*given, ball=BALL, dense=False)
    assert free.matrix == ()
    how = {"ball": BALL, "solver": CG(tol=1e-12)}
    ours, after = muter.remove(loss_fn, free, rows, forget_of(*FEW[:2]), **how)
    ours, after = muter.remove(loss_fn, after, rows, forget_of(*FEW[2:]), **how)
    want, _ = muter.remove(loss_fn, memory, rows, forget_of(*FEW), ball=BALL)
    np.testing.assert_allclose(ours, want, rtol=1e-9)
    assert after.diagnostics.iterations > 3 and after.status == Status.OK
    with pytest.raises(ValueError, match="needs the matrix"):
        muter.remove(loss_fn, free, rows, forget_of(1), ball=BALL)
    with pytest.raises(ValueError, match="influence needs the matrix"):
        muter.influence(loss_fn, free, rows, jnp.array([0]))


QUICK = ("muter_newton_delta", "muter_influence_delta")
COMPARED = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name in muter.RULES
    if name not in ("muter", "muter_paper")
]


@pytest.mark.parametrize("name", COMPARED)
def test_the_methods_of_the_comparison(rows, trained, name):
    """Each against its definition, written out with dense NumPy sums."""
    rule, w = muter.RULES[name], trained.params
    delta = trained.inner.delta * ("delta" in name)
    at = Dataset(rows.x + delta, rows.y)
    g = np.asarray(jax.vmap(jax.grad(loss_fn), (None, 0))(w, at)).reshape(N, -1)
    if "fisher" in name:
        h = g[:, :, None] * g[:, None, :]
    else:
        flat = lambda v, row: loss_fn(v.reshape(D, L), row)
        h = np.asarray(jax.vmap(jax.hessian(flat), (None, 0))(w.ravel(), at))
    damp = 1e-3
    first, second = [3, 40], [77, 101]
    gone = first if "influence" in name else first + second  # those of the last request stay
    kept = np.setdiff1d(np.arange(N), gone)
    want = np.linalg.solve(h[kept].sum(0) + damp * np.eye(D * L), g[first + second].sum(0))
    how = {"ball": BALL, "rule": rule}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        memory = muter.prepare(loss_fn, w, rows, trained.inner.delta, **how)
    for numbers in (first, second):
        forget = forget_of(*numbers)
        ours, memory = muter.remove(loss_fn, memory, rows, forget, solver=Cholesky(damp), **how)
    np.testing.assert_allclose((ours - w).ravel(), want, rtol=1e-6)


@pytest.mark.slow
def test_influence_is_the_derivative_of_retraining(rows, trained, memory):
    given = loss_fn, trained.params, rows, trained.inner.delta
    h, number = 1e-3, 11
    weights = jnp.ones(N).at[number].add(h)
    more = adversarial_newton(*given, ball=BALL, weights=weights, tolerance=1e-13).params
    ours = muter.influence(loss_fn, memory, rows, jnp.array([number]))[0]
    # Definition 2 is per weight of the mean: adding h to one weight is h / n of it.
    np.testing.assert_allclose(ours / N, (more - trained.params) / h, rtol=0.02, atol=1e-4)
    bent = memory._replace(matrix=memory.matrix - 2 * memory.matrix[0, 0] * jnp.eye(D * L))
    with pytest.warns(UserWarning, match="influence: the system is INDEFINITE"):
        muter.influence(loss_fn, bent, rows, jnp.array([number]))


@pytest.mark.slow
def test_a_row_removed_in_part_remains_in_part_with_and_without_the_matrix(rows, trained, memory):
    given = loss_fn, trained.params, rows, trained.inner.delta
    free = muter.prepare(*given, ball=BALL, dense=False)
    part = 0.4 * forget_of(*FEW[:2]).astype(float)
    _, after = muter.remove(loss_fn, memory, rows, part, ball=BALL)
    ours, after = muter.remove(loss_fn, after, rows, forget_of(*FEW), ball=BALL)
    _, half = muter.remove(loss_fn, free, rows, part, ball=BALL, solver=CG(tol=1e-12))
    how = {"ball": BALL, "solver": CG(tol=1e-12)}
    other, half = muter.remove(loss_fn, half, rows, forget_of(*FEW), **how)
    np.testing.assert_allclose(other, ours, rtol=1e-9)
    want = part + forget_of(*FEW[2:])
    np.testing.assert_allclose(after.removed, want)
    at_once, _ = muter.remove(loss_fn, memory, rows, want, ball=BALL)
    np.testing.assert_allclose(ours, at_once, rtol=1e-9)


@pytest.mark.slow
def test_the_schur_block_system_is_the_same_step(rows, trained, memory):
    """One row by the block of M, P C and K, which is definite; the paper's is not."""
    w, number = trained.params, FEW[0]
    row, delta = Dataset(rows.x[number], rows.y[number]), trained.inner.delta[number]
    value = lambda v, d: loss_fn(v.reshape(D, L), row._replace(x=row.x + d))
    flat = w.ravel()
    g, a = jax.grad(value, 1)(flat, delta), jax.hessian(value, 1)(flat, delta)
    cross = jax.jacfwd(jax.grad(value, 1))(flat, delta)
    u = delta / BALL.radius
    p = jnp.eye(D) - jnp.outer(u, u)
    k = p @ ((u @ g) / BALL.radius * jnp.eye(D) - a) @ p + jnp.outer(u, u)
    top = memory.matrix - jax.hessian(value)(flat, delta)
    b = jax.grad(value)(flat, delta)
    blocks = lambda bottom, cross: solve_block(
        lambda v: top @ v,
        lambda v: cross @ v,
        lambda v: cross.T @ v,
        lambda v: bottom @ v,
        b,
        jnp.zeros(D),
        solver=CG(tol=1e-12),
    )
    ours = blocks(k, p @ cross)
    want, _ = muter.remove(loss_fn, memory, rows, forget_of(number), ball=BALL)
    assert ours.status == Status.OK
    np.testing.assert_allclose(ours.x, (want - w).ravel(), rtol=1e-7, atol=1e-10)
    assert blocks(-a, cross).status == Status.INDEFINITE


def test_derivatives_flow_through_the_step(rows, trained, memory):
    def value(t):
        forget = jnp.zeros(N).at[jnp.asarray(FEW)].set(1.0).at[3].set(t)
        return jnp.vdot(muter.remove(loss_fn, memory, rows, forget, ball=BALL)[0], trained.params)

    h = 1e-5
    difference = (value(0.6 + h) - value(0.6 - h)) / (2 * h)
    np.testing.assert_allclose(jax.grad(value)(0.6), difference, rtol=1e-6)


def test_an_original_that_is_no_optimum_is_warned_of(rows, trained):
    rule = muter.RULES["muter_newton_delta"]
    with pytest.warns(UserWarning, match="params is no optimum: its mean gradient reaches"):
        muter.prepare(loss_fn, 2 * trained.params, rows, trained.inner.delta, ball=BALL, rule=rule)


def test_a_request_that_is_none(rows, memory):
    for forget, message in ((jnp.ones(3, bool), "forget has shape"), (2.0 * jnp.ones(N), "shares")):
        with pytest.raises(ValueError, match=message):
            muter.remove(loss_fn, memory, rows, forget, ball=BALL)


def test_the_last_row_of_a_class_is_warned_of(rows, memory):
    last = jnp.flatnonzero(rows.y == 2)
    with pytest.warns(UserWarning, match="last row of a class"):
        _, after = muter.remove(loss_fn, memory, rows, forget_of(*last.tolist()), ball=BALL)
    assert bool(after.diagnostics.lost_class)
    most, _ = muter.remove(loss_fn, memory, rows, forget_of(*last[1:].tolist()), ball=BALL)
    assert jnp.isfinite(most).all()
    _, after = muter.remove(loss_fn, memory, rows, 0.5 * forget_of(*last.tolist()), ball=BALL)
    assert not after.diagnostics.lost_class  # half of each remains


def test_a_system_that_is_indefinite_is_warned_of_where_no_status_tells(rows, trained, memory):
    bent = memory._replace(matrix=-memory.matrix)
    with pytest.warns(UserWarning, match="refresh: the system is INDEFINITE"):
        muter.refresh(loss_fn, trained.params, bent, rows, ball=BALL)


def test_rows_that_are_none(rows, trained, memory):
    for numbers, message in (
        (jnp.array([0, N]), f"rows has numbers from 0 to {N}, but data {N} rows"),
        (forget_of(1), "rows is bool"),
        (3, "must be row numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            muter.influence(loss_fn, memory, rows, numbers)
    given = loss_fn, trained.params, rows, trained.inner.delta
    with pytest.raises(ValueError, match="removed has dtype float"):
        muter.prepare(*given, ball=BALL, removed=jnp.zeros(N))


def test_rows_without_a_maximum_fall_back_to_the_direct_hessian(rows, trained):
    delta = trained.inner.delta.at[:7].set(0.0)  # not maxima
    with pytest.warns(UserWarning, match="7 of 120 rows have no strict inner maximum"):
        memory = muter.prepare(loss_fn, trained.params, rows, delta, ball=BALL, tolerance=1.0)
    assert memory.diagnostics.fallback == 7 and not memory.trusted[:7].any()
    assert memory.diagnostics.inner_curvature <= 0 and memory.diagnostics.inner_residual > 0.1


# As an unlearner.


def test_only_the_last_layer_is_trained():
    model, x = models.mlp(3, hidden=(4, 4)), jnp.zeros((1, 5))
    params, rows = model.init(jax.random.key(0), x), Dataset(x, jnp.zeros(1, jnp.int32))
    head, join, _ = _last_layer(model, MuterConfig(), params, rows)
    assert head.keys() == {"kernel", "bias"} and head["kernel"].shape == (4, 3)
    changed = join(jax.tree.map(lambda leaf: leaf + 1, head))
    for name in params:
        same = all(map(jnp.array_equal, *map(jax.tree.leaves, (changed[name], params[name]))))
        assert same == (name != "Dense_2")
    with pytest.raises(ValueError, match="head='Dense_9' is not in the parameters: Dense_0"):
        _last_layer(model, MuterConfig(head="Dense_9"), params, rows)
    with pytest.raises(ValueError, match="the parameters have no names"):
        _last_layer(model, MuterConfig(head="Dense_0"), jnp.zeros(3), rows)


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_dense_last_layer_is_found_by_trying(factor):
    """Its loss is known in closed form; logits that are scaled afterwards are another function."""
    plain, x = models.mlp(3, hidden=(4,)), jnp.linspace(0, 1, 10).reshape(2, 5)
    model = Model(plain.init, lambda params, x: factor * plain.apply(params, x))
    params, rows = model.init(jax.random.key(0), x), Dataset(x, jnp.array([0, 2]))
    head, join, loss_fn = _last_layer(model, MuterConfig(l2=0.1), params, rows)
    assert isinstance(loss_fn, LastLayer) == (factor == 1)
    row, other = jax.tree.map(lambda leaf: leaf[1], rows), jax.tree.map(lambda leaf: -leaf, head)
    logits = model.apply(join(other), x)[1]
    squares = sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(head))
    wanted = -jax.nn.log_softmax(logits)[2] + 0.05 * squares
    assert float(loss_fn(other, row)) == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.slow
def test_methods_that_share_a_training_keep_what_their_own_would_leave(rows):
    model, config = models.logistic(L), MuterConfig(ball=BALL)
    key, fit = jax.random.key(0), lambda m: unlearner(model, TrainConfig(), config, method=m).fit
    state = fit("muter")(key, rows)
    for method in ("muter_newton", "muter_fisher_delta"):  # at the rows, at their perturbations
        found = adopt(model, config, method=method)(state, rows)
        jax.tree.map(np.testing.assert_array_equal, found, fit(method)(key, rows))


@pytest.mark.slow
def test_unlearner_in_float64_lands_close_to_its_own_retraining(rows):
    config = MuterConfig(ball=BALL, attack=PGDConfig(steps=10, refine=5), tolerance=1e-11)
    method = unlearner(models.logistic(L), TrainConfig(), config)
    state = method.fit(jax.random.key(0), rows)
    assert state.status == Status.OK and state.memory.diagnostics.optimality < 1e-11
    after = method.unlearn(jax.random.key(1), state, rows, forget_of(*FEW))
    kept = jax.tree.map(lambda leaf: leaf[~forget_of(*FEW)], rows)
    again = method.fit(jax.random.key(0), kept)
    flat = lambda s: jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(s.params)])
    noop = jnp.linalg.norm(flat(state) - flat(again))
    assert jnp.linalg.norm(flat(after) - flat(again)) < 0.1 * noop
    with pytest.warns(UserWarning, match="last row of a class"):
        method.unlearn(jax.random.key(1), state, rows, rows.y == 2)
    noisy = unlearner(models.logistic(L), TrainConfig(), MuterConfig(ball=BALL, noise=0.5))
    noise = flat(noisy.unlearn(jax.random.key(1), state, rows, forget_of(*FEW))) - flat(after)
    assert 0.2 < noise.std() < 1.0


@pytest.mark.slow
def test_a_training_that_stops_early_is_warned_of(rows):
    config = MuterConfig(ball=BALL, newton_steps=1, tolerance=1e-12)
    with pytest.warns(UserWarning, match="adversarial training stopped at a mean gradient"):
        state = unlearner(models.logistic(L), TrainConfig(), config).fit(jax.random.key(0), rows)
    assert state.status == Status.NOT_CONVERGED


def test_bad_configurations():
    with pytest.raises(ValueError, match="l2=0"):
        MuterConfig(l2=0.0)
    with pytest.raises(ValueError, match="refresh=1 takes Newton steps with MUter's matrix"):
        unlearner(models.logistic(2), TrainConfig(), MuterConfig(refresh=1), method="muter_fisher")
    with pytest.raises(ValueError, match="method='mutter' is unknown. Did you mean 'muter'"):
        unlearner(models.logistic(2), TrainConfig(), method="mutter")
