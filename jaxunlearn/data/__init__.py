"""Data: load it, say who asks to be forgotten, keep that split for every run."""

from jaxunlearn.data.requests import forget_class as forget_class
from jaxunlearn.data.requests import forget_indices as forget_indices
from jaxunlearn.data.requests import forget_random as forget_random
from jaxunlearn.data.requests import load_split as load_split
from jaxunlearn.data.requests import save_split as save_split
from jaxunlearn.data.requests import split_hash as split_hash
from jaxunlearn.data.sources import DATASETS as DATASETS
from jaxunlearn.data.sources import Splits as Splits
from jaxunlearn.data.sources import load as load

__all__ = [
    "DATASETS",
    "Splits",
    "forget_class",
    "forget_indices",
    "forget_random",
    "load",
    "load_split",
    "save_split",
    "split_hash",
]
