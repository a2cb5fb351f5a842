"""The closed form of a dense last layer against the matrix of any loss, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import Dataset
from jaxunlearn.primitives.adversarial import PGDConfig, pgd
from jaxunlearn.primitives.balls import L2Ball, LInfBox
from jaxunlearn.primitives.curvature import MODES, total_matrix
from jaxunlearn.primitives.last_layer import LastLayer

N, Q, C = 21, 4, 3
BALLS = [L2Ball(0.2), LInfBox(0.1)]


pytestmark = pytest.mark.usefixtures("compiled_in_haste", "float64")


def case(act, bias, ball, width=Q):
    rng = np.random.default_rng(0)
    below = jnp.asarray(rng.normal(size=(6, width)))
    loss_fn = LastLayer(lambda x: act(x.ravel() @ below), l2=0.03)
    head = {"kernel": jnp.asarray(rng.normal(size=(width, C)))}
    head |= {"bias": jnp.asarray(rng.normal(size=C))} if bias else {}
    y = jnp.asarray(rng.integers(0, C, N))
    rows = Dataset(jnp.asarray(rng.uniform(size=(N, 2, 3))), y)
    config = PGDConfig(refine=4)
    delta = pgd(jax.random.key(0), loss_fn, head, rows, ball=ball, config=config).delta
    weights = jnp.asarray(rng.uniform(size=N)).at[3].set(0)
    how = {"ball": ball, "weights": weights, "trusted": jnp.asarray(rng.uniform(size=N) > 0.3)}
    return loss_fn, head, rows, delta, how


@pytest.mark.parametrize(
    ("bias", "ball"), [(True, BALLS[0]), (False, BALLS[1])], ids=["l2", "linf"]
)
def test_every_mode_is_the_matrix_of_the_same_loss(bias, ball):
    loss_fn, *given, how = case(jnp.tanh, bias, ball)
    unknown = lambda head, row: loss_fn(head, row)  # the same numbers, and no closed form
    for mode in MODES:
        found = total_matrix(loss_fn, *given, mode=mode, chunk=4, **how)
        wanted = total_matrix(unknown, *given, mode=mode, **how)
        np.testing.assert_allclose(found, wanted, atol=1e-13 * np.abs(wanted).max(), err_msg=mode)
    # Modes differ by far more than that.
    modes = [total_matrix(loss_fn, *given, mode=mode, **how) for mode in MODES]
    assert min(np.abs(a - b).max() for a in modes for b in modes if a is not b) > 1e-3


def test_more_features_than_inputs():
    loss_fn, *given, how = case(jax.nn.softplus, True, BALLS[0], width=9)
    unknown = lambda head, row: loss_fn(head, row)
    found, wanted = (total_matrix(f, *given, **how) for f in (loss_fn, unknown))
    np.testing.assert_allclose(found, wanted, atol=1e-13 * np.abs(wanted).max())


def test_derivative_of_the_matrix_in_the_layer():
    loss_fn, head, rows, delta, _ = case(jnp.tanh, True, BALLS[0])
    few, size = Dataset(rows.x[:4], rows.y[:4]), (Q + 1) * C
    v = jnp.asarray(np.random.default_rng(1).normal(size=(2, size)))

    def at(t):
        moved = jax.tree.map(lambda leaf: leaf * (1 + t), head)
        return v[0] @ total_matrix(loss_fn, moved, few, delta[:4], ball=BALLS[0]) @ v[1]

    step = 1e-5
    wanted = (at(step) - at(-step)) / (2 * step)
    assert abs(wanted) > 1e-2
    np.testing.assert_allclose(jax.grad(at)(0.0), wanted, rtol=1e-6)


def test_refuses_what_is_no_dense_layer():
    loss_fn, _, rows, delta, how = case(jnp.tanh, True, BALLS[0])
    for wrong in ({"weights": jnp.zeros((Q, C))}, {"kernel": jnp.zeros(Q)}, jnp.zeros((Q, C))):
        with pytest.raises(ValueError, match="not those of a LastLayer: give a dict with kernel"):
            total_matrix(loss_fn, wrong, rows, delta, **how)
