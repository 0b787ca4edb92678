"""What the CPU kernels are given: factors as strips and lines; two maps kept; the backward as the chain reversed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ...registry import define_native, native_on_gpu
from ..chain import NativeCall, native_backward, native_chain, pixels, reversed_geometry, run_reversed
from ..convolution import Geometry, memory_format
from ..packing import pack, packed, wide
from . import OP

GPU_TAPS = 225  # a window of more does not fit into every GPU's shared memory

define_native(
    f"{OP}_line_grads(Tensor t, Tensor dz, Tensor taps, int kh, int top, int left, int dilation_h, int dilation_w) "
    "-> Tensor"
)


def lines(vertical: Tensor, horizontal: Tensor) -> Tensor:
    """`[kh + kw, R in whole strips]`."""
    return F.pad(torch.cat([vertical.T, horizontal.T]), (0, wide(len(vertical)) - len(vertical)))


def strips(inner: Tensor, vertical: Tensor, horizontal: Tensor, outer: Tensor) -> Tensor:
    """Inner by R, the lines, outer by O."""
    return pack([inner.T[None]], lines(vertical, horizontal).flatten(), [outer.T[None]])


def turned_strips(inner: Tensor, vertical: Tensor, horizontal: Tensor, outer: Tensor) -> Tensor:
    """The same of the chain that takes dy to dx."""
    return strips(outer.T, vertical.flip(1), horizontal.flip(1), inner.T)


native_on_gpu(f"{OP}_fwd", lambda x, inner, down, across, *_: down.shape[1] * across.shape[1] <= GPU_TAPS)


@native_chain(OP, ("ranks", "kh", "kw"), maps=2)
def prepare(x: Tensor, factors: tuple[Tensor, ...]) -> NativeCall:
    _, vertical, horizontal, _ = factors
    return NativeCall(packed(OP, factors, strips), (*vertical.shape, horizontal.shape[1]))


@native_backward(OP)
def backward(dy: Tensor, x: Tensor, factors: Sequence[Tensor], maps: Sequence[Tensor], where: Geometry):
    """dy through the outer factor, the lines turned round and the inner factor: a CP convolution again."""
    inner, vertical, horizontal, outer = factors
    ranks, kh = vertical.shape
    back = reversed_geometry(where, kh, horizontal.shape[1])
    if min(back) < 0:
        return None
    t, z = maps
    weights = packed(f"{OP} reversed", factors, turned_strips)
    turned = (outer.T, vertical, horizontal, inner.T)  # as far as shapes go
    dx = torch.empty_like(x, memory_format=memory_format(x))
    dz, dt = run_reversed(OP, dy, dx, turned, (ranks, kh, horizontal.shape[1]), weights, back)
    taps = lines(vertical, horizontal)
    grads = torch.ops.rdkernels_native.cp_conv2d_line_grads(t, dz, taps, kh, where.top, where.left, *where[6:])
    down, across = grads[:, :ranks].T.split([kh, horizontal.shape[1]], 1)
    return dx, pixels(dt).T @ pixels(x), down, across, pixels(dy).T @ pixels(z)
