"""The shared types go through JAX's transformations as they are."""

import jax
import jax.numpy as jnp
import pytest

from jaxunlearn import Dataset, Model, State, Status, TrainConfig, Unlearner, fit, tree
from jaxunlearn.posthoc import Update, posthoc

pytestmark = pytest.mark.usefixtures("compiled_in_haste")


def test_dataset_maps_over_its_rows():
    data = Dataset(jnp.arange(6.0).reshape(3, 2), jnp.arange(3))
    out = jax.vmap(lambda row: row.x.sum() * row.y)(data)
    assert out.tolist() == [0.0, 5.0, 18.0]


def test_state_is_a_pytree_with_empty_fields():
    state = State({"w": jnp.ones(2)}, jnp.zeros(3, bool), (), jnp.float32(0), jnp.int32(0), ())
    doubled = jax.jit(lambda s: s._replace(params=jax.tree.map(lambda p: 2 * p, s.params)))(state)
    assert doubled.params["w"].tolist() == [2.0, 2.0]
    assert doubled.memory == () and doubled.certificate == ()
    assert len(jax.tree.leaves(state)) == 4


def test_any_pair_of_functions_is_a_model():
    """No library, lists as parameters, integer inputs."""
    model = Model(
        init=lambda key, x: [jnp.zeros((5, 2)), jnp.zeros(2)],
        apply=lambda params, x: params[0][x] + params[1][None],
    )
    data = Dataset(jnp.array([0, 1, 2, 3, 4]), jnp.array([0, 1, 0, 1, 0]))
    config = TrainConfig(epochs=50, batch_size=5, learning_rate=1.0)
    params = fit(jax.random.key(0), model, data, config=config)
    assert isinstance(params, list)
    assert model.apply(params, data.x).argmax(-1).tolist() == data.y.tolist()


@pytest.mark.parametrize("status", [Status.OK, Status.NOT_CONVERGED])
def test_an_update_reports_its_status_unless_the_result_is_not_finite(status):
    model = Model(lambda key, x: jnp.ones(2), lambda params, x: x * params[None])
    data = Dataset(jnp.ones((4, 2)), jnp.zeros(4, int))
    forget = jnp.arange(4) < 1

    def after(factor):
        update = lambda key, params, data, request, mask: Update(factor * params, 7, status)
        unlearner = posthoc(model, TrainConfig(epochs=1), update)
        assert isinstance(unlearner, Unlearner)
        state = unlearner.fit(jax.random.key(0), data)
        return unlearner.unlearn(jax.random.key(1), state, data, forget)

    assert after(2.0).status == status and after(2.0).grads == 7
    assert after(jnp.nan).status == Status.NOT_FINITE


def test_tree_arithmetic():
    a = {"w": jnp.array([[1.0, 2.0]]), "b": jnp.array([3], jnp.bfloat16)}
    b = {"w": jnp.array([[10.0, 20.0]]), "b": jnp.array([1.0])}
    out = tree.add_scaled(a, 0.5, b)
    assert out["w"].tolist() == [[6.0, 12.0]] and out["b"].dtype == jnp.bfloat16
    assert tree.size(a) == 3
    assert tree.all_finite(a) and tree.all_finite(())
    assert not tree.all_finite({"x": jnp.array([1.0, jnp.inf])})
