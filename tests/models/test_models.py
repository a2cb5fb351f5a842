"""Every built-in model through the same checks, and two against flax's layers."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxunlearn import models, tree
from jaxunlearn.types import Dataset

LIGHT = ["logistic", "mlp", "cnn", "lenet"]
ALL = list(models.MODELS)


@pytest.fixture(scope="module")
def drawn():
    """``name -> (jitted apply, params, x)`` for 32 x 32 x 3 images; each compiled once."""
    x = jax.random.uniform(jax.random.key(1), (2, 32, 32, 3))

    @functools.cache
    def draw(name):
        model = models.get(name, 10)
        params = model.init(jax.random.key(0), x)
        if name == "logistic":  # its zero start would make every row equal
            params = jax.tree.map(lambda w: jnp.cos(jnp.arange(w.size)).reshape(w.shape), params)
        return jax.jit(model.apply), params, x

    return draw


@pytest.mark.parametrize(
    ("name", "shape", "count"),
    [
        ("logistic", (8, 8, 1), 650),
        ("mlp", (8, 8, 1), 64 * 64 + 64 + 650),
        ("cnn", (28, 28, 1), 89_546),
        ("lenet", (28, 28, 1), 61_706),
        ("resnet18", (32, 32, 3), 11_173_962),
        ("vgg16", (32, 32, 3), 14_728_266),
        # One input channel instead of three: 2 * 9 * 64 weights fewer.
        ("resnet18", (28, 28, 1), 11_173_962 - 1152),
        ("vgg16", (28, 28, 1), 14_728_266 - 1152),
    ],
)
def test_number_of_parameters(name, shape, count, key):
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    params = jax.eval_shape(models.get(name, 10).init, key, x)
    assert tree.size(params) == count


DEEP = [
    n if n not in ("resnet18", "vgg16") else pytest.param(n, marks=pytest.mark.slow) for n in ALL
]


@pytest.mark.parametrize("name", DEEP)
def test_rows_are_independent(name, drawn):
    apply, params, x = drawn(name)
    logits = apply(params, x)
    assert logits.shape == (2, 10) and logits.dtype == jnp.float32
    assert bool(jnp.isfinite(logits).all())
    assert bool((logits[0] != logits[1]).any())
    # Another image in the other row: not a bit of this one changes.
    other = apply(params, x.at[1].set(jnp.sin(jnp.arange(x[1].size)).reshape(x[1].shape)))
    np.testing.assert_array_equal(other[0], logits[0])
    assert bool((other[1] != logits[1]).any())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_dtype_of_the_input_is_kept(name, dtype, key):
    model = models.get(name, 3)
    with jax.enable_x64(True):
        x = jax.ShapeDtypeStruct((2, 28, 28, 1), dtype)
        params = jax.eval_shape(model.init, key, x)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
        assert jax.eval_shape(model.apply, params, x) == jax.ShapeDtypeStruct((2, 3), dtype)


def test_same_key_same_network_in_every_precision(key):
    model = models.mlp(3)
    with jax.enable_x64(True):
        x = jax.random.uniform(key, (2, 12, 12, 1), jnp.float64)
        double = np.asarray(model.apply(model.init(key, x), x))
        x = x.astype(jnp.float32)
        single = np.asarray(model.apply(model.init(key, x), x))
    assert abs(double).max() > 0.01
    np.testing.assert_allclose(single, double, atol=1e-5)


@pytest.mark.parametrize("name", LIGHT)
def test_batches_of_any_size(name, drawn):
    apply, params, x = drawn(name)
    rows = jnp.concatenate([apply(params, row[None]) for row in x])
    np.testing.assert_allclose(rows, apply(params, x), rtol=1e-5, atol=1e-5)
    assert jax.eval_shape(apply, params, x[:0]).shape == (0, 10)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_per_sample_gradients_sum_to_the_batch_gradient(name, drawn):
    _, params, x = drawn(name)
    apply = models.get(name, 10).apply
    data = Dataset(x, jnp.array([0, 2]))
    loss_fn = models.cross_entropy(apply)

    def total(params):
        logits = apply(params, data.x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, data.y).sum()

    @jax.jit
    def both(params):
        each = jax.vmap(jax.grad(loss_fn), (None, 0))(params, data)
        return jax.tree.map(lambda leaf: leaf.sum(0), each), jax.grad(total)(params)

    each, whole = both(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), each, whole)


def test_cnn_is_what_its_docstring_says(drawn):
    class Reference(nn.Module):
        @nn.compact
        def __call__(self, x):
            for channels in (16, 32, 64):
                x = nn.relu(nn.Conv(channels, (3, 3), strides=2, padding=1)(x))
            x = nn.relu(nn.Dense(64)(x.reshape(x.shape[0], -1)))
            return nn.Dense(10)(x)

    apply, params, x = drawn("cnn")
    reference = jax.jit(Reference().apply)({"params": params}, x)
    np.testing.assert_allclose(apply(params, x), reference, atol=1e-5)


def test_lenet_is_what_its_docstring_says(drawn):
    class Reference(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.avg_pool(nn.tanh(nn.Conv(6, (5, 5), padding=2)(x)), (2, 2), (2, 2))
            x = nn.avg_pool(nn.tanh(nn.Conv(16, (5, 5), padding=0)(x)), (2, 2), (2, 2))
            x = x.reshape(x.shape[0], -1)
            x = nn.tanh(nn.Dense(120)(x))
            x = nn.tanh(nn.Dense(84)(x))
            return nn.Dense(10)(x)

    apply, params, x = drawn("lenet")
    reference = jax.jit(Reference().apply)({"params": params}, x)
    np.testing.assert_allclose(apply(params, x), reference, atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_learns_a_handful_of_rows(name, key):
    x = jax.random.uniform(key, (12, 8, 8, 1))
    y = jnp.arange(12) % 3
    model = models.get(name, 3)
    loss_fn = models.cross_entropy(model.apply)
    optimizer = optax.adam(1e-2)

    def mean_loss(params):
        return jax.vmap(loss_fn, (None, 0))(params, Dataset(x, y)).mean()

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            loss, gradient = jax.value_and_grad(mean_loss)(params)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, updates), state), loss

        (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), length=60)
        return model.apply(params, x), losses

    logits, losses = train(model.init(key, x))
    assert losses[-1] < 0.2 * losses[0]
    np.testing.assert_array_equal(logits.argmax(-1), y)


def test_same_arguments_same_model():
    assert models.cnn(10) is models.cnn(num_classes=10)
    assert models.mlp(3, hidden=[8]) is models.mlp(3, hidden=(8,))
    assert models.mlp(3) is models.get("mlp", 3)
    assert models.mlp(3) is not models.mlp(3, hidden=(8,))
    assert models.cnn(10) is not models.cnn(3)
    assert len({models.get(name, 10) for name in ALL}) == len(ALL)


def test_logistic_starts_at_zero_and_others_follow_the_key(key):
    x = jnp.ones((1, 8, 8, 1))
    for leaf in jax.tree.leaves(models.logistic(3).init(key, x)):
        assert not leaf.any()
    first, second = (models.mlp(3).init(jax.random.key(seed), x) for seed in (0, 1))
    assert (first["Dense_0"]["kernel"] != second["Dense_0"]["kernel"]).any()


def test_init_under_vmap(key):
    keys = jax.random.split(key, 3)
    x = jnp.ones((1, 8, 8, 1))
    stacked = jax.vmap(models.mlp(3).init, (0, None))(keys, x)
    alone = models.mlp(3).init(keys[1], x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-6), stacked, alone)


@pytest.mark.parametrize("name", ALL)
def test_too_few_classes(name):
    with pytest.raises(ValueError, match="num_classes=1 must be an integer >= 2"):
        models.get(name, 1)


def test_unknown_model():
    with pytest.raises(ValueError, match="model='resnet' is unknown.*'resnet18'"):
        models.get("resnet", 10)


def test_bad_hidden():
    with pytest.raises(ValueError, match="hidden=0"):
        models.mlp(3, hidden=(8, 0))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("vgg16", (2, 8, 8, 1), r"\(2, 8, 8, 1\).* at least 16 x 16.*logistic, mlp, cnn, resnet18"),
        ("lenet", (2, 28, 8, 1), "at least 12 x 12"),
        ("cnn", (2, 4, 4, 1), "Models that fit: logistic, mlp[.]"),
        ("resnet18", (2, 64), "For other inputs use logistic or mlp"),
        ("cnn", (2, 28, 28), r"x\[\.\.\., None\] for grey images"),
        ("mlp", (64,), r"x\[None\] for one row"),
    ],
)
def test_wrong_shapes(name, shape, message, key):
    model = models.get(name, 3)
    with pytest.raises(ValueError, match=message):
        model.init(key, jnp.ones(shape))
    with pytest.raises(ValueError, match=message):
        model.apply({}, jnp.ones(shape))


def test_smallest_images_that_fit(key):
    for name, least in [("cnn", 8), ("lenet", 12), ("resnet18", 8), ("vgg16", 16)]:
        x = jax.ShapeDtypeStruct((1, least, least, 1), jnp.float32)
        params = jax.eval_shape(models.get(name, 3).init, key, x)
        assert jax.eval_shape(models.get(name, 3).apply, params, x).shape == (1, 3)


def test_integer_pixels(key):
    with pytest.raises(ValueError, match="x has dtype uint8.*divided by 255"):
        models.cnn(3).init(key, jnp.zeros((2, 28, 28, 1), jnp.uint8))
