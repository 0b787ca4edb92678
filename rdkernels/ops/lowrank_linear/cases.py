"""Named problem sizes, with their FLOPs and bytes: tests, bench and compile checks all use these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from ...testing import Layer, Problem
from ..convolution import Activation
from . import OP, lowrank_linear, unfused


@dataclass(frozen=True)
class LowRankCase:
    """`rows` x `in_` inputs, `out` outputs through `rank`."""

    name: str
    rows: int
    in_: int
    rank: int
    out: int
    bias: bool = False
    residual: bool = False
    activation: str | None = None

    op: ClassVar[str] = OP

    def tensors(self, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
        """x, down, up and, where the case has them, bias and residual: normal, the factors scaled by their fan-in."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        made = {
            "x": normal(self.rows, self.in_),
            "down": normal(self.rank, self.in_) / self.in_**0.5,
            "up": normal(self.out, self.rank) / self.rank**0.5,
        }
        if self.bias:
            made["bias"] = normal(self.out)
        if self.residual:
            made["residual"] = normal(self.rows, self.out)
        return {name: t.to(device=device, dtype=dtype) for name, t in made.items()}

    def run(self, tensors: dict[str, Tensor]) -> Tensor:
        return self.layer(tensors)(tensors["x"])

    def macs(self) -> int:
        return self.rows * self.rank * (self.in_ + self.out)

    def dense_macs(self) -> int:
        return self.rows * self.in_ * self.out

    def flops(self) -> int:
        return 2 * self.macs()

    def bytes(self, itemsize: int) -> int:
        return itemsize * (self.rows * (self.in_ + self.out) + self.rank * (self.in_ + self.out))

    def layer(self, tensors: dict[str, Tensor]) -> Layer:
        weights = tuple(t for name, t in tensors.items() if name not in ("x", "residual"))
        down, up, bias, residual = tensors["down"], tensors["up"], tensors.get("bias"), tensors.get("residual")
        return Layer(
            lambda x: lowrank_linear(x, down, up, bias, activation=self.activation, residual=residual), weights
        )

    def dense(self, tensors: dict[str, Tensor]) -> Layer:
        """`F.linear` with a weight of its own."""
        weight = torch.randn(self.out, self.in_, dtype=tensors["x"].dtype, device=tensors["x"].device)
        bias = tensors.get("bias")
        return Layer(lambda x: linear(x, weight, bias), (weight,) if bias is None else (weight, bias))

    def unfused(self, tensors: dict[str, Tensor]) -> Layer:
        """Two calls of `F.linear`."""
        down, up, bias = tensors["down"], tensors["up"], tensors.get("bias")
        act = Activation[self.activation or "none"]
        weights = (down, up) if bias is None else (down, up, bias)
        return Layer(lambda x: unfused(x, down, up, bias, tensors.get("residual"), act), weights)


_Case = LowRankCase

#: Small and awkward: every size class of every kernel, ragged in every dimension.
CORRECTNESS = (
    _Case("one", 1, 1, 1, 1),
    _Case("empty-batch", 0, 40, 5, 33, bias=True),
    _Case("one-row", 1, 131, 21, 75, bias=True, activation="relu"),
    _Case("few", 5, 100, 33, 67, bias=True, residual=True, activation="gelu"),
    _Case("few-wide", 8, 300, 48, 350),
    _Case("medium", 17, 259, 40, 150, bias=True, activation="silu"),
    _Case("many", 97, 130, 70, 201, residual=True),
    _Case("deep", 70, 1500, 300, 40, bias=True),
)

ROWS = (1, 8, 64, 512)
BENCH_CASES = tuple(_Case(f"n4096-r256-m{rows}", rows, 4096, 256, 4096, bias=True) for rows in ROWS)


def _problems(work: str, rival: str, goal: float | None = None, mean_goal: float | None = None) -> tuple[Problem, ...]:
    panel = f"{OP} {work}, against {rival}"
    return tuple(
        Problem(
            case,
            panel,
            f"{case.in_} -> {case.rank} -> {case.out}",
            case.rows,
            work,
            rival,
            goal,
            mean_goal,
            case.dense_macs() / case.macs() if rival == "dense" else None,
        )
        for case in BENCH_CASES
    )


BENCH = (
    *_problems("forward", "dense"),
    *_problems("forward", "unfused", 1.0, 1.1),
    *_problems("forward+backward", "unfused", 1.0),
)
