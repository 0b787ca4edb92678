"""Kernels with a known fault: what a sanitizer must refuse before its silence counts (`gpu_smoke.py --broken`)."""

import torch
import triton
import triton.language as tl


@triton.jit
def copy(x, y, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i))


def store() -> None:
    """Writes 4096 values into a tensor of 64."""
    copy[(1,)](torch.ones(4096, device="cuda"), torch.empty(64, device="cuda"), BLOCK=4096)


def read() -> None:
    """Reads 4096 values that nobody wrote."""
    copy[(1,)](torch.empty(4096, device="cuda"), torch.empty(4096, device="cuda"), BLOCK=4096)
