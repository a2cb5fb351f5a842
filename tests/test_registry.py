"""The registry's rows, and what it refuses."""

import dataclasses
import inspect

import pytest

from jaxunlearn import TrainConfig, models, registry
from jaxunlearn.baselines import FineTuneConfig, InfluenceConfig, retrain
from jaxunlearn.registry import PrunedConfig
from jaxunlearn.training import PruningConfig

MODEL = models.logistic(3)


@pytest.mark.parametrize("name", registry.METHODS)
def test_rows_are_complete(name):
    method = registry.get(name)
    assert method.name == name
    assert method.guarantee.split(" ")[0].rstrip(":") in ("exact", "certified", "none")
    assert method.source and method.needs
    hash(method.config)  # static under jit
    assert dataclasses.is_dataclass(method.config)


def test_a_mask_that_has_seen_the_removed_rows_is_not_exact():
    exact = [name for name, m in registry.METHODS.items() if m.guarantee.startswith("exact")]
    assert "retrain" in exact
    assert not any(name.endswith("+pruning") for name in exact)
    assert "Guarantee: exact" in inspect.getdoc(retrain)


def test_unknown_names_are_answered_with_near_ones():
    with pytest.raises(ValueError, match=r"method='fintune' is unknown. Did you mean 'finetune'"):
        registry.get("fintune")
    with pytest.raises(ValueError, match=r"method='xyz' is unknown. Known: noop, retrain"):
        registry.make("xyz", MODEL)


def test_a_configuration_must_be_of_the_method():
    wrong = InfluenceConfig()
    with pytest.raises(ValueError, match="does not configure 'finetune': give a FineTuneConfig"):
        registry.make("finetune", MODEL, config=wrong)
    with pytest.raises(ValueError, match="does not configure 'finetune': give a FineTuneConfig"):
        registry.make("finetune+pruning", MODEL, config=PrunedConfig(then=wrong))
    with pytest.raises(ValueError, match="does not configure 'finetune.pruning': give a Pruned"):
        registry.make("finetune+pruning", MODEL, config=FineTuneConfig())


def test_same_arguments_same_object():
    """So that what was compiled for one is found again."""
    train, config = TrainConfig(epochs=2), FineTuneConfig(epochs=2)
    make = lambda: registry.make("finetune", MODEL, train=train, config=config)
    assert make() is make()
    assert make() is not registry.make("finetune", MODEL, train=train)


def test_defaults_are_the_same_arguments_too():
    given = registry.make("noop", MODEL, train=TrainConfig(), config=registry.get("noop").config)
    assert registry.make("noop", MODEL) is given


def test_a_model_that_cannot_be_hashed_is_refused():
    class Weights:
        __hash__ = None

        def __call__(self, params, x):
            return x

    with pytest.raises(
        ValueError, match="model has an init or apply that cannot be hashed .* wrap"
    ):
        registry.make("noop", MODEL._replace(apply=Weights()))


def test_pruned_method_with_its_own_defaults():
    registry.make("finetune+pruning", MODEL, config=PrunedConfig(PruningConfig(rate=0.5)))


def test_who_trains_alike():
    training = lambda name, config=None: registry.get(name).training(
        registry.get(name).config if config is None else config
    )
    muters = [name for name in registry.METHODS if name.startswith("muter")]
    assert len(muters) == 8 and len({training(name) for name in muters}) == 1
    assert {registry.get(name).trainer for name in muters} == {"muter"}
    default = registry.get("muter").config
    for changed in ({"l2": 0.1}, {"newton_steps": 3}):
        assert training("muter", dataclasses.replace(default, **changed)) != training("muter")
    for same in ({"noise": 0.1}, {"refresh": 2}):
        assert training("muter", dataclasses.replace(default, **same)) == training("muter")
    assert training("finetune") == training("noop") == "plain"
    assert training("sisa") != training("amnesiac") and registry.get("sisa").trainer == "sisa"
