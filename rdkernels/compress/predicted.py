"""The spec of weights that a fixed dictionary predicts from few trained values."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..fits import Dictionary, WeightInputCovariance
from ..fits.dictionary import FROM_DATA, check_settings, check_topology
from ..nn import PredictedConv2d, PredictedLinear
from ..nn.hashed import draw_seed
from ..nn.lowrank import errors_of
from .spec import Spec


@dataclass(frozen=True)
class Predicted(Spec):
    """A fixed dictionary and few trained coefficients: `rdkernels.nn.PredictedLinear`, and `PredictedConv2d`.

    Args:
        fraction: trained coefficients over weights, in (0, 1].
        dictionary: "se", "emp", "emp2", "gauss", "identity", "dct" or a Tensor `[in, n]`, as in `PredictedLinear`.
            "emp" and "emp2" take the covariance of the layer's inputs: `rdkernels.convert` needs data for them.
        columns: groups of units with index sets of their own.
        topology: how the inputs of a linear layer lie; "se" and "dct" need it. A filter has its own.
        ridge: of "se", "emp" and "emp2", over the mean of the kernel's diagonal.
        sigma: of "se", in pixels.
        whiten: the ridge predictor, or False: the kernel's columns.
        seed: uint32. None draws one from torch's default CPU generator. In a model, the layer of name `n` gets
            `(seed + crc32(n)) mod 2**32`.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is allowed.

    Source: Denil et al., "Predicting Parameters in Deep Learning", NIPS 2013.
    """

    fraction: float
    dictionary: str | Tensor = field(default="se", hash=False)
    columns: int = 1
    topology: Sequence[int] | None = None
    ridge: float = 0.1
    _: KW_ONLY
    sigma: float = 1.0
    whiten: bool = True
    seed: int | None = None

    types = (nn.Linear, nn.Conv2d)

    def __post_init__(self) -> None:
        with errors_of("Predicted"):
            if self.topology is not None:
                object.__setattr__(self, "topology", check_topology(self.topology))
            settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "topology"}
            check_settings(**settings)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Predicted):
            return NotImplemented
        return all(_same(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))

    def problem(self, module: nn.Module) -> str | None:
        dense: Any = module
        conv = isinstance(dense, nn.Conv2d)
        if conv and dense.groups != 1:
            return f"groups must be 1, got {dense.groups}"
        if conv and self.topology is not None:
            return f"topology must be None for an nn.Conv2d, whose filters are a grid of their own, got {self.topology}"
        if not dense.weight.is_floating_point():
            return f"dtype must be floating, got {dense.weight.dtype}"
        outputs, *shape = dense.weight.shape
        try:
            settings = {**self._settings(dense), "topology": shape if conv else self.topology}
            Dictionary.of(math.prod(shape), outputs, **{**settings, "seed": self.seed or 0})
        except (TypeError, ValueError) as error:
            return str(error)
        return None

    def for_layer(self, name: str) -> Predicted:
        seed = draw_seed() if self.seed is None else (self.seed + zlib.crc32(name.encode())) % 2**32
        return replace(self, seed=seed)

    def observer(self, module: nn.Module) -> WeightInputCovariance | None:
        if self.dictionary not in FROM_DATA:
            return None
        return WeightInputCovariance(module, squared=self.dictionary == "emp2")

    def fit(self, module: nn.Module, observer: Any = None) -> nn.Module:
        """By least squares: see `PredictedLinear.from_dense`."""
        return _twin(module).from_dense(module, observer=self._seen(observer), **self._settings(module))

    def fresh(self, module: nn.Module, observer: Any = None) -> nn.Module:
        dense: Any = module
        if isinstance(dense, nn.Linear):
            shape: tuple[Any, ...] = (dense.in_features, dense.out_features, dense.bias is not None)
        else:
            shape = (dense.in_channels, dense.out_channels, dense.kernel_size, dense.stride, dense.padding)
            shape += (dense.dilation, dense.groups, dense.bias is not None, dense.padding_mode)
        made = {"device": dense.weight.device, "dtype": dense.weight.dtype, "observer": self._seen(observer)}
        return _twin(module)(*shape, **made, **self._settings(module)).train(dense.training)

    def _settings(self, module: nn.Module) -> dict[str, Any]:
        """The layer's keyword-only arguments; a convolution has its own topology."""
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        if isinstance(module, nn.Conv2d):
            del named["topology"]
        return named

    def _seen(self, observer: Any) -> Any:
        """The observer, if one is needed: then there must be one."""
        if self.dictionary not in FROM_DATA:
            return None
        if observer is None:
            raise ValueError(
                f'Predicted: dictionary "{self.dictionary}" needs the layer\'s inputs: give an observer or data'
            )
        return observer


def _twin(module: nn.Module) -> Any:
    return PredictedConv2d if isinstance(module, nn.Conv2d) else PredictedLinear


def _same(mine: Any, other: Any) -> bool:
    if isinstance(mine, Tensor) or isinstance(other, Tensor):
        return isinstance(mine, Tensor) and isinstance(other, Tensor) and torch.equal(mine, other)
    return bool(mine == other)
