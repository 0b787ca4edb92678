"""The spec of palette layers."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

from torch import nn

from ..fits.palette import Init, check_palette
from ..nn import PaletteConv2d, PaletteLinear
from ..nn.lowrank import errors_of
from ..ops.palette_linear import DTYPES
from .spec import Spec


@dataclass(frozen=True)
class Palette(Spec):
    """Each weight one of `2**bits` values: `nn.Linear` -> `rdkernels.nn.PaletteLinear`, `nn.Conv2d` -> `PaletteConv2d`.

    Args:
        bits: of a weight's index, 1 to 8.
        zero: one of the values is 0, stays 0, and is that of exactly the weights that are 0: pruned ones stay pruned.
        init: where the fit's centroids start, "optimal" or "linear": see `rdkernels.fits.palette`.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is allowed.

    Source: Han, Mao, Dally, "Deep Compression", ICLR 2016, section 3.
    """

    bits: int
    zero: bool = False
    _: KW_ONLY
    init: Init = "optimal"

    types = (nn.Linear, nn.Conv2d)

    def __post_init__(self) -> None:
        with errors_of("Palette"):
            check_palette(self.bits, self.zero, self.init)

    def problem(self, module: nn.Module) -> str | None:
        weight: Any = module.weight
        return None if weight.dtype in DTYPES else f"dtype must be one of {list(DTYPES)}, got {weight.dtype}"

    def fit(self, module: nn.Module, observer: Any = None) -> nn.Module:
        """By k-means of the weight's values: see `PaletteLinear.from_dense`."""
        twin: Any = PaletteConv2d if isinstance(module, nn.Conv2d) else PaletteLinear
        return twin.from_dense(module, self.bits, zero=self.zero, init=self.init)

    def fresh(self, module: nn.Module, observer: Any = None) -> nn.Module:
        """Drawn as the dense layer is, then fitted."""
        dense: Any = module
        if isinstance(dense, nn.Linear):
            shape: tuple[Any, ...] = (dense.in_features, dense.out_features, dense.bias is not None)
        else:
            shape = (dense.in_channels, dense.out_channels, dense.kernel_size, dense.stride, dense.padding)
            shape += (dense.dilation, dense.groups, dense.bias is not None, dense.padding_mode)
        made = {"device": dense.weight.device, "dtype": dense.weight.dtype}
        twin: Any = PaletteLinear if isinstance(dense, nn.Linear) else PaletteConv2d
        return twin(*shape, **made, bits=self.bits, zero=self.zero, init=self.init).train(dense.training)
