"""What the CPU kernel is given: factors as strips, the vertical result kept; the backward as the chain reversed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..chain import NativeCall, native_backward, native_chain, reversed_geometry, run_reversed
from ..convolution import Geometry
from ..packing import pack, packed, panels
from ..tap_grads import weight_grad
from . import OP


def strips(vertical: Tensor, horizontal: Tensor) -> Tensor:
    """Vertical as [kh, C] by R, horizontal as [panel, kw, rank] by O."""
    return pack([vertical.permute(2, 1, 0)], panels(horizontal.permute(2, 1, 0)))


def turned_strips(vertical: Tensor, horizontal: Tensor) -> Tensor:
    """The same of the chain that takes dy to dx, on maps whose height and width are exchanged."""
    return strips(horizontal.flip(2).transpose(0, 1), vertical.flip(2).transpose(0, 1))


@native_chain(OP, ("ranks", "kh", "kw"), maps=1)
def prepare(x: Tensor, factors: tuple[Tensor, Tensor]) -> NativeCall:
    ranks, _, kh = factors[0].shape
    return NativeCall(packed(OP, factors, strips), (ranks, kh, factors[1].shape[2]))


@native_backward(OP)
def backward(dy: Tensor, x: Tensor, factors: Sequence[Tensor], maps: Sequence[Tensor], where: Geometry):
    """dy through the horizontal factor, then the vertical one: a separable convolution with the axes exchanged."""
    vertical, horizontal = factors
    (ranks, _, kh), kw = vertical.shape, horizontal.shape[2]
    back = reversed_geometry(where, kh, kw)
    if min(back) < 0:
        return None
    back = Geometry(1, 1, back.left, back.right, back.top, back.bottom, back.dilation_w, back.dilation_h)
    (t,) = maps
    dy, x = (m.contiguous(memory_format=torch.channels_last) for m in (dy, x))
    dx = torch.empty_like(x)
    turned = (horizontal.transpose(0, 1), vertical.transpose(0, 1))  # as far as shapes go
    weights = packed(f"{OP} reversed", factors, turned_strips)
    (dt,) = run_reversed(OP, dy.transpose(2, 3), dx.transpose(2, 3), turned, (ranks, kw, kh), weights, back)
    down = weight_grad(dt.transpose(2, 3), x, (kh, 1), (where.top, 0), (where.dilation_h, 1))
    over = weight_grad(dy, t, (1, kw), (0, where.left), (1, where.dilation_w))
    return dx, down[..., 0], over[:, :, 0]
