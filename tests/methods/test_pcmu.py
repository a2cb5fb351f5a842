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
from jaxunlearn.primitives.smoothing import expected_quantize, sample_quantize, ternary_threshold
from jaxunlearn.training.fit import shuffled

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


@pytest.mark.parametrize("mode", ["hard", "soft", "sampled"])
def test_nan_is_refused_when_it_is_seen_and_stays_otherwise(mode):
    step = pcmu(0.1, mode=mode, key=KEY if mode == "sampled" else None)
    g = {"w": jnp.array([3.0, jnp.nan, -0.1])}
    with pytest.raises(ValueError, match=r"updates\['w'\] has 1 values of 3 that are NaN"):
        apply(step, g)
    found = jax.jit(lambda g: apply(step, g))(g)["w"]
    assert jnp.isnan(found).tolist() == [False, True, False]
    assert apply(step, {}) == {}


@pytest.mark.parametrize("scale", [1e-6, 1e30, 1e-30])
def test_relative_scale_neither_overflows_nor_vanishes(scale):
    for dtype in (jnp.float32, jnp.float16) if scale == 1e-6 else (jnp.float32,):
        g = jnp.asarray(np.array([1.0, 2.0, 10.0]) * scale, dtype)
        assert apply(pcmu(1.0, 2.0, relative="leaf_rms"), g).tolist() == [0.0, 0.0, 1.0]


def test_composes_in_a_chain():
    step = optax.chain(optax.clip(0.5), pcmu(0.1), optax.scale(-0.01))
    found = apply(step, {"w": jnp.array([3.0, 0.0, -0.1])})
    np.testing.assert_allclose(found["w"], [-0.01, 0.0, 0.01], rtol=1e-6)
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


def test_sampled_training_is_the_mechanism_that_the_guarantee_is_about():
    """Replayed step by step: each row once an epoch, clipped, over a fixed batch, fresh noise."""
    n, batch, epochs, C = 10, 4, 2, 0.3
    few = jax.tree.map(lambda leaf: leaf[:n], rows())
    method = PCMUConfig(
        mode="sampled", sigma=0.02, lam=0.03, clip=C, learning_rate=0.5, schedule="constant"
    )
    config = TrainConfig(epochs=epochs, batch_size=batch)
    keep = np.arange(n) != 3
    found = train(KEY, MODEL, few, weights=jnp.asarray(keep), config=config, method=method)

    init_key, order_key, noise_key = jax.random.split(KEY, 3)
    params = MODEL.init(init_key, few.x[:1])
    number, visits = 0, np.zeros(n, int)
    for epoch in range(epochs):
        order = np.asarray(shuffled(jax.random.fold_in(order_key, epoch), n))
        for start in range(0, n, batch):
            members = order[start : start + batch]
            total = jax.tree.map(jnp.zeros_like, params)
            for i in members[keep[members]]:
                row = Dataset(few.x[i], few.y[i])
                g = jax.grad(cross_entropy(MODEL.apply))(params, row)
                squares = sum(float(jnp.vdot(v, v)) for v in jax.tree.leaves(g))
                scale = min(1, C / squares**0.5)
                total = jax.tree.map(lambda t, v, s=scale: t + s * v, total, g)
                visits[i] += 1
            mean = jax.tree.map(lambda t: t / batch, total)
            q = sample_quantize(jax.random.fold_in(noise_key, number), mean, 0.02, 0.03)
            params = jax.tree.map(lambda p, q: p - 0.5 * q, params, q)
            number += 1
    assert visits.tolist() == (epochs * keep).tolist() and number == 6
    for a, b in zip(*map(jax.tree.leaves, (found, params)), strict=True):
        # A draw next to the edge of the zero zone may fall on either side by rounding.
        assert (np.abs(a - b) > 1e-5).mean() < 0.005


def test_a_row_without_a_finite_gradient_cannot_change_the_others_share():
    config = TrainConfig(epochs=2, batch_size=N)
    method = PCMUConfig(mode="sampled")
    bad = rows()._replace(x=rows().x.at[0].set(3e38))
    keep = jnp.arange(N) > 0
    with_bad = train(KEY, models.mlp(10, hidden=(8,)), bad, config=config, method=method)
    without = train(
        KEY, models.mlp(10, hidden=(8,)), bad, weights=keep, config=config, method=method
    )
    chex.assert_trees_all_equal(with_bad, without)
    chex.assert_tree_all_finite(with_bad)


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


@pytest.mark.parametrize("relative", [None, "leaf_rms"])
def test_a_live_zero_class_is_certified_only_with_an_absolute_scale(relative):
    config = PCMUConfig(
        sigma=1.0 if relative else 1e-3, lam=2.0 if relative else 2e-3, relative=relative
    )
    method = unlearner(config)
    answer = method.unlearn(KEY, method.fit(KEY, rows()), rows(), jnp.arange(N) < 2)
    found = answer.certificate
    # The scale of a leaf moves with the rows: nothing is claimed there for any of them.
    assert (float(found.fraction) > 0.02) == (relative is None)
    assert 0.5 < float(found.random_fraction) <= 1


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
