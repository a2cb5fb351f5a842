"""The paper's budget, as stated, against its own equations and dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxunlearn import Dataset
from jaxunlearn.certify.budget import (
    data_budget,
    input_gradient_lipschitz,
    input_radius,
    paper_budget,
)

pytestmark = pytest.mark.usefixtures("compiled_in_haste")


def test_equations():
    p_a, p_b, sigma = 0.8, 0.15, 0.1
    width = stats.norm.ppf(p_a) - stats.norm.ppf(p_b)
    n, d, T, L = 60_000, 784, 50_890, 40.0
    assert float(data_budget(n, dimension=d, p_a=p_a, p_b=p_b)) == pytest.approx(
        n - 36 * d / width**2, rel=1e-6
    )
    found = paper_budget(n, dimension=d, parameters=T, lipschitz=L, p_a=p_a, p_b=p_b)
    assert float(found) == pytest.approx(n - 36 * d * L**2 / (T * width**2), rel=1e-6)
    # Eq. 68 is Eq. 65 with the radius of Eq. 67.
    radius = input_radius(sigma / 2 * width, parameters=T, lipschitz=L)
    assert float(found) == pytest.approx(n - 9 * d * sigma**2 / float(radius) ** 2, rel=1e-6)
    vacuous = paper_budget(n, dimension=d, parameters=T, lipschitz=L, p_a=0.4, p_b=0.4)
    assert float(vacuous) == -np.inf


@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_lipschitz_against_dense_jacobians(reduce):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(5, 4)), jnp.float32)
    data, params = Dataset(x, jnp.arange(5) % 3), jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
    loss_fn = lambda w, row: -jax.nn.log_softmax(jnp.tanh(row.x) @ w)[row.y]
    jacobian = jax.jacobian(lambda x, y: jax.grad(loss_fn)(params, Dataset(x, y)).ravel())
    each = np.asarray(jax.vmap(jacobian)(data.x, data.y))
    norms = [np.linalg.norm(j, 2) for j in each]
    expected = np.linalg.norm(each.mean(0), 2) if reduce == "mean" else max(norms)
    found = input_gradient_lipschitz(
        loss_fn, params, data, key=jax.random.key(0), iters=60, reduce=reduce
    )
    assert float(found) == pytest.approx(expected, rel=1e-3)


def test_bad_input():
    with pytest.raises(ValueError, match="parameters=0"):
        input_radius(jnp.ones(1), parameters=0, lipschitz=1.0)
    data = Dataset(jnp.ones((2, 1)), jnp.zeros(2, jnp.int32))
    loss_fn = lambda w, row: jnp.sum(w * row.x)
    with pytest.raises(ValueError, match="reduce='sum' is unknown"):
        input_gradient_lipschitz(loss_fn, jnp.ones(1), data, key=jax.random.key(0), reduce="sum")
