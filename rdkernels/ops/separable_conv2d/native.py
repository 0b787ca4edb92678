"""What the CPU kernel is given: factors as strips, the vertical result kept for the backward."""

from __future__ import annotations

from torch import Tensor

from ..chain import NativeCall, native_chain
from ..packing import pack, packed, panels
from . import OP


def strips(vertical: Tensor, horizontal: Tensor) -> Tensor:
    """Vertical as [kh, C] by R, horizontal as [panel, kw, rank] by O."""
    return pack([vertical.permute(2, 1, 0)], panels(horizontal.permute(2, 1, 0)))


@native_chain(OP, ("ranks", "kh", "kw"), maps=1)
def prepare(x: Tensor, factors: tuple[Tensor, Tensor]) -> NativeCall:
    ranks, _, kh = factors[0].shape
    return NativeCall(packed(OP, factors, strips), (ranks, kh, factors[1].shape[2]))
