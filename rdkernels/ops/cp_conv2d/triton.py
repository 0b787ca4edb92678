"""The Triton backend: one launch for the chain. The kernel is in `triton_kernels`.

A program owns a tile of pixels and a block of outputs of one map. For one block of ranks after the other it multiplies
the tile's inputs with `inner`, halo included, applies both depthwise lines in float32 and adds the product with `outer`
to its sums in registers. The lines shift the rank map inside the program (`tl.gather`), so the channels are mixed once
a pixel, not once a tap, and no rank map is ever in memory; that work is done again for each block of outputs, of up to
256. Every sum is float32; 16-bit products with `outer` are made in two halves (`triton_device.halves`).
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
        lines = 8 * t.grid_h * (t.iw * p.kernel[0] + t.grid_w * p.kernel[1])  # these are not for tensor cores
        return ranks * (t.ih * t.iw * channels + lines + t.grid_h * t.grid_w * p.passes * outputs)

    def held(t: Tile, outputs: int, br: int) -> int:
        return max((t.grid_h * t.grid_w + br) * outputs, t.ih * t.iw * br)

    return choose(p, tiles(p, True), 256, work, held)


def _problem(x: Tensor, factors: Sequence[Tensor], where: Geometry) -> Problem:
    inner, vertical, horizontal, outer = factors
    return Problem.of(x, (inner.shape[0],), outer.shape[0], (vertical.shape[1], horizontal.shape[1]), where)


def _serves(x: Tensor, *args: Any) -> bool:
    if not args or not serves(x):
        return serves(x)
    return indexed(x) and config(_problem(x, args[:4], Geometry(*args[-10:-2]))) is not None


def fwd(x: Tensor, *args: Any, chosen: Config | None = None) -> list[Tensor]:
    from . import triton_kernels  # importing Triton takes half a second: not at the package's import

    factors, (bias, residual), (activation, keep) = args[:4], args[4:6], args[-2:]
    where = Geometry(*args[-10:-2])
    p = _problem(x, factors, where)
    c = chosen or config(p)
    assert c is not None  # `_serves` has asked
    inner, vertical, horizontal, outer = factors
    read = inner.contiguous(), packed(vertical, 1, 0), packed(horizontal, 1, 0), outer.contiguous()
    y = launch(triton_kernels.fwd, p, c, x, read, bias, residual, (p.c, *p.ranks, p.out), activation)
    return [y, *(kept_maps(OP, x, factors, where) if keep else ())]


if AVAILABLE:
    backend(f"{OP}_fwd", "triton", _serves)(fwd)
