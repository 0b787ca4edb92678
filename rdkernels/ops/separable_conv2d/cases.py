"""Named problem sizes, with their FLOPs and bytes: tests, bench and compile checks all use these."""

from __future__ import annotations

from dataclasses import dataclass

from ..conv_case import ALEXNET1, LAYERS, ConvCase, Goal, bench, correctness, layer_case
from . import OP, separable_conv2d, stages


@dataclass(frozen=True)
class SeparableCase(ConvCase):
    """`ranks` is (R,)."""

    op = OP
    function = staticmethod(separable_conv2d)
    chain = staticmethod(stages)

    def shapes(self):
        (r,), (kh, kw) = self.ranks, self.kernel
        return {"vertical": (r, self.c, kh), "horizontal": (self.out, r, kw)}

    def fans(self):
        return {"vertical": self.c * self.kernel[0], "horizontal": self.ranks[0] * self.kernel[1]}

    def macs(self):
        (r,), (kh, kw), (h, w) = self.ranks, self.kernel, self.size
        return self.n * h * r * (self.w * self.c * kh + w * self.out * kw)


CORRECTNESS = correctness(SeparableCase, (3,), (21,), (70,))

#: The multiple of 16 nearest to a quarter of the multiply-adds (64 -> 64 channels: a third; the first layer: a half).
RANKS = (80, 96, 192, 32, 48, 96, 192)
BENCH_CASES = tuple(
    layer_case(SeparableCase, shape, (rank,), n)
    for n in (1, 8)
    for shape, rank in ((ALEXNET1, 16), *zip(LAYERS, RANKS, strict=True))
)
BENCH = bench(BENCH_CASES, captured=Goal(0.92, 0.85), unfused=Goal(1.2, 1.0))
