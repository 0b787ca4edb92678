"""Convolution as a vertical and a horizontal one through a few ranks: the contract."""

from __future__ import annotations

from torch import Tensor

from ..chain import call, define_chain
from ..convolution import Geometry, IntOrPair, check_epilogue, check_image, check_output, check_tensor, geometry
from ..replay import replayed
from ..stages import Conv, Stage, pads

OP = "separable_conv2d"


def stages(factors, where: Geometry) -> list[Stage]:
    """C -> R by kh x 1, R -> O by 1 x kw; torch's own padding where it can say it."""
    vertical, horizontal = factors
    down, across = where.padding
    return [
        *pads(where),
        Conv(vertical[:, :, :, None], 0, (where.stride_h, 1), (down, 0), (where.dilation_h, 1)),
        Conv(horizontal[:, :, None, :], 1, (1, where.stride_w), (0, across), (1, where.dilation_w)),
    ]


define_chain(
    OP,
    stages,
    ("vertical", "horizontal"),
    (),
    lambda x, f, where: (f[1].shape[0], *where.out(x.shape[2], x.shape[3], f[0].shape[2], f[1].shape[2])),
    maps=lambda x, f, where: {1: (f[0].shape[0], where.out(x.shape[2], 1, f[0].shape[2], 1)[0], x.shape[3])},
)

from . import native, triton  # noqa: E402,F401  they attach themselves to the pass above


@replayed(2)
def separable_conv2d(
    x: Tensor,
    vertical: Tensor,
    horizontal: Tensor,
    bias: Tensor | None = None,
    *,
    stride: IntOrPair = 1,
    padding: IntOrPair | str = 0,
    dilation: IntOrPair = 1,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """`y = act(conv(conv(x, vertical), horizontal) + bias + residual)`: a kh x 1, then a 1 x kw convolution, fused.

    It equals the dense convolution with the weight `W[o,c,i,j] = sum_r horizontal[o,r,j] * vertical[r,c,i]`, in
    `R * (C * kh + O * kw)` multiply-adds per output in place of `O * C * kh * kw` (stride 1).

    Args:
        x: `[N, C, H, W]`; channels_last is read in place, anything else is converted row by row. N may be 0.
        vertical: `[R, C, kh]`.
        horizontal: `[O, R, kw]`.
        bias: `[O]` or None.
        stride, padding, dilation: as in `torch.nn.functional.conv2d` (ints, pairs, "same", "valid").
        activation: None, "relu", "gelu" (by erf) or "silu", applied last.
        residual: of y's shape, added before the activation, or None.

    Returns:
        `[N, O, H', W']` in x's dtype and memory format.

    Dtypes: float32, bfloat16, float16 (accumulated in float32, rounded once; the CUDA kernels round the map between the
    two as well) and float64 (reference backend); one dtype and device for all tensors; under autocast they are cast
    to its dtype first.

    Gradients by every tensor argument, differentiable again. On the CPU y has the same bits from run to run and for any
    number of threads; the gradients are partly torch's own, and as reproducible as those.

    Raises:
        TypeError, ValueError: before any work, naming the argument, what came and what is allowed.

    Source: Jaderberg, Vedaldi, Zisserman, "Speeding up Convolutional Neural Networks with Low Rank Expansions", BMVC
    2014, scheme 2; Tai et al., "Convolutional Neural Networks with Low-Rank Regularization", ICLR 2016, equation 3.
    """
    check_image(OP, x)
    check_tensor(OP, "vertical", vertical, ["R", x.shape[1], "kh"], x)
    check_tensor(OP, "horizontal", horizontal, ["O", vertical.shape[0], "kw"], x)
    kh, kw, out = vertical.shape[2], horizontal.shape[2], horizontal.shape[0]
    where = geometry(OP, kh, kw, stride, padding, dilation)
    h, w = check_output(OP, x, kh, kw, where)
    act = check_epilogue(OP, x, (x.shape[0], out, h, w), bias, residual, activation)
    return call(OP, x, (vertical, horizontal), bias, residual, where, act)
