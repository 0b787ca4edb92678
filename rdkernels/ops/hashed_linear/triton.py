"""Triton kernels of the three passes."""


def status() -> str:
    return "not available"
