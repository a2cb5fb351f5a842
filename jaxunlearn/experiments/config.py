"""What a comparison is, and how the settings of single methods are written."""

import dataclasses
import json
import pathlib
import typing
from typing import Any

from jaxunlearn import _validate, registry
from jaxunlearn.models import MODELS
from jaxunlearn.training import TrainConfig

FORGET = ("random", "class")
DEFAULT_METHODS = (
    "noop,retrain,finetune,gradient_ascent,influence,influence_woodfisher,"
    "noop+pruning,finetune+pruning"
)


# Long enough for the model to memorise its rows: there is nothing to forget otherwise.
TRAIN = TrainConfig(epochs=100, learning_rate=0.1, progress=True)


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """What is trained, who asks to be forgotten, and what the result is compared with.

    Attributes:
      dataset: "digits" and "breast_cancer" are embedded; other names are TFDS image sets.
      data_dir: folder of prepared TFDS sets.
      rows: use only the first so many training rows (the order is a fixed shuffle).
      model: see `jaxunlearn models`.
      forget: "random" rows, or rows of one "class".
      fraction: of the training rows (random) or of the rows of the class.
      label: the class to forget from, with --forget class.
      settings: METHOD.FIELD=VALUE, one or more, e.g. finetune.learning_rate=0.05.
      seeds: how many; each draws its own request, initial parameters and order of rows.
      first_seed: the seeds run from here on. Choose settings on other seeds (and in another
        folder) than those you report.
      references: retrained models per seed that everything is compared with, >= 3.
      train: how the original is trained, and every retrained model too.
      out: folder for records and report; run again to go on where it stopped.
    """

    dataset: str = "digits"
    data_dir: pathlib.Path | None = None
    rows: int | None = None
    model: str = "mlp"
    forget: str = "random"
    fraction: float = 0.2
    label: int | None = None
    settings: tuple[str, ...] = ()
    seeds: int = 5
    first_seed: int = 0
    references: int = 5
    train: TrainConfig = TRAIN
    out: pathlib.Path = pathlib.Path("runs/compare")

    def __post_init__(self):
        _validate.one_of(MODELS, model=self.model)
        _validate.one_of(FORGET, forget=self.forget)
        if not (self.forget == "class" and self.fraction == 1):
            _validate.fraction(fraction=self.fraction)
        _validate.whole(seeds=self.seeds)
        _validate.whole(3, references=self.references)
        _validate.whole(0, first_seed=self.first_seed)
        if (self.forget == "class") != (self.label is not None):
            raise ValueError(
                f"label={self.label!r} does not go with forget={self.forget!r}: "
                "a class to forget needs its label, and only that."
            )
        if self.label is not None:
            _validate.whole(0, label=self.label)
        if self.rows is not None:
            _validate.whole(10, rows=self.rows)
        self.method_configs()

    def method_names(self) -> list[str]:
        """The methods, retrain and noop in front: the records of the others need retrain's cost."""
        return ["retrain", "noop"]

    def method_configs(self) -> dict[str, Any]:
        """The configuration of every method, with ``settings`` applied."""
        configs = {name: registry.get(name).config for name in self.method_names()}
        for setting in self.settings:
            path, separator, value = setting.partition("=")
            name, dot, field = path.partition(".")
            if not separator or not dot:
                raise ValueError(
                    f"settings={setting!r} must read METHOD.FIELD=VALUE, "
                    "for example finetune.learning_rate=0.05."
                )
            registry.get(name)
            if name not in configs:
                raise ValueError(
                    f"settings={setting!r}: {name!r} is not among the methods of this comparison: "
                    f"{', '.join(configs)}."
                )
            configs[name] = replace_at(configs[name], field, value, setting)
        return configs

    def fingerprint(self) -> dict[str, Any]:
        """What decides the records: all but where the data and the results lie.

        Methods and seeds are not part of it: they may grow from one run to the next. Nor are
        settings: each record has those of its method.
        """
        values = json.loads(json.dumps(dataclasses.asdict(self), default=str))
        for name in ("data_dir", "out", "methods", "settings", "seeds", "first_seed"):
            values.pop(name, None)
        del values["train"]["progress"]
        return values


@dataclasses.dataclass(frozen=True)
class CompareConfig(TaskConfig):
    """Trains, unlearns with several methods, and audits each against retrained models.

    Attributes:
      methods: names with commas between, see `jaxunlearn methods`; noop and retrain
        are always added.
    """

    methods: str = DEFAULT_METHODS

    def method_names(self) -> list[str]:
        """The methods in the order asked for, with retrain and noop in front."""
        asked = [name.strip() for name in self.methods.split(",") if name.strip()]
        for name in asked:
            registry.get(name)
        return list(dict.fromkeys(["retrain", "noop", *asked]))


def replace_at(config: Any, path: str, text: str, setting: str) -> Any:
    """``config`` with the field at the dotted ``path`` set to ``text``, read as its type."""
    name, _, rest = path.partition(".")
    fields = [field.name for field in dataclasses.fields(config)]
    if name not in fields:
        raise ValueError(
            f"settings={setting!r}: there is no {name!r}; there are {', '.join(fields) or 'none'}."
        )
    old = getattr(config, name)
    if rest:
        if not dataclasses.is_dataclass(old):
            raise ValueError(f"settings={setting!r}: {name} has no fields.")
        return dataclasses.replace(config, **{name: replace_at(old, rest, text, setting)})
    value = _read(text)
    wanted = typing.get_type_hints(type(config))[name]
    allowed = typing.get_args(wanted) or (wanted,)
    if float in allowed and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) not in allowed:
        names = " or ".join(getattr(kind, "__name__", str(kind)) for kind in allowed)
        hint = ""
        if dataclasses.is_dataclass(old):
            inner = dataclasses.fields(old)[0].name
            hint = f" Set its fields: {setting.partition('=')[0]}.{inner}=..."
        raise ValueError(f"settings={setting!r}: {name} must be of type {names}.{hint}")
    return dataclasses.replace(config, **{name: value})


def _read(text: str) -> Any:
    """A whole number, another number, None, True or False; else the text itself."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return {"none": None, "true": True, "false": False}.get(text.lower(), text)
