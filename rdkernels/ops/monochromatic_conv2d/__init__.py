"""First layer through a few colours, each filter on one of them: the contract."""

from __future__ import annotations

import torch
from torch import Tensor

from ..chain import call, define_chain
from ..convolution import (
    Geometry,
    IntOrPair,
    check_epilogue,
    check_image,
    check_index,
    check_output,
    check_tensor,
    geometry,
)
from ..replay import replayed
from ..stages import Conv, Select, Stage, pads, run_stages

OP = "monochromatic_conv2d"


def stages(factors, where: Geometry) -> list[Stage]:
    """1 x 1 C -> C', then each output's kh x kw filter on the colour map that it is assigned."""
    colours, filters, assignment = factors
    own = Conv(filters[:, None], 1, where.stride, where.padding, where.dilation, filters.shape[0])
    return [Conv(colours[:, :, None, None], 0), *pads(where), Select(assignment), own]


def backward(dy: Tensor, x: Tensor, factors, where: Geometry, needs) -> list[Tensor | None]:
    """By the dense weight, whose few inputs make it small: torch's grouped and depthwise gradients are far slower."""
    colours, filters, assignment = factors
    by_x, by_colours, by_filters = needs[:3]
    own = colours[assignment][:, :, None, None]  # [O, C, 1, 1]
    dense = Conv(filters[:, None] * own, 1, where.stride, where.padding, where.dilation)
    *inner, padded = run_stages(x, pads(where))
    dx, dweight = dense.gradients(dy, padded, by_x, by_colours or by_filters)
    for stage in pads(where):
        dx = None if dx is None else stage.gradients(dx, inner[0], True, False)[0]
    dcolours = dfilters = None
    if dweight is not None and by_filters:
        dfilters = (dweight * own).sum(1)
    if dweight is not None and by_colours:
        dcolours = torch.zeros_like(colours).index_add(0, assignment, (dweight * filters[:, None]).sum((2, 3)))
    return [dx, dcolours, dfilters, None]


define_chain(
    OP,
    stages,
    ("colours", "filters"),
    ("assignment",),
    lambda x, f, where: (f[1].shape[0], *where.out(x.shape[2], x.shape[3], f[1].shape[1], f[1].shape[2])),
    backward=backward,
)

from . import native  # noqa: E402,F401  it attaches itself to the pass above


@replayed(3)
def monochromatic_conv2d(
    x: Tensor,
    colours: Tensor,
    filters: Tensor,
    assignment: Tensor,
    bias: Tensor | None = None,
    *,
    stride: IntOrPair = 1,
    padding: IntOrPair | str = 0,
    dilation: IntOrPair = 1,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """A first layer whose filters each see one colour, in one pass: C -> C' colour maps, one 2-D filter per output.

    `y = act(conv(x, W) + bias + residual)` with `W[o,c,i,j] = filters[o,i,j] * colours[assignment[o],c]`, in
    `C' * C` multiply-adds per pixel of x and `O * kh * kw` per output, in place of `O * C * kh * kw`.

    Args:
        x: `[N, C, H, W]`; any layout. N may be 0.
        colours: `[C', C]`.
        filters: `[O, kh, kw]`.
        assignment: int64 `[O]`, each in `[0, C')`. Equal groups of a multiple of 8 outputs are fastest.
        bias: `[O]` or None.
        stride, padding, dilation: as in `torch.nn.functional.conv2d` (ints, pairs, "same", "valid").
        activation: None, "relu", "gelu" (by erf) or "silu", applied last.
        residual: of y's shape, added before the activation, or None.

    Returns:
        `[N, O, H', W']` in x's dtype and memory format.

    Dtypes, gradients (none by the assignment), determinism and errors: as `separable_conv2d`. On a GPU the values of
    the assignment are not looked at by this function.

    Source: Denton et al., "Exploiting Linear Structure Within Convolutional Networks for Efficient Evaluation", NIPS
    2014, section 3.3 (monochromatic convolution).
    """
    check_image(OP, x)
    check_tensor(OP, "colours", colours, ["C'", x.shape[1]], x)
    check_tensor(OP, "filters", filters, ["O", "kh", "kw"], x)
    out, kh, kw = filters.shape
    check_index(OP, "assignment", assignment, [out], x)
    where = geometry(OP, kh, kw, stride, padding, dilation)
    h, w = check_output(OP, x, kh, kw, where)
    act = check_epilogue(OP, x, (x.shape[0], out, h, w), bias, residual, activation)
    if not assignment.is_cuda and not torch.compiler.is_compiling():
        low, high = (int(v) for v in torch.aminmax(assignment))
        if low < 0 or high >= colours.shape[0]:
            raise ValueError(f"{OP}: assignment must be in [0, {colours.shape[0]}), got values from {low} to {high}")
    return call(OP, x, (colours, filters, assignment), bias, residual, where, act)
