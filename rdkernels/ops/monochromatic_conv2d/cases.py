"""Named problem sizes, with their FLOPs and bytes: tests, bench and compile checks all use these."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..conv_case import ALEXNET1, ZF1, ConvCase, Goal, bench, correctness, layer_case
from ..stages import Conv, Select
from . import OP, monochromatic_conv2d, stages


@dataclass(frozen=True)
class MonochromaticCase(ConvCase):
    """`ranks` is (C',). The outputs are dealt to the colours in turn, or `grouped` by colour; evenly if they can."""

    grouped: bool = False

    op = OP
    function = staticmethod(monochromatic_conv2d)
    chain = staticmethod(stages)

    def shapes(self):
        return {"colours": (self.ranks[0], self.c), "filters": (self.out, *self.kernel)}

    def fans(self):
        return {"colours": self.c, "filters": self.kernel[0] * self.kernel[1]}

    def indices(self):
        outputs, (colours,) = torch.arange(self.out), self.ranks
        return {"assignment": outputs * colours // self.out if self.grouped else outputs % colours}

    def stages(self, tensors):
        """Where the outputs are in equal groups, two convolutions, the second grouped: torch's best."""
        found, (colours,) = super().stages(tensors), self.ranks
        if not self.grouped or self.out % colours:
            return found
        grouped = [s._replace(groups=min(s.groups, colours)) if isinstance(s, Conv) else s for s in found]
        return [s for s in grouped if not isinstance(s, Select)]

    def macs(self):
        (colours,), (kh, kw), (h, w) = self.ranks, self.kernel, self.size
        return self.n * (self.h * self.w * self.c * colours + h * w * self.out * kh * kw)


CORRECTNESS = (
    *correctness(MonochromaticCase, (3,), (6,), (5,)),
    MonochromaticCase("conv1", 1, 3, 43, 39, 48, (11, 11), (6,), stride=4, bias=True, activation="relu"),
    MonochromaticCase("conv1-nchw", 2, 3, 25, 39, 32, (7, 7), (2,), stride=2, padding=1, channels_last=False),
    MonochromaticCase("grey", 1, 1, 20, 40, 24, (5, 5), (2,), padding=2, channels_last=False),
    MonochromaticCase("grouped", 2, 3, 21, 20, 24, (5, 5), (3,), padding=2, bias=True, grouped=True),
    MonochromaticCase("rgba", 1, 4, 20, 18, 40, (5, 5), (3,), padding=2),
)

BENCH_CASES = tuple(
    replace(layer_case(MonochromaticCase, shape, (colours,), n), grouped=True)
    for n in (1, 8)
    for shape in (ALEXNET1, ZF1)
    for colours in (6, 12)
)
BENCH = bench(BENCH_CASES, captured=Goal(0.75), unfused=Goal(2.0))
