"""What the CPU kernel is given: factors as strips; maps around the core kept; the backward as the chain reversed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...registry import native_on_gpu
from ..chain import NativeCall, native_backward, native_chain, pixels, reversed_geometry, run_reversed
from ..convolution import Geometry, memory_format
from ..packing import core_lines, pack, packed
from ..tap_grads import weight_grad
from . import OP

GPU_TAPS = 225  # a window of more does not fit into every GPU's shared memory


def strips(inner: Tensor, core: Tensor, outer: Tensor) -> Tensor:
    """Inner by R1, core as [kh, panel, kw, rank] by R2, outer by O."""
    return pack([inner.T[None]], core_lines(core), [outer.T[None]])


def turned_strips(inner: Tensor, core: Tensor, outer: Tensor) -> Tensor:
    """The same of the chain that takes dy to dx."""
    return strips(outer.T, core.flip(2, 3).transpose(0, 1), inner.T)


native_on_gpu(f"{OP}_fwd", lambda x, inner, core, *_: core.shape[2] * core.shape[3] <= GPU_TAPS)


@native_chain(OP, ("r1", "r2", "kh", "kw"), maps=2)
def prepare(x: Tensor, factors: tuple[Tensor, ...]) -> NativeCall:
    r2, r1, kh, kw = factors[1].shape
    return NativeCall(packed(OP, factors, strips), (r1, r2, kh, kw))


@native_backward(OP)
def backward(dy: Tensor, x: Tensor, factors: Sequence[Tensor], maps: Sequence[Tensor], where: Geometry):
    """dy through the outer factor, the core turned round and the inner factor: a Tucker-2 convolution again."""
    inner, core, outer = factors
    r2, r1, kh, kw = core.shape
    back = reversed_geometry(where, kh, kw)
    if min(back) < 0:
        return None
    first, second = maps
    weights = packed(f"{OP} reversed", factors, turned_strips)
    turned = (outer.T, core.transpose(0, 1), inner.T)  # as far as shapes go
    dx = torch.empty_like(x, memory_format=memory_format(x))
    dsecond, dfirst = run_reversed(OP, dy, dx, turned, (r2, r1, kh, kw), weights, back)
    before, dilation = (where.top, where.left), (where.dilation_h, where.dilation_w)
    dcore = weight_grad(dsecond, first, (kh, kw), before, dilation)
    return dx, pixels(dfirst).T @ pixels(x), dcore, pixels(dy).T @ pixels(second)
