"""Named problem sizes, with their FLOPs and bytes: tests, bench and compile checks all use these."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ...testing import Layer
from ..conv_case import ALEXNET1, ZF1, ConvCase, correctness, layer_case
from . import OP, monochromatic_conv2d


@dataclass(frozen=True)
class MonochromaticCase(ConvCase):
    """`ranks` is (C',). The outputs are dealt to the colours in turn, or `grouped` by colour; as evenly as they come."""

    grouped: bool = False

    op = OP
    function = staticmethod(monochromatic_conv2d)

    def shapes(self):
        return {"colours": (self.ranks[0], self.c), "filters": (self.out, *self.kernel)}

    def fans(self):
        return {"colours": self.c, "filters": self.kernel[0] * self.kernel[1]}

    def indices(self):
        outputs, (colours,) = torch.arange(self.out), self.ranks
        return {"assignment": outputs * colours // self.out if self.grouped else outputs % colours}

    def unfused(self, tensors):
        """Where the outputs are in equal groups, two convolutions, the second grouped: torch's best."""
        (colours,), bias = self.ranks, tensors.get("bias")
        if not self.grouped or self.out % colours or self.residual or self.activation:
            return super().unfused(tensors)

        def chain(mix: Tensor, own: Tensor, x: Tensor) -> Tensor:
            inside = F.conv2d(x, mix[:, :, None, None])
            return F.conv2d(inside, own[:, None], bias, self.stride, self.padding, self.dilation, colours)

        found = {}
        for name, kind in (("NCHW", torch.contiguous_format), ("channels_last", torch.channels_last)):
            own = tensors["colours"].detach().clone(), tensors["filters"].detach().clone()
            found[name] = Layer(partial(chain, *own), own if bias is None else (*own, bias), kind)
        return found

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
