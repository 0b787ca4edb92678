"""The spec of hashed layers."""

from __future__ import annotations

import dataclasses
import zlib
from dataclasses import KW_ONLY, dataclass
from typing import Any

from torch import nn

from .. import hashing
from ..nn import HashedLinear
from ..nn.hashed import draw_seed
from ..nn.lowrank import errors_of
from ..ops.hashed_linear import DTYPES
from .spec import Spec


@dataclass(frozen=True)
class Hashed(Spec):
    """A linear layer whose weights are hashed into a bank of its own: `nn.Linear` -> `rdkernels.nn.HashedLinear`.

    Args:
        compression: weights over the bank's values, > 0.
        granule: "element", as published, "chunk", "tile" or a pair `(go, gi)`.
        seed: uint32, which map. None draws one from torch's default CPU generator. In a model, the layer of name `n`
            gets `(seed + crc32(n)) mod 2**32`: a map of its own, whatever else is converted.
        hashed_bias: read the bias from the bank too, as in the paper (granule "element" only).

    Raises:
        TypeError, ValueError: naming the argument, what came and what is allowed.

    Source: Chen et al., "Compressing Neural Networks with the Hashing Trick", ICML 2015.
    """

    compression: float = 64
    granule: hashing.Granule = "element"
    seed: int | None = None
    _: KW_ONLY
    hashed_bias: bool = False

    types = (nn.Linear,)

    def __post_init__(self) -> None:
        with errors_of("Hashed"):
            hashing.slot_count(1, 1, self.compression, self.granule)
            if self.seed is not None:
                hashing.check_seed(self.seed)
            if not isinstance(self.hashed_bias, bool):
                raise TypeError(f"hashed_bias must be True or False, got {self.hashed_bias!r}")
            if self.hashed_bias and hashing.resolve_granule(self.granule) != (1, 1):
                raise ValueError(f'hashed_bias=True needs granule "element", got {self.granule!r}')
        if not isinstance(self.granule, str):
            object.__setattr__(self, "granule", tuple(self.granule))

    def problem(self, module: nn.Module) -> str | None:
        weight: Any = module.weight
        if weight.dtype not in DTYPES:
            return f"dtype must be one of {list(DTYPES)}, got {weight.dtype}"
        try:
            out, in_ = weight.shape
            hashing.slot_count(out, in_, self.compression, self.granule)
        except ValueError as error:
            return str(error)
        return None

    def for_layer(self, name: str) -> Hashed:
        seed = draw_seed() if self.seed is None else (self.seed + zlib.crc32(name.encode())) % 2**32
        return dataclasses.replace(self, seed=seed)

    def fit(self, module: nn.Module, observer: Any = None) -> HashedLinear:
        """By least squares: see `HashedLinear.from_linear`."""
        return HashedLinear.from_linear(
            module,  # type: ignore[arg-type]
            compression=self.compression,
            granule=self.granule,
            seed=self.seed,
            hashed_bias=self.hashed_bias,
        )

    def fresh(self, module: nn.Module, observer: Any = None) -> HashedLinear:
        linear: Any = module
        layer = HashedLinear(
            linear.in_features,
            linear.out_features,
            linear.bias is not None and ("hashed" if self.hashed_bias else True),
            compression=self.compression,
            granule=self.granule,
            seed=self.seed,
            device=linear.weight.device,
            dtype=linear.weight.dtype,
        )
        return layer.train(linear.training)
