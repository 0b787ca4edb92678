"""What every spec is: how a weight is represented, and how a layer gets that representation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Observer(Protocol):
    """Sees the inputs of one layer while data runs through the model: `rdkernels.compress.InputCovariance` is one."""

    def update(self, x: Tensor) -> None: ...

    def attached(self, module: nn.Module) -> AbstractContextManager[Any]: ...


@dataclass(frozen=True)
class Spec(ABC):
    """How a weight is represented. A value: small, frozen, compared by its fields, checked when it is made.

    `rdkernels.convert` and `rdkernels.alternate` take specs by layer name; a spec alone works on one layer::

        layer = rd.Hashed(64).fit(linear)    # close to a trained layer
        layer = rd.Hashed(64).fresh(linear)  # of its shape, drawn anew
        error = rd.Palette(4).refit(linear)  # the layer's own weight, moved onto what the spec can represent

    None of the three changes the layer that it is given, but for `refit` its weight. Errors name the argument, not the
    layer: whoever knows the layer's name adds it.
    """

    @property
    @abstractmethod
    def types(self) -> tuple[type[nn.Module], ...]:
        """The dense layers that the spec knows: of nn.Linear and nn.Conv2d."""

    def problem(self, module: nn.Module) -> str | None:
        """Why this layer of a known type cannot be represented, in words; None if it can."""
        return None

    def observer(self, module: nn.Module) -> Observer | None:
        """What must have seen the layer's inputs before `fit` or `fresh`; None if no data is needed."""
        return None

    def for_layer(self, name: str) -> Spec:
        """This spec as the layer of that name gets it, nothing left to draw: where layers must differ, else itself."""
        return self

    @abstractmethod
    def fit(self, module: nn.Module, observer: Any = None) -> nn.Module:
        """The layer of this representation closest to `module`, with its bias, device, dtype and mode.

        Raises:
            TypeError, ValueError: naming the argument, what came and what is allowed; a fit without a result
                too (values not finite, a singular system). At its limit of sweeps a fit returns the best it has.
        """

    @abstractmethod
    def fresh(self, module: nn.Module, observer: Any = None) -> nn.Module:
        """A layer of this representation and `module`'s shape, device, dtype and mode, drawn from torch's generator."""

    @torch.no_grad()
    def refit(self, module: nn.Module, observer: Any = None) -> float:
        """Move `module`'s weight, in place, to the closest one of this representation.

        Returns:
            `||W - W~||_F / ||W||_F` of the weights before and after.
        """
        weight: Any = module.weight
        layer: Any = self.fit(module, observer)
        near = layer.materialize().to(weight.dtype)
        gap, norm = (weight - near).double().norm(), weight.double().norm()
        weight.copy_(near)
        return float(gap / norm) if gap else 0.0
