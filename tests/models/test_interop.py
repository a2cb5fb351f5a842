"""Networks of flax.nnx, equinox and haiku behind the same pair of functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxunlearn import TrainConfig, registry, tree
from jaxunlearn.models import cross_entropy
from jaxunlearn.types import Dataset, Model

pytestmark = pytest.mark.usefixtures("compiled_in_haste")


class Network(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(2, 16, rngs=rngs)
        self.last = nnx.Linear(16, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.tanh(self.first(x)))


def nnx_model(make) -> Model:
    graph = nnx.graphdef(make(nnx.Rngs(0)))

    def init(key, x):
        return nnx.state(make(nnx.Rngs(key)), nnx.Param)

    def apply(params, x):
        return nnx.merge(graph, params)(x)

    return Model(init, apply)


def test_nnx_model_through_the_pair(key):
    model = nnx_model(Network)
    x = jax.random.normal(key, (40, 2))
    data = Dataset(x, (x[:, 0] * x[:, 1] > 0).astype(jnp.int32))  # not linearly separable
    params = jax.jit(model.init)(key, x)
    assert tree.size(params) == 2 * 16 + 16 + 16 * 2 + 2
    loss_fn = cross_entropy(model.apply)

    per_sample = jax.jit(jax.vmap(jax.grad(loss_fn), (None, 0)))(params, data)
    first = jax.jit(jax.grad(loss_fn))(params, jax.tree.map(lambda leaf: leaf[0], data))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, atol=1e-6), per_sample, first)

    def step(params, _):
        gradients = jax.vmap(jax.grad(loss_fn), (None, 0))(params, data)
        mean = jax.tree.map(lambda leaf: leaf.mean(0), gradients)
        return tree.add_scaled(params, -1.0, mean), None

    trained = jax.jit(lambda params: jax.lax.scan(step, params, length=500)[0])(params)
    accuracy = (model.apply(trained, x).argmax(-1) == data.y).mean()
    assert accuracy > 0.9


def test_nnx_models_by_vmap(key):
    # Two networks at once, as in a distribution of retrained models.
    model = nnx_model(Network)
    x = jnp.ones((3, 2))
    stacked = jax.jit(jax.vmap(model.init, (0, None)))(jax.random.split(key, 2), x)
    logits = jax.vmap(model.apply, (0, None))(stacked, x)
    assert logits.shape == (2, 3, 2)
    assert bool((logits[0] != logits[1]).any())


def equinox_model() -> Model:
    eqx = pytest.importorskip("equinox")

    def make(key):
        return eqx.nn.MLP(2, 2, width_size=16, depth=1, activation=jnp.tanh, key=key)

    _, static = eqx.partition(make(jax.random.key(0)), eqx.is_inexact_array)

    def init(key, x):
        return eqx.filter(make(key), eqx.is_inexact_array)

    def apply(params, x):
        return jax.vmap(eqx.combine(params, static))(x)

    return Model(init, apply)


def haiku_model() -> Model:
    hk = pytest.importorskip("haiku")
    network = hk.without_apply_rng(hk.transform(lambda x: hk.Linear(2)(jnp.tanh(hk.Linear(16)(x)))))
    return Model(network.init, network.apply)


@pytest.mark.parametrize(
    "make",
    [lambda: nnx_model(Network), equinox_model, haiku_model],
    ids=["nnx", "equinox", "haiku"],
)
def test_models_of_other_libraries_train_and_unlearn(make, key):
    model = make()
    x = jax.random.normal(key, (60, 2))
    data = Dataset(x, (x[:, 0] > 0).astype(jnp.int32))
    forget = jnp.arange(60) < 6
    for name in ("finetune", "influence"):
        unlearner = registry.make(name, model, train=TrainConfig(epochs=20))
        state = unlearner.fit(key, data)
        assert (unlearner.predict(state, x).argmax(-1) == data.y).mean() > 0.9
        after = unlearner.unlearn(key, state, data, forget)
        assert jax.tree.structure(after.params) == jax.tree.structure(state.params)
        assert (unlearner.predict(after, x).argmax(-1) == data.y).mean() > 0.75
        assert float(jnp.abs(unlearner.predict(after, x) - unlearner.predict(state, x)).max()) > 0
