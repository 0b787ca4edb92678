"""Convolution between two smaller channel spaces (Tucker-2): the contract."""

from __future__ import annotations

from torch import Tensor

from ..chain import call, define_chain
from ..convolution import Geometry, IntOrPair, check_epilogue, check_image, check_output, check_tensor, geometry
from ..replay import replayed
from ..stages import Conv, Stage, pads

OP = "tucker_conv2d"


def stages(factors, where: Geometry) -> list[Stage]:
    """1 x 1 C -> R1, kh x kw R1 -> R2, 1 x 1 R2 -> O."""
    inner, core, outer = factors
    middle = Conv(core, 1, where.stride, where.padding, where.dilation)
    return [Conv(inner[:, :, None, None], 0), *pads(where), middle, Conv(outer[:, :, None, None], 2)]


define_chain(
    OP,
    stages,
    ("inner", "core", "outer"),
    (),
    lambda x, f, where: (f[2].shape[0], *where.out(x.shape[2], x.shape[3], f[1].shape[2], f[1].shape[3])),
    maps=lambda x, f, where: {
        1: (f[0].shape[0], *x.shape[2:]),
        2: (f[1].shape[0], *where.out(x.shape[2], x.shape[3], *f[1].shape[2:])),
    },
)

from . import native, triton  # noqa: E402,F401  they attach themselves to the pass above


@replayed(3)
def tucker_conv2d(
    x: Tensor,
    inner: Tensor,
    core: Tensor,
    outer: Tensor,
    bias: Tensor | None = None,
    *,
    stride: IntOrPair = 1,
    padding: IntOrPair | str = 0,
    dilation: IntOrPair = 1,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """A convolution between fewer channels, in one pass: 1 x 1 down to R1, the kh x kw core, 1 x 1 up from R2.

    `y = act(conv(x, W) + bias + residual)` with `W[o,c,i,j] = sum_{p,q} outer[o,q] * core[q,p,i,j] * inner[p,c]`, in
    `C * R1 + R1 * R2 * kh * kw + R2 * O` multiply-adds per output in place of `O * C * kh * kw` (stride 1).

    Args:
        x: `[N, C, H, W]`; channels_last is read in place, anything else is converted row by row. N may be 0.
        inner: `[R1, C]`.
        core: `[R2, R1, kh, kw]`.
        outer: `[O, R2]`.
        bias: `[O]` or None.
        stride, padding, dilation: as in `torch.nn.functional.conv2d` (ints, pairs, "same", "valid").
        activation: None, "relu", "gelu" (by erf) or "silu", applied last.
        residual: of y's shape, added before the activation, or None.

    Returns:
        `[N, O, H', W']` in x's dtype and memory format.

    Dtypes, gradients, determinism and errors: as `separable_conv2d`.

    Source: Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications",
    ICLR 2016, equations 3 to 5 (Tucker-2); Denton et al., NIPS 2014, section 3.2 (two successive SVDs).
    """
    check_image(OP, x)
    check_tensor(OP, "inner", inner, ["R1", x.shape[1]], x)
    check_tensor(OP, "core", core, ["R2", inner.shape[0], "kh", "kw"], x)
    check_tensor(OP, "outer", outer, ["O", core.shape[0]], x)
    kh, kw, out = core.shape[2], core.shape[3], outer.shape[0]
    where = geometry(OP, kh, kw, stride, padding, dilation)
    h, w = check_output(OP, x, kh, kw, where)
    act = check_epilogue(OP, x, (x.shape[0], out, h, w), bias, residual, activation)
    return call(OP, x, (inner, core, outer), bias, residual, where, act)
