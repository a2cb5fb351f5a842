"""The trilemma in one run: every setting of a method on every seed, and what no setting beats."""

from jaxunlearn.experiments.frontier.config import FrontierConfig
from jaxunlearn.experiments.frontier.front import Frontier, frontier_of
from jaxunlearn.experiments.frontier.page import write_page
from jaxunlearn.experiments.frontier.run import frontier
from jaxunlearn.experiments.frontier.table import print_front, write_front

__all__ = [
    "Frontier",
    "FrontierConfig",
    "frontier",
    "frontier_of",
    "print_front",
    "write_front",
    "write_page",
]
