"""The CPU kernels, which know float32 alone: other dtypes are widened before and rounded once after."""

from __future__ import annotations

import torch
from torch import Tensor

from ...registry import define_native, native_on_cpu
from . import OP

define_native(
    f"{OP}_run(Tensor(a!) result, Tensor rows, Tensor codebook, Tensor indices, Tensor? bias, int bits, bool turned) "
    "-> ()"
)
define_native(f"{OP}_sum(Tensor(a!) sums, Tensor dy, Tensor xt, Tensor indices, int bits) -> ()")
_run = torch.ops.rdkernels_native.palette_linear_run.default
_sum = torch.ops.rdkernels_native.palette_linear_sum.default


def _rows(t: Tensor) -> Tensor:
    """float32, the elements of a row side by side."""
    t = t.to(torch.float32)
    return t if t.stride(-1) == 1 else t.contiguous()


def _product(
    rows: Tensor, codebook: Tensor, indices: Tensor, bias: Tensor | None, columns: int, bits: int, turned: bool
) -> Tensor:
    y = rows.new_empty(rows.shape[0], columns, dtype=torch.float32)
    _run(y, _rows(rows), _rows(codebook), indices.contiguous(), None if bias is None else _rows(bias), bits, turned)
    return y.to(rows.dtype)


@native_on_cpu(f"{OP}_fwd", f"{OP}_run")
def fwd(x: Tensor, codebook: Tensor, indices: Tensor, bias: Tensor | None, out_features: int, bits: int) -> Tensor:
    return _product(x, codebook, indices, bias, out_features, bits, False)


@native_on_cpu(f"{OP}_bwd_x", f"{OP}_run")
def bwd_x(dy: Tensor, codebook: Tensor, indices: Tensor, in_features: int, bits: int) -> Tensor:
    return _product(dy, codebook, indices, None, in_features, bits, True)


@native_on_cpu(f"{OP}_bwd_codebook", f"{OP}_sum")
def bwd_codebook(dy: Tensor, x: Tensor, indices: Tensor, bits: int) -> Tensor:
    sums = dy.new_empty(2**bits, dtype=torch.float32)
    _sum(sums, dy.to(torch.float32), x.to(torch.float32).T.contiguous(), indices.contiguous(), bits)
    return sums.to(x.dtype)
