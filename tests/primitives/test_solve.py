"""Solvers against NumPy and jax's own CG, what they report, and their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import Status
from jaxunlearn.primitives.solve import CG, Cholesky, dense, solve, solve_block

P = 12
SOLVERS = [Cholesky(), CG(tol=1e-13)]

pytestmark = pytest.mark.usefixtures("float64", "compiled_in_haste")


@pytest.fixture(scope="module")
def system():
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.normal(size=(P, P)))[0]
    return jnp.asarray(q * np.geomspace(0.1, 10, P) @ q.T), jnp.asarray(rng.normal(size=P))


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("as_function", [False, True])
def test_solution(system, solver, as_function):
    a, b = system
    out = solve((lambda v: a @ v) if as_function else a, b, solver=solver)
    np.testing.assert_allclose(out.x, np.linalg.solve(a, b), rtol=1e-9)
    assert out.status == Status.OK and out.residual < 1e-10 and out.curvature > 0
    assert (out.iterations == 0) == isinstance(solver, Cholesky)


def test_pytrees(system):
    a, b = system
    tree = {"u": b[:4], "v": b[4:].reshape(2, 4)}

    def product(t):
        full = a @ jnp.concatenate([t["u"], t["v"].ravel()])
        return {"u": full[:4], "v": full[4:].reshape(2, 4)}

    for solver in SOLVERS:
        x = solve(product, tree, solver=solver).x
        np.testing.assert_allclose(
            jnp.concatenate([x["u"], x["v"].ravel()]), np.linalg.solve(a, b), rtol=1e-9
        )
    np.testing.assert_allclose(dense(product, tree, chunk=5), a, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_truncated_iterates_are_those_of_jax(system, steps):
    a, b = system
    ours = solve(a, b, solver=CG(tol=0.0, maxiter=steps))
    theirs, _ = jax.scipy.sparse.linalg.cg(lambda v: a @ v, b, tol=0.0, atol=0.0, maxiter=steps)
    np.testing.assert_allclose(ours.x, theirs, rtol=1e-9)
    assert ours.iterations == steps
    if steps < 10:
        assert ours.status == Status.NOT_CONVERGED
    np.testing.assert_allclose(
        ours.residual, np.linalg.norm(a @ ours.x - b) / np.linalg.norm(b), rtol=1e-6
    )


@pytest.mark.parametrize("solver", [Cholesky(0.5), CG(tol=1e-13, damping=0.5)], ids=str)
def test_damping(system, solver):
    a, b = system
    want = np.linalg.solve(a + 0.5 * np.eye(P), b)
    np.testing.assert_allclose(solve(a, b, solver=solver).x, want, rtol=1e-9)


def test_an_indefinite_system_is_flagged_and_cg_stops(system):
    a, b = system
    bent = a - 1.0 * jnp.eye(P)
    eigenvalues = np.linalg.eigvalsh(bent)
    assert eigenvalues[0] < 0 < eigenvalues[-1]
    by_cg = solve(bent, b, solver=CG(tol=1e-13))
    assert by_cg.status == Status.INDEFINITE and by_cg.curvature <= 0
    assert by_cg.iterations < P  # it met negative curvature and did not go on
    by_elimination = solve(bent, b)
    assert by_elimination.status == Status.INDEFINITE
    np.testing.assert_allclose(by_elimination.x, np.linalg.solve(bent, b), rtol=1e-9)


def test_what_is_not_finite_is_flagged(system):
    a, b = system
    for solver in SOLVERS:
        assert solve(a.at[0, 0].set(jnp.nan), b, solver=solver).status == Status.NOT_FINITE


def test_nothing_to_solve(system):
    a, b = system
    for solver in SOLVERS:
        out = solve(a, 0 * b, solver=solver)
        assert not out.x.any() and out.status == Status.OK and out.residual == 0


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_derivatives(system, solver):
    a, b = system
    value = lambda t, s: jnp.sum(solve(a + t * jnp.eye(P), b * s, solver=solver).x ** 2)
    for number in (0, 1):
        ours = jax.grad(value, number)(0.3, 1.0)
        h = 1e-6
        at = lambda e, number=number: value(0.3 + e * (number == 0), 1.0 + e * (number == 1))
        np.testing.assert_allclose(ours, (at(h) - at(-h)) / (2 * h), rtol=1e-6)


def test_vmap(system):
    a, b = system
    many = jnp.stack([b, 2 * b, 0 * b])
    for solver in SOLVERS:
        out = jax.vmap(lambda b, solver=solver: solve(a, b, solver=solver))(many)
        np.testing.assert_allclose(out.x, np.linalg.solve(a, np.asarray(many).T).T, atol=1e-9)
        assert (out.status == Status.OK).all()


def test_the_schur_block_system_of_kkt_is_definite_and_equal(system):
    """[[A, -B^T], [-B, K]] with K > 0: CG on it gives the reduced system's step."""
    a, b = system
    rng = np.random.default_rng(1)
    cross, k = jnp.asarray(0.2 * rng.normal(size=(4, P))), jnp.asarray(np.diag([1.0, 2, 3, 4]))
    a = a + jnp.eye(P)
    reduced = a - cross.T @ jnp.linalg.solve(k, cross)
    block = lambda sign: solve_block(
        lambda v: a @ v,
        lambda v: cross @ v,
        lambda v: cross.T @ v,
        lambda v: sign * k @ v,
        b,
        jnp.zeros(4),
        solver=CG(tol=1e-13),
    )
    out = block(1.0)
    assert out.status == Status.OK and out.curvature > 0
    np.testing.assert_allclose(out.x, np.linalg.solve(reduced, b), rtol=1e-9)
    assert block(-1.0).status == Status.INDEFINITE  # the paper's sign


def test_bad_input(system):
    a, b = system
    with pytest.raises(ValueError, match=r"matrix has shape \(12, 12\), but must be \(5, 5\)"):
        solve(a, b[:5])
    with pytest.raises(ValueError, match="maxiter=0"):
        CG(maxiter=0)
    with pytest.raises(ValueError, match="damping=-1"):
        Cholesky(-1)
