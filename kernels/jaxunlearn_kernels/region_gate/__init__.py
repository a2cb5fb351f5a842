"""How far each input is inside each of many linear regions of a ReLU network."""

from jaxunlearn_kernels.region_gate.api import region_gate

__all__ = ["region_gate"]
