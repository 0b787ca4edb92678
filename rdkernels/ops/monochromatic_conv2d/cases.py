"""Named problem sizes, with their FLOPs and bytes: tests, bench and compile checks all use these."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..conv_case import ALEXNET1, ZF1, ConvCase, correctness, layer_case
from . import OP, monochromatic_conv2d


@dataclass(frozen=True)
class MonochromaticCase(ConvCase):
    """`ranks` is (C',). The outputs are dealt to the colours in turn, as evenly as they come."""

    op = OP
    function = staticmethod(monochromatic_conv2d)

    def shapes(self):
        return {"colours": (self.ranks[0], self.c), "filters": (self.out, *self.kernel)}

    def fans(self):
        return {"colours": self.c, "filters": self.kernel[0] * self.kernel[1]}

    def indices(self):
        return {"assignment": torch.arange(self.out) % self.ranks[0]}

    def macs(self):
        (colours,), (kh, kw), (h, w) = self.ranks, self.kernel, self.size
        return self.n * (self.h * self.w * self.c * colours + h * w * self.out * kh * kw)


CORRECTNESS = (
    *correctness(MonochromaticCase, (3,), (6,), (5,)),
    MonochromaticCase("conv1", 1, 3, 43, 39, 48, (11, 11), (6,), stride=4, bias=True, activation="relu"),
    MonochromaticCase("conv1-nchw", 2, 3, 25, 39, 32, (7, 7), (2,), stride=2, padding=1, channels_last=False),
    MonochromaticCase("grey", 1, 1, 20, 40, 24, (5, 5), (2,), padding=2, channels_last=False),
    MonochromaticCase("rgba", 1, 4, 20, 18, 40, (5, 5), (3,), padding=2),
)

BENCH_CASES = tuple(
    layer_case(MonochromaticCase, shape, (colours,), n)
    for n in (1, 8)
    for shape in (ALEXNET1, ZF1)
    for colours in (6, 12)
)
