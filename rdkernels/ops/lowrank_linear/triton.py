"""The Triton backend: one launch where that pays, two where it does not. The kernels are in `triton_kernels`.

One launch: a program owns some rows and all their outputs; their R <= 256 inner values (128 on AMD) stay in it. Each
program reads both factors whole, so this is for factors of at most 256 KiB, where a launch is what costs, and for rows
enough that every multiprocessor has a large program of them. Between the two, programs would read far more from the
cache than the R-wide rows weigh: the inner values are summed first, in float32 and for few rows in parts of the inputs,
and a second launch multiplies them with `up`. Every sum is float32, in a fixed order, without atomics; 16-bit products
of the inner values are made in two halves (`triton_device.halves`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...registry import backend
from ..triton_common import AVAILABLE, BUSY, arch, between, cdiv, on, serves, stages, widen
from . import OP

SMALL = 1 << 18  # bytes of factors that one program reads in about the time of a launch


@dataclass(frozen=True)
class Config:
    """Blocks: `bm` rows, `bn` outputs, `br` ranks, `bk` inputs; `split` parts of the inputs, 0 for one fused launch."""

    bm: int
    bn: int
    br: int
    bk: int
    split: int
    warps: int
    stages: int


def config(M: int, K: int, R: int, N: int, itemsize: int, target: str) -> Config:
    """The blocks of a problem on `target`, a pure function; what orders the sums does not depend on the device."""
    half = itemsize == 2
    bk, live = (64, 16384) if half else (32, 4096)  # float32 values of one block in registers
    flight, most = stages(target, itemsize), 128 if target.startswith("gfx") else 256  # more spill on AMD
    br = between(R, 16, most)
    bm = between(M, 16, min(128, live // br))
    if br >= R and (cdiv(M, bm) >= BUSY or R * (K + N) * itemsize <= SMALL):
        bn = between(N, 16, min(64 if half else 32, live // bm))
        return Config(bm, bn, br, between(K, 16, bk), 0, 8 if bm * max(br, bn) > live // 4 else 4, flight)
    few = M <= 64
    bm = between(M, 16, 64 if half else 32)
    split = max(1, min(64 // M, 8, K // (4 * bk)))  # each program of the second launch adds all parts
    return Config(bm, 32 if few else 64, 32 if few or not half else 64, bk, split, 4, flight)


def fwd(
    x: Tensor,
    down: Tensor,
    up: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
    keep: bool,
    chosen: Config | None = None,
) -> list[Tensor]:
    from . import triton_kernels as k  # importing Triton takes half a second: not at the package's import

    (M, K), R, N = x.shape, down.shape[0], up.shape[0]
    y = x.new_empty(M, N)
    found = [y, x @ down.T] if keep else [y]
    if M == 0:
        return found
    down, up, added = down.contiguous(), up.contiguous(), y if residual is None else residual
    offset = y if bias is None else bias.contiguous()
    c = chosen or config(M, K, R, N, x.element_size(), arch(x))
    blocks = {"BM": c.bm, "BR": c.br, "WIDEN": widen(x), "num_warps": c.warps, "num_stages": c.stages}
    end = {"BN": c.bn, "BIAS": bias is not None, "RESIDUAL": residual is not None, "ACT": activation}
    with on(x):
        if c.split == 0:
            k.fused[(cdiv(M, c.bm),)](
                x, down, up, offset, added, y, M, R, K, N, *x.stride(), *added.stride(), BK=c.bk, **blocks, **end
            )
            return found
        span = cdiv(cdiv(K, c.bk), c.split) * c.bk
        part = x.new_empty(cdiv(K, span), M, R, dtype=torch.float32)
        k.inner[(cdiv(R, c.br) * cdiv(M, c.bm), part.shape[0])](
            x, down, part, M, R, K, span, *x.stride(), BK=c.bk, **blocks
        )
        k.outer[(cdiv(N, c.bn) * cdiv(M, c.bm),)](
            part, up, offset, added, y, M, R, N, part.shape[0], *added.stride(), **blocks, **end
        )
    return found


if AVAILABLE:
    backend(f"{OP}_fwd", "triton", serves)(fwd)
