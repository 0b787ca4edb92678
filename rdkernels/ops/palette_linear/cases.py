"""Named problem sizes, with their FLOPs and bytes: tests, bench and checks all use these."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from ...testing import Layer, Problem
from . import OP, pack, packed_shape, palette_linear, unpack


@dataclass(frozen=True)
class PaletteCase:
    """`rows` x `in_` inputs, `out` outputs, `bits` an index."""

    name: str
    rows: int
    in_: int
    out: int
    bits: int
    bias: bool = False

    op: ClassVar[str] = OP

    def tensors(self, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
        """x, codebook and, where the case has one, bias: normal, the codebook scaled by 1/sqrt(in)."""
        generator = torch.Generator().manual_seed(seed)
        self.indices()

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        made = {"x": normal(self.rows, self.in_), "codebook": normal(2**self.bits) / self.in_**0.5}
        if self.bias:
            made["bias"] = normal(self.out)
        return {name: t.to(device=device, dtype=dtype) for name, t in made.items()}

    def indices(self, device: torch.device | str = "cpu") -> Tensor:
        """All values about as often, always the same, packed."""
        packed = self.__dict__.get("_packed")
        if packed is None:
            o, i = torch.arange(self.out)[:, None], torch.arange(self.in_)
            packed = pack(((o * 40503 + i * 30011 + o * i) // 7 % 2**self.bits).to(torch.uint8), self.bits)
            self.__dict__["_packed"] = packed  # not in a compiled call: `tensors` comes before
        return packed.to(device)

    def run(self, tensors: dict[str, Tensor]) -> Tensor:
        return self.call(tensors, self.indices(tensors["x"].device))

    def call(self, tensors: dict[str, Tensor], indices: Tensor) -> Tensor:
        return palette_linear(tensors["x"], tensors["codebook"], indices, self.out, tensors.get("bias"), bits=self.bits)

    def flops(self) -> int:
        return 2 * self.rows * self.out * self.in_

    def bytes(self, itemsize: int) -> int:
        stored = math.prod(packed_shape(self.out, self.in_, self.bits))
        return itemsize * (self.rows * (self.in_ + self.out) + 2**self.bits) + stored

    def layer(self, tensors: dict[str, Tensor]) -> Layer:
        indices = self.indices(tensors["x"].device)
        weights = tuple(t for name, t in tensors.items() if name != "x")
        return Layer(lambda x: self.call({**tensors, "x": x}, indices), weights)

    def dense(self, tensors: dict[str, Tensor]) -> Layer:
        """`F.linear` with a weight of its own."""
        weight = torch.randn(self.out, self.in_, dtype=tensors["x"].dtype, device=tensors["x"].device)
        bias = tensors.get("bias")
        return Layer(lambda x: linear(x, weight, bias), (weight,) if bias is None else (weight, bias))

    def gather(self, tensors: dict[str, Tensor]) -> Layer:
        """The usual PyTorch way: the matrix gathered from the codebook by stored indices, then `F.linear`."""
        codebook, bias = tensors["codebook"], tensors.get("bias")
        index = unpack(self.indices(codebook.device), self.bits, self.in_)[: self.out].int()
        return Layer(
            lambda x: linear(x, codebook.index_select(0, index.flatten()).view(self.out, self.in_), bias), (codebook,)
        )


_Case = PaletteCase

#: Small and awkward: every size class and number of bits, ragged in every dimension.
CORRECTNESS = (
    _Case("one", 1, 1, 1, 1),
    _Case("empty-batch", 0, 40, 33, 4, bias=True),
    _Case("row-1", 1, 1031, 37, 1, bias=True),
    _Case("row-2", 1, 75, 131, 2),
    _Case("row-3", 1, 130, 35, 3, bias=True),
    _Case("row-4", 1, 1100, 130, 4, bias=True),
    _Case("row-5", 1, 95, 70, 5),
    _Case("row-6", 1, 141, 50, 6, bias=True),
    _Case("row-7", 1, 127, 47, 7),
    _Case("row-8", 1, 200, 100, 8, bias=True),
    _Case("few-1", 2, 41, 21, 1),
    _Case("few-2", 5, 259, 67, 2, bias=True),
    _Case("few-3", 8, 103, 45, 3),
    _Case("few-4", 7, 300, 150, 4, bias=True),
    _Case("medium-5", 17, 81, 150, 5, bias=True),
    _Case("medium-6", 19, 270, 33, 6),
    _Case("many-7", 65, 46, 139, 7, bias=True),
    _Case("many-8", 97, 301, 203, 8, bias=True),
    _Case("deep-4", 530, 270, 290, 4),
)

ROWS = (1, 8, 64, 512)


def _problem(work: str, size: int, rows: int, bits: int, rival: str) -> Problem:
    case = _Case(f"n{size}-b{bits}-m{rows}", rows, size, size, bits, bias=True)
    panel = f"{work}, {size} x {size}" + ("" if rival == "dense" else f", against {rival}")
    return Problem(case, panel, f"{bits} bits", rows, work, rival)


#: What the bench times.
BENCH = (
    *(_problem("forward", size, rows, bits, "dense") for size in (4096, 1024) for bits in (2, 4, 8) for rows in ROWS),
    *(_problem("forward+backward", 4096, rows, 4, "dense") for rows in (64, 512)),
    _problem("forward", 4096, 1, 4, "gather"),
)
