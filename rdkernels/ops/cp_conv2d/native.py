"""What the CPU kernel is given: factors as strips and lines, the inner products kept for the backward."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..chain import NativeCall, native_chain
from ..packing import STRIP, packed, strips
from . import OP


def pack(inner: Tensor, vertical: Tensor, horizontal: Tensor, outer: Tensor) -> Tensor:
    """Inner by R, the lines [tap][R] in whole strips, outer by O."""
    lines = [F.pad(line.T, (0, -line.shape[0] % STRIP)).flatten() for line in (vertical, horizontal)]
    return torch.cat([strips(inner.T), *lines, strips(outer.T)])


@native_chain(OP, ("ranks", "kh", "kw"), maps=1)
def prepare(x: Tensor, factors: tuple[Tensor, ...]) -> NativeCall:
    _, vertical, horizontal, _ = factors
    return NativeCall(packed(OP, factors, pack), (*vertical.shape, horizontal.shape[1]))
