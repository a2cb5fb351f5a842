import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.svm import SVC

from jaxunlearn import audit


def groups(seed, sizes=(80, 70, 30), levels=None):
    rng = np.random.default_rng(seed)
    scores = [rng.beta(4, 2, sizes[0]), rng.beta(2, 2, sizes[1]), rng.beta(3, 2, sizes[2])]
    if levels:
        scores = [np.round(score * levels) / levels for score in scores]
    return [score.astype(np.float32) for score in scores]


def sweep(members, nonmembers):
    """Balanced accuracy of "member if score >= t" for every observed t, by brute force."""
    thresholds = np.unique(np.r_[members, nonmembers])
    accuracy = [(np.mean(members >= t) + np.mean(nonmembers < t)) / 2 for t in thresholds]
    return thresholds, np.array(accuracy)


# The threshold attack.


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("levels", [None, 8])
@pytest.mark.parametrize("masked", [False, True])
def test_threshold_is_the_best_of_a_sweep(seed, levels, masked):
    members, nonmembers, targets = scores = groups(seed, levels=levels)
    weights = {}
    if masked:
        keep = [np.random.default_rng(seed).random(len(score)) < 0.6 for score in scores]
        members, nonmembers, targets = (s[k] for s, k in zip(scores, keep, strict=True))
        # What is masked out may hold anything.
        scores = [np.where(k, s, np.nan) for s, k in zip(scores, keep, strict=True)]
        names = ("member_weights", "nonmember_weights", "target_weights")
        weights = dict(zip(names, keep, strict=True))
    result = audit.threshold_attack(*scores, **weights)
    thresholds, accuracy = sweep(members, nonmembers)
    # Up to rounding, the lowest of the best.
    best = thresholds[np.isclose(accuracy, accuracy.max(), atol=1e-6)]
    assert float(result.threshold) in best
    assert float(result.shadow_accuracy) == pytest.approx(accuracy.max(), abs=1e-6)
    expected = np.mean(targets < float(result.threshold))
    assert float(result.efficacy) == pytest.approx(expected, abs=1e-6)


def test_threshold_on_separated_and_on_equal_groups():
    members, nonmembers = np.linspace(0.9, 1, 80), np.linspace(0, 0.5, 70)
    targets = np.where(np.arange(30) < 10, 0.95, 0.2)
    result = audit.threshold_attack(members, nonmembers, targets)
    assert float(result.shadow_accuracy) == 1
    assert float(result.efficacy) == pytest.approx(2 / 3)
    tied = audit.threshold_attack(np.ones(80), np.ones(70), np.ones(30))
    assert float(tied.shadow_accuracy) == pytest.approx(0.5)


def test_threshold_depends_on_order_alone():
    plain = audit.threshold_attack(*groups(1))
    stretched = audit.threshold_attack(*[np.exp(3 * score) for score in groups(1)])
    assert float(plain.efficacy) == float(stretched.efficacy)
    assert float(plain.shadow_accuracy) == float(stretched.shadow_accuracy)


def test_threshold_of_missing_or_nan_groups_is_nan():
    members, nonmembers, targets = groups(0)

    def attack(**weights):
        return audit.threshold_attack(members, nonmembers, targets, **weights)

    def broken(score):
        return np.where(score == score.max(), np.nan, score)

    no_members, no_nonmembers = np.zeros(80), np.zeros(70)
    assert np.isnan(attack(member_weights=no_members)).all()
    assert np.isnan(attack(nonmember_weights=no_nonmembers)).all()
    assert np.isnan(attack(member_weights=no_members, nonmember_weights=no_nonmembers)).all()
    assert np.isnan(audit.threshold_attack(broken(members), nonmembers, targets)).all()
    assert np.isnan(audit.threshold_attack(members, broken(nonmembers), targets)).all()
    for result in (
        attack(target_weights=np.zeros(30)),
        audit.threshold_attack(members, nonmembers, broken(targets)),
    ):
        assert np.isnan(result.efficacy) and np.isfinite(result.shadow_accuracy)


def test_threshold_jit_and_vmap_equal_eager():
    many = [jnp.stack(scores) for scores in zip(groups(0), groups(1), groups(2), strict=True)]
    mapped = jax.jit(jax.vmap(audit.threshold_attack))(*many)
    for k in range(3):
        one = audit.threshold_attack(*[scores[k] for scores in many])
        np.testing.assert_allclose([field[k] for field in mapped], one, rtol=1e-6)


def test_threshold_names_bad_input():
    good = jnp.arange(3.0)
    with pytest.raises(ValueError, match=r"targets has shape \(0,\)"):
        audit.threshold_attack(good, good, jnp.zeros(0))
    with pytest.raises(ValueError, match="target_weights has entries that are negative"):
        audit.threshold_attack(good, good, good, target_weights=-good)


# The support vector attack.


@pytest.mark.parametrize("C", [3.0, 10.0])
def test_svc_is_the_published_attack(C):
    members, nonmembers, targets = groups(4, sizes=(150, 100, 60))
    x = np.r_[members[:100], nonmembers][:, None].astype(float)
    truth = np.r_[np.ones(100), np.zeros(100)]
    model = SVC(C=C, gamma="auto", kernel="rbf").fit(x, truth)
    result = audit.svc_attack(members, nonmembers, targets, C=C)
    assert result.efficacy == pytest.approx(1 - model.predict(targets[:, None]).mean())
    assert result.shadow_accuracy == pytest.approx(model.score(x, truth))
    # As many non-members as targets: each of the 60 counts 1, each of the 100 counts .6.
    found, mistaken = model.predict(targets[:, None]).sum(), 0.6 * model.predict(x[100:]).sum()
    assert result.recall == pytest.approx(found / 60)
    assert result.precision == pytest.approx(found / (found + mistaken))


def test_svc_on_separated_groups():
    rng = np.random.default_rng(0)
    members, nonmembers = rng.uniform(0.9, 1, 200), rng.uniform(0, 0.4, 200)
    unseen = audit.svc_attack(members, nonmembers, nonmembers)
    assert unseen[:2] == (1, 1) and unseen.recall == 0 and np.isnan(unseen.precision)
    assert audit.svc_attack(members, nonmembers, members) == (0, 1, 1)
    mixed = np.r_[members[:30], nonmembers[:10]]
    assert audit.svc_attack(members, nonmembers, mixed).efficacy == 0.25


def test_svc_has_no_power_on_equal_laws_and_some_on_different_ones():
    # Trained on its own test rows, so slightly above 1/2 even without a difference.
    rng = np.random.default_rng(0)
    first, second, other = rng.beta(4, 2, 800), rng.beta(4, 2, 800), rng.beta(2, 2, 800)
    assert 0.5 <= audit.svc_attack(first, second, first).shadow_accuracy < 0.55
    assert audit.svc_attack(first, other, first).shadow_accuracy > 0.6


def test_svc_and_threshold_agree_on_well_behaved_scores():
    members, nonmembers, targets = groups(5, sizes=(1000, 1000, 500))
    thresholds, accuracy = sweep(members, nonmembers)
    expected = np.mean(targets < thresholds[accuracy.argmax()])
    result = audit.svc_attack(members, nonmembers, targets)
    assert result.efficacy == pytest.approx(expected, abs=0.15)
    assert result.shadow_accuracy == pytest.approx(accuracy.max(), abs=0.03)


def test_threshold_efficacy_is_noise_without_power_and_none_with_it():
    def spread(shift):
        efficacies, powers = [], []
        for seed in range(40):
            rng = np.random.default_rng(seed)
            members, nonmembers, targets = (rng.normal(m, 1, 500) for m in (shift, 0, 0))
            result = audit.threshold_attack(members, nonmembers, targets)
            efficacies.append(float(result.efficacy))
            powers.append(float(result.shadow_accuracy))
        return np.std(efficacies), np.mean(powers)

    (weak, power), (strong, more_power) = spread(0.05), spread(2.0)
    assert power < 0.55 and weak > 0.15
    assert more_power > 0.8 and strong < 0.08


def test_svc_takes_the_first_rows_in_equal_number():
    members, nonmembers, targets = groups(6, sizes=(50, 200, 40))
    result = audit.svc_attack(members, nonmembers, targets)
    assert result == audit.svc_attack(members, nonmembers[:50], targets)
    fewer = audit.svc_attack(members, nonmembers, targets, max_rows=20)
    assert fewer == audit.svc_attack(members[:20], nonmembers[:20], targets)
    unbounded = audit.svc_attack(members, nonmembers, targets, max_rows=None)
    assert unbounded == result


def test_svc_seed_draws_other_rows_and_repeats():
    # Sorted groups: the first rows of each are the unlikeliest.
    members, nonmembers, targets = (np.sort(score) for score in groups(7, sizes=(600, 600, 200)))
    first = audit.svc_attack(members, nonmembers, targets, max_rows=50)
    drawn = audit.svc_attack(members, nonmembers, targets, max_rows=50, seed=0)
    assert drawn == audit.svc_attack(members, nonmembers, targets, max_rows=50, seed=0)
    fair = audit.svc_attack(members, nonmembers, targets, max_rows=None).efficacy
    assert abs(drawn.efficacy - fair) < 0.2 < abs(first.efficacy - fair)


def test_svc_takes_several_features():
    rng = np.random.default_rng(0)
    members, nonmembers = rng.dirichlet([9, 1, 1], 100), rng.dirichlet([1, 9, 1], 100)
    assert audit.svc_attack(members, nonmembers, nonmembers).efficacy > 0.9


def test_svc_of_a_broken_model_is_nan():
    good = np.linspace(0, 1, 10)
    bad = np.where(good > 0.5, np.nan, good)
    for scores in ((bad, good, good), (good, bad, good), (good, good, bad)):
        assert np.isnan(audit.svc_attack(*scores)).all()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((np.zeros(0), np.ones(3), np.ones(3)), {}, r"members has shape \(0, 1\)"),
        ((np.ones(3), np.ones(3), np.ones((3, 2))), {}, "same number"),
        ((np.ones(3), np.ones((3, 1, 1)), np.ones(3)), {}, "nonmembers has shape"),
        ((np.ones(3), np.ones(3), np.ones(3)), {"C": 0}, "C=0"),
        ((np.ones(3), np.ones(3), np.ones(3)), {"max_rows": 0}, "max_rows=0"),
    ],
)
def test_svc_names_bad_input(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        audit.svc_attack(*arguments, **options)
