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


def weight_grad(
    dz: Tensor,
    t: Tensor,
    kernel: tuple[int, int],
    before: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """`[groups * R2, R1, kh, kw]` of the convolution that takes t `[N, groups * R1, H, W]`, with `before` zeros above
    and to the left, to z `[N, groups * R2, H', W']`; both maps have their channels side by side."""
    native = torch.ops.rdkernels_native
    taps = native.lowrank_tap_grads(dz, t, groups, *kernel, *before, *dilation)
    return native.lowrank_taps_last(taps).view(dz.shape[1], t.shape[1] // groups, *kernel)
