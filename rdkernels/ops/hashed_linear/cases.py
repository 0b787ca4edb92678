"""Named problem sizes, with their FLOPs and bytes: tests, bench and compile checks all use these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ... import hashing
from . import hashed_linear


@dataclass(frozen=True)
class HashedLinearCase:
    """`rows` x `in_` inputs, `out` outputs, a bank of `slots` granules."""

    name: str
    rows: int
    out: int
    in_: int
    slots: int
    granule: hashing.Granule
    bias: str | None = None  # None, "tensor" or "hashed"
    seed: int = 0
    scale: float = 1.0

    @classmethod
    def square(cls, size: int, rows: int, granule: hashing.Granule, compression: float) -> HashedLinearCase:
        """The bench's problem: `size` x `size` at `compression`."""
        name = f"{hashing.granule_name(granule)}-c{compression:g}-n{size}-m{rows}"
        return cls(name, rows, size, size, hashing.slot_count(size, size, compression, granule), granule, seed=1)

    def tensors(self, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
        """x, bank and, where the case has one, bias: normal, the bank scaled by 1/sqrt(in)."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        go, gi = hashing.resolve_granule(self.granule)
        made = {"x": normal(self.rows, self.in_), "bank": normal(self.slots * go * gi) / max(self.in_, 1) ** 0.5}
        if self.bias == "tensor":
            made["bias"] = normal(self.out)
        return {name: t.to(device=device, dtype=dtype) for name, t in made.items()}

    def run(self, tensors: dict[str, Tensor]) -> Tensor:
        bias = "hashed" if self.bias == "hashed" else tensors.get("bias")
        return hashed_linear(
            tensors["x"], tensors["bank"], self.out, granule=self.granule, seed=self.seed, bias=bias, scale=self.scale
        )

    def flops(self) -> int:
        return 2 * self.rows * self.out * self.in_

    def bytes(self, itemsize: int) -> int:
        go, gi = hashing.resolve_granule(self.granule)
        return itemsize * (self.rows * (self.in_ + self.out) + self.slots * go * gi)

    def dense(self, tensors: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
        weight = torch.randn(self.out, self.in_, dtype=tensors["x"].dtype, device=tensors["x"].device)
        return lambda x: torch.nn.functional.linear(x, weight, tensors.get("bias"))


_Case = HashedLinearCase

#: Small and awkward: every size class of every kernel, ragged in every dimension.
CORRECTNESS = (
    _Case("one", 1, 1, 1, 1, "element"),
    _Case("one-chunk", 1, 1, 1, 1, "chunk"),
    _Case("one-tile", 1, 1, 1, 1, "tile"),
    _Case("empty-batch", 0, 40, 33, 7, "chunk", bias="tensor"),
    _Case("element-gemv", 1, 37, 131, 61, "element", bias="tensor", seed=3, scale=0.7),
    _Case("element-few", 5, 130, 75, 97, "element", bias="hashed", seed=2**32 - 1),
    _Case("element-many", 70, 101, 203, 331, "element", bias="hashed", seed=7, scale=-1.5),
    _Case("element-one-slot", 3, 29, 31, 1, "element"),
    _Case("chunk-gemv", 1, 67, 259, 31, "chunk", seed=5),
    _Case("chunk-few", 7, 45, 100, 11, "chunk", bias="tensor", seed=11, scale=0.25),
    _Case("chunk-medium", 13, 150, 333, 13, "chunk", seed=12),
    _Case("chunk-many", 97, 139, 301, 41, "chunk", bias="tensor", seed=13, scale=2.0),
    _Case("chunk-one-slot", 19, 33, 47, 1, "chunk"),
    _Case("tile-gemv", 1, 97, 211, 3, "tile", bias="tensor", seed=17),
    _Case("tile-few", 6, 70, 161, 2, "tile", seed=19, scale=0.5),
    _Case("tile-many", 65, 203, 175, 5, "tile", bias="tensor", seed=23),
    _Case("tile16-many", 33, 77, 130, 9, (16, 16), seed=29),
    _Case("tile64-few", 4, 150, 200, 2, (64, 64), bias="tensor", seed=31),
    _Case("tile2x16-few", 3, 51, 90, 5, (2, 16), seed=37),
    _Case("tile128x16-many", 40, 300, 90, 2, (128, 16), seed=41),
    _Case("tile4x64-many", 21, 90, 300, 3, (4, 64), seed=43),
    _Case("tile1x128-few", 2, 31, 300, 3, (1, 128), seed=47),
    _Case("deep-many", 530, 40, 600, 17, "chunk", bias="tensor", seed=53),
)

BENCH_ROWS = (1, 8, 64, 512)
BENCH = tuple(
    _Case.square(4096, rows, granule, compression)
    for granule in ("tile", "chunk", "element")
    for compression in (64, 8)
    for rows in BENCH_ROWS
)
