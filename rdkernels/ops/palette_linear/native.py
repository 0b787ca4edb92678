"""The CPU kernels, which know float32 alone: other dtypes are widened before and rounded once after."""

from __future__ import annotations

import torch
from torch import Tensor

from ...registry import define_native, native_on_cpu
from . import OP

define_native(
    f"{OP}_run(Tensor x, Tensor codebook, Tensor indices, Tensor? bias, int out_features, int bits) -> Tensor"
)
define_native(f"{OP}_run_x(Tensor dy, Tensor codebook, Tensor indices, int in_features, int bits) -> Tensor")
define_native(f"{OP}_run_codebook(Tensor dy, Tensor xt, Tensor indices, int bits) -> Tensor")
_run = torch.ops.rdkernels_native.palette_linear_run.default
_run_x = torch.ops.rdkernels_native.palette_linear_run_x.default
_run_codebook = torch.ops.rdkernels_native.palette_linear_run_codebook.default


def _rows(t: Tensor) -> Tensor:
    """float32, the elements of a row side by side."""
    t = t.to(torch.float32)
    return t if t.stride(-1) == 1 else t.contiguous()


@native_on_cpu(f"{OP}_fwd", f"{OP}_run")
def fwd(x: Tensor, codebook: Tensor, indices: Tensor, bias: Tensor | None, out_features: int, bits: int) -> Tensor:
    added = None if bias is None else _rows(bias)
    return _run(_rows(x), _rows(codebook), indices.contiguous(), added, out_features, bits).to(x.dtype)


@native_on_cpu(f"{OP}_bwd_x", f"{OP}_run_x")
def bwd_x(dy: Tensor, codebook: Tensor, indices: Tensor, in_features: int, bits: int) -> Tensor:
    return _run_x(_rows(dy), _rows(codebook), indices.contiguous(), in_features, bits).to(dy.dtype)


@native_on_cpu(f"{OP}_bwd_codebook", f"{OP}_run_codebook")
def bwd_codebook(dy: Tensor, x: Tensor, indices: Tensor, bits: int) -> Tensor:
    columns = x.to(torch.float32).T.contiguous()
    return _run_codebook(dy.to(torch.float32), columns, indices.contiguous(), bits).to(x.dtype)
