"""The Triton backend of the three passes: launchers and the choice of blocks. The kernels are in `triton_kernels`.

It serves CUDA (and ROCm) tensors; CPU tensors only where `TRITON_INTERPRET=1` was set. Every sum is float32 in an order
that the shape alone fixes, without atomics, and is rounded once.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...registry import backend
from . import KERNEL_DTYPES

_AVAILABLE = importlib.util.find_spec("triton") is not None
_BUSY = 256  # programs that keep a large GPU busy
_PANEL = 1 << 20  # virtual weights whose gradient stands in memory at once


@dataclass(frozen=True)
class Config:
    """Blocks of one launch: `bm` rows, `bn` outputs, `bk` inputs, `split` ordered parts of the contracted axis."""

    bm: int
    bn: int
    bk: int
    split: int
    warps: int
    stages: int


def config(name: str, M: int, N: int, K: int, go: int, gi: int, itemsize: int, arch: str) -> Config:
    """The blocks of pass `name` ("fwd", "bwd_x", "bwd_bank") of a problem on `arch` ("sm_90", "gfx942", ...).

    A pure function: no measurement, nothing kept. `split`, which orders the sums, does not depend on the device.
    """
    stages = 3 if arch.startswith("sm_") and int(arch[3:]) >= 80 else 2
    if name == "bwd_bank":
        if owned(go, gi):
            br, bc = min(go, 64), min(gi, 64)
            return Config(_between(M, 16, 128 // itemsize), br, bc, _BUSY // (go // br * (gi // bc)), 4, stages)
        return Config(_between(M, 16, 32), 64, 64, 1, 4, stages)
    forward = name == "fwd"
    if M == 1:
        bm, free, summed = 1, 16 if forward else 64, 128 if forward else 32
    elif itemsize == 4:
        bm, free, summed = _between(M, 16, 64), 64, 32 if forward else 16
    else:
        bm, free, summed = _between(M, 16, 128), 64 if M <= 64 else 128, 32 if (go, gi) == (1, 1) else 64
    outer, inner = (N, K) if forward else (K, N)
    programs = _cdiv(outer, free) * _cdiv(M, bm)
    split = max(1, min(_BUSY // programs, _cdiv(inner, summed) // 4, 16))
    bn, bk = (free, summed) if forward else (summed, free)
    return Config(bm, bn, bk, split, 8 if bm * free >= 128 * 128 else 4, stages)


def owned(go: int, gi: int) -> bool:
    """Whether a granule is wide enough in both axes that its owner multiplies its members itself."""
    return go >= 16 and gi >= 16


def status() -> str:
    """The version of Triton and where its kernels run, or why they do not."""
    if not _AVAILABLE:
        return "not installed"
    version = importlib.metadata.version("triton")
    if _interpreting():
        return f"{version}, interpreted on the CPU"
    return version if torch.cuda.is_available() else f"{version}, no GPU: not used"


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def _serves(x: Tensor, *_: Any) -> bool:
    return x.dtype in KERNEL_DTYPES and (x.is_cuda or (x.device.type == "cpu" and _interpreting()))


def _kernels() -> Any:
    from . import triton_kernels  # importing Triton takes half a second: not at the package's import

    return triton_kernels


def _between(n: int, low: int, high: int) -> int:
    return max(low, min(high, 1 << (n - 1).bit_length()))


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


def _split(length: int, block: int, split: int) -> tuple[int, int]:
    """How much of the contracted axis one program sums, in whole blocks, and how many parts that makes (at least 1)."""
    span = max(1, _cdiv(_cdiv(length, block), split)) * block
    return span, max(1, _cdiv(length, span))


def _arch(x: Tensor) -> str:
    if not x.is_cuda:
        return "sm_90"
    if torch.version.hip:
        return torch.cuda.get_device_properties(x.device).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(x.device)
    return f"sm_{major}{minor}"


def _on(x: Tensor) -> Any:
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def _int32(seed: int) -> int:
    return seed - (1 << 32) if seed >> 31 else seed  # one kernel for all seeds: above 2^31 Triton would take 64 bits


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()


def _aligned(bank: Tensor) -> Tensor:
    bank = bank.contiguous()
    return bank.clone() if bank.data_ptr() % 16 else bank  # kernels load whole vectors of it


def _padded_transpose(dy: Tensor) -> Tensor:
    t = dy.new_zeros(dy.shape[1], _cdiv(dy.shape[0], 16) * 16)  # whole vectors along the rows of dy
    t[:, : dy.shape[0]] = dy.t()
    return t


def _widen(x: Tensor) -> bool:
    return _interpreting() and x.dtype != torch.float32


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
    chosen: Config | None = None,
) -> Tensor:
    (M, K), N = x.shape, out_features
    y = x.new_empty(M, N)
    if M == 0:
        return y
    k, x, bank = _kernels(), _rows(x), _aligned(bank)
    bias = bias.contiguous() if bias is not None else None
    c = chosen or config("fwd", M, N, K, go, gi, x.element_size(), _arch(x))
    span, parts = _split(K, c.bk, c.split)
    out = y if parts == 1 else x.new_empty(parts, M, N, dtype=torch.float32)
    with _on(x):
        k.fwd[(_cdiv(N, c.bn) * _cdiv(M, c.bm), parts)](
            x, bank, y if bias is None else bias, out, M, N, K, span, x.stride(0), bank.shape[0] // (go * gi),
            _int32(seed), scale, GO=go, GI=gi, BIAS=bias is not None, HASHED_BIAS=hashed_bias, PARTIAL=parts > 1,
            BM=c.bm, BN=c.bn, BK=c.bk, WIDEN=_widen(x), num_warps=c.warps, num_stages=c.stages,
        )  # fmt: skip
        if parts > 1:
            _combine(k, out, bias, y, scale)
    return y


def bwd_x(
    dy: Tensor,
    bank: Tensor,
    in_features: int,
    go: int,
    gi: int,
    seed: int,
    scale: float,
    chosen: Config | None = None,
) -> Tensor:
    (M, N), K = dy.shape, in_features
    dx = dy.new_empty(M, K)
    if dx.numel() == 0:
        return dx
    k, dy, bank = _kernels(), _rows(dy), _aligned(bank)
    c = chosen or config("bwd_x", M, N, K, go, gi, dy.element_size(), _arch(dy))
    span, parts = _split(N, c.bn, c.split)
    out = dx if parts == 1 else dy.new_empty(parts, M, K, dtype=torch.float32)
    with _on(dy):
        k.bwd_x[(_cdiv(K, c.bk) * _cdiv(M, c.bm), parts)](
            dy, bank, out, M, N, K, span, dy.stride(0), bank.shape[0] // (go * gi), _int32(seed), scale,
            GO=go, GI=gi, PARTIAL=parts > 1, BM=c.bm, BN=c.bn, BK=c.bk, WIDEN=_widen(dy),
            num_warps=c.warps, num_stages=c.stages,
        )  # fmt: skip
        if parts > 1:
            _combine(k, out, None, dx, scale)
    return dx


def bwd_bank(
    dy: Tensor,
    x: Tensor,
    slots: int,
    go: int,
    gi: int,
    seed: int,
    scale: float,
    hashed_bias: bool,
    chosen: Config | None = None,
) -> Tensor:
    """Tiles: each slot's owner multiplies its members and stores once, from a list of 16 bytes a granule.

    Finer granules: dV is written panel by panel, at most 2^20 virtual weights (12 to 40 MiB with its sorted keys) or a
    sixteenth of the layer; each slot's owner then adds its members in the panel to the bank's float32 gradient.
    """
    (M, N), K = dy.shape, x.shape[1]
    if M == 0 or K + hashed_bias == 0:
        return x.new_zeros(slots * go * gi)
    k, x = _kernels(), _rows(x)
    c = chosen or config("bwd_bank", M, N, K, go, gi, x.element_size(), _arch(x))
    with _on(x):
        if owned(go, gi):
            total = _bank_owned(k, c, _padded_transpose(dy), x, slots, go, gi, seed)
        else:
            total = _bank_panels(k, c, _rows(dy), x, slots, go, gi, seed, hashed_bias)
        out = x.new_empty(slots * go * gi)
        _combine(k, total, None, out, scale)
    return out


def _bank_owned(k: Any, c: Config, dyt: Tensor, x: Tensor, slots: int, go: int, gi: int, seed: int) -> Tensor:
    N, K = dyt.shape[0], x.shape[1]
    across, down = _cdiv(K, gi), _cdiv(N, go)
    keys = torch.empty(down * across, dtype=torch.int32, device=x.device)
    k.bank_keys[(_cdiv(keys.numel(), 1024),)](keys, keys.numel(), across, slots, _int32(seed), BLOCK=1024)
    order, first = _members(keys, slots)
    pieces = max(1, min(c.split // slots, _cdiv(keys.numel(), slots), 64))
    part = torch.empty(pieces, slots * go * gi, dtype=torch.float32, device=x.device)
    k.bank_owner[(slots * (go // c.bn) * (gi // c.bk), pieces)](
        dyt, x, order, first, part, x.shape[0], N, K, across, dyt.stride(0), x.stride(0), slots, _int32(seed), pieces,
        GO=go, GI=gi, BM=c.bm, BR=c.bn, BC=c.bk, WIDEN=_widen(x), num_warps=c.warps, num_stages=c.stages,
    )  # fmt: skip
    return part


def _bank_panels(
    k: Any, c: Config, dy: Tensor, x: Tensor, slots: int, go: int, gi: int, seed: int, hashed_bias: bool
) -> Tensor:
    (M, N), K = dy.shape, x.shape[1]
    size, columns = go * gi, K + hashed_bias
    total = torch.zeros(1, slots * size, dtype=torch.float32, device=x.device)
    down, across = panel(N, columns, go, gi)
    for p0 in range(0, _cdiv(N, go), down):
        rows = min(down, _cdiv(N, go) - p0) * go
        for q0 in range(0, _cdiv(columns, gi), across):
            width = min(across, _cdiv(columns, gi) - q0)
            granules = rows // go * width
            dw = torch.empty(granules * size, dtype=torch.float32, device=x.device)
            keys = torch.empty(granules, dtype=torch.int32, device=x.device)
            wide = _cdiv(width * gi, c.bk)
            k.bank_panel[(_cdiv(rows, c.bn) * wide,)](
                dy, x, dw, keys, p0 * go, q0 * gi, rows, width, wide, M, N, K, dy.stride(0), x.stride(0), slots,
                _int32(seed), GO=go, GI=gi, HASHED_BIAS=hashed_bias, BM=c.bm, BN=c.bn, BK=c.bk, WIDEN=_widen(x),
                num_warps=c.warps, num_stages=c.stages,
            )  # fmt: skip
            order, first = _members(keys, slots)
            be = min(size, 64)
            bj = min(_between(granules // slots, 1, 64), 1024 // be)
            bs = max(1, 1024 // (be * bj))
            k.bank_gather[(_cdiv(slots, bs), size // be)](
                dw, order, first, total, slots, SIZE=size, BS=bs, BJ=bj, BE=be, num_warps=4
            )
    return total


def panel(N: int, columns: int, go: int, gi: int) -> tuple[int, int]:
    """Granules down and across of one panel of dV: decided by the shape alone, for it is the order of the sums."""
    budget = max(1, min(max(N * columns // 16, 1 << 16), _PANEL) // (go * gi))  # granules
    across = min(_cdiv(columns, gi), budget)
    rows = max(1, budget // across)
    if rows * go > 64:
        rows = rows * go // 64 * 64 // go  # whole blocks of the panel kernel
    return min(rows, _cdiv(N, go)), across


def _members(keys: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """Granules sorted by slot, in coordinate order within one, and where each slot's begin `[slots + 1]`."""
    by_slot, order = torch.sort(keys, stable=True)
    edges = torch.arange(slots + 1, dtype=torch.int32, device=keys.device)
    return order, torch.searchsorted(by_slot, edges, out_int32=True)


def _combine(k: Any, parts: Tensor, bias: Tensor | None, out: Tensor, scale: float) -> None:
    total = out.numel()
    k.combine[(_cdiv(total, 1024),)](
        parts, out if bias is None else bias, out, total, out.shape[-1], parts.shape[0], scale,
        BIAS=bias is not None, BLOCK=1024,
    )  # fmt: skip


if _AVAILABLE:
    backend("hashed_linear_fwd", "triton", _serves)(fwd)
    backend("hashed_linear_bwd_x", "triton", _serves)(bwd_x)
    backend("hashed_linear_bwd_bank", "triton", _serves)(bwd_bank)
