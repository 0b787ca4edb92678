"""What the low-rank convolutions share: the arguments of `nn.Conv2d`, their checks, and `from_dense`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from .. import fits
from ..fits.budget import MultiplyAdds, check_rank, pair_of_ranks
from ..ops.convolution import geometry
from .lowrank import LowRank, Shapes, covariance_of, dense_weight, errors_of

IntOrPair = int | Sequence[int]
Conv = TypeVar("Conv", bound="_LowRankConv2d")


class _LowRankConv2d(LowRank):
    """The arguments of `nn.Conv2d` (groups 1, zero padding), keyword-only `activation` and the form's ranks.

    A form says in `_shapes` what its factors are, in `_compose` what weight they make, in `_ranks` what ranks some
    factors have and in `_fit` how a dense weight becomes factors.
    """

    _dense_type = nn.Conv2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrPair,
        stride: IntOrPair = 1,
        padding: IntOrPair | str = 0,
        dilation: IntOrPair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
        **ranks: Any,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        with errors_of(owner):
            self.in_channels = check_rank("in_channels", in_channels)
            self.out_channels = check_rank("out_channels", out_channels)
            self.kernel_size = pair_of_ranks(kernel_size, name="kernel_size")
            _check_plain(groups, padding_mode)
        where = geometry(owner, *self.kernel_size, stride, padding, dilation)
        self.stride, self.dilation = where[:2], where[6:]
        self.padding = padding if isinstance(padding, str) else (where.top, where.left)
        with errors_of(owner):
            shapes = self._shapes(device, **ranks)
        fan_in = in_channels * self.kernel_size[0] * self.kernel_size[1]
        self._register(shapes, out_channels, fan_in, bias, activation, device, dtype)

    def _shapes(self, *device: Any, **ranks: Any) -> Shapes:
        """The factors; indices are registered on `device` here."""
        raise NotImplementedError

    @staticmethod
    def _ranks(*factors: Any, **_: Any) -> dict[str, Any]:
        """The form's keyword arguments, by the factors' shapes."""
        raise NotImplementedError

    @staticmethod
    def _fit(*weight_and_budget: Any, **options: Any) -> tuple[Tensor, ...]:
        raise NotImplementedError

    @classmethod
    def from_dense(
        cls: type[Conv],
        conv: nn.Conv2d,
        *,
        rank: IntOrPair | None = None,
        energy: float | None = None,
        macs: float | None = None,
        rank_multiple: int = 16,
        metric: Literal["weight", "input_cov"] = "weight",
        calibrator: fits.InputCovariance | None = None,
        activation: str | None = None,
        **options: Any,
    ) -> Conv:
        """The layer closest to `conv`, by the form's function in `rdkernels.compress`; exact at full rank.

        The fit is float64 on the CPU, deterministic, and leaves the global random state alone.

        Args:
            conv: its bias is copied; geometry, device, dtype and training mode are kept. Of groups 1, padded by zeros.
            rank, energy, macs, rank_multiple: exactly one of the first three; see `rdkernels.compress.Budget`. For
                MonochromaticConv2d the rank is the number of colours.
            metric: "weight", `||W - W~||_F^2`, or "input_cov", which weights the input channels by their covariance:
                `E||(W - W~) x||^2` where different pixels are uncorrelated. Not for BiclusterConv2d, whose clusters
                would mix.
            calibrator: an `rdkernels.compress.InputCovariance` that has seen the layer's inputs.
            activation: of the new layer.
            clusters: (G, H), for BiclusterConv2d alone; (2, 2) if left out.

        Raises:
            TypeError, ValueError: naming the argument, what came and what is allowed.
        """
        weight = dense_weight(cls, "from_dense", conv)
        with errors_of(f"{cls.__name__}.from_dense"):
            _check_plain(conv.groups, conv.padding_mode)
            covariance = covariance_of(metric, calibrator)
            if covariance is not None:
                options["covariance"] = covariance
            factors = cls._fit(weight, fits.Budget(rank, energy, macs, rank_multiple), stride=conv.stride, **options)
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            bias=conv.bias is not None,
            device="meta",
            dtype=weight.dtype,
            activation=activation,
            **cls._ranks(*factors),
        )
        return cls._filled(conv, layer, factors)

    def _fused(self, x: Tensor, residual: Tensor | None) -> Tensor:
        return self._function(
            x,
            *self._factors(),
            self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            activation=self.activation,
            residual=residual,
        )

    def _check_input(self, x: Tensor) -> None:
        if isinstance(x, Tensor) and x.dim() == 4 and x.shape[1] != self.in_channels:
            raise ValueError(
                f"{type(self).__name__}: x must be [N, C, H, W] with C = in_channels = {self.in_channels}, "
                f"got {list(x.shape)}"
            )

    def _shape(self) -> tuple[int, int, int, int]:
        return (self.out_channels, self.in_channels, *self.kernel_size)

    def _macs(self) -> int:
        raise NotImplementedError

    def _sizes(self) -> tuple[int, int]:
        return self._macs(), MultiplyAdds.dense(self._shape())

    def extra_repr(self) -> str:
        ranks = ", ".join(f"{name}={value}" for name, value in self._ranks(*self._factors()).items())
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        if self.padding not in ((0, 0), "valid"):
            text += f", padding={self.padding!r}"
        if self.dilation != (1, 1):
            text += f", dilation={self.dilation}"
        return f"{text}, {ranks}, {self._size_repr()}"

    def _index_problem(self, name: str, value: Tensor) -> str | None:
        """What is wrong with the values of an index, in words."""
        return None

    def _register_index(self, name: str, given: Any, default: Tensor, device: Any) -> None:
        value = default if given is None else torch.as_tensor(given)
        if value.dtype != torch.int64:
            raise TypeError(f"{name} must be int64, got {value.dtype}")
        if value.shape != default.shape:
            raise ValueError(f"{name} must have shape {list(default.shape)}, got {list(value.shape)}")
        problem = None if value.is_meta else self._index_problem(name, value)
        if problem:
            raise ValueError(problem)
        self.register_buffer(name, value.to(device=device or default.device, copy=True))

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing_keys, unexpected_keys, error_msgs):
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing_keys, unexpected_keys, error_msgs)
        for name in self._index_names:
            value = state_dict.get(prefix + name)
            if value is not None and not value.is_meta and value.shape == getattr(self, name).shape:
                problem = self._index_problem(name, value)
                error_msgs.extend([prefix + problem] if problem else [])


def _check_plain(groups: int, padding_mode: str) -> None:
    if groups != 1:
        raise ValueError(f"groups must be 1, got {groups!r}")
    if padding_mode != "zeros":
        raise ValueError(f'padding_mode must be "zeros", got {padding_mode!r}')
