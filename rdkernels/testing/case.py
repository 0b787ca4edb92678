"""What a named problem size of an operation must offer to tests, bench and checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class Case(Protocol):
    """One problem of one operation. A room's `cases.py` builds them; tests and bench enumerate them."""

    name: str

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

    def dense(self, tensors: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
        """The dense torch layer of the same shape that a speed ratio is taken against."""
        ...
