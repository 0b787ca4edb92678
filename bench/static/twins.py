"""Dense twins of the Triton kernels: the loops of `fwd` and `bwd_x` with a stored weight in place of the decode."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def dense_fwd(x, w, y, M, N, K, stride, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """y = x w^T of w [N, K]; N and K are multiples of the blocks."""
    blocks = tl.cdiv(N, BN)
    o = tl.program_id(0) % blocks * BN + tl.arange(0, BN)  # [BN]
    m = tl.program_id(0).to(tl.int64) // blocks * BM + tl.arange(0, BM)  # [BM]
    acc = tl.zeros((BN, BM), tl.float32)
    for i0 in range(0, K, BK):
        i = i0 + tl.arange(0, BK)  # [BK]
        v = tl.load(w + o[:, None].to(tl.int64) * K + i[None, :])  # [BN, BK]
        xt = tl.load(x + m[None, :] * stride + i[:, None], mask=(m < M)[None, :], other=0.0)  # [BK, BM]
        acc = tl.dot(v, xt, acc, input_precision="ieee")
    tl.store(y + m[None, :] * N + o[:, None], acc.to(y.dtype.element_ty), mask=(m < M)[None, :])


@triton.jit
def dense_bwd_x(dy, w, dx, M, N, K, stride, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """dx = dy w of w [N, K]; N and K are multiples of the blocks."""
    blocks = tl.cdiv(K, BK)
    i = tl.program_id(0) % blocks * BK + tl.arange(0, BK)  # [BK]
    m = tl.program_id(0).to(tl.int64) // blocks * BM + tl.arange(0, BM)  # [BM]
    acc = tl.zeros((BM, BK), tl.float32)
    for n0 in range(0, N, BN):
        o = n0 + tl.arange(0, BN)  # [BN]
        v = tl.load(w + o[:, None].to(tl.int64) * K + i[None, :])  # [BN, BK]
        g = tl.load(dy + m[:, None] * stride + o[None, :], mask=(m < M)[:, None], other=0.0)  # [BM, BN]
        acc = tl.dot(g, v, acc, input_precision="ieee")
    tl.store(dx + m[:, None] * K + i[None, :], acc.to(dx.dtype.element_ty), mask=(m < M)[:, None])
