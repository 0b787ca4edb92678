"""What the CPU kernel is given: every pair's factors as strips, the orders of the channels; two maps kept; the backward
as the chain reversed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..chain import NativeCall, native_backward, native_chain, pixels, reversed_geometry, run_reversed
from ..convolution import Geometry, memory_format
from ..packing import core_lines, pack, packed
from ..tap_grads import weight_grad
from . import OP, inverse


def strips(inner: Tensor, core: Tensor, outer: Tensor) -> Tensor:
    """Inner by K1 and core by K2 for each pair (g, h), then outer as [g, K2] by O/H for each h."""
    down = [[own.T[None]] for own in inner.flatten(0, 1)]
    middle = [core_lines(own) for own in core.flatten(0, 1)]
    return pack(*down, *middle, *([own.flatten(1).T[None]] for own in outer))


def turned(inner: Tensor, core: Tensor, outer: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The factors of the chain that takes dy to dx, G and H exchanged; the core's taps are still to be flipped."""
    return outer.permute(0, 2, 3, 1), core.permute(1, 0, 3, 2, 4, 5), inner.permute(0, 3, 1, 2)


def turned_strips(inner: Tensor, core: Tensor, outer: Tensor) -> Tensor:
    """The strips of that chain."""
    return strips(*turned(inner, core.flip(4, 5), outer))


@native_chain(
    OP, ("clusters_in", "clusters_out", "k1", "k2", "kh", "kw", "by_output"), maps=2, tensors=("inputs", "outputs")
)
def prepare(x: Tensor, factors: tuple[Tensor, ...]) -> NativeCall:
    _, core, _, inputs, outputs = factors
    g, h, k2, k1, kh, kw = core.shape
    return NativeCall(
        packed(OP, factors[:3], strips), (g, h, k1, k2, kh, kw, 0), (inputs.contiguous(), outputs.contiguous())
    )


def gathered(t: Tensor, order: Tensor) -> Tensor:
    """The channels `order` of `t`, in that order, side by side."""
    n, _, h, w = t.shape  # whole pixels: torch selects from a matrix ten times as fast as from a map
    return pixels(t).index_select(1, order).view(n, h, w, len(order)).permute(0, 3, 1, 2)


@native_backward(OP)
def backward(dy: Tensor, x: Tensor, factors: Sequence[Tensor], maps: Sequence[Tensor], where: Geometry):
    """dy through the outer factors, the cores turned round and the inner ones: a biclustered convolution again."""
    inner, core, outer, inputs, outputs = factors
    g, h, k2, k1, kh, kw = core.shape
    back = reversed_geometry(where, kh, kw)
    if min(back) < 0:
        return None
    first, second = maps
    x, dy = gathered(x, inputs), gathered(dy, outputs)
    weights = packed(f"{OP} reversed", factors[:3], turned_strips)
    # its maps in the order (g, h) of ours, which is (output cluster, input cluster) to it
    numbers = (h, g, k2, k1, kh, kw, 1)
    dx = torch.empty_like(x, memory_format=memory_format(x))
    dsecond, dfirst = run_reversed(OP, dy, dx, turned(inner, core, outer), numbers, weights, back, (None, None))
    before, dilation = (where.top, where.left), (where.dilation_h, where.dilation_w)
    dcore = weight_grad(dsecond, first, (kh, kw), before, dilation, g * h)
    dinner = weight_grad(dfirst, x, (1, 1), groups=g)
    douter = [weight_grad(dy, own, (1, 1), groups=h).view(h, -1, k2) for own in second.split(h * k2, 1)]
    return (
        gathered(dx, inverse("inputs", inputs)),
        dinner.view(inner.shape),
        dcore.view(core.shape),
        torch.stack(douter, 2),
        None,
        None,
    )
