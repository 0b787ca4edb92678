"""What the CPU kernel is given: factors as strips, the maps before and after the core kept for the backward."""

from __future__ import annotations

import torch
from torch import Tensor

from ..chain import NativeCall, native_chain
from ..packing import core_lines, packed, strips
from . import OP


def pack(inner: Tensor, core: Tensor, outer: Tensor) -> Tensor:
    """Inner by R1, core as [kh, panel, kw, rank] by R2, outer by O."""
    return torch.cat([strips(inner.T), strips(core_lines(core)), strips(outer.T)])


@native_chain(OP, ("r1", "r2", "kh", "kw"), maps=2)
def prepare(x: Tensor, factors: tuple[Tensor, ...]) -> NativeCall:
    r2, r1, kh, kw = factors[1].shape
    return NativeCall(packed(OP, factors, pack), (r1, r2, kh, kw))
