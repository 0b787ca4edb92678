"""The Triton kernel of the Tucker-2 convolution."""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_device import expand, finish, mix, take

FREE = ["H", "W", "HO", "WO", "tiles_h", "tiles_w", "th", "tw", "top", "left", "sh", "sw", "dh", "dw"]


@triton.jit(do_not_specialize=FREE)
def fwd(
    x, inner, core, outer, bias, residual, y, C, R1, R2, OUT, H, W, HO, WO, tiles_h, tiles_w, th, tw,
    x_n, x_c, x_h, x_w, y_n, y_c, y_h, y_w, res_n, res_c, res_h, res_w, top, left, sh, sw, dh, dw,
    KH: tl.constexpr, KW: tl.constexpr, IH: tl.constexpr, IW: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr,
    BO: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr, BQ: tl.constexpr, BS: tl.constexpr,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACT: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """A tile of `th` x `tw` pixels by BO outputs of one map: all R2 <= BQ sums of the core, then BS outputs a step.

    inner [R1, C], core [KH * KW, R2, R1], outer [O, R2].
    """
    blocks = tl.cdiv(OUT, BO)
    first = tl.program_id(0) % blocks * BO
    tile = tl.program_id(0) // blocks
    n = (tile // (tiles_h * tiles_w)).to(tl.int64)
    row0 = tile // tiles_w % tiles_h * th
    col0 = tile % tiles_w * tw
    q = tl.arange(0, IH * IW)  # [IH * IW]
    row = row0 * sh - top + q // IW
    col = col0 * sw - left + q % IW
    inside = (row >= 0) & (row < H) & (col >= 0) & (col < W)
    at = row * x_h + col * x_w
    r2 = tl.arange(0, BQ)  # [BQ]
    s = tl.zeros((TH * TW, BQ), tl.float32)
    for r0 in range(0, R1, BR):
        r1 = r0 + tl.arange(0, BR)  # [BR]
        z = mix(tl.zeros((IH * IW, BR), tl.float32), x + n * x_n, at, inside, inner, r1, C, R1, x_c, BC, WIDEN)
        # a rank past R1 would be 0 * inf where x is infinite
        z = tl.reshape(tl.where((r1 < R1)[None, :], z, 0.0), (IH, IW, BR))
        for i in range(KH):
            t = take(z, tl.minimum(tl.arange(0, TH) * sh + i * dh, IH - 1), 0)  # [TH, IW, BR]
            for j in range(KW):
                w = take(t, tl.minimum(tl.arange(0, TW) * sw + j * dw, IW - 1), 1)  # [TH, TW, BR]
                w = tl.reshape(w, (TH * TW, BR))
                s = expand(s, w, core + (i * KW + j) * R2 * R1, r1, r2, R1, R2, WIDEN)  # [TH * TW, BQ]
    s = tl.where((r2 < R2)[None, :], s, 0.0)
    p = tl.arange(0, TH * TW)  # [TH * TW]
    down, across = p // TW, p % TW
    down, across = tl.where(down < th, row0 + down, -1), tl.where(across < tw, col0 + across, -1)
    for o0 in range(first, tl.minimum(first + BO, OUT), BS):
        o = o0 + tl.arange(0, BS)  # [BS]
        acc = expand(tl.zeros((TH * TW, BS), tl.float32), s, outer, r2, o, R2, OUT, WIDEN)
        finish(
            acc, y, bias, residual, n, down, across, o,
            HO, WO, OUT, y_n, y_c, y_h, y_w, res_n, res_c, res_h, res_w, BIAS, RESIDUAL, ACT,
        )  # fmt: skip
