"""The Triton backend: one launch for the chain. The kernel is in `triton_kernels`.

A program owns a tile of pixels and a block of outputs of one map. For one block of ranks after the other it makes the
vertical stage for the tile's rows and halo columns as one implicit product, then adds one product per horizontal tap to
its sums in registers, from the rank map shifted inside the program (`tl.gather`). No rank map is ever in memory; the
vertical stage is made again for each block of outputs, of up to 256. Every sum is float32; 16-bit products with
`horizontal` are made in two halves (`triton_device.halves`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...registry import backend
from ..chain import kept_maps
from ..convolution import Geometry
from ..triton_common import AVAILABLE, Config, Problem, Tile, choose, indexed, launch, packed, serves, tiles
from . import OP


@functools.cache
def config(p: Problem) -> Config | None:
    """The blocks of one launch, a pure function; None where a pixel's halo does not fit into a program."""

    def work(t: Tile, outputs: int, ranks: int, channels: int) -> int:
        kh, kw = p.kernel
        return ranks * (t.ih * t.iw * kh * channels + t.grid_h * t.grid_w * kw * p.passes * outputs)

    def held(t: Tile, outputs: int, br: int) -> int:
        return max((t.grid_h * t.grid_w + br) * outputs, t.ih * t.iw * br)

    return choose(p, tiles(p, False), 256, work, held)


def _problem(x: Tensor, factors: Sequence[Tensor], where: Geometry) -> Problem:
    vertical, horizontal = factors
    return Problem.of(x, (vertical.shape[0],), horizontal.shape[0], (vertical.shape[2], horizontal.shape[2]), where)


def _serves(x: Tensor, *args: Any) -> bool:
    if not args or not serves(x):
        return serves(x)
    return indexed(x) and config(_problem(x, args[:2], Geometry(*args[-10:-2]))) is not None


def fwd(x: Tensor, *args: Any, chosen: Config | None = None) -> list[Tensor]:
    from . import triton_kernels  # importing Triton takes half a second: not at the package's import

    factors, (bias, residual), (activation, keep) = args[:2], args[2:4], args[-2:]
    where = Geometry(*args[-10:-2])
    p = _problem(x, factors, where)
    c = chosen or config(p)
    assert c is not None  # `_serves` has asked
    vertical, horizontal = factors
    read = packed(vertical, 2, 0, 1), packed(horizontal, 2, 0, 1)
    y = launch(triton_kernels.fwd, p, c, x, read, bias, residual, (p.c, *p.ranks, p.out), activation)
    return [y, *(kept_maps(OP, x, factors, where) if keep else ())]


if AVAILABLE:
    backend(f"{OP}_fwd", "triton", _serves)(fwd)
