"""What a comparison may be, and how settings are read."""

import dataclasses

import pytest

from jaxunlearn import TrainConfig
from jaxunlearn.experiments import CompareConfig


def setting(text: str, methods: str = "finetune,influence,finetune+pruning"):
    name = text.partition(".")[0]
    return CompareConfig(methods=methods, settings=(text,)).method_configs()[name]


@pytest.mark.parametrize(
    "text, value",
    [
        ("finetune.learning_rate=0.05", 0.05),
        ("finetune.learning_rate=.05", 0.05),
        ("finetune.learning_rate=5e-2", 0.05),
        ("finetune.learning_rate=1", 1.0),  # a whole number where a float is wanted
        ("finetune.epochs=3", 3),
        ("finetune.schedule=cosine", "cosine"),
        ("influence.samples=7", 7),
        ("influence.samples=None", None),
        ("influence.samples=none", None),
        ("finetune+pruning.pruning.rate=0.5", 0.5),
        ("finetune+pruning.then.epochs=3", 3),
    ],
)
def test_settings_are_read_as_their_type(text, value):
    config, path = setting(text), text.partition("=")[0].split(".")[1:]
    for name in path:
        config = getattr(config, name)
    assert config == value and type(config) is type(value)


def test_settings_touch_nothing_else():
    before = CompareConfig(methods="finetune").method_configs()
    after = CompareConfig(methods="finetune", settings=("finetune.epochs=3",)).method_configs()
    assert after.pop("finetune") == dataclasses.replace(before.pop("finetune"), epochs=3)
    assert after == before


@pytest.mark.parametrize(
    "text, message",
    [
        ("finetune.epochs", r"settings='finetune.epochs' must read METHOD.FIELD=VALUE"),
        ("epochs=3", r"settings='epochs=3' must read METHOD.FIELD=VALUE"),
        ("fintune.epochs=3", r"'fintune' is unknown. Did you mean 'finetune'"),
        ("retrain.epochs=3", r"'retrain.epochs=3': there is no 'epochs'; there are none"),
        ("finetune.epoch=3", r"there is no 'epoch'; there are learning_rate, epochs"),
        ("finetune.epochs=3.5", r"finetune.epochs=3.5': epochs must be of type int"),
        ("finetune.epochs=true", r"epochs must be of type int"),
        ("finetune.learning_rate=fast", r"learning_rate must be of type float"),
        ("influence.samples=1.5", r"samples must be of type int or NoneType"),
        ("finetune.epochs.more=1", r"epochs has no fields"),
        ("finetune+pruning.rate=0.5", r"there is no 'rate'; there are pruning, then"),
        ("finetune+pruning.pruning=0.5", r"PruningConfig. Set its fields: .*pruning.pruning.rate="),
        # Values out of range are refused by the method's own configuration.
        ("finetune.learning_rate=-1", r"learning_rate=-1.0 must be a finite number > 0"),
        ("finetune.learning_rate=nan", r"learning_rate=nan must be a finite number > 0"),
        ("finetune+pruning.then.momentum=1.5", r"momentum=1.5 must be below 1"),
        ("finetune+pruning.pruning.rate=1", r"rate=1.0 must lie strictly between 0 and 1"),
        ("influence.damping=0", r"damping=0.0 must be a finite number > 0"),
    ],
)
def test_bad_settings(text, message):
    with pytest.raises(ValueError, match=message):
        setting(text)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"model": "mpl"}, r"model='mpl' is unknown. Did you mean 'mlp'"),
        ({"methods": "fintune"}, r"method='fintune' is unknown. Did you mean 'finetune'"),
        ({"forget": "rows"}, r"forget='rows' is unknown. .*Known: random, class"),
        ({"fraction": 0.0}, r"fraction=0.0 must lie strictly between 0 and 1"),
        ({"fraction": 1.0}, r"fraction=1.0 must lie strictly between 0 and 1"),
        ({"fraction": 1.5, "forget": "class"}, r"fraction=1.5 must lie"),
        ({"fraction": float("nan")}, r"fraction=nan must lie"),
        ({"seeds": 0}, r"seeds=0 must be an integer >= 1"),
        ({"first_seed": -1}, r"first_seed=-1 must be an integer >= 0"),
        ({"references": 2}, r"references=2 must be an integer >= 3"),
        ({"label": -1, "forget": "class"}, r"label=-1 must be an integer >= 0"),
        ({"label": 3}, r"label=3 does not go with forget='random'"),
        ({"forget": "class"}, r"label=None does not go with forget='class'"),
        ({"rows": 5}, r"rows=5 must be an integer >= 10"),
    ],
)
def test_bad_comparisons(options, message):
    with pytest.raises(ValueError, match=message):
        CompareConfig(**options)


def test_a_whole_class_may_be_forgotten():
    assert CompareConfig(forget="class", label=0, fraction=1.0).fraction == 1.0


def test_noop_and_retrain_are_always_there_and_each_method_once():
    config = CompareConfig(methods=" finetune, retrain,,finetune ")
    assert config.method_names() == ["retrain", "noop", "finetune"]


def test_fingerprint_is_what_decides_the_records(tmp_path):
    base = CompareConfig()
    same = dataclasses.replace(
        base,
        seeds=9,
        first_seed=20,
        methods="finetune",
        settings=("finetune.epochs=2",),  # each record has its own
        out=tmp_path,
        data_dir=tmp_path,
        train=dataclasses.replace(base.train, progress=True),
    )
    assert same.fingerprint() == base.fingerprint()
    for change in (
        {"rows": 100},
        {"model": "logistic"},
        {"fraction": 0.1},
        {"forget": "class", "label": 1},
        {"references": 6},
        {"train": TrainConfig(epochs=7)},
        {"dataset": "breast_cancer"},
    ):
        assert dataclasses.replace(base, **change).fingerprint() != base.fingerprint()
    one, two = (CompareConfig(forget="class", label=label).fingerprint() for label in (1, 2))
    assert one != two
