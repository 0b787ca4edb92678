"""Linear layer through a few ranks: the contract."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ...registry import backend, define, run
from ..convolution import check_epilogue, check_tensor, in_one_dtype
from ..packing import differentiated
from ..stages import apply_activation

OP = "lowrank_linear"

define(
    OP,
    "fwd",
    "(Tensor x, Tensor down, Tensor up, Tensor? bias, Tensor? residual, int activation, bool keep) -> Tensor[]",
    fake=lambda x, down, up, *rest: [
        x.new_empty(x.shape[0], up.shape[0]),
        *([x.new_empty(x.shape[0], down.shape[0])] if rest[-1] else []),
    ],
)

from . import triton  # noqa: E402,F401  it attaches itself to the pass above


def unfused(
    x: Tensor, down: Tensor, up: Tensor, bias: Tensor | None, residual: Tensor | None, activation: int
) -> Tensor:
    """The operation as the chain of torch calls that its kernels replace."""
    y = F.linear(F.linear(x, down), up, bias)
    return apply_activation(y if residual is None else y + residual, activation)


@backend(f"{OP}_fwd", "reference")
def _reference(x, down, up, bias, residual, activation, keep):
    dtype = torch.promote_types(x.dtype, torch.float32)
    added = [None if t is None else t.to(dtype) for t in (bias, residual)]
    y = unfused(x.to(dtype), down.to(dtype), up.to(dtype), added[0], added[1], activation).to(x.dtype)
    return [y, F.linear(x, down)] if keep else [y]


from . import native  # noqa: E402,F401  it attaches itself to the pass above


class _LowRank(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, down, up, bias, residual):
        keep = x.device.type == "cpu" and x.dtype == torch.float32  # the rank rows save the backward a product
        y, *kept = run(f"{OP}_fwd", x, down, up, bias, residual, 0, keep)
        ctx.save_for_backward(x, down, up, *kept)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, down, up, *kept = ctx.saved_tensors
        by_x, by_down, by_up, by_bias, by_residual = ctx.needs_input_grad
        wide = torch.promote_types(dy.dtype, torch.float32) if dy.device.type == "cpu" else dy.dtype
        g, xw, dw, uw = (t.to(wide) for t in (dy, x, down, up))
        with torch.autocast(dy.device.type, enabled=False):  # the casts are done
            inside = kept[0].to(wide) if kept and not torch.is_grad_enabled() else xw @ dw.T  # a constant of the graph
            through = g @ uw if by_x or by_down else g
            found = (
                through @ dw if by_x else None,
                through.T @ xw if by_down else None,
                g.T @ inside if by_up else None,
                g.sum(0) if by_bias else None,
                dy if by_residual else None,
            )
        differentiated((down, up))
        return tuple(None if t is None else t.to(dy.dtype) for t in found)


def lowrank_linear(
    x: Tensor,
    down: Tensor,
    up: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """`y = act(x @ down.T @ up.T + bias + residual)`: a linear layer of rank R, whose R-wide rows are never stored.

    `R * (in + out)` multiply-adds a row in place of `in * out`.

    Args:
        x: `[..., in]`; any strides, any number of leading dimensions (also none, also of size 0).
        down: `[R, in]`.
        up: `[out, R]`.
        bias: `[out]` or None.
        activation: None, "relu", "gelu" (by erf) or "silu", applied last.
        residual: of y's shape, added before the activation, or None.

    Returns:
        `[..., out]` in x's dtype.

    Dtypes: float32, bfloat16, float16 (accumulated in float32, rounded once) and float64 (reference backend); one
    dtype and device for all tensors; under autocast they are cast to its dtype first.

    Gradients by every tensor argument, differentiable again. On the CPU y has the same bits from run to run and for any
    number of threads; the gradients are partly torch's own, and as reproducible as those.

    Raises:
        TypeError, ValueError: before any work, naming the argument, what came and what is allowed.

    Source: Denton et al., NIPS 2014, section 3.2 (SVD of fully connected layers); Ba, Caruana, "Do Deep Nets Really
    Need to be Deep?", NIPS 2014, section 2.3 (the linear bottleneck).
    """
    if isinstance(x, Tensor) and x.dim() == 0:
        raise ValueError(f"{OP}: x must have at least one dimension [..., in], got a 0-d tensor")
    if isinstance(x, Tensor) and x.shape[-1] == 0:
        raise ValueError(f"{OP}: x must have in >= 1 as its last dimension, got {list(x.shape)}")
    check_tensor(OP, "x", x, list(x.shape) if isinstance(x, Tensor) else [])
    check_tensor(OP, "down", down, ["R", x.shape[-1]], x)
    check_tensor(OP, "up", up, ["out", down.shape[0]], x)
    shape = (*x.shape[:-1], up.shape[0])
    act = check_epilogue(OP, x, shape, bias, residual, activation)
    x, bias, residual, down, up = in_one_dtype(OP, x, bias, residual, down, up)
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    added = residual if residual is None or x.dim() == 2 else residual.reshape(-1, shape[-1])
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, down, up, bias, residual)):
        y = apply_activation(_LowRank.apply(rows, down, up, bias, added), int(act))
    else:
        y = run(f"{OP}_fwd", rows, down, up, bias, added, int(act), False)[0]
    return y if x.dim() == 2 else y.reshape(shape)
