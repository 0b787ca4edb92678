"""What a named problem size of an operation must offer to tests, bench and checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layer:
    """A function of x, with the weights that a training step updates."""

    function: Callable[[Tensor], Tensor]
    weights: tuple[Tensor, ...]
    memory_format: torch.memory_format = torch.preserve_format  # that it wants x in

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)


class Case(Protocol):
    """One problem of one operation. A room's `cases.py` builds them; tests and bench enumerate them."""

    op: ClassVar[str]  # the operation's name

    @property
    def name(self) -> str:
        """A short unique name."""
        ...

    def tensors(self, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
        """The differentiable inputs by name, the same values for the same seed on every device."""
        ...

    def run(self, tensors: dict[str, Tensor]) -> Tensor:
        """The public function on these inputs."""
        ...

    def flops(self) -> int:
        """Floating-point operations of one forward (a multiply-add counts two)."""
        ...

    def bytes(self, itemsize: int) -> int:
        """Bytes one forward must move at least: inputs read once, outputs written once."""
        ...

    def layer(self, tensors: dict[str, Tensor]) -> Layer:
        """The operation as a function of `tensors["x"]` alone."""
        ...

    def dense(self, tensors: dict[str, Tensor]) -> Layer | dict[str, Layer]:
        """The dense torch layer of the same shape that a speed ratio is taken against; of several, the fastest is."""
        ...


@dataclass(frozen=True)
class Problem:
    """A case as the bench times it: `work` on the case's `layer` against its method `rival`.

    A room lists its problems in `cases.BENCH`. A plot has one panel per `panel`, one line per `line`, `at` as its x.
    The figure of a problem is the rival's time / ours; with a `reduction`, that over the reduction: the captured
    fraction. A panel's summary is the geometric mean of its figures and the worst.
    """

    case: Case
    panel: str
    line: str
    at: int
    work: str = "forward"  # "forward", "forward+backward" or "training step"
    rival: str = "dense"
    goal: float | None = None  # the figure asked for
    mean_goal: float | None = None  # the geometric mean asked of the panel
    reduction: float | None = None  # the rival's multiply-adds / ours

    def __str__(self) -> str:
        return f"{self.case.name} {self.work} vs {self.rival}"
