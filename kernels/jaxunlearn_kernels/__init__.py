"""Kernels of jaxunlearn: arrays in, arrays out, one folder an operation."""
