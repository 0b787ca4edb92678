"""Device functions that the Triton kernels of the low-rank rooms share."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def product(a, b, acc, WIDEN: tl.constexpr):
    # the interpreter multiplies the raw bits of bfloat16
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def activate(y, ACT: tl.constexpr):
    """`convolution.Activation` by its code; NaN stays NaN."""
    if ACT == 1:
        y = tl.where(y < 0.0, 0.0, y)
    elif ACT == 2:
        y = 0.5 * y * (1.0 + tl.math.erf(y * 0.7071067811865476))
    elif ACT == 3:
        y = y / (1.0 + tl.exp(-y))
    return y


@triton.jit
def mix(
    acc, x, at, inside, weight, r, C, R, stride_c, BC: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """acc[m, r] += sum_c x[at[m] + c * stride_c] * weight[r, c]; x counts as 0 where it is not `inside`."""
    for c0 in range(0, C, BC):
        c = c0 + tl.arange(0, BC)  # [BC]
        a = tl.load(x + at[:, None] + c[None, :] * stride_c, mask=inside[:, None] & (c < C)[None, :], other=0.0)
        b = tl.load(weight + r[None, :] * C + c[:, None], mask=(r < R)[None, :] & (c < C)[:, None], other=0.0)
        if WIDEN:
            a, b = a.to(tl.float32), b.to(tl.float32)
        acc = tl.dot(a, b, acc, input_precision="ieee")  # [M, BR]
    return acc


@triton.jit
def halves(w, KIND: tl.constexpr):
    """float32 `w` as a sum of two values of 16-bit KIND, for tensor cores; an infinite or NaN one is all in the first.

    Rounded once, a rank map turns the sign of so many small outputs that the gradient behind a ReLU breaks the accuracy
    rule. As in every chain of float16 products, a rank value beyond 65504 is infinite.
    """
    high = w.to(KIND)
    back = high.to(tl.float32)
    return high, tl.where(tl.abs(back) < float("inf"), w - back, 0.0).to(KIND)


@triton.jit
def expand(acc, w, weight, r, o, R, OUT, WIDEN: tl.constexpr):
    """acc[p, o] += sum_r w[p, r] * weight[o, r], `w` in float32; w is 0 past R."""
    b = tl.load(weight + o[None, :] * R + r[:, None], mask=(r < R)[:, None] & (o < OUT)[None, :], other=0.0)  # [BR, BO]
    if weight.dtype.element_ty == tl.float32:
        acc = tl.dot(w, b, acc, input_precision="ieee")
    else:
        high, low = halves(w, weight.dtype.element_ty)
        if WIDEN:
            high, low, b = high.to(tl.float32), low.to(tl.float32), b.to(tl.float32)
        acc = tl.dot(high, b, tl.dot(low, b, acc))
    return acc


@triton.jit
def take(z, at, AXIS: tl.constexpr):
    """z at positions `at` [n] of axis 0 or 1 of [H, W, BR]: a shift of the map inside the program."""
    if AXIS == 0:
        i = tl.broadcast_to(at[:, None, None], (at.shape[0], z.shape[1], z.shape[2]))
    else:
        i = tl.broadcast_to(at[None, :, None], (z.shape[0], at.shape[0], z.shape[2]))
    return tl.gather(z, i, AXIS)


@triton.jit
def finish(
    acc, y, bias, residual, n, row, col, o, HO, WO, OUT,
    y_n, y_c, y_h, y_w, res_n, res_c, res_h, res_w,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACT: tl.constexpr,
):  # fmt: skip
    """Epilogue and store of `acc` [P, BO]: pixels (row, col) of map n by outputs o."""
    here = ((row >= 0) & (row < HO) & (col >= 0) & (col < WO))[:, None] & (o < OUT)[None, :]  # [P, BO]
    if BIAS:
        acc += tl.load(bias + o, mask=o < OUT, other=0.0).to(tl.float32)[None, :]
    if RESIDUAL:
        at = n * res_n + (row * res_h + col * res_w)[:, None] + (o * res_c)[None, :]
        acc += tl.load(residual + at, mask=here, other=0.0).to(tl.float32)
    at = n * y_n + (row * y_h + col * y_w)[:, None] + (o * y_c)[None, :]
    tl.store(y + at, activate(acc, ACT).to(y.dtype.element_ty), mask=here)
