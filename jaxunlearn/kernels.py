"""The operations of jaxunlearn_kernels: arrays in, arrays out, with a choice of implementation."""

from jaxunlearn_kernels.monte_carlo_votes import Votes, monte_carlo_votes
from jaxunlearn_kernels.region_gate import region_gate
from jaxunlearn_kernels.smooth_quantize import NOISES, Quantized, smooth_quantize

__all__ = ["NOISES", "Quantized", "Votes", "monte_carlo_votes", "region_gate", "smooth_quantize"]
