"""ConMU's compiled pipeline against NumPy, step by step, in both readings; its knobs and errors."""

import dataclasses
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import Dataset, Model, Status, TrainConfig, data, fit, models
from jaxunlearn.methods.conmu import OFFICIAL, PAPER, ConMUConfig, conmu, sweep, unlearner
from jaxunlearn.methods.conmu.config import knobs_of, plan_of
from jaxunlearn.methods.conmu.pipeline import run
from jaxunlearn.methods.conmu.sweep import finetune_all, train_proxies
from jaxunlearn.primitives.selection import Quantile, Random, Sigma

_beside = pathlib.Path(__file__).with_name("conmu_by_hand.py")
_spec = importlib.util.spec_from_file_location("conmu_by_hand", _beside)
by_hand = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(by_hand)

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

N = 90
TRAIN = TrainConfig(epochs=4, batch_size=16, learning_rate=0.2, momentum=0.5, weight_decay=1e-3)
KEY = jax.random.key(7)
replace = dataclasses.replace


def draw(key, x):
    return {
        "kernel": 0.1 * jax.random.normal(key, (x.shape[-1], 10), x.dtype),
        "bias": jnp.zeros(10, x.dtype),
    }


MODEL = Model(draw, lambda w, x: x @ w["kernel"] + w["bias"][None])


@pytest.fixture(scope="module")
def rows():
    train = data.load("digits").train
    return Dataset(train.x[:N].reshape(N, -1), train.y[:N])


@pytest.fixture(scope="module")
def params(rows):
    return fit(jax.random.key(0), MODEL, rows, config=TRAIN)


@pytest.fixture(scope="module")
def forget(rows):
    return data.forget_random(jax.random.key(1), rows.y, 0.3)


BASE = ConMUConfig(
    retain=Sigma(0.9, 0.7), forget=Sigma(0.8, 1.0), batch_size=16, epochs=3, learning_rate=0.05
)
READINGS = {
    "paper": BASE,
    "paper, no clipping, no temperature": replace(BASE, clip=None, temperature=1.0, gamma=2.0),
    "noise added alpha times": replace(BASE, noise="repeat", alpha=3.0, mu=0.1, sigma=0.5),
    "pruned for good": replace(BASE, prune_rate=0.4),
    "proxy in the training's batches": replace(BASE, proxy_batch=None, proxy_epochs=3),
    "official": replace(
        OFFICIAL, retain=Sigma(0.5, 0.5, True), forget=Sigma(0.8, 0.8, True), batch_size=16
    ),
}


@pytest.mark.parametrize("name", READINGS)
def test_equals_numpy_step_by_step(name, rows, params, forget):
    config = READINGS[name]
    initial = draw(jax.random.key(3), rows.x)
    done = conmu(KEY, MODEL, params, rows, forget, config=config, train=TRAIN, initial=initial)
    wide = lambda w: {k: np.asarray(v, np.float64) for k, v in w.items()}
    tuned, proxy, chosen = by_hand.conmu(
        KEY, wide(params), rows, np.asarray(forget), wide(initial), config, TRAIN
    )
    np.testing.assert_array_equal(done.selected, chosen)
    for leaf in ("kernel", "bias"):
        np.testing.assert_allclose(done.proxy[leaf], proxy[leaf], rtol=1e-3, atol=2e-5)
        np.testing.assert_allclose(done.params[leaf], tuned[leaf], rtol=1e-3, atol=2e-5)
    # And it went somewhere: by far more than these tolerances.
    assert np.abs(np.asarray(params["kernel"]) - tuned["kernel"]).max() > 0.05
    kept = chosen[~np.asarray(forget)].mean(), chosen[np.asarray(forget)].mean()
    np.testing.assert_allclose((done.kept_retain, done.kept_forget), kept, rtol=1e-6)


@pytest.mark.parametrize("change", ["direction", "temperature", "scale", "shared start"])
def test_the_comparison_would_notice(change, rows, params, forget):
    """The same with one thing wrong is far off."""
    initial = draw(jax.random.key(3), rows.x)
    right = replace(BASE, proxy_epochs=3, gamma=2.0, alpha=3.0)
    wrong, start = right, initial
    if change == "temperature":
        wrong = replace(right, temperature=1.0)
    elif change == "scale":
        wrong = replace(right, noise="repeat")
    elif change == "shared start":
        start = draw(jax.random.key(4), rows.x)
    done = conmu(KEY, MODEL, params, rows, forget, config=wrong, train=TRAIN, initial=start)
    wide = lambda w: {k: np.asarray(v, np.float64) for k, v in w.items()}
    if change == "direction":  # of the divergence, everything else as it is
        swapped = by_hand.guided_gradient(right.gamma, right.temperature, False)
        original, by_hand.guided_gradient = by_hand.guided_gradient, lambda *_: swapped
    try:
        tuned, _, _ = by_hand.conmu(
            KEY, wide(params), rows, np.asarray(forget), wide(initial), right, TRAIN
        )
    finally:
        if change == "direction":
            by_hand.guided_gradient = original
    assert np.abs(np.asarray(done.params["kernel"]) - tuned["kernel"]).max() > 2e-3


def test_official_selection_is_random_and_the_papers_is_not(rows, params, forget):
    """Which rows: the same for every key, or any of them, in the same number."""
    keys = jax.random.split(KEY, 40)
    bounds = {"retain": Sigma(0.5, 0.5), "forget": Sigma(0.8, 0.8)}

    def chosen(compat):
        config = replace(BASE, **bounds, compat=compat, epochs=1, proxy_epochs=0)
        plan, knobs = plan_of(config, TRAIN), knobs_of(config)
        select = lambda key: (
            run(
                key,
                params,
                rows,
                forget,
                ~forget,
                knobs,
                0.1,
                None,
                None,
                None,
                model=MODEL,
                plan=plan,
            ).selected
        )
        return np.asarray(jax.jit(jax.vmap(select))(keys))

    paper, official = chosen("paper"), chosen("official")
    assert (paper == paper[0]).all() and (paper.sum(1) == official.sum(1)).all()
    gone = np.asarray(forget)
    for group in (gone, ~gone):
        share = paper[0, group].mean()
        # Of the rows that the code takes, as many are the right ones as of any rows.
        precision = (official & paper[0])[:, group].sum() / official[:, group].sum()
        deviation = np.sqrt(share * (1 - share) / official[:, group].sum())
        assert abs(precision - share) < 4 * deviation < 1 - share


def test_forgotten_rows_are_only_read_in_noise_and_removed_ones_not_at_all(rows, params, forget):
    config = replace(BASE, retain=Random(1.0), forget=Random(1.0), alpha=1e3, gamma=0.0)
    gone = jnp.arange(N) >= N - 5
    asked = forget & ~gone
    retain = ~asked & ~gone
    run_on = lambda data: conmu(
        KEY, MODEL, params, data, asked, retain=retain, config=config, train=TRAIN
    )
    other = rows._replace(x=jnp.where(gone[:, None], 0.3, rows.x))
    one, two = run_on(rows), run_on(other)
    np.testing.assert_array_equal(one.params["kernel"], two.params["kernel"])
    assert not one.selected[gone].any() and one.selected[~gone].all()


def test_grads_are_counted_as_they_are_spent(rows, params, forget):
    n_f = int(forget.sum())
    n_r = N - n_f
    spent = lambda **changes: float(
        conmu(KEY, MODEL, params, rows, forget, config=replace(BASE, **changes), train=TRAIN).grads
    )
    m = float(conmu(KEY, MODEL, params, rows, forget, config=BASE, train=TRAIN).selected.sum())
    scores, proxy = N / 3, n_r + m / 3
    assert spent() == pytest.approx(scores + proxy + 3 * m)
    assert spent(gamma=0.0) == pytest.approx(scores + 3 * m)
    assert spent(proxy_epochs=4) == pytest.approx(scores + 4 * n_r + m / 3 + 3 * m)
    both = {"retain": Random(0.5), "forget": Random(0.5)}
    half = round(n_r / 2) + round(n_f / 2)
    assert spent(**both) == pytest.approx(n_r + half / 3 + 3 * half)


def test_a_proxy_of_ones_own_costs_nothing(rows, params, forget):
    first = conmu(KEY, MODEL, params, rows, forget, config=BASE, train=TRAIN)
    again = conmu(KEY, MODEL, params, rows, forget, config=BASE, train=TRAIN, proxy=first.proxy)
    np.testing.assert_allclose(again.params["kernel"], first.params["kernel"], rtol=1e-6)
    assert float(first.grads - again.grads) == pytest.approx(float((~forget).sum()))


def test_other_numbers_and_other_sizes_compile_nothing(rows, params, forget):
    one = lambda config, forget: conmu(
        KEY, MODEL, params, rows, forget, config=config, train=TRAIN
    ).status.block_until_ready()
    one(BASE, forget)
    before = run._cache_size()
    for changes in (
        {"retain": Sigma(2.0, 2.0)}, {"alpha": 5.0}, {"epochs": 1}, {"proxy_epochs": 2},
        {"gamma": 3.0}, {"temperature": 1.5}, {"learning_rate": 0.2}, {"mu": 1.0, "sigma": 0.1},
    ):  # fmt: skip
        one(replace(BASE, **changes), forget)
    one(BASE, data.forget_random(jax.random.key(9), rows.y, 0.1))
    assert run._cache_size() == before


GRID = [
    replace(BASE, retain=Quantile(0.5 - w, 0.5), forget=Random(0.5), alpha=a, proxy_epochs=d)
    for w in (0.1, 0.4) for a in (0.0, 2.0) for d in (0, 2)
]  # fmt: skip


def test_a_sweep_is_every_setting_on_every_seed_by_one_program(rows, params):
    keys = jax.random.split(KEY, 2)
    originals = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.9 * leaf]), params)
    masks = jnp.stack(
        [data.forget_random(k, rows.y, f) for k, f in zip(keys, (0.2, 0.3), strict=True)]
    )
    swept, before = {}, (finetune_all._cache_size(), train_proxies._cache_size())
    for part in sweep(keys, MODEL, originals, rows, masks, GRID, train=TRAIN, chunk=3):
        for i, setting in enumerate(part.settings):
            swept[setting] = jax.tree.map(lambda leaf, i=i: leaf[i], part._replace(settings=None))
    assert sorted(swept) == list(range(len(GRID)))
    after = finetune_all._cache_size(), train_proxies._cache_size()
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1]
    for number, config in enumerate(GRID):
        for seed in range(2):
            alone = conmu(
                keys[seed], MODEL, jax.tree.map(lambda leaf, s=seed: leaf[s], originals), rows,
                masks[seed], config=config, train=TRAIN,
            )  # fmt: skip
            found = jax.tree.map(lambda leaf, s=seed: leaf[s], swept[number])
            np.testing.assert_allclose(
                found.params["kernel"], alone.params["kernel"], rtol=1e-4, atol=1e-6
            )
            assert found.grads == pytest.approx(alone.grads)
            assert found.facts["kept_retain"] == pytest.approx(alone.kept_retain)


def test_official_state_remembers_where_the_original_began(rows, forget):
    config = replace(READINGS["official"])
    method = unlearner(MODEL, TRAIN, config)
    state = method.fit(jax.random.key(0), rows)
    initial = draw(jax.random.split(jax.random.key(0))[0], rows.x[:1])
    np.testing.assert_array_equal(state.memory["kernel"], initial["kernel"])
    after = method.unlearn(KEY, state, rows, forget)
    direct = conmu(
        KEY, MODEL, state.params, rows, forget, config=config, train=TRAIN, initial=initial
    )
    np.testing.assert_allclose(
        after.params["kernel"], direct.params["kernel"], rtol=1e-5, atol=1e-6
    )
    assert unlearner(MODEL, TRAIN).fit(jax.random.key(0), rows).memory == ()


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("x", "initial", "proxy")]


@pytest.mark.parametrize("name", ["params", *SLOW])
def test_forward_derivatives_are_those_of_differences(name, rows, params, forget):
    """In float64, with the selection as it is."""
    with jax.enable_x64(True):
        wide = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, float)), tree)
        data = rows._replace(x=wide(rows.x))
        start = wide(params)
        given = {"params": start, "x": data.x, "initial": start, "proxy": start}
        along = jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size)).reshape(p.shape), given[name])

        def tuned(t):
            moved = given | {name: jax.tree.map(lambda p, d: p + t * d, given[name], along)}
            proxy = moved["proxy"] if name == "proxy" else None
            return conmu(
                KEY, MODEL, moved["params"], data._replace(x=moved["x"]), forget,
                config=BASE, train=TRAIN, initial=moved["initial"], proxy=proxy,
            ).params["kernel"]  # fmt: skip

        _, slope = jax.jvp(tuned, (0.0,), (1.0,))
        expected = (tuned(1e-6) - tuned(-1e-6)) / 2e-6
        np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-6)
        assert jnp.abs(slope).max() > 1e-3


def test_half_of_a_class(rows, params):
    forget = data.forget_class(jax.random.key(2), rows.y, 3, 0.5)
    config = replace(BASE, forget=Sigma(1.5, 1.5))
    done = conmu(KEY, MODEL, params, rows, forget, config=config, train=TRAIN)
    assert done.status == Status.OK and 0 < done.kept_forget <= 1


# Bad input.


def test_bounds_that_select_nothing_say_what_was_kept(rows, params, forget):
    config = replace(BASE, retain=Sigma(-30.0, 31.0))
    with pytest.raises(ValueError, match=r"retain=Sigma.* selects none .*retain: 0.0%.*forget: \d"):
        conmu(KEY, MODEL, params, rows, forget, config=config, train=TRAIN)
    with pytest.raises(ValueError, match=r"forget=Random\(fraction=0.0\) selects none"):
        conmu(KEY, MODEL, params, rows, forget, config=replace(BASE, forget=Random(0.0)))
    method = unlearner(MODEL, TRAIN, config)
    state = method.fit(jax.random.key(0), rows)
    with pytest.raises(ValueError, match="selects none"):
        method.unlearn(KEY, state, rows, forget)
    inside = jax.jit(method.unlearn)(KEY, state, rows, forget)
    assert Status(int(inside.status)) == Status.EMPTY_SELECTION


def test_a_class_with_fewer_than_two_rows(rows, params):
    lonely = rows._replace(y=jnp.where(jnp.arange(N) == 5, 9, jnp.minimum(rows.y, 8)))
    forget = data.forget_class(KEY, lonely.y, 9)
    with pytest.raises(ValueError, match=r"forget=Sigma.*there is 1 row to forget: ask for more"):
        conmu(KEY, MODEL, params, lonely, forget, config=BASE, train=TRAIN)
    quantile = replace(BASE, forget=Quantile())
    assert conmu(KEY, MODEL, params, lonely, forget, config=quantile, train=TRAIN).status == 0
    with pytest.raises(ValueError, match="is no row"):
        data.forget_class(KEY, lonely.y, 9, 0.5)


def test_rows_that_remain_and_are_forgotten(rows, params, forget):
    """They would train the proxy."""
    go = lambda retain: conmu(KEY, MODEL, params, rows, forget, retain=retain, train=TRAIN)
    with pytest.raises(ValueError, match=f"retain and forget have {int(forget.sum())} rows in"):
        go(jnp.ones(N, bool))
    with pytest.raises(ValueError, match="retain names no rows"):
        go(jnp.zeros(N, bool))


@pytest.mark.parametrize("which", ["proxy", "initial", "mask"])
def test_a_proxy_of_another_architecture(which, rows, params, forget):
    other = models.mlp(10, hidden=(4,)).init(KEY, rows.x)
    thin = {"kernel": params["kernel"][:, :5], "bias": params["bias"][:5]}
    for given in (other, thin):
        with pytest.raises(ValueError, match=f"{which} has another architecture than params"):
            conmu(KEY, MODEL, params, rows, forget, config=BASE, train=TRAIN, **{which: given})


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("alpha", -1.0, "alpha=-1.0 must be a finite number >= 0"),
        ("sigma", -0.1, "sigma=-0.1 must be"),
        ("mu", float("nan"), "mu=nan must be a finite number"),
        ("gamma", -0.5, "gamma=-0.5 must be"),
        ("gamma", float("inf"), "gamma=inf must be a finite"),
        ("temperature", 0.0, r"temperature=0.0 with gamma=0.3: the divergence.* must be"),
        ("temperature", float("inf"), r"temperature=inf"),
        ("proxy_epochs", -1, "proxy_epochs=-1 must be an integer >= 0"),
        ("proxy_epochs", 1.5, "proxy_epochs=1.5 must be an integer"),
        ("proxy_batch", 0, "proxy_batch=0 must be an integer >= 1"),
        ("epochs", 0, "epochs=0 must be an integer >= 1"),
        ("prune_rate", 1.0, "prune_rate=1.0 must lie strictly between"),
        ("compat", "code", "compat='code' is unknown"),
        ("noise", "add", "noise='add' is unknown"),
        ("prune_scope", "all", "prune_scope='all' is unknown"),
        ("retain", 0.2, "retain=0.2 must be a Sigma, a Quantile or a Random"),
    ],
)
def test_bad_configuration(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(ConMUConfig(), **{field: value})


def test_bad_sweeps(rows, params):
    keys, masks = KEY[None], (jnp.arange(N) % 5 == 0)[None]
    originals = jax.tree.map(lambda leaf: leaf[None], params)

    def go(configs, **changes):
        given = {"keys": keys, "params": originals, "data": rows, "forget": masks} | changes
        return next(sweep(model=MODEL, configs=configs, train=TRAIN, **given))

    with pytest.raises(ValueError, match="configs is empty"):
        go([])
    with pytest.raises(ValueError, match="configs differ in more than numbers"):
        go([BASE, replace(BASE, retain=Quantile())])
    with pytest.raises(ValueError, match="configs differ in more than numbers"):
        go([BASE, replace(BASE, batch_size=8)])
    with pytest.raises(ValueError, match="compat='official' cannot be swept"):
        go([OFFICIAL])
    for changes, message in (
        ({"forget": masks[0]}, r"forget has shape \(90,\): all must begin with one axis of seeds"),
        ({"params": params}, "all must begin with one axis of seeds"),
        ({"keys": jax.random.split(KEY, 2)}, r"keys has shape \(2,\)"),
        ({"forget": masks.astype(int)}, "forget has dtype int32"),
        ({"forget": masks & False}, "forget names none"),
        ({"forget": masks | True}, "forget leaves none"),
        ({"forget": (jnp.arange(N) == 3)[None]}, "forget=Sigma.*there is 1 row to forget"),
        ({"data": rows._replace(x=rows.x.at[3].set(jnp.nan))}, "data.x has NaN"),
        ({"data": rows._replace(y=rows.y.at[3].set(10))}, "labels from 0 to 10"),
        ({"chunk": 0}, "chunk=0 must be an integer >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            go([BASE], **changes)


def test_presets_are_those_of_the_paper_and_of_its_code():
    assert (PAPER.retain, PAPER.forget) == (Sigma(0.17, 0.3), Sigma(0.85, 1.0))
    assert (PAPER.alpha, PAPER.proxy_epochs, PAPER.gamma, PAPER.epochs) == (3.0, 1, 0.5, 5)
    assert OFFICIAL.compat == "official" and OFFICIAL.regrow and OFFICIAL.prune_rate == 0.1
