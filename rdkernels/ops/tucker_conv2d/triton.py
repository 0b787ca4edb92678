"""The Triton backend: one launch for the chain. The kernel is in `triton_kernels`.

A program owns a tile of pixels and a block of outputs of one map. For one block of the R1 ranks after the other it
multiplies the tile's inputs with `inner`, halo included, and adds one product per tap of the core to its [pixels, R2]
sums in registers, from the rank map shifted inside the program (`tl.gather`); then it walks along its outputs. The
channels are mixed once a pixel and no rank map is ever in memory; all sums of the core stay live, so R2 is at most 256.
Every sum is float32; 16-bit products with `core` and `outer` are made in two halves (`triton_device.halves`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...registry import backend
from ..chain import kept_maps
from ..convolution import Geometry
from ..triton_common import (
    AVAILABLE,
    Config,
    Problem,
    Tile,
    between,
    choose,
    indexed,
    launch,
    packed,
    power,
    serves,
    tiles,
)
from . import OP

STEP = {2: 32, 4: 16}  # outputs at once, by the size of a value


@functools.cache
def config(p: Problem) -> Config | None:
    """The blocks of one launch, a pure function; None where R2 or a pixel's halo does not fit into a program."""
    bq = max(power(p.ranks[1]), 16)

    def work(t: Tile, outputs: int, ranks: int, channels: int) -> int:
        pixels = t.grid_h * t.grid_w * p.passes
        taps = p.kernel[0] * p.kernel[1]
        return ranks * (t.ih * t.iw * channels + pixels * taps * bq) + pixels * bq * outputs

    def held(t: Tile, outputs: int, br: int) -> int:
        pixels = t.grid_h * t.grid_w
        factor = br if pixels > 16 else 0  # sixteen pixels are the fewest: they must do
        return max((pixels + factor) * max(bq, min(outputs, STEP[p.itemsize])), t.ih * t.iw * br)

    return choose(p, tiles(p, True), 1 << 14, work, held) if bq <= 256 else None


def blocks(p: Problem, c: Config) -> dict[str, int]:
    """The constants of the kernel beside those that every room's has."""
    return {"BQ": between(p.ranks[1], 16, 256), "BS": min(c.bo, STEP[p.itemsize])}


def _problem(x: Tensor, factors: Sequence[Tensor], where: Geometry) -> Problem:
    _, core, outer = factors
    return Problem.of(x, (core.shape[1], core.shape[0]), outer.shape[0], (core.shape[2], core.shape[3]), where)


def _serves(x: Tensor, *args: Any) -> bool:
    if not args or not serves(x):
        return serves(x)
    return indexed(x) and config(_problem(x, args[:3], Geometry(*args[-10:-2]))) is not None


def fwd(x: Tensor, *args: Any, chosen: Config | None = None) -> list[Tensor]:
    from . import triton_kernels  # importing Triton takes half a second: not at the package's import

    factors, (bias, residual), (activation, keep) = args[:3], args[3:5], args[-2:]
    where = Geometry(*args[-10:-2])
    p = _problem(x, factors, where)
    c = chosen or config(p)
    assert c is not None  # `_serves` has asked
    inner, core, outer = factors
    read = inner.contiguous(), packed(core, 2, 3, 0, 1), outer.contiguous()
    y = launch(triton_kernels.fwd, p, c, x, read, bias, residual, (p.c, *p.ranks, p.out), activation, **blocks(p, c))
    return [y, *(kept_maps(OP, x, factors, where) if keep else ())]


if AVAILABLE:
    backend(f"{OP}_fwd", "triton", _serves)(fwd)
