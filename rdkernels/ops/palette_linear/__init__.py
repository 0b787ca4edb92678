"""Linear layer whose weights are indices into a codebook of few values: the contract.

The three passes are the three partial derivatives of one trilinear form,
`T(dy, x, codebook) = sum_{m,o,i} dy[m,o] * x[m,i] * codebook[indices[o,i]]`, so each is differentiated by the other two
and double backward needs no further kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...registry import define
from .packing import pack, packed_shape, unpack

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DTYPES = (*KERNEL_DTYPES, torch.float64)
OP = "palette_linear"

define(
    OP,
    "fwd",
    "(Tensor x, Tensor codebook, Tensor indices, Tensor? bias, SymInt out_features, int bits) -> Tensor",
    fake=lambda x, codebook, indices, bias, out_features, bits: x.new_empty(x.shape[0], out_features),
)
define(
    OP,
    "bwd_x",
    "(Tensor dy, Tensor codebook, Tensor indices, SymInt in_features, int bits) -> Tensor",
    fake=lambda dy, codebook, indices, in_features, bits: dy.new_empty(dy.shape[0], in_features),
)
define(
    OP,
    "bwd_codebook",
    "(Tensor dy, Tensor x, Tensor indices, int bits) -> Tensor",
    fake=lambda dy, x, indices, bits: x.new_empty(2**bits),
)

from . import native, reference  # noqa: E402,F401  they attach themselves to the passes above

__all__ = ["DTYPES", "KERNEL_DTYPES", "OP", "pack", "packed_shape", "palette_linear", "unpack"]

_ops: Any = torch.ops.rdkernels


def _needs_graph(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


class _Fwd(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, codebook, indices, bias, out_features, bits):
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, codebook, indices)
        ctx.args = x.shape[1], bits
        return _ops.palette_linear_fwd(x, codebook, indices, bias, out_features, bits)

    @staticmethod
    def backward(ctx, dy):
        x, codebook, indices = ctx.saved_tensors
        in_features, bits = ctx.args
        dx = _bwd_x(dy, codebook, indices, in_features, bits) if ctx.needs_input_grad[0] else None
        dcodebook = _bwd_codebook(dy, x, indices, bits) if ctx.needs_input_grad[1] else None
        wide = torch.promote_types(dy.dtype, torch.float32)
        dbias = dy.sum(0, dtype=wide).to(dy.dtype) if ctx.needs_input_grad[3] else None
        return dx, dcodebook, None, dbias, None, None


class _BwdX(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dy, codebook, indices, in_features, bits):
        ctx.save_for_backward(dy, codebook, indices)
        ctx.bits = bits
        return _ops.palette_linear_bwd_x(dy, codebook, indices, in_features, bits)

    @staticmethod
    def backward(ctx, ddx):
        dy, codebook, indices = ctx.saved_tensors
        d_dy = _fwd(ddx, codebook, indices, None, dy.shape[1], ctx.bits) if ctx.needs_input_grad[0] else None
        dcodebook = _bwd_codebook(dy, ddx, indices, ctx.bits) if ctx.needs_input_grad[1] else None
        return d_dy, dcodebook, None, None, None


class _BwdCodebook(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dy, x, indices, bits):
        ctx.save_for_backward(dy, x, indices)
        ctx.bits = bits
        return _ops.palette_linear_bwd_codebook(dy, x, indices, bits)

    @staticmethod
    def backward(ctx, ddcodebook):
        dy, x, indices = ctx.saved_tensors
        d_dy = _fwd(x, ddcodebook, indices, None, dy.shape[1], ctx.bits) if ctx.needs_input_grad[0] else None
        dx = _bwd_x(dy, ddcodebook, indices, x.shape[1], ctx.bits) if ctx.needs_input_grad[1] else None
        return d_dy, dx, None, None


def _fwd(x: Tensor, codebook: Tensor, indices: Tensor, bias: Tensor | None, out_features: int, bits: int) -> Tensor:
    if _needs_graph(x, codebook, bias):
        return _Fwd.apply(x, codebook, indices, bias, out_features, bits)
    return _ops.palette_linear_fwd(x, codebook, indices, bias, out_features, bits)


def _bwd_x(dy: Tensor, codebook: Tensor, indices: Tensor, in_features: int, bits: int) -> Tensor:
    if _needs_graph(dy, codebook):
        return _BwdX.apply(dy, codebook, indices, in_features, bits)
    return _ops.palette_linear_bwd_x(dy, codebook, indices, in_features, bits)


def _bwd_codebook(dy: Tensor, x: Tensor, indices: Tensor, bits: int) -> Tensor:
    if _needs_graph(dy, x):
        return _BwdCodebook.apply(dy, x, indices, bits)
    return _ops.palette_linear_bwd_codebook(dy, x, indices, bits)


def palette_linear(
    x: Tensor, codebook: Tensor, indices: Tensor, out_features: int, bias: Tensor | None = None, *, bits: int
) -> Tensor:
    """`y = x @ W.T + bias`, where `W[o, i] = codebook[index(o, i)]` is read from packed indices and never built.

    Args:
        x: `[..., in]`; any strides, any number of leading dimensions (also none, also of size 0).
        codebook: `[2**bits]`, the weights' values.
        indices: uint8 `packed_shape(out, in, bits)`, what `rdkernels.ops.palette_linear.pack` makes of `[out, in]`.
        out_features: `out`.
        bias: `[out]` or None.
        bits: of an index, 1 to 8.

    Returns:
        `[..., out]` in x's dtype.

    Dtypes: float32, bfloat16, float16 (accumulated in float32 in every pass, rounded once) and float64 (reference
    backend). `x`, `codebook` and `bias` share one dtype and device; under autocast they are cast to its dtype first.

    Gradients: `dx = dy @ W`; `dcodebook[k]` is the sum of `(dy.T @ x)[o, i]` over every `(o, i)` whose index is k;
    `dbias = sum_m dy`. All are differentiable again. Deterministic: the same bits from run to run and for any number of
    threads (the reference backend: as torch's matmul is).

    Raises:
        TypeError, ValueError: before any work, naming the argument, what came and what is allowed.

    Source: Han, Mao, Dally, "Deep Compression", ICLR 2016, section 3.
    """
    _check(x, codebook, indices, out_features, bias, bits)
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
        x, codebook, bias = x.to(dtype), codebook.to(dtype), None if bias is None else bias.to(dtype)
    else:
        for name, t in (("codebook", codebook), ("bias", bias)):
            if t is not None and t.dtype != x.dtype:
                raise TypeError(f"{OP}: {name} must have x's dtype {x.dtype}, got {t.dtype}")
    rows = x if x.dim() == 2 else x[None] if x.dim() == 1 else x.flatten(0, -2)
    y = _fwd(rows, codebook, indices, bias, out_features, bits)
    return y if x.dim() == 2 else y.reshape(*x.shape[:-1], out_features)


def _check(x: Tensor, codebook: Tensor, indices: Tensor, out_features: int, bias: Tensor | None, bits: int) -> None:
    for name, t in (("x", x), ("codebook", codebook), ("bias", bias)):
        if name == "bias" and t is None:
            continue
        if not isinstance(t, Tensor):
            raise TypeError(f"{OP}: {name} must be a Tensor, got {type(t).__name__}")
        if t.dtype not in DTYPES:
            raise TypeError(f"{OP}: {name} must have one of the dtypes {list(DTYPES)}, got {t.dtype}")
    if not isinstance(indices, Tensor) or indices.dtype != torch.uint8:
        raise TypeError(
            f"{OP}: indices must be a uint8 Tensor, got {getattr(indices, 'dtype', type(indices).__name__)}"
        )
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"{OP}: x must be [..., in] with in >= 1, got {list(x.shape)}")
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
        raise ValueError(f"{OP}: bits must be an int from 1 to 8, got {bits!r}")
    if isinstance(out_features, bool) or not isinstance(out_features, int) or out_features < 1:
        raise ValueError(f"{OP}: out_features must be an int >= 1, got {out_features!r}")
    shapes = {"codebook": (codebook, (2**bits,)), "indices": (indices, packed_shape(out_features, x.shape[-1], bits))}
    if bias is not None:
        shapes["bias"] = bias, (out_features,)
    for name, (t, shape) in shapes.items():
        if t.shape != shape:
            raise ValueError(f"{OP}: {name} must have shape {list(shape)}, got {list(t.shape)}")
        if t.device != x.device:
            raise ValueError(f"{OP}: {name} must be on x's device {x.device}, got {t.device}")
