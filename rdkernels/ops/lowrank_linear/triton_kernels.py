"""Triton kernels of the low-rank linear layer. The factors are the left operands: 16 rows of x fill a tensor core."""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_device import activate, halves, product


@triton.jit
def _inside(
    x, down, r, m, start, end, M, R, K, x_m, x_k, BR: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """sum_k down[r, k] x[m, k] over start <= k < end, 0 past R  [BR, BM]."""
    acc = tl.zeros((BR, BM), tl.float32)
    for k0 in range(start, end, BK):
        k = k0 + tl.arange(0, BK)  # [BK]
        a = tl.load(down + r[:, None] * K + k[None, :], mask=(r < R)[:, None] & (k < end)[None, :], other=0.0)
        b = tl.load(x + m[None, :] * x_m + (k * x_k)[:, None], mask=(m < M)[None, :] & (k < end)[:, None], other=0.0)
        acc = product(a, b, acc, WIDEN)
    # a rank past R would be 0 * inf where x is infinite
    return tl.where((r < R)[:, None], acc, 0.0)


@triton.jit
def _finish(
    acc, bias, residual, y, n, m, M, N, res_m, res_n, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACT: tl.constexpr
):
    here = (n < N)[:, None] & (m < M)[None, :]  # [BN, BM]
    if BIAS:
        acc += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
    if RESIDUAL:
        acc += tl.load(residual + m[None, :] * res_m + (n * res_n)[:, None], mask=here, other=0.0).to(tl.float32)
    tl.store(y + m[None, :] * N + n[:, None], activate(acc, ACT).to(y.dtype.element_ty), mask=here)


@triton.jit
def _outside(acc, up, h, r, n, R, N, WIDEN: tl.constexpr):
    """acc[n, m] += sum_r up[n, r] h[r, m], `h` in float32."""
    a = tl.load(up + n[:, None] * R + r[None, :], mask=(n < N)[:, None] & (r < R)[None, :], other=0.0)  # [BN, BR]
    if up.dtype.element_ty == tl.float32:
        acc = product(a, h, acc, WIDEN)
    else:
        high, low = halves(h, up.dtype.element_ty)
        acc = product(a, high, product(a, low, acc, WIDEN), WIDEN)
    return acc


@triton.jit(do_not_specialize=["M"])
def fused(
    x, down, up, bias, residual, y, M, R, K, N, x_m, x_k, res_m, res_n,
    BM: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACT: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Every output of BM rows, whose R <= BR inner values never leave the program."""
    m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)  # [BM]
    r = tl.arange(0, BR)  # [BR]
    h = _inside(x, down, r, m, 0, K, M, R, K, x_m, x_k, BR, BM, BK, WIDEN)  # [BR, BM]
    for n0 in range(0, N, BN):
        n = n0 + tl.arange(0, BN)  # [BN]
        acc = _outside(tl.zeros((BN, BM), tl.float32), up, h, r, n, R, N, WIDEN)  # [BN, BM]
        _finish(acc, bias, residual, y, n, m, M, N, res_m, res_n, BIAS, RESIDUAL, ACT)


@triton.jit(do_not_specialize=["M"])
def inner(
    x, down, part, M, R, K, span, x_m, x_k,
    BM: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """part[s, m, r]: the float32 sum of x[m, k] down[r, k] over the s-th span of k."""
    blocks = tl.cdiv(R, BR)
    r = tl.program_id(0) % blocks * BR + tl.arange(0, BR)  # [BR]
    m = (tl.program_id(0) // blocks).to(tl.int64) * BM + tl.arange(0, BM)  # [BM]
    start = tl.program_id(1) * span
    acc = _inside(x, down, r, m, start, tl.minimum(start + span, K), M, R, K, x_m, x_k, BR, BM, BK, WIDEN)
    at = tl.program_id(1).to(tl.int64) * M * R + m[None, :] * R + r[:, None]
    tl.store(part + at, acc, mask=(r < R)[:, None] & (m < M)[None, :])


@triton.jit(do_not_specialize=["M", "parts"])
def outer(
    part, up, bias, residual, y, M, R, N, parts, res_m, res_n,
    BM: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACT: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """BM rows by BN outputs from the inner values part[0] + part[1] + ..., in that order."""
    blocks = tl.cdiv(N, BN)
    n = tl.program_id(0) % blocks * BN + tl.arange(0, BN)  # [BN]
    m = (tl.program_id(0) // blocks).to(tl.int64) * BM + tl.arange(0, BM)  # [BM]
    acc = tl.zeros((BN, BM), tl.float32)
    for r0 in range(0, R, BR):
        r = r0 + tl.arange(0, BR)  # [BR]
        here = (r < R)[:, None] & (m < M)[None, :]
        h = tl.zeros((BR, BM), tl.float32)
        for s in range(parts):
            h += tl.load(part + (s * R).to(tl.int64) * M + m[None, :] * R + r[:, None], mask=here, other=0.0)
        acc = _outside(acc, up, h, r, n, R, N, WIDEN)  # [BN, BM]
    _finish(acc, bias, residual, y, n, m, M, N, res_m, res_n, BIAS, RESIDUAL, ACT)
