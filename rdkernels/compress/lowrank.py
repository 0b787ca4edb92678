"""The specs of weights that are products of factors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from .. import fits
from ..fits.als import full_rank
from ..fits.budget import MultiplyAdds, check_rank, pair_of_ranks
from ..fits.clusters import check_clusters
from ..nn import (
    BiclusterConv2d,
    CPConv2d,
    LowRankLinear,
    MonochromaticConv2d,
    SeparableConv2d,
    TuckerConv2d,
)
from ..nn.lowrank import errors_of
from ..ops.convolution import DTYPES, Activation
from .spec import Spec

Rank = int | tuple[int, int]


class _Sizes(NamedTuple):
    """What a spec's budget is about, for one layer."""

    full: Rank
    cost: Callable[..., Any]  # multiply-adds of an output position by the rank or the two ranks
    dense: int


@dataclass(frozen=True)
class _Factors(Spec):
    """A weight as factors, its ranks given by exactly one of the first three fields."""

    rank: Rank | None = None
    _: KW_ONLY
    energy: float | None = None
    ratio: float | None = None
    rank_multiple: int = 16
    activation: str | None = None

    types: ClassVar[tuple[type[nn.Module], ...]] = (nn.Conv2d,)  # type: ignore[misc]
    _layer: ClassVar[Any]  # of an nn.Conv2d
    _ranks: ClassVar[int] = 1
    _rank_argument: ClassVar[str] = "rank"

    def __post_init__(self) -> None:
        names = [a.name for a in Activation if a]
        with errors_of(type(self).__name__):
            given = {n: getattr(self, n) for n in ("rank", "energy", "ratio") if getattr(self, n) is not None}
            if len(given) != 1:
                raise ValueError(f"exactly one of rank, energy and ratio must be given, got {given or 'none'}")
            if isinstance(self.ratio, bool) or not isinstance(self.ratio, (int, float, type(None))):
                raise TypeError(f"ratio must be a real number, got {self.ratio!r}")
            if self.ratio is not None and not 0 < self.ratio < math.inf:
                raise ValueError(f"ratio must be a finite number > 0, got {self.ratio}")
            if self.rank is not None:
                self._freeze("rank", check_rank("rank", self.rank) if self._ranks == 1 else pair_of_ranks(self.rank))
            if self.activation is not None and self.activation not in names:
                raise ValueError(f"activation must be None or one of {names}, got {self.activation!r}")
            _ = self._budget

    def _freeze(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @property
    def _budget(self) -> fits.Budget:
        return fits.Budget(self.rank, self.energy, self.ratio, self.rank_multiple)

    def _class(self, module: nn.Module) -> Any:
        return self._layer

    def _sizes(self, module: Any) -> _Sizes:
        raise NotImplementedError

    def _options(self) -> dict[str, Any]:
        """Further arguments of both `from_dense` and the constructor."""
        return {"activation": self.activation}

    def _rank_of(self, module: Any) -> Rank | None:
        """The rank, or the two, of `module`'s twin; None where only a fit can tell."""
        full, cost, dense = self._sizes(module)
        if self.energy is not None:
            return None
        if self.ratio is not None:
            least = cost(*(1,) * self._ranks)
            if dense < self.ratio * least:
                raise ValueError(f"ratio must be at most {dense / least:.4g}, what rank 1 reaches, got {self.ratio}")
        if isinstance(full, tuple):
            return self._budget.two(full, cost, dense, _no_energy)
        return self._budget.one(full, cost, dense, _no_energy)

    def problem(self, module: nn.Module) -> str | None:
        conv: Any = module
        if conv.weight.dtype not in DTYPES:
            return f"dtype must be one of {list(DTYPES)}, got {conv.weight.dtype}"
        if isinstance(conv, nn.Conv2d) and conv.groups != 1:
            return f"groups must be 1, got {conv.groups}"
        if isinstance(conv, nn.Conv2d) and conv.padding_mode != "zeros":
            return f'padding_mode must be "zeros", got {conv.padding_mode!r}'
        try:
            self._rank_of(module)
        except ValueError as error:
            return str(error)
        return None

    def fit(self, module: nn.Module, observer: Any = None) -> nn.Module:
        """By the layer class's `from_dense`."""
        return self._class(module).from_dense(
            module,
            rank=self.rank,
            energy=self.energy,
            macs=self.ratio,
            rank_multiple=self.rank_multiple,
            **self._options(),
            **self._metric_of(observer),
        )

    def _metric_of(self, observer: Any) -> dict[str, Any]:
        return {}

    def fresh(self, module: nn.Module, observer: Any = None) -> nn.Module:
        """By the layer class's own first values. `energy` cannot tell a rank without a trained weight."""
        with errors_of(type(self).__name__):
            rank = self._rank_of(module)
            if rank is None:
                raise ValueError("rank or ratio must be given for a fresh layer: energy is that of a trained weight")
        dense: Any = module
        if isinstance(dense, nn.Linear):
            shape: tuple[Any, ...] = (dense.in_features, dense.out_features)
        else:
            shape = (dense.in_channels, dense.out_channels, dense.kernel_size, dense.stride, dense.padding)
            shape += (dense.dilation,)
        layer = self._class(module)(
            *shape,
            bias=dense.bias is not None,
            device=dense.weight.device,
            dtype=dense.weight.dtype,
            **{self._rank_argument: rank},
            **self._options(),
        )
        return layer.train(dense.training)


@dataclass(frozen=True)
class _Measured(_Factors):
    """One whose fit can weight its errors by the inputs."""

    metric: Literal["weight", "input_cov"] = "weight"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.metric not in ("weight", "input_cov"):
            raise ValueError(f'{type(self).__name__}: metric must be "weight" or "input_cov", got {self.metric!r}')

    def observer(self, module: nn.Module) -> fits.InputCovariance | None:
        return fits.InputCovariance.of(module) if self.metric == "input_cov" else None

    def _metric_of(self, observer: Any) -> dict[str, Any]:
        return {"metric": self.metric, "calibrator": observer}


@dataclass(frozen=True)
class LowRank(_Measured):
    """`nn.Linear` -> `rdkernels.nn.LowRankLinear`, and `nn.Conv2d` -> `SeparableConv2d` (the SVD, for 1 x 1).

    Args:
        rank, energy, ratio: exactly one. The rank; the share in (0, 1] of the weight's squared norm to keep (for a fit
            alone: a fresh layer has no weight yet); the factor by which the multiply-adds fall at least.
        rank_multiple: with `ratio`, a rank of at least this much is rounded down to a multiple of it. 16 is fastest, 1
            comes closest to the ratio.
        metric: "weight", `||W - W~||_F^2`, or "input_cov", which weights errors by the covariance of the layer's
            inputs, and so needs data.
        activation: of the new layer: None, "relu", "gelu" or "silu".

    Raises:
        TypeError, ValueError: naming the argument, what came and what is allowed.
    """

    types = (nn.Linear, nn.Conv2d)
    _layer = SeparableConv2d

    def _class(self, module: nn.Module) -> Any:
        return LowRankLinear if isinstance(module, nn.Linear) else SeparableConv2d

    def _sizes(self, module: Any) -> _Sizes:
        if isinstance(module, nn.Linear):
            shape = tuple(module.weight.shape)
            return _Sizes(min(shape), lambda r: MultiplyAdds.linear(shape, r), MultiplyAdds.dense(shape))
        return _separable_sizes(module)


@dataclass(frozen=True)
class Separable(_Measured):
    """`nn.Conv2d` -> `rdkernels.nn.SeparableConv2d`: a kh x 1 and a 1 x kw convolution. Arguments as in `LowRank`."""

    _layer = SeparableConv2d

    def _sizes(self, module: Any) -> _Sizes:
        return _separable_sizes(module)


@dataclass(frozen=True)
class CP(_Measured):
    """`nn.Conv2d` -> `rdkernels.nn.CPConv2d`: a sum of outer products. Arguments as in `LowRank`."""

    _layer = CPConv2d

    def _sizes(self, module: Any) -> _Sizes:
        return _of_conv(module, full_rank(module.weight.shape), MultiplyAdds.cp)


@dataclass(frozen=True)
class Tucker(_Measured):
    """`nn.Conv2d` -> `rdkernels.nn.TuckerConv2d`: between two smaller channel spaces.

    Arguments as in `LowRank`, but that `rank` is (R1, R2), or an int for both.
    """

    _layer, _ranks = TuckerConv2d, 2

    def _sizes(self, module: Any) -> _Sizes:
        o, c = module.weight.shape[:2]
        return _of_conv(module, (c, o), MultiplyAdds.tucker)


@dataclass(frozen=True)
class Monochromatic(_Measured):
    """`nn.Conv2d` -> `rdkernels.nn.MonochromaticConv2d`: each filter sees one of a few colours; for a first layer.

    Arguments as in `LowRank`; `rank` is the number of colours.
    """

    _layer, _rank_argument = MonochromaticConv2d, "colours"

    def _sizes(self, module: Any) -> _Sizes:
        return _of_conv(module, module.weight.shape[0], MultiplyAdds.monochromatic)


@dataclass(frozen=True)
class Bicluster(_Factors):
    """`nn.Conv2d` -> `rdkernels.nn.BiclusterConv2d`: a Tucker-2 of its own for each pair of channel clusters.

    Arguments as in `LowRank`, but that `rank` is (K1, K2) of each pair, or an int for both; there is no metric.

    Args:
        clusters: (G, H), or an int for both; G must divide the input channels and H the output channels.
    """

    clusters: Rank = (2, 2)

    _layer, _ranks = BiclusterConv2d, 2

    def __post_init__(self) -> None:
        super().__post_init__()
        with errors_of("Bicluster"):
            self._freeze("clusters", pair_of_ranks(self.clusters, name="clusters"))

    def _sizes(self, module: Any) -> _Sizes:
        o, c = module.weight.shape[:2]
        g, h = pair = check_clusters(self.clusters, c, o)
        return _of_conv(
            module, (c // g, o // h), lambda shape, stride, *ranks: MultiplyAdds.bicluster(shape, stride, pair, *ranks)
        )

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "clusters": self.clusters}


def _of_conv(conv: nn.Conv2d, full: Rank, cost: Callable[..., Any]) -> _Sizes:
    shape = tuple(conv.weight.shape)
    return _Sizes(full, lambda *ranks: cost(shape, conv.stride, *ranks), MultiplyAdds.dense(shape))


def _separable_sizes(conv: nn.Conv2d) -> _Sizes:
    o, c, kh, kw = conv.weight.shape
    return _of_conv(conv, min(c * kh, o * kw), MultiplyAdds.separable)


def _no_energy() -> Tensor:
    raise AssertionError("a budget of energy never gets here")
