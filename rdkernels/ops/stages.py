"""The stages of a low-rank chain in plain torch: convolutions, selections of channels, padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .convolution import Activation, Geometry

_convolution_backward = torch.ops.aten.convolution_backward.default


class Conv(NamedTuple):
    """A convolution with `weight` `[O, I / groups, kh, kw]`, the view of factor `factor` as such a weight."""

    weight: Tensor
    factor: int
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.conv2d(x, self.weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def gradients(self, dy: Tensor, x: Tensor, by_x: bool, by_weight: bool) -> tuple[Tensor | None, Tensor | None]:
        where = (self.stride, self.padding, self.dilation, False, (0, 0), self.groups)
        dx, dw, _ = _convolution_backward(dy, x, self.weight, None, *where, (by_x, by_weight, False))
        return dx, dw


class Select(NamedTuple):
    """Channels `order` of the input, in that order; no weight."""

    order: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.order)

    def gradients(self, dy: Tensor, x: Tensor, by_x: bool, by_weight: bool) -> tuple[Tensor | None, Tensor | None]:
        return (dy.new_zeros(x.shape).index_add(1, self.order, dy) if by_x else None), None


class Pad(NamedTuple):
    """Zeros around the map: what "same" asks of an even kernel and a convolution's own padding cannot say."""

    left: int
    right: int
    top: int
    bottom: int

    def __call__(self, x: Tensor) -> Tensor:
        return F.pad(x, self)

    def gradients(self, dy: Tensor, x: Tensor, by_x: bool, by_weight: bool) -> tuple[Tensor | None, Tensor | None]:
        return (dy[:, :, self.top : self.top + x.shape[2], self.left : self.left + x.shape[3]] if by_x else None), None


Stage = Conv | Select | Pad


def pads(where: Geometry) -> list[Stage]:
    """The stage that pads where `where.padding` cannot say it, or none."""
    return [] if where.symmetric else [Pad(where.left, where.right, where.top, where.bottom)]


def apply_activation(y: Tensor, activation: int) -> Tensor:
    """`y` after the activation of that code."""
    return y if activation == Activation.none else (F.relu, F.gelu, F.silu)[activation - 1](y)


def run_stages(x: Tensor, stages: Sequence[Stage]) -> list[Tensor]:
    """The inputs of every stage and, last, the output."""
    maps = [x]
    for stage in stages:
        maps.append(stage(maps[-1]))
    return maps
