"""What a frontier is: a method, the grid of its knobs, and the task."""

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from jaxunlearn import _validate, registry
from jaxunlearn._grid import Swept
from jaxunlearn.baselines import finetune_sweep
from jaxunlearn.experiments.config import TRAIN, TaskConfig, replace_at
from jaxunlearn.methods import conmu
from jaxunlearn.training import TrainConfig


class Sweep(NamedTuple):
    """A method with a program for many settings at once, and the grid that it has by default."""

    run: Callable[..., Iterator[Swept]]
    grid: tuple[str, ...]


SWEEPS = {
    "conmu": Sweep(
        conmu.sweep,
        # How many rows, how much noise, how long a proxy: the knobs of the three modules.
        ("retain.high=.8,.9,.95,1", "alpha=0,.5,1,3", "proxy_epochs=1,3"),
    ),
    "finetune": Sweep(
        finetune_sweep.sweep, ("epochs=1,2,5,10,20", "learning_rate=.001,.003,.01,.03,.1")
    ),
}
PRIVACY = ("jsd", "frm")


class Setting(NamedTuple):
    """One point of a grid: its knobs by name, and the whole configuration."""

    method: str
    knobs: dict[str, float]
    config: Any

    @property
    def name(self) -> str:
        """Knobs in one line, which also names its records."""
        return ",".join(f"{name}={value:g}" for name, value in self.knobs.items())


@dataclasses.dataclass(frozen=True)
class FrontierConfig(TaskConfig):
    """Utility, privacy and cost of a grid of settings, against fine-tuning with its own knobs.

    Attributes:
      method: conmu, or finetune for itself alone.
      grid: FIELD=VALUE,VALUE,... of the method, one or more; every combination is run.
      finetune_grid: the same of the comparison.
      compare: run the comparison with fine-tuning.
      privacy: which settings beat which: by "jsd", divergence from retrained models on the
        forgotten rows, or by "frm". The page shows both.
      chunk: settings computed at once; as many as memory allows by default.
    """

    method: str = "conmu"
    grid: tuple[str, ...] = ()
    finetune_grid: tuple[str, ...] = ()
    compare: bool = True
    privacy: str = "jsd"
    chunk: int | None = None
    seeds: int = 4
    train: TrainConfig = TRAIN
    out: pathlib.Path = pathlib.Path("runs/frontier")

    def __post_init__(self):
        super().__post_init__()
        _validate.one_of(SWEEPS, method=self.method)
        _validate.one_of(PRIVACY, privacy=self.privacy)
        if self.chunk is not None:
            _validate.whole(chunk=self.chunk)
        self.grids()

    def grids(self) -> dict[str, list[Setting]]:
        """The settings of the method and of the comparison."""
        asked = {self.method: self.grid}
        if self.compare and self.method != "finetune":
            asked["finetune"] = self.finetune_grid
        return {
            name: settings_of(name, self._base(name), axes or SWEEPS[name].grid)
            for name, axes in asked.items()
        }

    def _base(self, name: str) -> Any:
        """The method's configuration with ``settings`` applied."""
        config = registry.get(name).config
        for setting in self.settings:
            path, separator, value = setting.partition("=")
            method, dot, field = path.partition(".")
            if not separator or not dot:
                raise ValueError(
                    f"settings={setting!r} must read METHOD.FIELD=VALUE, for example conmu.gamma=1."
                )
            _validate.one_of([self.method, "finetune"], settings=method)
            if method == name:
                config = replace_at(config, field, value, setting)
        return config

    def method_configs(self) -> dict[str, Any]:
        """What stands beside every frontier: retraining and doing nothing."""
        return {name: registry.get(name).config for name in self.method_names()}

    def fingerprint(self) -> dict[str, Any]:
        """What decides the records; the grids may grow from one run to the next."""
        values = super().fingerprint()
        for name in ("method", "grid", "finetune_grid", "compare", "privacy", "chunk"):
            del values[name]
        # A setting's name has its knobs only, so what else it is made of belongs to the folder.
        values["base"] = {name: repr(self._base(name)) for name in self.grids()}
        return values


def settings_of(method: str, base: Any, axes: tuple[str, ...]) -> list[Setting]:
    """Every combination of the values of the axes.

    Args:
      method: its name.
      base: the configuration that the axes change.
      axes: ``FIELD=VALUE,VALUE,...``, dots for fields within fields.

    Raises:
      ValueError: an axis that is none, a value that does not fit, the same value or field twice.

    Example:
      >>> from jaxunlearn.methods.conmu import ConMUConfig
      >>> [s.name for s in settings_of("conmu", ConMUConfig(), ("alpha=0,1", "gamma=2"))]
      ['alpha=0,gamma=2', 'alpha=1,gamma=2']
    """
    columns: dict[str, list[str]] = {}
    for axis in axes:
        field, separator, values = axis.partition("=")
        texts = [text.strip() for text in values.split(",") if text.strip()]
        if not separator or not texts:
            raise ValueError(f"grid={axis!r} must read FIELD=VALUE,VALUE,... as in alpha=0,1,3.")
        if field in columns:
            raise ValueError(f"grid={axis!r}: {field} has an axis already. Give each field once.")
        columns[field] = texts
    settings = []
    for texts in itertools.product(*columns.values()):
        config, knobs = base, {}
        for field, text in zip(columns, texts, strict=True):
            config = replace_at(config, field, text, f"{method}.{field}={text}")
            knobs[field] = _number(text, field)
        settings.append(Setting(method, knobs, config))
    names = [setting.name for setting in settings]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"grid has {twice[0]!r} twice: give each value once.")
    return settings


def _number(text: str, field: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"grid: {field}={text!r} is no number, and a grid has numbers only.")
    return value
