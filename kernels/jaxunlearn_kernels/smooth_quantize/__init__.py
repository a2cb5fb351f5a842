"""Randomized smoothing of the ternary quantizer, in closed form."""

from jaxunlearn_kernels.smooth_quantize.api import smooth_quantize
from jaxunlearn_kernels.smooth_quantize.laws import NOISES
from jaxunlearn_kernels.smooth_quantize.reference import Quantized

__all__ = ["NOISES", "Quantized", "smooth_quantize"]
