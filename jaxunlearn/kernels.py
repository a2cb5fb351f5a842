"""The operations of ``jaxunlearn_kernels``: arrays in, arrays out."""

from jaxunlearn_kernels.region_gate import region_gate as region_gate

__all__ = ["region_gate"]
