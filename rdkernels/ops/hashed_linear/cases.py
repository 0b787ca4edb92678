"""Named problem sizes, with their FLOPs and bytes: tests, bench and compile checks all use these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from ... import hashing
from ...testing import Layer, Problem
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

    op: ClassVar[str] = "hashed_linear"

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

    def layer(self, tensors: dict[str, Tensor]) -> Layer:
        weights = tuple(t for name, t in tensors.items() if name != "x")
        return Layer(lambda x: self.run({**tensors, "x": x}), weights)

    def dense(self, tensors: dict[str, Tensor]) -> Layer:
        """`F.linear` with a weight of its own."""
        weight = torch.randn(self.out, self.in_, dtype=tensors["x"].dtype, device=tensors["x"].device)
        bias = tensors.get("bias")
        return Layer(lambda x: linear(x, weight, bias), (weight,) if bias is None else (weight, bias))

    def gather(self, tensors: dict[str, Tensor]) -> Layer:
        """The usual PyTorch way: the matrix gathered from the bank with a stored index and sign, then `F.linear`."""
        bank = tensors["bank"]
        go, gi = hashing.resolve_granule(self.granule)
        index, sign = hashing.index_and_sign(self.out, self.in_, self.slots, (go, gi), self.seed, device=bank.device)
        sign = sign.to(bank.dtype)
        return Layer(lambda x: linear(x, bank[index] * sign, tensors.get("bias")), (bank,))


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

ROWS = (1, 8, 64, 512)

#: The speed asked of an AVX-512 machine, dense time / ours, per number of rows: work, granule, compression -> goals.
GOALS: dict[tuple[str, str, int], dict[int, float]] = {
    ("forward", "tile", 64): {1: 5.0, 8: 4.5, 64: 1.3, 512: 1.0},
    ("forward", "chunk", 64): {1: 2.6, 8: 2.7, 64: 1.2, 512: 0.98},
    ("forward", "element", 64): {1: 0.4, 8: 0.9, 64: 0.8, 512: 0.9},
    ("forward", "tile", 8): {1: 1.5, 8: 1.5, 64: 1.1, 512: 0.96},
    ("forward", "chunk", 8): {1: 1.1, 8: 1.4, 64: 1.0, 512: 0.94},
    ("forward+backward", "tile", 64): {64: 1.15, 512: 1.0},
    ("forward+backward", "chunk", 64): {64: 1.05, 512: 0.95},
    ("forward+backward", "element", 64): {64: 0.6, 512: 0.8},
    ("training step", "tile", 64): {64: 2.5, 512: 1.2},
    ("training step", "chunk", 64): {64: 2.2, 512: 1.15},
}


def _problem(work: str, granule: str, compression: int, rows: int, size: int, rival: str, goal: float) -> Problem:
    case = _Case.square(size, rows, granule, compression)
    panel = f"{work}, {size} x {size}" + ("" if rival == "dense" else f", against {rival}")
    return Problem(case, panel, f"{granule} 1/{compression}", rows, work, rival, goal)


#: What the bench times: the table of goals at 4096, its forwards at 1024 (0.9 of the goal), and the usual PyTorch way.
BENCH = (
    *(_problem(*key, rows, 4096, "dense", goal) for key, goals in GOALS.items() for rows, goal in goals.items()),
    *(
        _problem(*key, rows, 1024, "dense", round(0.9 * goal, 3))
        for key, goals in GOALS.items()
        if key[0] == "forward"
        for rows, goal in goals.items()
    ),
    *(
        _problem("forward", granule, 64, 1, size, "gather", 20.0)
        for size in (4096, 1024)
        for granule in ("tile", "chunk")
    ),
)

GPU_ROWS = (1, 8, 16, 64, 512, 1024, 2048, 4096, 8192)

#: What the bench times on a GPU, in each dtype it is asked for. No goals: none was ever measured.
BENCH_GPU = tuple(
    Problem(
        _Case.square(4096, rows, granule, compression), f"{work}, 4096 x 4096", f"{granule} 1/{compression}", rows, work
    )
    for work in ("forward", "forward+backward")
    for granule in ("tile", "chunk", "element")
    for compression in (64, 8)
    for rows in GPU_ROWS
)
