"""What the low-rank layers share, and the linear one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from .. import fits, planner
from ..fits.budget import MultiplyAdds, check_rank
from ..ops.convolution import DTYPES, Activation
from ..ops.lowrank_linear import lowrank_linear

Layer = TypeVar("Layer", bound="LowRank")
Shapes = Mapping[str, tuple[tuple[int, ...], int]]  # factor -> its shape, how many products its output sums


class LowRank(nn.Module):
    """A layer whose weight is a product of factors: its parameters, named as the operation's arguments."""

    _op: ClassVar[str]
    _function: ClassVar[Callable[..., Tensor]]
    _names: ClassVar[tuple[str, ...]]
    _index_names: ClassVar[tuple[str, ...]] = ()
    _dense_type: ClassVar[Any]  # nn.Conv2d or nn.Linear

    bias: nn.Parameter | None
    activation: str | None

    def _register(
        self,
        shapes: Shapes,
        out: int,
        fan_in: int,
        bias: bool,
        activation: str | None,
        device: Any,
        dtype: torch.dtype | None,
    ) -> None:
        owner = type(self).__name__
        if not isinstance(bias, bool):
            raise TypeError(f"{owner}: bias must be True or False, got {bias!r}")
        names = [a.name for a in Activation if a]
        if activation is not None and activation not in names:
            raise ValueError(f"{owner}: activation must be None or one of {names}, got {activation!r}")
        if dtype is not None and dtype not in DTYPES:
            raise TypeError(f"{owner}: dtype must be None or one of {list(DTYPES)}, got {dtype}")
        self.activation, self._fans, self._fan_in = activation, {n: fan for n, (_, fan) in shapes.items()}, fan_in
        for name, (shape, _) in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.register_parameter("bias", nn.Parameter(torch.empty(out, device=device, dtype=dtype)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw factors and bias anew, uniform.

        Every factor but the last keeps the variance of what runs through it, and the last brings the composed weight to
        the variance of the dense twin's, `1 / (3 * fan_in)`. The bias is the dense twin's.
        """
        for name, fan in self._fans.items():
            bound = (1 if name == self._names[-1] else 3) ** 0.5 * fan**-0.5
            nn.init.uniform_(getattr(self, name), -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -(self._fan_in**-0.5), self._fan_in**-0.5)

    def _factors(self) -> tuple[Tensor, ...]:
        """The operation's tensors between x and the bias: factors, then indices."""
        return tuple(getattr(self, name) for name in (*self._names, *self._index_names))

    def _fused(self, x: Tensor, residual: Tensor | None) -> Tensor:
        return self._function(x, *self._factors(), self.bias, activation=self.activation, residual=residual)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """`residual`, of the result's shape, is added before the activation.

        One call of the operation; where no gradients are needed, the fastest way that `rdkernels.planner` measured.
        """
        self._check_input(x)
        return planner.run(self, x, residual)

    def explain(self, x: Tensor, residual: Tensor | None = None) -> planner.Explanation:
        """Print, and return, how `forward` computes x and why: see `rdkernels.planner.explain`."""
        return planner.explain(self, x, residual)

    @staticmethod
    def _compose(*factors: Any, **_: Any) -> Tensor:
        """The dense weight of these factors."""
        raise NotImplementedError

    def materialize(self) -> Tensor:
        """The weight of the dense twin that computes the same, in its shape; differentiable by the factors."""
        return self._compose(*self._factors())

    @torch.no_grad()
    def relative_error(self, dense: nn.Module) -> float:
        """`||W - materialize()||_F / ||W||_F` in float64, with W the weight of the layer `dense`."""
        weight = dense_weight(type(self), "relative_error", dense)
        wide = [t.double() if t.is_floating_point() else t for t in self._factors()]
        own, weight = self._compose(*wide), weight.to(device=wide[0].device, dtype=torch.float64)
        if own.shape != weight.shape:
            raise ValueError(
                f"{type(self).__name__}.relative_error: dense must have a weight of shape {list(own.shape)}, "
                f"got {list(weight.shape)}"
            )
        gap = float((weight - own).norm())
        return gap / float(weight.norm()) if gap else 0.0

    def _check_input(self, x: Tensor) -> None:
        raise NotImplementedError

    def _sizes(self) -> tuple[int, int]:
        """Multiply-adds of an output position, of the layer and of its dense twin."""
        raise NotImplementedError

    def _size_repr(self) -> str:
        own, dense = self._sizes()
        bias = 0 if self.bias is None else self.bias.numel()
        stored = sum(getattr(self, name).numel() for name in self._names) + bias
        extra = f", activation={self.activation}" if self.activation else ""
        cost = f"macs=dense/{dense / own:.3g}, parameters={stored} (dense {dense + bias})"
        return f"bias={self.bias is not None}{extra}, {cost}"

    @classmethod
    def _filled(cls: type[Layer], dense: Any, layer: Layer, factors: Sequence[Tensor]) -> Layer:
        """`layer`, made on the meta device, with these factors and the rest of `dense`."""
        weight = dense.weight
        layer.to_empty(device=weight.device)
        with torch.no_grad():
            for own, value in zip(layer._factors(), factors, strict=True):
                own.copy_(value)
            if layer.bias is not None:
                layer.bias.copy_(dense.bias)
        return layer.train(dense.training)


class LowRankLinear(LowRank):
    """`y = act(x @ down.T @ up.T + bias + residual)`: `nn.Linear` of rank R, the R-wide rows never stored.

    One call of `rdkernels.lowrank_linear`, whose docstring has the dtypes, determinism and sources.

    Args:
        in_features, out_features, bias, device, dtype: as in `nn.Linear`.
        rank: R >= 1.
        activation: None, "relu", "gelu" (by erf) or "silu", applied last.

    Shapes: x `[..., in]`, result `[..., out]`. Parameters: `down` `[R, in]`, `up` `[out, R]`, `bias` `[out]` or None.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is allowed.
    """

    _op, _function, _names, _dense_type = "lowrank_linear", staticmethod(lowrank_linear), ("down", "up"), nn.Linear

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        rank: int,
        activation: str | None = None,
    ) -> None:
        super().__init__()
        with errors_of("LowRankLinear"):
            self.in_features = check_rank("in_features", in_features)
            self.out_features = check_rank("out_features", out_features)
            self.rank = check_rank("rank", rank)
        shapes = {"down": ((rank, in_features), in_features), "up": ((out_features, rank), rank)}
        self._register(shapes, out_features, in_features, bias, activation, device, dtype)

    @classmethod
    def from_dense(
        cls,
        linear: nn.Linear,
        *,
        rank: int | None = None,
        energy: float | None = None,
        macs: float | None = None,
        rank_multiple: int = 16,
        metric: Literal["weight", "input_cov"] = "weight",
        calibrator: fits.InputCovariance | None = None,
        activation: str | None = None,
    ) -> LowRankLinear:
        """The layer closest to `linear`, by `rdkernels.compress.linear`: the best of its rank in the metric.

        Args:
            linear: its bias is copied; device, dtype and training mode are kept.
            rank, energy, macs, rank_multiple: exactly one of the first three; see `rdkernels.compress.Budget`.
            metric: "weight", `||W - W~||_F^2`, or "input_cov", `E||(W - W~) x||^2` over the calibrator's inputs.
            calibrator: an `rdkernels.compress.InputCovariance` that has seen the layer's inputs.
            activation: of the new layer.

        Raises:
            TypeError, ValueError: naming the argument, what came and what is allowed.
        """
        weight = dense_weight(cls, "from_dense", linear)
        with errors_of("LowRankLinear.from_dense"):
            budget = fits.Budget(rank, energy, macs, rank_multiple)
            down, up = fits.linear(weight, budget, covariance=covariance_of(metric, calibrator))
        shape = (linear.in_features, linear.out_features)
        has_bias = linear.bias is not None
        layer = cls(*shape, has_bias, "meta", weight.dtype, rank=down.shape[0], activation=activation)
        return cls._filled(linear, layer, (down, up))

    def _check_input(self, x: Tensor) -> None:
        if isinstance(x, Tensor) and x.dim() and x.shape[-1] != self.in_features:
            raise ValueError(
                f"LowRankLinear: x must be [..., in] with in = in_features = {self.in_features}, got {list(x.shape)}"
            )

    @staticmethod
    def _compose(down: Tensor, up: Tensor) -> Tensor:
        return up @ down

    def _sizes(self) -> tuple[int, int]:
        shape = (self.out_features, self.in_features)
        return MultiplyAdds.linear(shape, self.rank), MultiplyAdds.dense(shape)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, {self._size_repr()}"
        )


@contextmanager
def errors_of(owner: str) -> Iterator[None]:
    """Errors about arguments inside say whose they are."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(f"{owner}: {error}") from error


def covariance_of(metric: str, calibrator: fits.InputCovariance | None) -> Tensor | None:
    """The covariance that the metric asks for."""
    if metric not in ("weight", "input_cov"):
        raise ValueError(f'metric must be "weight" or "input_cov", got {metric!r}')
    if (metric == "input_cov") != (calibrator is not None):
        raise ValueError(f'calibrator must be given with metric="input_cov" and only then, got {calibrator!r}')
    if calibrator is None:
        return None
    if not isinstance(calibrator, fits.InputCovariance):
        raise TypeError(f"calibrator must be an rdkernels.compress.InputCovariance, got {type(calibrator).__name__}")
    return calibrator.covariance()


def dense_weight(cls: type[LowRank], method: str, dense: Any) -> Tensor:
    """The weight of `dense`, which must be the layer's dense twin and have values."""
    kind, owner = cls._dense_type, f"{cls.__name__}.{method}"
    name = "linear" if kind is nn.Linear else "conv"
    if not isinstance(dense, kind) or isinstance(dense.weight, nn.UninitializedParameter):
        raise TypeError(f"{owner}: {name} must be an initialised nn.{kind.__name__}, got {type(dense).__name__}")
    weight = dense.weight.detach()
    if weight.is_meta:
        raise ValueError(f"{owner}: {name} must have values, got one on the meta device")
    return weight
