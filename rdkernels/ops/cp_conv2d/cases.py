"""Named problem sizes, with their FLOPs and bytes: tests, bench and compile checks all use these."""

from __future__ import annotations

from dataclasses import dataclass

from ..conv_case import LAYERS, ConvCase, Goal, bench, correctness, layer_case
from . import OP, cp_conv2d, stages


@dataclass(frozen=True)
class CPCase(ConvCase):
    """`ranks` is (R,)."""

    op = OP
    function = staticmethod(cp_conv2d)
    chain = staticmethod(stages)

    def shapes(self):
        (r,), (kh, kw) = self.ranks, self.kernel
        return {"inner": (r, self.c), "vertical": (r, kh), "horizontal": (r, kw), "outer": (self.out, r)}

    def fans(self):
        return {"inner": self.c, "vertical": self.kernel[0], "horizontal": self.kernel[1], "outer": self.ranks[0]}

    def macs(self):
        (r,), (kh, kw), (h, w) = self.ranks, self.kernel, self.size
        return self.n * r * (self.h * self.w * self.c + h * self.w * kh + h * w * (kw + self.out))


CORRECTNESS = correctness(CPCase, (3,), (21,), (70,))

#: The multiple of 16 nearest to a quarter of the multiply-adds.
RANKS = (432, 288, 576, 64, 144, 288, 576)
BENCH_CASES = tuple(
    layer_case(CPCase, shape, (rank,), n) for n in (1, 8) for shape, rank in zip(LAYERS, RANKS, strict=True)
)
BENCH = bench(BENCH_CASES, captured=Goal(0.88, 0.8), unfused=Goal(1.5, 1.2), training=Goal(1.2, 1.0))
