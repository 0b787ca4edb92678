"""The gradient of a convolution's weight for stride 1, by the CPU library."""

from __future__ import annotations

import torch
from torch import Tensor

from ..registry import define_native

define_native(
    "lowrank_tap_grads(Tensor dz, Tensor t, int groups, int kh, int kw, int top, int left, int dilation_h, "
    "int dilation_w) -> Tensor"
)
define_native("lowrank_taps_last(Tensor grads) -> Tensor")


def weight_grad(dz: Tensor, t: Tensor, kernel: tuple[int, int], before: tuple[int, int], dilation: tuple[int, int]):
    """`[R2, R1, kh, kw]` of the convolution that takes t `[N, R1, H, W]`, with `before` zeros above and to the left, to
    z `[N, R2, H', W']`; both maps have their channels side by side."""
    native = torch.ops.rdkernels_native
    taps = native.lowrank_tap_grads(dz, t, 1, *kernel, *before, *dilation)
    return native.lowrank_taps_last(taps).view(dz.shape[1], t.shape[1], *kernel)
