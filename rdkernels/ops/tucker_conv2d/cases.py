"""Named problem sizes, with their FLOPs and bytes: tests, bench and compile checks all use these."""

from __future__ import annotations

from dataclasses import dataclass

from ..conv_case import LAYERS, ConvCase, Goal, bench, correctness, layer_case
from . import OP, stages, tucker_conv2d


@dataclass(frozen=True)
class TuckerCase(ConvCase):
    """`ranks` is (R1, R2)."""

    op = OP
    function = staticmethod(tucker_conv2d)
    chain = staticmethod(stages)

    def shapes(self):
        r1, r2 = self.ranks
        return {"inner": (r1, self.c), "core": (r2, r1, *self.kernel), "outer": (self.out, r2)}

    def fans(self):
        r1, r2 = self.ranks
        return {"inner": self.c, "core": r1 * self.kernel[0] * self.kernel[1], "outer": r2}

    def macs(self):
        (r1, r2), (kh, kw), (h, w) = self.ranks, self.kernel, self.size
        return self.n * (self.h * self.w * self.c * r1 + h * w * r2 * (r1 * kh * kw + self.out))


CORRECTNESS = correctness(TuckerCase, (3, 4), (21, 18), (70, 50))

#: The multiple of 16 nearest to a quarter of the multiply-adds, R1 = R2.
RANKS = (80, 96, 208, 32, 48, 96, 208)
BENCH_CASES = tuple(
    layer_case(TuckerCase, shape, (rank, rank), n) for n in (1, 8) for shape, rank in zip(LAYERS, RANKS, strict=True)
)
BENCH = bench(BENCH_CASES, captured=Goal(0.9, 0.75), unfused=Goal(1.2, 1.0))
