"""The ternary quantizer under noise, sampled."""

from jaxunlearn_kernels.monte_carlo_votes.api import monte_carlo_votes
from jaxunlearn_kernels.monte_carlo_votes.reference import Votes

__all__ = ["Votes", "monte_carlo_votes"]
