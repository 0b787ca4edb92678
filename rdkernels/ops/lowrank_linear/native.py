"""The CPU kernel: the factors as strips, y and the kept rank rows allocated, one call."""

from __future__ import annotations

import torch
from torch import Tensor

from ...registry import define_native, native_on_cpu
from ..packing import pack, packed
from . import OP

define_native(
    f"{OP}_run(Tensor(a!) y, Tensor x, Tensor packed, Tensor? bias, Tensor? residual, Tensor(b!)? kept, int ranks, "
    "int activation) -> ()"
)
_run = torch.ops.rdkernels_native.lowrank_linear_run.default


def strips(down: Tensor, up: Tensor) -> Tensor:
    """Down as [in] by R, up as [R] by out."""
    return pack([down.T[None]], [up.T[None]])


@native_on_cpu(f"{OP}_fwd", f"{OP}_run")
def fwd(x, down, up, bias, residual, activation, keep):
    y = x.new_empty(x.shape[0], up.shape[0])
    kept = x.new_empty(x.shape[0], down.shape[0]) if keep else None
    weights = packed(OP, (down, up), strips)
    added = residual if residual is None else residual.contiguous()
    _run(y, x, weights, bias, added, kept, down.shape[0], activation)
    return [y] if kept is None else [y, kept]
