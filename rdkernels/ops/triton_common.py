"""What the Triton backends of the low-rank rooms share on the host: whom they serve, tiles, packed factors.

Triton itself is not imported here: that takes half a second. The device functions are in `triton_device`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .convolution import KERNEL_DTYPES, Geometry, new_output
from .packing import derived

AVAILABLE = importlib.util.find_spec("triton") is not None
BUSY = 128  # programs that keep a large GPU busy
HALO = 1024  # pixels of one tile's input, at most


class Problem(NamedTuple):
    """What the blocks of a convolution are chosen by: maps, channels, ranks, outputs, the kernel and its geometry."""

    n: int
    c: int
    ranks: tuple[int, ...]
    out: int
    size: tuple[int, int]  # of the output
    kernel: tuple[int, int]
    where: Geometry
    itemsize: int
    target: str

    @property
    def passes(self) -> int:
        """Products that a float32 factor takes: tensor cores want it as two of 16 bits."""
        return 2 if self.itemsize == 2 else 1

    @classmethod
    def of(cls, x: Tensor, ranks: tuple[int, ...], out: int, kernel: tuple[int, int], where: Geometry) -> Problem:
        size = where.out(x.shape[2], x.shape[3], *kernel)
        return cls(x.shape[0], x.shape[1], ranks, out, size, kernel, where, x.element_size(), arch(x))


@dataclass(frozen=True)
class Tile:
    """`th` x `tw` output pixels of one program and the `ih` x `iw` inputs they need, both in grids of powers of two."""

    th: int
    tw: int
    grid_h: int
    grid_w: int
    ih: int
    iw: int


@dataclass(frozen=True)
class Config:
    """Blocks of one launch: a tile of pixels by `bo` outputs; `br` ranks and `bc` channels a step."""

    tile: Tile
    bo: int
    br: int
    bc: int
    warps: int
    stages: int


def interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def serves(x: Tensor, *_: Any) -> bool:
    """Whether a kernel can run where x is: on a GPU, on the CPU only where `TRITON_INTERPRET=1` was set."""
    return x.dtype in KERNEL_DTYPES and (x.is_cuda or (x.device.type == "cpu" and interpreting()))


def widen(x: Tensor) -> bool:
    """Whether products must widen their factors themselves: the interpreter multiplies the raw bits of bfloat16."""
    return interpreting() and x.dtype != torch.float32


def on(x: Tensor) -> Any:
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def arch(x: Tensor) -> str:
    """The target by its compiler's name, such as "sm_90" or "gfx942", or "interpreter"."""
    if not x.is_cuda:
        return "interpreter"
    if torch.version.hip:
        return torch.cuda.get_device_properties(x.device).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(x.device)
    return f"sm_{major}{minor}"


def stages(arch: str, itemsize: int) -> int:
    """Steps of a product in flight; in float32 a third one spills registers."""
    return 3 if itemsize == 2 and arch.startswith("sm_") and int(arch[3:]) >= 80 else 2


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def power(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << max(n - 1, 0).bit_length()


def between(n: int, low: int, high: int) -> int:
    return max(low, min(high, power(n)))


def tiles(p: Problem, rows: bool) -> Iterator[Tile]:
    """The tiles of the output map, each the largest of its grids; `rows`: their inputs have halo rows too.

    Without `rows` the grid of inputs has the output's rows: the kernel's first product has already summed over them.
    """
    (h, w), (kh, kw), where = p.size, p.kernel, p.where
    span_h = where.dilation_h * (kh - 1) + 1 if rows else 1
    span_w = where.dilation_w * (kw - 1) + 1
    step_h = where.stride_h if rows else 1
    found = set()
    for ih in (1, 2, 4, 8, 16, 32, 64):
        th = min(h, (ih - span_h) // step_h + 1)
        for iw in (2, 4, 8, 16, 32, 64, 128):
            tw = min(w, (iw - span_w) // where.stride_w + 1)
            if th < 1 or tw < 1 or ih * iw > HALO:
                continue
            need_h, need_w = power((th - 1) * step_h + span_h), power((tw - 1) * where.stride_w + span_w)
            need_w = max(need_w, cdiv(16, need_h))  # the least a tensor core multiplies
            grid_h = power(th)
            found.add(Tile(th, tw, grid_h, max(power(tw), cdiv(16, grid_h)), need_h, need_w))
    yield from sorted(found, key=lambda t: (t.th, t.tw, t.ih, t.iw))


def choose(
    p: Problem,
    every: Iterator[Tile],
    most: int,
    work: Callable[[Tile, int, int, int], int],
    held: Callable[[Tile, int, int], int],
) -> Config | None:
    """The blocks that take least, of programs with 16 to `most` outputs; None where nothing fits into the registers.

    What a launch takes, in multiply-adds of one multiprocessor: `work(tile, outputs, ranks, channels)` of one program,
    ranks and channels counted in whole steps, for each wave of programs; and ten thousand to start a program. (The
    interpreter runs one at a time and starts slowly.) `held(tile, outputs, br)` is the largest block of float32 values
    alive. What orders the sums, `br` and `bc`, depends on neither the device nor the batch.
    """
    most_br, most_bc, live = (32, 64, 20480) if p.itemsize == 2 else (16, 16, 5120)
    br, bc = between(p.ranks[0], 16, most_br), between(p.c, 16, most_bc)
    ranks, channels = cdiv(p.ranks[0], br) * br, cdiv(p.c, bc) * bc
    best = None
    busy, start = (1, 500_000) if p.target == "interpreter" else (BUSY, 10_000)
    for tile in every:
        for bo in sorted({between(p.out, 16, 16 << n) for n in range((most // 16).bit_length())}):
            values = held(tile, bo, br)
            if values <= live:
                count = p.n * cdiv(p.size[0], tile.th) * cdiv(p.size[1], tile.tw) * cdiv(p.out, bo)
                cost = cdiv(count, busy) * work(tile, bo, ranks, channels) + start * count
                if best is None or cost < best[0]:
                    best = cost, Config(tile, bo, br, bc, 8 if values > live // 4 else 4, stages(p.target, p.itemsize))
    return None if best is None else best[1]


def packed(factor: Tensor, *order: int) -> Tensor:
    """The factor with its dimensions in that order, contiguous; kept while `derived` keeps it.

    While a CUDA graph is captured nothing kept is used: the graph must pack anew at each replay.
    """
    view = factor.permute(order)
    if view.is_contiguous():
        return view
    if factor.is_cuda and torch.cuda.is_current_stream_capturing():
        return view.contiguous()
    kept = derived((factor,))
    key = order, torch.cuda.current_stream(factor.device).cuda_stream if factor.is_cuda else 0  # that has packed it
    if key not in kept:
        kept[key] = view.contiguous()
    return kept[key]


def launch(
    kernel: Any, p: Problem, c: Config, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None,
    residual: Tensor | None, dims: Sequence[int], activation: int, **constants: int,
) -> Tensor:  # fmt: skip
    """Run a room's kernel; they differ in their factors, `dims` and `constants`. Returns y."""
    where, t = p.where, c.tile
    y = new_output(x, p.out, *p.size)
    if p.n == 0:
        return y
    down, across = cdiv(p.size[0], t.th), cdiv(p.size[1], t.tw)
    added = y if residual is None else residual
    with on(x):
        kernel[(cdiv(p.out, c.bo) * down * across * p.n,)](
            x, *factors, y if bias is None else bias.contiguous(), added, y, *dims, *x.shape[2:], *p.size,
            down, across, t.th, t.tw, *x.stride(), *y.stride(), *added.stride(), where.top, where.left,
            where.stride_h, where.stride_w, where.dilation_h, where.dilation_w,
            KH=p.kernel[0], KW=p.kernel[1], IH=t.ih, IW=t.iw, TH=t.grid_h, TW=t.grid_w,
            BO=c.bo, BR=c.br, BC=c.bc, **constants, BIAS=bias is not None, RESIDUAL=residual is not None,
            ACT=activation, WIDEN=widen(x), num_warps=c.warps, num_stages=c.stages,
        )  # fmt: skip
    return y


def indexed(x: Tensor) -> bool:
    """Whether one map of x is within 32 bits of offset, as the kernels count inside it."""
    return sum((size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True)) < 1 << 31
