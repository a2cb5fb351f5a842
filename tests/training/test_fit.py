"""One training against a float64 loop in NumPy that takes the same batches."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import softmax

from jaxunlearn import Dataset, TrainConfig, _progress, data, fit, minimize, models, train_many
from jaxunlearn.training import PruningConfig, fit_pruned

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

N, CLASSES = 40, 10
LOGISTIC = models.logistic(CLASSES)
MLP = models.mlp(CLASSES, hidden=(8,))
KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def rows() -> Dataset:
    train = data.load("digits").train
    return Dataset(train.x[:N], train.y[:N])


def batches(key, config, weights=None, n=N) -> np.ndarray:
    """``[steps, n]``: the weight of every row in every step that a training takes.

    The training is made to write them down: one row's gradient is its own unit vector,
    and the optimizer puts the t-th batch gradient into the t-th row of the parameters.
    """
    most = config.epochs * -(-n // min(n, config.batch_size))
    unit = Dataset(jnp.eye(n), jnp.zeros(n, int))

    def update(grads, step, params):
        return jnp.zeros_like(params).at[step].set(grads[0]), step + 1

    recorder = optax.GradientTransformation(lambda params: jnp.array(0), update)
    loss_fn = lambda params, row: params[0] @ row.x
    start = jnp.zeros((most, n))
    out = np.asarray(
        minimize(key, loss_fn, start, unit, weights=weights, config=config, optimizer=recorder)
    )
    taken = out.any(1)
    assert taken[: taken.sum()].all()  # no step is taken in vain between others
    return out[taken].astype(np.float64)


def oracle(config: TrainConfig, rows: Dataset, taken: np.ndarray) -> np.ndarray:
    """Softmax regression in float64, straight from the textbook; weights and bias stacked."""
    x = np.asarray(rows.x, np.float64).reshape(len(rows.y), -1)
    x = np.concatenate([x, np.ones((len(x), 1))], 1)
    onehot = np.eye(CLASSES)[np.asarray(rows.y)]
    theta = np.zeros((x.shape[1], CLASSES))
    velocity, second = np.zeros_like(theta), np.zeros_like(theta)
    for t, weights in enumerate(taken):
        grad = x.T @ (weights[:, None] * (softmax(x @ theta, axis=1) - onehot))
        if config.clip is not None:
            grad *= min(1, config.clip / np.linalg.norm(grad))
        grad = grad + config.weight_decay * theta
        done = t / len(taken)
        rate = (
            config.learning_rate
            * {
                "constant": 1.0,
                "cosine": (1 + np.cos(np.pi * done)) / 2,
                "step": 0.1 ** ((done >= 0.5) + (done >= 0.75)),
            }[config.schedule]
        )
        if config.optimizer == "adam":
            velocity = 0.9 * velocity + 0.1 * grad
            second = 0.999 * second + 0.001 * grad**2
            mean, square = velocity / (1 - 0.9 ** (t + 1)), second / (1 - 0.999 ** (t + 1))
            theta = theta - rate * mean / (np.sqrt(square) + 1e-8)
        else:
            velocity = config.momentum * velocity + grad
            theta = theta - rate * velocity
    return theta


def stacked(params) -> np.ndarray:
    layer = params["Dense_0"]
    return np.concatenate([layer["kernel"], layer["bias"][None]])


PLAIN = {"epochs": 3, "batch_size": 16, "learning_rate": 0.2, "momentum": 0.0}
PLAIN |= {"schedule": "constant"}
CONFIGS = {
    "sgd": TrainConfig(**PLAIN),
    "momentum, cosine": TrainConfig(**PLAIN | {"momentum": 0.9, "schedule": "cosine"}),
    "weight decay": TrainConfig(**PLAIN | {"weight_decay": 0.1, "momentum": 0.5}),
    "clip": TrainConfig(**PLAIN | {"clip": 0.5, "weight_decay": 0.1}),
    "adam, step": TrainConfig(
        **PLAIN | {"optimizer": "adam", "schedule": "step", "learning_rate": 0.02}
    ),
}


@pytest.fixture(scope="module")
def wide(rows):
    """In float64, so that Adam's division by tiny gradients magnifies nothing."""
    return Dataset(np.asarray(rows.x, np.float64), np.asarray(rows.y))


@pytest.fixture(scope="module")
def oracles(wide):
    with jax.enable_x64(True):
        taken = batches(jax.random.split(KEY)[1], CONFIGS["sgd"])
    return {name: oracle(config, wide, taken) for name, config in CONFIGS.items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_a_loop_in_numpy(wide, oracles, name):
    with jax.enable_x64(True):
        found = stacked(fit(KEY, LOGISTIC, wide, config=CONFIGS[name]))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, oracles[name], atol=1e-6)  # rates are float32
    for other, values in oracles.items():  # any other configuration is told apart
        if other != name:
            assert np.abs(found - values).max() > 1e-3, other


def test_every_epoch_visits_every_row_once_in_a_new_order():
    config = TrainConfig(epochs=3, batch_size=16)
    taken = batches(KEY, config)
    assert taken.shape == (9, N)
    np.testing.assert_allclose(taken.sum(1), 1, rtol=1e-6)  # each step takes a mean
    visits = (taken > 0).reshape(3, 3, N)
    np.testing.assert_array_equal(visits.sum((0, 2)), 3 * np.array([16, 16, 8]))
    np.testing.assert_array_equal(visits.sum(1), 1)
    first = visits[:, 0]  # who is in the first batch of each epoch
    assert (first[0] != first[1]).any() and (first[1] != first[2]).any()
    assert (batches(jax.random.key(6), config)[0] != taken[0]).any()


def test_rows_of_weight_zero_cost_no_steps():
    config = TrainConfig(epochs=2, batch_size=8)
    keep = np.arange(N) % 2 == 0  # 20 rows: 3 steps an epoch instead of 5
    taken = batches(KEY, config, weights=jnp.asarray(keep))
    assert len(taken) == 2 * 3
    visits = (taken > 0).reshape(2, 3, N)
    np.testing.assert_array_equal(visits.sum(1), np.stack([keep, keep]))
    np.testing.assert_array_equal(visits.sum(2), [[8, 8, 4]] * 2)


def test_subset_by_weights_equals_numpy_on_the_subset(rows):
    """Schedule included: it ends with the steps that the subset takes."""
    config = CONFIGS["momentum, cosine"]
    keep = jnp.arange(N) >= 25
    taken = batches(jax.random.split(KEY)[1], config, weights=keep)
    assert len(taken) == 3
    found = stacked(fit(KEY, LOGISTIC, rows, weights=keep, config=config))
    np.testing.assert_allclose(found, oracle(config, rows, taken), atol=2e-6)


def test_subset_by_weights_equals_subset_by_slicing(rows):
    """In full batches, where the order is all the same."""
    config = TrainConfig(epochs=5, batch_size=64, learning_rate=0.2)
    keep = np.arange(N) % 3 > 0
    by_weight = fit(KEY, MLP, rows, weights=jnp.asarray(keep), config=config)
    sliced = Dataset(rows.x[keep], rows.y[keep])
    chex.assert_trees_all_close(by_weight, fit(KEY, MLP, sliced, config=config), atol=1e-6)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(by_weight, fit(KEY, MLP, rows, config=config), atol=1e-3)


@pytest.mark.parametrize("value", [0.0, 3e38])
def test_rows_of_weight_zero_may_hold_anything(rows, value):
    config = TrainConfig(epochs=2, batch_size=16)
    keep = jnp.arange(N) >= 6
    other = Dataset(rows.x.at[:6].set(value), (rows.y.at[:6].add(1)) % CLASSES)
    a, b = (fit(KEY, MLP, d, weights=keep, config=config) for d in (rows, other))
    chex.assert_tree_all_finite(a)
    chex.assert_trees_all_equal(a, b)
    with pytest.raises(AssertionError):  # with weight, they count
        chex.assert_trees_all_equal(fit(KEY, MLP, other, config=config), a)


def test_whole_weights_equal_repeated_rows_and_scale_does_not_matter(rows):
    config = TrainConfig(epochs=4, batch_size=64, learning_rate=0.2)
    times = np.array([2, 1, 3, 0] * 10)
    weighted = fit(KEY, LOGISTIC, rows, weights=jnp.asarray(times, float), config=config)
    repeated = Dataset(*(jnp.repeat(leaf, times, axis=0) for leaf in rows))
    chex.assert_trees_all_close(weighted, fit(KEY, LOGISTIC, repeated, config=config), atol=1e-6)
    tenth = fit(KEY, LOGISTIC, rows, weights=jnp.asarray(times / 10), config=config)
    chex.assert_trees_all_close(weighted, tenth, atol=1e-6)
    with pytest.raises(AssertionError):
        binary = fit(KEY, LOGISTIC, rows, weights=jnp.asarray(times > 0), config=config)
        chex.assert_trees_all_close(weighted, binary, atol=1e-3)


def test_weights_of_one_change_nothing(rows):
    config = TrainConfig(epochs=2, batch_size=16)
    plain = fit(KEY, MLP, rows, config=config)
    chex.assert_trees_all_close(fit(KEY, MLP, rows, weights=jnp.ones(N), config=config), plain)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_masked_entries_stay_zero(rows, optimizer):
    config = TrainConfig(epochs=2, batch_size=16, optimizer=optimizer, weight_decay=0.1)
    template = jax.eval_shape(MLP.init, KEY, rows.x[:1])
    mask = jax.tree.map(
        lambda leaf: jnp.asarray(np.arange(leaf.size).reshape(leaf.shape) % 2, jnp.float32),
        template,
    )
    params = fit(KEY, MLP, rows, config=config, mask=mask)
    for leaf, kept in zip(jax.tree.leaves(params), jax.tree.leaves(mask), strict=True):
        assert (leaf[kept == 0] == 0).all()
        assert (leaf[kept == 1] != 0).mean() > 0.9


def test_own_direction_keeps_the_rate_and_its_schedule(rows):
    """Momentum as a direction of one's own is the momentum of the configuration."""
    with_momentum = TrainConfig(epochs=2, batch_size=16, momentum=0.9, schedule="cosine")
    without = dataclasses.replace(with_momentum, momentum=0.0)
    direction = optax.trace(0.9)
    own = fit(KEY, LOGISTIC, rows, config=without, direction=direction)
    chex.assert_trees_all_equal(own, fit(KEY, LOGISTIC, rows, config=with_momentum))
    n = rows.y.shape[0]
    many = train_many(
        KEY[None], jnp.ones((1, n)), LOGISTIC, rows, config=without, direction=direction
    )
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[0], many), own, atol=1e-6)
    with pytest.raises(ValueError, match="direction and optimizer are both given"):
        fit(KEY, LOGISTIC, rows, direction=direction, optimizer=optax.sgd(0.1))


def test_own_optimizer_is_used_as_it_is(rows):
    config = CONFIGS["sgd"]
    own = fit(KEY, LOGISTIC, rows, config=config, optimizer=optax.sgd(0.2))
    chex.assert_trees_all_close(own, fit(KEY, LOGISTIC, rows, config=config), atol=1e-6)
    slower = fit(KEY, LOGISTIC, rows, config=config, optimizer=optax.sgd(0.1))
    assert np.abs(stacked(slower) - stacked(own)).max() > 1e-2


def test_jit_equals_eager_and_starts_from_the_model(rows):
    config = TrainConfig(epochs=1, batch_size=64, learning_rate=1e-12)
    params = jax.jit(lambda key: fit(key, MLP, rows, config=config))(KEY)
    chex.assert_trees_all_close(params, fit(KEY, MLP, rows, config=config), atol=1e-7)
    start = MLP.init(jax.random.split(KEY)[0], rows.x[:1])
    chex.assert_trees_all_close(params, start, atol=1e-7)


def test_low_precision_is_kept_and_learns(rows):
    low = Dataset(rows.x.astype(jnp.bfloat16), rows.y)
    params = fit(KEY, MLP, low, config=TrainConfig(epochs=40, batch_size=16))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    assert (MLP.apply(params, low.x).argmax(-1) == low.y).mean() > 0.8


def test_differentiable_in_start_data_and_weights(rows):
    """Against central differences in float64."""
    config = TrainConfig(epochs=2, batch_size=16, learning_rate=0.2)
    with jax.enable_x64(True):
        x, y = np.asarray(rows.x, np.float64), rows.y
        loss_fn = models.cross_entropy(LOGISTIC.apply)
        rng = np.random.default_rng(0)
        along = (rng.normal(size=(65, 10)), rng.normal(size=x.shape), rng.normal(size=N))
        probe = rng.normal(size=(64, 10))

        @jax.jit
        @jax.value_and_grad
        def value(t):
            params = {"Dense_0": {"kernel": t[0] * along[0][:64], "bias": t[0] * along[0][64]}}
            moved = Dataset(x + t[1] * along[1], y)
            weights = 1 + 0.1 * t[2] * along[2]
            out = minimize(KEY, loss_fn, params, moved, weights=weights, config=config)
            return jnp.vdot(out["Dense_0"]["kernel"], probe)

        gradient = value(jnp.zeros(3))[1]
        for i, h in enumerate([1e-4, 1e-4, 1e-2]):  # weights are float32
            ahead, behind = (value(s * h * jnp.eye(3)[i])[0] for s in (1, -1))
            assert abs(gradient[i]) > 1e-2
            np.testing.assert_allclose(gradient[i], (ahead - behind) / (2 * h), rtol=1e-4)


def test_progress_bar_moves_and_the_numbers_stay(rows):
    config = TrainConfig(epochs=4, batch_size=16)
    plain = fit(KEY, LOGISTIC, rows, config=config)
    with _progress.showing() as display:
        assert display is not None
        seen = []
        display.update = lambda task, **fields: seen.append((fields["completed"], fields["total"]))
        told = fit(KEY, LOGISTIC, rows, config=TrainConfig(epochs=4, batch_size=16, progress=True))
        jax.effects_barrier()
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    chex.assert_trees_all_close(told, plain, atol=1e-6)


def test_pruned_training(rows):
    config = TrainConfig(epochs=4, batch_size=16)
    params, mask, epochs = fit_pruned(
        KEY, MLP, rows, train=config, config=PruningConfig(rate=0.7, rewind=0.5)
    )
    assert epochs == 4 + 2 + 4
    kernels = [layer["kernel"] for layer in mask.values()]
    ones = sum(float(kernel.sum()) for kernel in kernels)
    size = sum(kernel.size for kernel in kernels)
    assert size - ones == int(0.7 * size)
    for layer in mask:
        assert (params[layer]["kernel"][mask[layer]["kernel"] == 0] == 0).all()
        assert (mask[layer]["bias"] == 1).all()
    # The mask drops what is smallest after the whole training, not after the rewound epochs.
    dense_key, _ = jax.random.split(KEY)
    dense = fit(dense_key, MLP, rows, config=config)
    size_of = np.concatenate([np.abs(dense[layer]["kernel"]).ravel() for layer in mask])
    kept = np.concatenate([mask[layer]["kernel"].ravel() for layer in mask]) == 1
    assert size_of[kept].min() >= size_of[~kept].max()


BAD_VALUES = [
    ("epochs", 0, r"epochs=0 must be an integer >= 1"),
    ("epochs", 2.0, r"epochs=2.0 must be an integer"),
    ("batch_size", -1, r"batch_size=-1 must be an integer >= 1"),
    ("learning_rate", 0.0, r"learning_rate=0.0 must be a finite number > 0"),
    ("learning_rate", float("nan"), r"learning_rate=nan must be a finite number > 0"),
    ("schedule", "cosin", r"schedule='cosin' is unknown. Did you mean 'cosine'"),
    ("optimizer", "adma", r"optimizer='adma' is unknown. Did you mean 'adam'"),
    ("momentum", 1.0, r"momentum=1.0 must be below 1"),
    ("momentum", -0.1, r"momentum=-0.1 must be a finite number >= 0"),
    ("weight_decay", -1.0, r"weight_decay=-1.0 must be"),
    ("clip", 0.0, r"clip=0.0 must be a finite number > 0"),
]


@pytest.mark.parametrize("field, value, message", BAD_VALUES)
def test_bad_configuration(field, value, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{field: value})


@pytest.mark.parametrize("field, value", [("rate", 0.0), ("rate", 1.0), ("rewind", 1.5)])
def test_bad_pruning(field, value):
    with pytest.raises(ValueError, match=f"{field}={value} must lie strictly between 0 and 1"):
        PruningConfig(**{field: value})


def test_bad_data(rows):
    x, y = rows
    cases = [
        (Dataset(x[:-1], y), r"data.x has shape \(39, 8, 8, 1\) and data.y has shape \(40,\)"),
        (Dataset(x[:0], y[:0]), r"data has no rows"),
        (Dataset(x.at[3].set(jnp.nan), y), r"data.x has NaN.*first: \[3\]"),
        (Dataset(x.at[3, 0].set(jnp.inf), y), r"data.x has NaN or infinite"),
        (Dataset(x, y.at[0].set(10)), r"data.y has labels from 0 to 10"),
        (Dataset(x, y.at[0].set(-1)), r"data.y has labels from -1"),
        (Dataset(x, y.astype(float)), r"data.y has dtype float32"),
    ]
    for bad, message in cases:
        with pytest.raises(ValueError, match=message):
            fit(KEY, LOGISTIC, bad)


def test_bad_weights(rows):
    cases = [
        (jnp.ones(N - 1), r"weights has shape \(39,\), but must end in 40"),
        (jnp.zeros(N), r"weights is zero for all 40 rows"),
        (jnp.ones(N).at[0].set(-1), r"weights must be finite and >= 0"),
        (jnp.ones(N).at[0].set(jnp.nan), r"weights must be finite and >= 0"),
    ]
    for weights, message in cases:
        with pytest.raises(ValueError, match=message):
            fit(KEY, LOGISTIC, rows, weights=weights)


@pytest.mark.parametrize("part", [1, 5, 16, 100])  # of batches of 16: 5 does not divide them
@pytest.mark.parametrize("weighted", [False, True])
def test_a_batch_in_parts_is_the_same_step(rows, part, weighted):
    weights = jnp.where(jnp.arange(N) % 4 == 0, 0.0, 1.0 + jnp.arange(N) % 3) if weighted else None
    config = TrainConfig(epochs=3, batch_size=16)
    whole = fit(KEY, MLP, rows, weights=weights, config=config)
    config = dataclasses.replace(config, microbatch=part)
    chex.assert_trees_all_close(
        fit(KEY, MLP, rows, weights=weights, config=config), whole, rtol=1e-5, atol=1e-6
    )
