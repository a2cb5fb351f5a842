import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from sklearn.metrics import roc_auc_score, roc_curve

from jaxunlearn import audit

pytestmark = pytest.mark.usefixtures("compiled_in_haste")


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    train_y, test_y = rng.integers(0, 4, 150), rng.integers(0, 4, 90)
    # Train rows are classified better than test rows, as by a model that memorises.
    train = rng.normal(size=(150, 4)) + 2 * np.eye(4)[train_y]
    test = rng.normal(size=(90, 4)) + np.eye(4)[test_y]
    return (
        train.astype(np.float32),
        test.astype(np.float32),
        train_y,
        test_y,
        rng.random(150) < 0.3,
    )


def test_every_number_is_that_of_the_subsets(case):
    train, test, train_y, test_y, forget = case
    train_p, test_p = (
        special.softmax(logits.astype(float), axis=1)[np.arange(len(y)), y]
        for logits, y in ((train, train_y), (test, test_y))
    )
    hits = train.argmax(1) == train_y
    retained, forgotten = train_p[~forget], train_p[forget]

    def curve(positive):
        truth = np.r_[np.ones(len(positive)), np.zeros(90)]
        return truth, np.r_[positive, test_p]

    false, true, _ = roc_curve(*curve(forgotten), drop_intermediate=False)
    thresholds = np.sort(np.r_[retained, test_p])
    attack = [(np.mean(retained >= t) + np.mean(test_p < t)) / 2 for t in thresholds]
    expected = audit.Evaluation(
        acc_test=np.mean(test.argmax(1) == test_y),
        acc_retain=hits[~forget].mean(),
        acc_forget=hits[forget].mean(),
        loss_test=-np.log(test_p).mean(),
        loss_retain=-np.log(retained).mean(),
        loss_forget=-np.log(forgotten).mean(),
        threshold_efficacy=np.mean(forgotten < thresholds[np.argmax(attack)]),
        threshold_shadow_accuracy=max(attack),
        auc_forget_vs_test=roc_auc_score(*curve(forgotten)),
        tpr_at_1fpr=true[false <= 0.01].max(),
        auc_retain_vs_test=roc_auc_score(*curve(retained)),
    )
    np.testing.assert_allclose(audit.evaluate(*case), expected, rtol=1e-5)
    # Eleven numbers that no mix-up of fields would leave in place.
    assert len(set(expected)) == 11


def test_vmap_over_models_equals_a_loop(case):
    train, test, train_y, test_y, forget = case
    scale = jnp.array([1.0, 0.1, -2.0])[:, None, None]
    many = scale * train[None], scale[::-1] * test[None]
    evaluate = jax.jit(jax.vmap(audit.evaluate, in_axes=(0, 0, None, None, None)))
    mapped = evaluate(*many, train_y, test_y, forget)
    for k in range(3):
        one = audit.evaluate(many[0][k], many[1][k], train_y, test_y, forget)
        np.testing.assert_allclose([field[k] for field in mapped], one, rtol=1e-5)


def test_labels_and_requests_may_be_constants_of_a_jitted_function(case):
    train, test, *rest = case
    constants = [jnp.asarray(value) for value in rest]
    jitted = jax.jit(lambda train, test: audit.evaluate(train, test, *constants))(train, test)
    np.testing.assert_allclose(jitted, audit.evaluate(*case), rtol=1e-5, atol=1e-7)
    wrong = constants[0] + 4
    with pytest.raises(ValueError, match="labels from 4"):
        jax.jit(lambda train: audit.accuracy(train, wrong))(train)


def test_vmap_over_requests(case):
    train, test, train_y, test_y, forget = case
    requests = jnp.stack([forget, jnp.roll(forget, 7)])
    mapped = jax.vmap(audit.evaluate, in_axes=(None,) * 4 + (0,))(*case[:4], requests)
    one = audit.evaluate(train, test, train_y, test_y, requests[1])
    np.testing.assert_allclose([field[1] for field in mapped], one, rtol=1e-5)


def test_an_unseen_request_looks_like_test_rows_and_a_memorised_one_does_not():
    rng = np.random.default_rng(0)
    y, forget = rng.integers(0, 3, 6000), np.arange(6000) < 2000
    test_y = rng.integers(0, 3, 2000)
    unseen = rng.normal(size=(6000, 3)) + np.eye(3)[y]
    seen = unseen + 2 * np.eye(3)[y]
    test = rng.normal(size=(2000, 3)) + np.eye(3)[test_y]
    sd = np.sqrt(4001 / (12 * 2000 * 2000))
    retrained = np.where(forget[:, None], unseen, seen)
    forgotten = audit.evaluate(retrained, test, y, test_y, forget)
    assert abs(float(forgotten.auc_forget_vs_test) - 0.5) < 4 * sd
    assert float(forgotten.tpr_at_1fpr) < 0.025
    assert float(forgotten.auc_retain_vs_test) > 0.7
    kept = audit.evaluate(seen, test, y, test_y, forget)
    assert float(kept.auc_forget_vs_test) > 0.5 + 4 * sd
    assert float(kept.threshold_efficacy) < float(forgotten.threshold_efficacy) - 0.2


def test_the_attack_sees_beyond_rounded_probabilities():
    # All probabilities are 1 in float32; the logits still tell the groups apart.
    train, test = np.zeros((150, 4)), np.zeros((90, 4))
    train[:, 0], test[:, 0] = np.linspace(40, 50, 150), np.linspace(25, 35, 90)
    train_y, test_y = np.zeros(150, int), np.zeros(90, int)
    result = audit.evaluate(train, test, train_y, test_y, np.arange(150) < 5)
    assert float(result.auc_retain_vs_test) == pytest.approx(1)


def test_an_empty_request_is_nan_only_for_the_forgotten(case):
    result = audit.evaluate(*case[:4], np.zeros(150, bool))
    missing = {name for name, value in result._asdict().items() if np.isnan(value)}
    assert missing == {
        "acc_forget",
        "loss_forget",
        "threshold_efficacy",
        "auc_forget_vs_test",
        "tpr_at_1fpr",
    }


def test_a_model_that_diverged_shows(case):
    train, test, *rest = case
    result = audit.evaluate(np.full_like(train, np.nan), np.full_like(test, np.nan), *rest)
    assert float(result.acc_test) == 0
    assert np.isnan([result.loss_test, result.threshold_efficacy, result.auc_forget_vs_test]).all()


def test_extreme_and_half_precision_logits(case):
    train, test, *rest = case
    extreme = audit.evaluate(1e4 * train, 1e4 * test, *rest)
    assert np.isfinite(extreme).all()
    half = audit.evaluate(jnp.asarray(train, jnp.bfloat16), jnp.asarray(test, jnp.bfloat16), *rest)
    assert all(value.dtype == jnp.float32 for value in half)


def test_bad_input_is_named(case):
    train, test, train_y, test_y, forget = case
    with pytest.raises(ValueError, match="logits_train has 4 classes and logits_test has 3"):
        audit.evaluate(train, test[:, :3], train_y, test_y, forget)
    with pytest.raises(ValueError, match="test_y has shape"):
        audit.evaluate(train, test, train_y, test_y[1:], forget)
    with pytest.raises(ValueError, match="train_y has labels"):
        audit.evaluate(train, test, train_y + 1, test_y, forget)
    with pytest.raises(ValueError, match="forget has dtype"):
        audit.evaluate(train, test, train_y, test_y, forget.astype(int))
    with pytest.raises(ValueError, match="none of the 150 training rows"):
        audit.evaluate(train, test, train_y, test_y, np.ones(150, bool))
