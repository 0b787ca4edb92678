"""Named problem sizes, with their FLOPs and bytes: tests, bench and compile checks all use these."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..conv_case import LAYERS, ConvCase, bench, correctness, layer_case
from . import OP, bicluster_conv2d, stages


def _shuffled(n: int) -> torch.Tensor:
    """A permutation of 0 ... n - 1 (n below 10007, a prime)."""
    return torch.argsort((torch.arange(n) + 1) * 7919 % 10007)


@dataclass(frozen=True)
class BiclusterCase(ConvCase):
    """`ranks` is (G, H, K1, K2)."""

    op = OP
    function = staticmethod(bicluster_conv2d)
    chain = staticmethod(stages)

    def shapes(self):
        (g, h, k1, k2), kernel = self.ranks, self.kernel
        return {
            "inner": (g, h, k1, self.c // g),
            "core": (g, h, k2, k1, *kernel),
            "outer": (h, self.out // h, g, k2),
        }

    def fans(self):
        g, _, k1, k2 = self.ranks
        return {"inner": self.c // g, "core": k1 * self.kernel[0] * self.kernel[1], "outer": g * k2}

    def indices(self):
        return {"inputs": _shuffled(self.c), "outputs": _shuffled(self.out)}

    def macs(self):
        (g, h, k1, k2), (kh, kw), (oh, ow) = self.ranks, self.kernel, self.size
        inner, outer = k1 * self.c // g, k2 * self.out // h
        return self.n * g * h * (self.h * self.w * inner + oh * ow * (k1 * k2 * kh * kw + outer))


CORRECTNESS = tuple(
    replace(case, c=2 * case.c, out=3 * case.out) if case.name != "one" else case
    for case in correctness(BiclusterCase, (2, 3, 3, 2), (2, 1, 9, 18), (2, 3, 20, 33))
)

#: Denton's second layer (G = H = 2, K1 = 19, K2 = 64), in multiples of 16, and the same shares of the larger layers.
RANKS = (
    (2, 2, 16, 64),
    (2, 2, 48, 64),
    (2, 2, 112, 96),
    (2, 2, 16, 16),
    (2, 2, 32, 16),
    (2, 2, 48, 64),
    (2, 2, 112, 96),
)
BENCH_CASES = tuple(
    layer_case(BiclusterCase, shape, ranks, n) for n in (1, 8) for shape, ranks in zip(LAYERS, RANKS, strict=True)
)
BENCH = bench(BENCH_CASES)
