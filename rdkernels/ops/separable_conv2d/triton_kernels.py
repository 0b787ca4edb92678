"""The Triton kernel of the separable convolution."""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_device import expand, finish, mix, take

FREE = ["H", "W", "HO", "WO", "tiles_h", "tiles_w", "th", "tw", "top", "left", "sh", "sw", "dh", "dw"]


@triton.jit(do_not_specialize=FREE)
def fwd(
    x, vertical, horizontal, bias, residual, y, C, R, OUT, H, W, HO, WO, tiles_h, tiles_w, th, tw,
    x_n, x_c, x_h, x_w, y_n, y_c, y_h, y_w, res_n, res_c, res_h, res_w, top, left, sh, sw, dh, dw,
    KH: tl.constexpr, KW: tl.constexpr, IH: tl.constexpr, IW: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr,
    BO: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACT: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """A tile of `th` x `tw` pixels by BO outputs of one map; blocks of ranks outermost, so that only one is live.

    vertical [KH, R, C], horizontal [KW, O, R]. The vertical stage has the output's rows (IH = TH) and halo columns.
    """
    blocks = tl.cdiv(OUT, BO)
    o = tl.program_id(0) % blocks * BO + tl.arange(0, BO)  # [BO]
    tile = tl.program_id(0) // blocks
    n = (tile // (tiles_h * tiles_w)).to(tl.int64)
    row0 = tile // tiles_w % tiles_h * th
    col0 = tile % tiles_w * tw
    q = tl.arange(0, IH * IW)  # [IH * IW]
    col = col0 * sw - left + q % IW
    acc = tl.zeros((TH * TW, BO), tl.float32)
    for r0 in range(0, R, BR):
        r = r0 + tl.arange(0, BR)  # [BR]
        t = tl.zeros((IH * IW, BR), tl.float32)
        for i in range(KH):
            row = (row0 + q // IW) * sh - top + i * dh
            inside = (row >= 0) & (row < H) & (col >= 0) & (col < W)
            t = mix(t, x + n * x_n, row * x_h + col * x_w, inside, vertical + i * R * C, r, C, R, x_c, BC, WIDEN)
        # a rank past R would be 0 * inf where x is infinite
        t = tl.reshape(tl.where((r < R)[None, :], t, 0.0), (IH, IW, BR))
        for j in range(KW):
            w = take(t, tl.minimum(tl.arange(0, TW) * sw + j * dw, IW - 1), 1)  # [TH, TW, BR]
            acc = expand(acc, tl.reshape(w, (TH * TW, BR)), horizontal + j * OUT * R, r, o, R, OUT, WIDEN)
    p = tl.arange(0, TH * TW)  # [TH * TW]
    down, across = p // TW, p % TW
    finish(
        acc, y, bias, residual, n, tl.where(down < th, row0 + down, -1), tl.where(across < tw, col0 + across, -1), o,
        HO, WO, OUT, y_n, y_c, y_h, y_w, res_n, res_c, res_h, res_w, BIAS, RESIDUAL, ACT,
    )  # fmt: skip
