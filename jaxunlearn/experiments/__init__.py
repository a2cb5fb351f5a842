"""Comparisons of unlearning methods: configuration, runs, records, report."""

from jaxunlearn.experiments.compare import compare
from jaxunlearn.experiments.config import CompareConfig
from jaxunlearn.experiments.frontier import FrontierConfig, frontier
from jaxunlearn.experiments.records import Records, read_records

__all__ = ["CompareConfig", "FrontierConfig", "Records", "compare", "frontier", "read_records"]
