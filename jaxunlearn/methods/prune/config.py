"""How to patch."""

import dataclasses
import math

from jaxunlearn import _validate
from jaxunlearn.primitives.patches import SHARPNESS

MODES = ("point", "region", "replace", "paper")


@dataclasses.dataclass(frozen=True)
class PruneConfig:
    """How to patch.

    Attributes:
      mode: ``point``: the least constant that flips the point itself. ``region``: the least
        one that is proved to flip all of its region. ``replace``: in the region the logits
        are replaced by those of the point with its label put second, which flips all of it
        without any proof, and without a suspicious loss. ``paper``: Algorithm 1.
      margin: epsilon, by which the target leads.
      sharpness: lambda of the gate.
      low: least value of an input of the dense layers, for ``region`` and ``paper``.
      high: greatest one.
      iterations: of the bound.
      capacity: patches that a state can hold; the memory is for so many from the start.
      clusters: K of Algorithm 1.
      share: delta of Algorithm 1: it ends when this share of the points is flipped.
      rounds: of Algorithm 1, at most.
    """

    mode: str = "point"
    margin: float = 0.1
    sharpness: float = SHARPNESS
    low: float | None = None
    high: float | None = None
    iterations: int = 200
    capacity: int = 1000
    clusters: int = 4
    share: float = 0.97
    rounds: int = 20

    def __post_init__(self):
        _validate.one_of(MODES, mode=self.mode)
        _validate.positive(margin=self.margin, sharpness=self.sharpness)
        _validate.whole(
            iterations=self.iterations,
            capacity=self.capacity,
            clusters=self.clusters,
            rounds=self.rounds,
        )
        _validate.fraction(share=self.share)
        if self.low is not None and self.high is not None:
            _box(self.low, self.high)
        elif self.mode not in ("region", "paper") and (self.low, self.high) != (None, None):
            raise ValueError(
                f"low={self.low!r} and high={self.high!r}: an input box needs both, or neither."
            )
        if self.mode in ("region", "paper") and (self.low is None or self.high is None):
            raise ValueError(
                f"mode={self.mode!r} needs an input box, but low={self.low!r} and "
                f"high={self.high!r}: a region may be unbounded, and then nothing flips all of "
                "it. Give the range of the inputs, low=0.0 and high=1.0 for images."
            )


@dataclasses.dataclass(frozen=True)
class PruneClassConfig:
    """How to widen, and when to stop.

    Attributes:
      radius_scale: times the radius that CROWN certifies for each point's label; 1 generalises
        little and changes nothing else, 2 is near the paper's Table V, 4 breaks the network.
      radius: the same l_inf radius for all points instead.
      margin: epsilon, by which the target leads at every requested point.
      sharpness: lambda of the gate.
      low: least value of an input of the dense layers: of a feature, where there is an extractor.
        Points outside of the box are not covered.
      high: greatest one.
      share: delta: ends when this share of the requested points is covered.
      capacity: patches that a state can hold.
      candidates: requested points that are looked at, at most.
    """

    radius_scale: float = 1.0
    radius: float | None = None
    margin: float = 0.1
    sharpness: float = SHARPNESS
    low: float = 0.0
    high: float = 1.0
    share: float = 0.97
    capacity: int = 500
    candidates: int = 6000

    def __post_init__(self):
        _validate.positive(
            radius_scale=self.radius_scale, margin=self.margin, sharpness=self.sharpness
        )
        if self.radius is not None:
            _validate.positive(radius=self.radius)
        _box(self.low, self.high)
        _validate.fraction(share=self.share)
        _validate.whole(capacity=self.capacity, candidates=self.candidates)


def _box(low: float, high: float) -> None:
    if not (math.isfinite(low) and low < high < math.inf):
        raise ValueError(f"low={low!r} and high={high!r} must be finite, and low < high.")
