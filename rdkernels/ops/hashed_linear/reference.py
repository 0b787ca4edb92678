"""The definition in plain torch: any device, any floating dtype; float64 is the truth of the tests.

16-bit inputs are widened to float32, computed and rounded once, as every backend must.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ... import hashing
from ...registry import backend


def _wide(*tensors: Tensor) -> list[Tensor]:
    return [t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors]


def _with_ones(x: Tensor, hashed_bias: bool) -> Tensor:
    return torch.cat([x, x.new_ones(x.shape[0], 1)], 1) if hashed_bias else x


@backend("hashed_linear_fwd", "reference")
def fwd(
    x: Tensor,
    bank: Tensor,
    bias: Tensor | None,
    out_features: int,
    go: int,
    gi: int,
    seed: int,
    scale: float,
    hashed_bias: bool,
) -> Tensor:
    xw, bw = _wide(_with_ones(x, hashed_bias), bank)
    y = scale * (xw @ hashing.virtual_weight(bw, out_features, xw.shape[1], (go, gi), seed).T)
    if bias is not None:
        y = y + bias
    return y.to(x.dtype)


@backend("hashed_linear_bwd_x", "reference")
def bwd_x(dy: Tensor, bank: Tensor, in_features: int, go: int, gi: int, seed: int, scale: float) -> Tensor:
    gw, bw = _wide(dy, bank)
    return (scale * (gw @ hashing.virtual_weight(bw, dy.shape[1], in_features, (go, gi), seed))).to(dy.dtype)


@backend("hashed_linear_bwd_bank", "reference")
def bwd_bank(dy: Tensor, x: Tensor, slots: int, go: int, gi: int, seed: int, scale: float, hashed_bias: bool) -> Tensor:
    gw, xw = _wide(dy, _with_ones(x, hashed_bias))
    index, sign = hashing.index_and_sign(gw.shape[1], xw.shape[1], slots, (go, gi), seed, device=x.device)
    signed = (scale * (gw.T @ xw)) * sign
    total = gw.new_zeros(slots * go * gi)
    if total.is_cuda:  # index_add_ is atomic there; index_put_ sorts first
        total.index_put_((index.reshape(-1),), signed.reshape(-1), accumulate=True)
    else:
        total.index_add_(0, index.reshape(-1), signed.reshape(-1))
    return total.to(x.dtype)
