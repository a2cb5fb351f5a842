"""PCMU: its step against a plain loop, its certificates against removals."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxunlearn import Dataset, Status, TrainConfig, data, models, registry
from jaxunlearn.methods import pcmu as module
from jaxunlearn.methods.pcmu import PCMUConfig, pcmu, train
from jaxunlearn.models import cross_entropy
from jaxunlearn.primitives.gradients import per_sample_gradients
from jaxunlearn.primitives.smoothing import expected_quantize, ternary_threshold

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

KEY = jax.random.key(0)
N = 40
MODEL = models.logistic(10)


def rows() -> Dataset:
    train = data.load("digits").train
    return Dataset(train.x[:N], train.y[:N])


def apply(transform, g, params=None):
    params = g if params is None else params
    return transform.update(g, transform.init(params), params)[0]


GRADIENTS = {"w": jnp.array([[0.3, -0.02, 0.0], [1e-20, -5.0, 0.7]]), "b": jnp.array([-0.6])}


@pytest.mark.parametrize("noise", ["gaussian", "laplace", "uniform", "none"])
def test_hard_mode_is_the_threshold(noise):
    sigma, lam = 0.5, 1.0
    theta = lam / 2 if noise == "none" else ternary_threshold(sigma, lam, noise)
    expected = jax.tree.map(lambda g: np.sign(g) * (np.abs(g) > theta), GRADIENTS)
    chex.assert_trees_all_equal(apply(pcmu(sigma, lam, noise=noise), GRADIENTS), expected)


def test_soft_mode_is_the_mean():
    chex.assert_trees_all_equal(
        apply(pcmu(0.5, mode="soft"), GRADIENTS), expected_quantize(GRADIENTS, 0.5)
    )


def test_relative_sigma_does_not_see_the_scale_of_a_leaf():
    step = pcmu(1.0, 2.0, relative="leaf_rms")
    theta = ternary_threshold(1.0, 2.0)
    rms = lambda g: np.sqrt(np.mean(np.square(g)))
    expected = jax.tree.map(lambda g: np.sign(g) * (np.abs(g) > theta * rms(g)), GRADIENTS)
    for scale in (1.0, 1e-6):
        scaled = jax.tree.map(lambda g, s=scale: s * g, GRADIENTS)
        chex.assert_trees_all_equal(apply(step, scaled), expected)
    zero = jax.tree.map(jnp.zeros_like, GRADIENTS)
    chex.assert_trees_all_equal(apply(step, zero), zero)


def test_sampled_mode_draws_anew_every_step_and_has_the_right_mean():
    g = jnp.full(20_000, 0.05)
    step = pcmu(0.1, mode="sampled", key=KEY)
    first, state = step.update(g, step.init(g))
    second, _ = step.update(g, state)
    assert set(np.unique(first)) <= {-1.0, 0.0, 1.0} and bool((first != second).any())
    mean = float(expected_quantize(g[:1], 0.1)[0])
    for draw in (first, second):
        assert float(draw.mean()) == pytest.approx(mean, abs=5 / np.sqrt(g.size))


def test_composes_in_a_chain_and_lets_nan_through():
    step = optax.chain(optax.clip(0.5), pcmu(0.1), optax.scale(-0.01))
    found = apply(step, {"w": jnp.array([3.0, jnp.nan, -0.1])})
    np.testing.assert_allclose(found["w"], [-0.01, np.nan, 0.01], rtol=1e-6)
    half = apply(pcmu(0.1), jnp.array([2.0, -3.0], jnp.bfloat16))
    assert half.dtype == jnp.bfloat16 and half.tolist() == [1.0, -1.0]


def test_same_arguments_same_object():
    assert pcmu(0.1) is pcmu(0.1, 0.1**2) and pcmu(0.1) is not pcmu(0.2)


def test_training_is_the_papers_loop():
    """Against NumPy: full batches, sign of the mean gradient, a rate that drops twice."""
    epochs = 8
    config = TrainConfig(epochs=epochs, batch_size=N, momentum=0.9, weight_decay=1.0)
    method = PCMUConfig(learning_rate=0.02, schedule="step")
    with jax.enable_x64(True):  # a sign near zero depends on the rounding
        wide = Dataset(jax.random.normal(KEY, (N, 5), jnp.float64), rows().y)
        found = train(KEY, MODEL, wide, config=config, method=method)["Dense_0"]
        start = MODEL.init(jax.random.split(KEY)[0], wide.x[:1])["Dense_0"]
    x, y = np.asarray(wide.x), np.asarray(wide.y)
    w, b = (np.asarray(start[name]) for name in ("kernel", "bias"))
    for epoch in range(epochs):
        logits = x @ w + b
        p = np.exp(logits - logits.max(1, keepdims=True))
        error = p / p.sum(1, keepdims=True) - np.eye(10)[y]
        rate = 0.02 * (1.0 if epoch < 4 else 0.1 if epoch < 6 else 0.01)
        w, b = w - rate * np.sign(x.T @ error), b - rate * np.sign(error.sum(0))
    np.testing.assert_allclose(found["kernel"], w, atol=1e-9)
    np.testing.assert_allclose(found["bias"], b, atol=1e-9)


def test_weights_leave_rows_out():
    keep = jnp.arange(N) >= 5
    other = rows()._replace(x=rows().x.at[:5].set(9.0))
    for method in (PCMUConfig(), PCMUConfig(mode="sampled")):
        config = TrainConfig(epochs=2, batch_size=16)
        args = {"weights": keep, "config": config, "method": method}
        here, there = (train(KEY, MODEL, d, **args) for d in (rows(), other))
        chex.assert_trees_all_equal(here, there)


def test_sampled_training_keeps_the_batches_of_the_rows_that_stay():
    """One step without noise to speak of: the removed rows' share is missing, nothing else."""
    config = TrainConfig(epochs=1, batch_size=N)
    method = PCMUConfig(mode="sampled", sigma=1e-9, clip=0.05, learning_rate=1.0, lam=0.0)
    keep = jnp.arange(N) % 4 > 0
    start = MODEL.init(jax.random.split(KEY, 3)[0], rows().x[:1])
    grads = per_sample_gradients(cross_entropy(MODEL.apply), start, rows())
    norms = jnp.sqrt(sum(jnp.square(g.reshape(N, -1)).sum(1) for g in jax.tree.leaves(grads)))
    scale = keep * jnp.minimum(1.0, 0.05 / norms)
    total = jax.tree.map(lambda g: jnp.tensordot(scale, g, 1) / N, grads)
    found = train(KEY, MODEL, rows(), weights=keep, config=config, method=method)
    for p, q, g in zip(*map(jax.tree.leaves, (start, found, total)), strict=True):
        clear = np.abs(g) > 1e-7
        np.testing.assert_allclose((p - q)[clear], np.sign(g)[clear], atol=1e-5)
        assert clear.mean() > 0.5


def unlearner(config=None):
    how = TrainConfig(epochs=6, batch_size=16)
    return registry.make("pcmu", MODEL, train=how, config=config)


@pytest.fixture(scope="module")
def fitted():
    return unlearner().fit(KEY, rows())


@pytest.mark.parametrize("noise", ["gaussian", "none"])
def test_certified_coordinates_survive_every_single_removal(noise):
    """The sign of the mean gradient at the model, without each row in turn and without pairs."""
    config = PCMUConfig(noise=noise, lam=0.02)
    state = unlearner(config).fit(KEY, rows())
    grads = per_sample_gradients(cross_entropy(MODEL.apply), state.params, rows())
    theta = 0.01 if noise == "none" else 0.0
    flat = lambda t: np.concatenate([np.asarray(v).reshape(-1) for v in jax.tree.leaves(t)])
    v = np.stack([flat(jax.tree.map(lambda g, i=i: g[i], grads)) for i in range(N)]).astype(float)
    k_max, total = flat(state.memory.k_max), v.sum(0)
    classes = lambda g: np.sign(g) * (np.abs(g) > theta)
    before = classes(v.mean(0))
    changed = np.zeros((3, v.shape[1]), bool)
    for i in range(N):
        changed[1] |= classes((total - v[i]) / (N - 1)) != before
        for j in range(i):
            changed[2] |= classes((total - v[i] - v[j]) / (N - 2)) != before
    changed[2] |= changed[1]
    moving = np.abs(v).max(0) > 1e-6  # the others differ by rounding alone
    for k in (1, 2):
        certified = (k_max >= k) & moving
        assert certified.sum() > 5 and not (changed[k] & certified).any()
    # One removal is exact: what is not certified can indeed be changed by some row.
    assert (changed[1] | (k_max >= 1) | ~moving).mean() > 0.995


def test_a_request_beyond_the_budget_says_so_and_by_how_much(fitted):
    method = unlearner()
    assert fitted.status == Status.OK and fitted.certificate.k == 0
    assert float(fitted.certificate.fraction) == 1.0
    answer = method.unlearn(KEY, fitted, rows(), jnp.arange(N) < 3)
    found = answer.certificate
    assert answer.status == Status.BEYOND_CERTIFICATE
    assert int(found.k) == 3 and int(found.excess) == 3 - int(found.budget) > 0
    assert 0 < float(found.fraction) < 1 and np.isinf(found.epsilon)
    assert float(found.fraction) <= float(found.random_fraction) <= 1
    chex.assert_trees_all_equal(answer.params, fitted.params)
    more = method.unlearn(KEY, answer, rows(), jnp.arange(N) < 8)
    assert int(more.certificate.k) == 8
    assert float(more.certificate.fraction) < float(found.fraction)


def test_a_request_within_the_budget():
    """All rows alike: no coordinate depends on any of them."""
    same = Dataset(jnp.ones((N, 3)), jnp.zeros(N, jnp.int32))
    method = registry.make("pcmu", models.logistic(2), train=TrainConfig(epochs=2))
    answer = method.unlearn(KEY, method.fit(KEY, same), same, jnp.arange(N) < N - 1)
    assert answer.status == Status.OK and int(answer.certificate.budget) == N - 1


def test_sampled_mode_spends_epsilon():
    config = PCMUConfig(mode="sampled", sigma=2.0, epsilon=2.0, clip=0.5)
    method = unlearner(config)
    state = method.fit(KEY, rows())
    budget = int(state.certificate.budget)
    assert 0 < budget < N - 2
    at, over = (method.unlearn(KEY, state, rows(), jnp.arange(N) < k) for k in (budget, budget + 1))
    assert at.status == Status.OK and float(at.certificate.epsilon) <= 2.0
    assert over.status == Status.BEYOND_CERTIFICATE and int(over.certificate.excess) == 1
    assert float(over.certificate.epsilon) > 2.0
    assert float(state.certificate.epsilon) == 0 and np.isnan(over.certificate.fraction)


def test_soft_mode_certifies_no_coordinate():
    method = unlearner(PCMUConfig(mode="soft"))
    answer = method.unlearn(KEY, method.fit(KEY, rows()), rows(), jnp.arange(N) < 1)
    assert answer.status == Status.BEYOND_CERTIFICATE and answer.certificate.fraction == 0


def test_random_fraction_against_removals(fitted):
    k, draws = 8, 400
    grads = per_sample_gradients(cross_entropy(MODEL.apply), fitted.params, rows())
    v = np.concatenate([np.asarray(g).reshape(N, -1) for g in jax.tree.leaves(grads)], axis=1)
    v = v[:, np.abs(v).max(0) > 1e-6]
    rng = np.random.default_rng(0)
    kept = np.mean(
        [
            (np.sign(v[rng.permutation(N)[k:]].mean(0)) == np.sign(v.mean(0))).mean()
            for _ in range(draws)
        ]
    )
    share = v.shape[1] / 650  # the pixels that are always black never change
    found = float(
        unlearner().unlearn(KEY, fitted, rows(), jnp.arange(N) < k).certificate.random_fraction
    )
    assert found == pytest.approx(share * kept + 1 - share, abs=0.03)


def test_unlearner_of_retraining_trains_with_the_same_rule():
    how = TrainConfig(epochs=2, batch_size=16)
    make = lambda name: registry.make(name, MODEL, train=how)
    first, second = (make(name).fit(KEY, rows()) for name in ("pcmu", "pcmu_retrain"))
    chex.assert_trees_all_equal(first.params, second.params)
    forget = jnp.arange(N) < 4
    found = make("pcmu_retrain").unlearn(KEY, second, rows(), forget)
    chex.assert_trees_all_equal(
        found.params, train(KEY, MODEL, rows(), weights=~forget, config=how)
    )


def test_gradient_through_a_soft_training():
    """Derivative of a training of two steps in the data, against central differences."""
    with jax.enable_x64(True):
        x = rows().x[:6].astype(jnp.float64)
        config = TrainConfig(epochs=2, batch_size=6, momentum=0.0)
        method = PCMUConfig(mode="soft")
        along = jax.random.normal(KEY, x.shape, x.dtype)

        @jax.jit
        @jax.value_and_grad
        def value(t):
            params = train(KEY, MODEL, Dataset(x + t * along, rows().y[:6]), config=config,
                           method=method)  # fmt: skip
            return sum(jnp.sum(jnp.sin(7 * p)) for p in jax.tree.leaves(params))

        slope, h = value(0.0)[1], 1e-5
        difference = (value(h)[0] - value(-h)[0]) / (2 * h)
        assert abs(slope) > 0.01
        np.testing.assert_allclose(slope, difference, rtol=1e-6)


BAD = {
    "sigma": ({"sigma": 0.0}, r"sigma=0.0 must be a finite number > 0"),
    "lam": ({"lam": -1.0}, r"lam=-1.0 must be .* >= 0"),
    "noise": ({"noise": "normal"}, r"noise='normal' is unknown"),
    "mode": ({"mode": "mean"}, r"mode='mean' is unknown"),
    "relative": ({"relative": "rms"}, r"relative='rms' must be None or 'leaf_rms'"),
    "nothing to smooth": ({"noise": "none", "mode": "soft"}, r"noise='none' leaves nothing"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    options, message = BAD[case]
    for make in (lambda **k: pcmu(k.pop("sigma", 0.1), k.pop("lam", None), **k), PCMUConfig):
        with pytest.raises(ValueError, match=message):
            make(**options)


def test_bad_input_of_one_kind():
    with pytest.raises(ValueError, match="key=None does not go with mode='sampled'"):
        pcmu(0.1, mode="sampled")
    with pytest.raises(ValueError, match="key=given does not go with mode='hard'"):
        pcmu(0.1, key=KEY)
    with pytest.raises(ValueError, match="no guarantee for the model"):
        PCMUConfig(mode="sampled", relative="leaf_rms")
    with pytest.raises(ValueError, match="weights above 1"):
        train(KEY, MODEL, rows(), weights=jnp.full(N, 2.0), method=PCMUConfig(mode="sampled"))
    with pytest.raises(ValueError, match="schedule='linear' is unknown"):
        PCMUConfig(schedule="linear")
    with pytest.raises(ValueError, match="epsilon=0"):
        PCMUConfig(epsilon=0.0)


def test_presets():
    assert module.PAPER.rate == module.PAPER_TRAIN.learning_rate == 0.05
    assert module.PAPER_TRAIN.batch_size == 500 and module.PAPER_TRAIN.epochs == 120
