"""Data: load it, say who asks to be forgotten, keep that split for every run."""

from jaxunlearn.data.requests import confuse_classes as confuse_classes
from jaxunlearn.data.requests import forget_class as forget_class
from jaxunlearn.data.requests import forget_indices as forget_indices
from jaxunlearn.data.requests import forget_random as forget_random
from jaxunlearn.data.requests import load_split as load_split
from jaxunlearn.data.requests import save_split as save_split
from jaxunlearn.data.requests import split_hash as split_hash
from jaxunlearn.data.sources import DATASETS as DATASETS
from jaxunlearn.data.sources import Splits as Splits
from jaxunlearn.data.sources import load as load
from jaxunlearn.data.vulnerable import forget_mixed as forget_mixed
from jaxunlearn.data.vulnerable import forget_protected as forget_protected
from jaxunlearn.data.vulnerable import forget_vulnerable as forget_vulnerable
from jaxunlearn.data.vulnerable import row_vulnerability as row_vulnerability

__all__ = [
    "DATASETS",
    "Splits",
    "confuse_classes",
    "forget_class",
    "forget_indices",
    "forget_mixed",
    "forget_protected",
    "forget_random",
    "forget_vulnerable",
    "load",
    "load_split",
    "row_vulnerability",
    "save_split",
    "split_hash",
]
