"""Convolution as a sum of outer products (CP): the contract."""

from __future__ import annotations

from torch import Tensor

from ..chain import call, define_chain
from ..convolution import Geometry, IntOrPair, check_epilogue, check_image, check_output, check_tensor, geometry
from ..replay import replayed
from ..stages import Conv, Stage, pads

OP = "cp_conv2d"


def stages(factors, where: Geometry) -> list[Stage]:
    """1 x 1 C -> R, depthwise kh x 1, depthwise 1 x kw, 1 x 1 R -> O."""
    inner, vertical, horizontal, outer = factors
    ranks = inner.shape[0]
    down, across = where.padding
    middle: list[Stage] = [
        Conv(vertical[:, None, :, None], 1, (where.stride_h, 1), (down, 0), (where.dilation_h, 1), ranks),
        Conv(horizontal[:, None, None, :], 2, (1, where.stride_w), (0, across), (1, where.dilation_w), ranks),
    ]
    return [Conv(inner[:, :, None, None], 0), *pads(where), *middle, Conv(outer[:, :, None, None], 3)]


define_chain(
    OP,
    stages,
    ("inner", "vertical", "horizontal", "outer"),
    (),
    lambda x, f, where: (f[3].shape[0], *where.out(x.shape[2], x.shape[3], f[1].shape[1], f[2].shape[1])),
    maps=lambda x, f, where: {
        1: (f[0].shape[0], *x.shape[2:]),
        3: (f[0].shape[0], *where.out(x.shape[2], x.shape[3], f[1].shape[1], f[2].shape[1])),
    },
)

from . import native, triton  # noqa: E402,F401  they attach themselves to the pass above


@replayed(4)
def cp_conv2d(
    x: Tensor,
    inner: Tensor,
    vertical: Tensor,
    horizontal: Tensor,
    outer: Tensor,
    bias: Tensor | None = None,
    *,
    stride: IntOrPair = 1,
    padding: IntOrPair | str = 0,
    dilation: IntOrPair = 1,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """A convolution whose weight is a sum of R outer products, in one pass: 1 x 1, two depthwise lines, 1 x 1.

    `y = act(conv(x, W) + bias + residual)` with `W[o,c,i,j] = sum_r outer[o,r] * inner[r,c] * vertical[r,i] *
    horizontal[r,j]`, in `R * (C + kh + kw + O)` multiply-adds per output in place of `O * C * kh * kw` (stride 1).

    Args:
        x: `[N, C, H, W]`; channels_last is read in place, anything else is converted row by row. N may be 0.
        inner: `[R, C]`.
        vertical: `[R, kh]`.
        horizontal: `[R, kw]`.
        outer: `[O, R]`; a CP weight's lambda belongs into one of the factors.
        bias: `[O]` or None.
        stride, padding, dilation: as in `torch.nn.functional.conv2d` (ints, pairs, "same", "valid").
        activation: None, "relu", "gelu" (by erf) or "silu", applied last.
        residual: of y's shape, added before the activation, or None.

    Returns:
        `[N, O, H', W']` in x's dtype and memory format.

    Dtypes, gradients, determinism and errors: as `separable_conv2d`.

    Source: Denton et al., "Exploiting Linear Structure Within Convolutional Networks for Efficient Evaluation", NIPS
    2014, section 3.2 (outer products); Lebedev et al., "Speeding-up Convolutional Neural Networks Using Fine-tuned
    CP-Decomposition", ICLR 2015, equations 3 to 7.
    """
    check_image(OP, x)
    check_tensor(OP, "inner", inner, ["R", x.shape[1]], x)
    ranks = inner.shape[0]
    check_tensor(OP, "vertical", vertical, [ranks, "kh"], x)
    check_tensor(OP, "horizontal", horizontal, [ranks, "kw"], x)
    check_tensor(OP, "outer", outer, ["O", ranks], x)
    kh, kw, out = vertical.shape[1], horizontal.shape[1], outer.shape[0]
    where = geometry(OP, kh, kw, stride, padding, dilation)
    h, w = check_output(OP, x, kh, kw, where)
    act = check_epilogue(OP, x, (x.shape[0], out, h, w), bias, residual, activation)
    return call(OP, x, (inner, vertical, horizontal, outer), bias, residual, where, act)
