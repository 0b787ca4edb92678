"""What the CPU kernel is given: every pair's factors as strips, and the orders of the channels."""

from __future__ import annotations

from torch import Tensor

from ..chain import NativeCall, native_chain
from ..packing import core_lines, pack, packed
from . import OP


def strips(inner: Tensor, core: Tensor, outer: Tensor) -> Tensor:
    """Inner by K1 and core by K2 for each pair (g, h), then outer as [g, K2] by O/H for each h."""
    down = [[own.T[None]] for own in inner.flatten(0, 1)]
    middle = [core_lines(own) for own in core.flatten(0, 1)]
    return pack(*down, *middle, *([own.flatten(1).T[None]] for own in outer))


@native_chain(OP, ("clusters_in", "clusters_out", "k1", "k2", "kh", "kw"), tensors=("inputs", "outputs"))
def prepare(x: Tensor, factors: tuple[Tensor, ...]) -> NativeCall:
    _, core, _, inputs, outputs = factors
    g, h, k2, k1, kh, kw = core.shape
    return NativeCall(
        packed(OP, factors[:3], strips), (g, h, k1, k2, kh, kw), (inputs.contiguous(), outputs.contiguous())
    )
