"""MUter on linear models against exact retraining, where the optimum is on kinks and where not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import Dataset, Status
from jaxunlearn.methods.muter import kinks as muter_kinks
from jaxunlearn.methods.muter import linear as muter
from jaxunlearn.primitives import linear
from jaxunlearn.primitives.balls import L2Ball, LInfBox
from jaxunlearn.training.linear import minimise

N, D, K = 200, 10, 10
BALLS = {"l2": L2Ball(0.3), "box": LInfBox(0.1, None), "clipped": LInfBox(0.2, (-1.0, 1.0))}

pytestmark = pytest.mark.usefixtures("float64", "compiled_in_haste")


@pytest.fixture(scope="module")
def rows() -> Dataset:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(N, D))
    y = x @ np.array([2.0, -1, 1, 0.3, 0.2, 0.2, 0.1, 0.1, 0, 0]) + rng.normal(size=N) > 0
    return Dataset(jnp.asarray(x), jnp.asarray(y.astype(np.int32)))


def taken(rows: Dataset, numbers) -> Dataset:
    return Dataset(rows.x[numbers], rows.y[numbers])


# The first has kinks of both kinds.
CASES = [
    ("ridge", "box"),
    pytest.param("ridge", "l2", marks=pytest.mark.slow),
    pytest.param("logistic", "box", marks=pytest.mark.slow),
    pytest.param("logistic", "l2", marks=pytest.mark.slow),
    pytest.param("ridge", "clipped", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("loss", "ball"), CASES)
def test_the_step_is_of_second_order_across_kinks(rows, loss, ball):
    how = {"ball": BALLS[ball], "loss": loss, "l2": 1e-2}
    optimum = minimise(rows, **how, tolerance=1e-12)
    memory = muter.prepare(optimum, rows, **how)
    if ball != "l2":
        assert 0 < (optimum.w == 0).sum() < D  # an active set is in play
    kinks = np.flatnonzero(np.abs(optimum.mix) < 1)
    assert (kinks.size > 0) == ((loss, ball) == ("ridge", "l2"))
    remove = jax.jit(
        lambda some, weights, numbers: muter.remove(
            memory, some, weights=weights, numbers=numbers, **how
        )
    )
    moved, at_once, some = 0, None, None
    for request in range(4):
        # Rows at a kink are among those removed.
        drawn = np.random.default_rng(request).permutation(N)[:K]
        some = np.union1d(drawn, kinks[request : request + 1])[:K]
        errors = []
        for share in (1.0, 0.25):
            keep = jnp.ones(N).at[some].set(1 - share)
            again = minimise(rows, **how, weights=keep, start=optimum, tolerance=1e-12).w
            step, _ = remove(taken(rows, some), share * jnp.ones(K), jnp.asarray(some))
            noop = float(jnp.linalg.norm(optimum.w - again))
            errors.append(float(jnp.linalg.norm(step.w - again)) / noop)
            assert step.status == Status.OK
            moved += int(step.moved)
            if share == 1:
                at_once = step.w
        # Of second order: a quarter of the request, and a quarter of the relative error.
        assert errors[0] < 0.1 and errors[1] < 0.6 * errors[0] + 1e-6
    assert (moved > 0) == (loss == "ridge" or ball != "l2")  # some kinks were left or met
    _, half = remove(taken(rows, some), (jnp.arange(K) < 3) * 1.0, jnp.asarray(some))
    rest = {"weights": (jnp.arange(K) >= 3) * 1.0, "numbers": jnp.asarray(some)}
    one_by_one, _ = muter.remove(half, taken(rows, some), **rest, **how)
    np.testing.assert_allclose(one_by_one.w, at_once, rtol=1e-6, atol=1e-9)


def test_held_kinks_alone_would_not_do(rows):
    """Newton's step on the old support, and on all coordinates: both are far off."""
    how = {"ball": BALLS["box"], "l2": 1e-2}
    optimum = minimise(rows, **how, tolerance=1e-12)
    memory, w = muter.prepare(optimum, rows, **how), optimum.w
    delta = linear.maximum(w, rows, ball=how["ball"]).delta
    parts = linear.pieces(w, rows, delta, ball=None, mode="direct", l2=1e-2)
    worst, held = 0.0, 0.0
    for seed in range(4):
        some = np.random.default_rng(seed).permutation(N)[:K]
        keep = jnp.ones(N).at[some].set(0.0)
        again = minimise(rows, **how, weights=keep, start=optimum, tolerance=1e-12).w
        ours = jnp.linalg.norm(muter.remove(memory, taken(rows, some), **how)[0].w - again)
        matrix, g = linear.matrix(parts, keep), (1 - keep) @ parts.gradient
        newton = jnp.linalg.norm(w + jnp.linalg.solve(matrix, g) - again)
        s = np.flatnonzero(w)
        reduced = w.at[s].add(jnp.linalg.solve(matrix[np.ix_(s, s)], g[s]))
        worst = max(worst, float(ours / newton))
        held = max(held, float(jnp.linalg.norm(reduced - again) / ours))
    assert worst < 0.5 and held > 1.5


def test_influence_is_the_derivative_of_retraining(rows):
    how = {"ball": BALLS["l2"], "loss": "ridge", "l2": 1e-2}
    optimum = minimise(rows, **how, tolerance=1e-12)
    memory = muter.prepare(optimum, rows, **how)
    numbers = jnp.array([11, int(jnp.argmin(jnp.abs(optimum.mix)))])  # one at a kink
    ours = muter.influence(memory, taken(rows, numbers), **how, n=N, numbers=numbers)
    for influence, number in zip(ours, numbers, strict=True):
        h, ends = 1e-3, []
        for sign in (1, -1):
            weights = jnp.ones(N).at[number].add(sign * h)
            ends.append(minimise(rows, **how, weights=weights, tolerance=1e-12).w)
        difference = (ends[0] - ends[1]) / (2 * h)
        np.testing.assert_allclose(influence / N, difference, rtol=1e-3, atol=1e-7)


def test_a_few_rows_quickly(rows):
    how = {"ball": BALLS["l2"], "l2": 1e-2}
    memory = muter.prepare(minimise(rows, **how, tolerance=1e-12), rows, **how)
    some, others = taken(rows, jnp.arange(4)), taken(rows, jnp.arange(4, 6))
    step, after = muter.remove(memory, some, **how)
    quick = muter.remove_quickly(memory, some, **how)
    np.testing.assert_allclose(quick.w, step.w, rtol=1e-9, atol=1e-12)
    assert quick.status == Status.OK
    # The eigenvectors are those of the first request.
    assert muter.remove_quickly(after, others, **how).status == Status.NOT_CONVERGED
    # A long row that was not in the training: what remains has no minimum, and no step moves.
    long = some.x[:1] - (some.x[:1] @ memory.w)[:, None] * memory.w[None] / (memory.w @ memory.w)
    alien = Dataset(30 * long, some.y[:1])
    for step in (muter.remove(memory, alien, **how)[0], muter.remove_quickly(memory, alien, **how)):
        assert step.status == Status.INDEFINITE and step.matrix_curvature <= 0
        np.testing.assert_array_equal(step.w, memory.w)
    value = lambda t: muter.remove(memory, some, weights=t * jnp.ones(4), **how)[0].w.sum()
    difference = (value(0.5 + 1e-5) - value(0.5 - 1e-5)) / 2e-5
    np.testing.assert_allclose(jax.grad(value)(0.5), difference, rtol=1e-6)


def test_rows_that_all_count_half_change_nothing(rows):
    how = {"ball": BALLS["l2"], "loss": "ridge", "l2": 1e-2}
    optimum = minimise(rows, **how, tolerance=1e-12)
    assert (jnp.abs(optimum.mix) < 1).any()
    some = jnp.arange(K)
    steps = []
    for weight in (1.0, 0.5):
        memory = muter.prepare(optimum, rows, **how, weights=weight * jnp.ones(N))
        given = {"weights": weight * jnp.ones(K), "numbers": some}
        steps.append(muter.remove(memory, taken(rows, some), **given, **how)[0])
    np.testing.assert_allclose(steps[1].w, steps[0].w, rtol=1e-9)
    assert steps[0].moved == steps[1].moved


def test_a_search_for_kinks_that_does_not_end_is_told(rows, monkeypatch):
    how = {"ball": BALLS["box"], "l2": 1e-2}
    memory = muter.prepare(minimise(rows, **how, tolerance=1e-12), rows, **how)
    some = taken(rows, jnp.arange(20))
    assert muter.remove(memory, some, **how)[0].status == Status.OK
    ended = muter_kinks.bounded_quadratic
    unfinished = lambda *a, **k: ended(*a, **k)._replace(residual=jnp.array(1.0))
    monkeypatch.setattr(muter_kinks, "bounded_quadratic", unfinished)
    assert muter.remove(memory, some, **how)[0].status == Status.NOT_CONVERGED


@pytest.mark.parametrize(
    "other",
    [{"l2": 2e-2}, {"ball": L2Ball(0.2)}, {"ball": LInfBox(0.1, None)}, {"loss": "ridge"}, "rows"],
    ids=str,
)
def test_an_optimum_of_another_problem_is_refused(rows, other):
    how = {"ball": BALLS["l2"], "l2": 1e-2}
    optimum = minimise(rows, **how)
    muter.prepare(optimum, rows, **how)
    if other == "rows":  # in another order
        rows, other = rows._replace(y=rows.y[::-1]), {}
    with pytest.raises(ValueError, match="optimum claims a gradient of .*, but with this data"):
        muter.prepare(optimum, rows, **how | other)


@pytest.mark.parametrize("loss", linear.LOSSES)
@pytest.mark.parametrize("ball", ["l2", "clipped"])
def test_the_optimum_is_recognised_in_float32(rows, loss, ball):
    narrow = Dataset(rows.x.astype(jnp.float32), rows.y)
    how = {"ball": BALLS[ball], "loss": loss, "l2": 1e-2}
    some = jnp.arange(3)
    for part in (jnp.ones(N), jnp.arange(N) % 5 > 0):
        optimum = minimise(narrow, **how, weights=part, tolerance=1e-5)
        memory = muter.prepare(optimum, narrow, **how, weights=part)
        step, _ = muter.remove(memory, taken(narrow, some + 1), numbers=some + 1, **how)
        assert step.status == Status.OK and step.w.dtype == jnp.float32


def test_a_model_that_says_nothing_keeps_saying_it(rows):
    how = {"ball": L2Ball(5.0), "l2": 1e-2}
    optimum = minimise(rows, **how)
    memory = muter.prepare(optimum, rows, **how)
    step, _ = muter.remove(memory, taken(rows, jnp.arange(3)), **how)
    assert not step.w.any() and step.status == Status.OK


def test_what_is_refused_and_what_is_warned_of(rows):
    apart = rows._replace(x=rows.x.at[:, 0].set(10.0 * (2 * rows.y - 1)))
    how = {"ball": BALLS["l2"], "l2": 0.0}
    optimum = minimise(apart, **how, tolerance=1e-12, steps=5)
    with pytest.raises(ValueError, match="with l2=0 and rows that stay separable"):
        muter.prepare(optimum, apart, **how)
    how = {"ball": BALLS["l2"], "l2": 1e-2}
    early = minimise(rows, **how, tolerance=1e-12, steps=1)
    with pytest.warns(UserWarning, match="optimum has a gradient of"):
        memory = muter.prepare(early, rows, **how)
    ones = jnp.flatnonzero(rows.y == 1)
    with pytest.warns(UserWarning, match="rows are the last of a class"):
        muter.remove(memory, taken(rows, ones), **how)
    how["loss"] = "ridge"
    memory = muter.prepare(minimise(rows, **how), rows, **how)
    with pytest.raises(ValueError, match="give numbers"):
        muter.remove(memory, taken(rows, ones[:2]), **how)
    with pytest.raises(ValueError, match="use remove"):
        muter.remove_quickly(memory, taken(rows, ones[:2]), **how)
    two, first = taken(rows, ones[:2]), memory
    for given, message in (
        ({"numbers": ones[:1]}, r"numbers has shape \(1,\), but rows.y has \(2,\)"),
        ({"numbers": ones[:2] - N}, "but rows are counted from 0"),
        (
            {"numbers": ones[:2], "weights": jnp.array([2.0, 1.0])},
            r"shares of rows within \[0, 1\]",
        ),
        ({"numbers": ones[:2], "weights": jnp.ones(3)}, r"weights has shape \(3,\)"),
        ({"loss": "hinge"}, "loss='hinge' is unknown"),
        ({"ball": 0.3}, "ball=0.3 must be an L2Ball"),
    ):
        with pytest.raises(ValueError, match=message):
            muter.remove(first, two, **how | given)
    for some, message in (
        (Dataset(jnp.nan * two.x, two.y), "rows.x has NaN"),
        (Dataset(two.x[0], two.y[0]), r"rows.x has shape \(10,\), but must be \[n, 10\]"),
        (Dataset(two.x, 2 * two.y), "rows.y has labels from 2 to 2"),
    ):
        with pytest.raises(ValueError, match=message):
            muter.remove(first, some, numbers=ones[:2], **how)


def test_an_influence_that_is_not_defined_is_warned_of(rows):
    """Nothing holds a weight whose inputs are all 0."""
    flat = rows._replace(x=rows.x.at[:, 3].set(0.0))
    how = {"ball": LInfBox(0.05, (-9.0, 9.0)), "loss": "ridge", "l2": 0.0}
    memory = muter.prepare(minimise(flat, **how), flat, **how)
    with pytest.warns(UserWarning, match="influence: the matrix is singular"):
        muter.influence(memory, taken(flat, jnp.arange(1)), numbers=jnp.arange(1), n=N, **how)
    with pytest.raises(ValueError, match="n=0"):
        muter.influence(memory, taken(flat, jnp.arange(1)), numbers=jnp.arange(1), n=0, **how)
    with pytest.raises(ValueError, match="ball=None has no perturbations"):
        muter.prepare(minimise(rows, ball=None, l2=1e-2), rows, ball=None, l2=1e-2)
