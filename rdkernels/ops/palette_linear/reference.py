"""The definition in plain torch: any device, any floating dtype; float64 is the truth of the tests.

A panel of outputs at a time, so that no pass holds `out * in` values. 16-bit inputs are widened to float32, computed
and rounded once, as every backend must.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...registry import backend
from .packing import OUTPUTS, unpack

_PANEL = 2**20  # weights of a panel, about: 8 MiB an int64 index


def _wide(t: Tensor) -> Tensor:
    return t.to(torch.promote_types(t.dtype, torch.float32))


def _panels(indices: Tensor, bits: int, out: int, in_: int) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the weight, and their indices as int64."""
    strips = max(1, _PANEL // (OUTPUTS * max(in_, 1)))
    for first in range(0, indices.shape[0], strips):
        rows = slice(first * OUTPUTS, min(out, (first + strips) * OUTPUTS))
        yield rows, unpack(indices[first : first + strips], bits, in_)[: rows.stop - rows.start].long()


@backend("palette_linear_fwd", "reference")
def fwd(x: Tensor, codebook: Tensor, indices: Tensor, bias: Tensor | None, out_features: int, bits: int) -> Tensor:
    xw, values = _wide(x), _wide(codebook)
    parts = [xw @ values[index].T for _, index in _panels(indices, bits, out_features, x.shape[1])]
    y = torch.cat(parts, 1)
    return (y if bias is None else y + bias).to(x.dtype)


@backend("palette_linear_bwd_x", "reference")
def bwd_x(dy: Tensor, codebook: Tensor, indices: Tensor, in_features: int, bits: int) -> Tensor:
    gw, values = _wide(dy), _wide(codebook)
    dx = gw.new_zeros(dy.shape[0], in_features)
    for rows, index in _panels(indices, bits, dy.shape[1], in_features):
        dx += gw[:, rows] @ values[index]
    return dx.to(dy.dtype)


@backend("palette_linear_bwd_codebook", "reference")
def bwd_codebook(dy: Tensor, x: Tensor, indices: Tensor, bits: int) -> Tensor:
    gw, xw = _wide(dy), _wide(x)
    total = gw.new_zeros(2**bits)
    for rows, index in _panels(indices, bits, dy.shape[1], x.shape[1]):
        members = (gw[:, rows].T @ xw).reshape(-1)
        if total.is_cuda:  # index_add_ is atomic there; index_put_ sorts first
            total.index_put_((index.reshape(-1),), members, accumulate=True)
        else:
            total.index_add_(0, index.reshape(-1), members)
    return total.to(x.dtype)
