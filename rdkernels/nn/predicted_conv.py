"""The predicted convolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import fits
from ..fits.budget import check_rank, pair_of_ranks
from ..ops.convolution import geometry
from .lowrank import errors_of
from .predicted import Predicted, weight_of

IntOrPair = int | Sequence[int]


class PredictedConv2d(Predicted):
    """`nn.Conv2d` with every column of filters predicted: fixed atoms, trained coefficients.

    Args:
        in_channels to dtype: as in `nn.Conv2d`, of groups 1.
        fraction to observer: as in `PredictedLinear`, of the `n_v = C * kh * kw` weights of a filter. The topology is
            the filter's `(C, kh, kw)`: for "se" and "dct" the atoms are those of one channel, the same for each.

    Parameters: `coefficients` `[out, n_a]`, by channel first where the atoms are one channel's, and `bias` `[out]` or
    None. State dict, raises: as `PredictedLinear`.
    """

    _dense_type = nn.Conv2d
    _gathers = 1
    _pool_weight = 3.5  # few filters a group: measured on a CPU

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
        fraction: float,
        dictionary: str | Tensor = "se",
        columns: int = 1,
        ridge: float = 0.1,
        sigma: float = 1.0,
        whiten: bool = True,
        seed: int | None = None,
        observer: fits.WeightInputCovariance | None = None,
    ) -> None:
        super().__init__()
        with errors_of("PredictedConv2d"):
            self.in_channels = check_rank("in_channels", in_channels)
            self.out_channels = check_rank("out_channels", out_channels)
            self.kernel_size = pair_of_ranks(kernel_size, name="kernel_size")
            if groups != 1:
                raise ValueError(f"groups must be 1, got {groups!r}")
            modes = ("zeros", "reflect", "replicate", "circular")
            if padding_mode not in modes:
                raise ValueError(f"padding_mode must be one of {list(modes)}, got {padding_mode!r}")
        where = geometry("PredictedConv2d", *self.kernel_size, stride, padding, dilation)
        self.stride, self.dilation, self.padding_mode = where[:2], where[6:], padding_mode
        self.padding = padding if isinstance(padding, str) else (where.top, where.left)
        self._sides = (where.left, where.right, where.top, where.bottom)
        topology = (in_channels, *self.kernel_size)
        with errors_of("PredictedConv2d"):
            self._register(
                math.prod(topology),
                out_channels,
                bias,
                device,
                dtype,
                dictionary,
                fraction,
                seed,
                observer,
                columns=columns,
                topology=topology,
                ridge=ridge,
                sigma=sigma,
                whiten=whiten,
            )

    @classmethod
    def from_dense(cls, conv: nn.Conv2d, **settings: Any) -> PredictedConv2d:
        """The layer closest to `conv`, as `PredictedLinear.from_dense`; its geometry is kept."""
        with errors_of("PredictedConv2d.from_dense"):
            weight = weight_of(cls, "conv", conv)
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
            weight.device,
            weight.dtype,
            **settings,
        )
        with errors_of("PredictedConv2d.from_dense"):
            return layer._fill(conv)

    def materialize(self) -> Tensor:
        return self._expand().view(self.out_channels, self.in_channels, *self.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() not in (3, 4) or x.shape[-3] != self.in_channels:
            raise ValueError(
                f"PredictedConv2d: x must be [N, C, H, W] or [C, H, W] with C = in_channels = {self.in_channels}, "
                f"got {list(x.shape)}"
            )
        batch = x if x.dim() == 4 else x[None]
        y = self._pool(batch) if self._order(x, self._positions(batch)) == "pool" else self._full(batch)
        return y if x.dim() == 4 else y[0]

    def _positions(self, x: Tensor) -> int:
        """Output positions of all maps."""
        left, right, top, bottom = self._sides
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        sizes = (x.shape[-2] + top + bottom, x.shape[-1] + left + right)
        h, w = ((n - span) // s + 1 for n, span, s in zip(sizes, spans, self.stride, strict=True))
        return x.shape[0] * h * w

    def _convolve(self, x: Tensor, filters: Tensor, bias: Tensor | None, groups: int = 1) -> Tensor:
        if self.padding_mode == "zeros":
            return functional.conv2d(x, filters, bias, self.stride, self.padding, self.dilation, groups)
        padded = functional.pad(x, self._sides, self.padding_mode)
        return functional.conv2d(padded, filters, bias, self.stride, 0, self.dilation, groups)

    def _full(self, x: Tensor) -> Tensor:
        return self._convolve(x, self.materialize(), self.bias)

    def _pool(self, x: Tensor) -> Tensor:
        """`x` convolved with the atoms of every column, then the coefficients as 1x1 filters, column by column."""
        d = self.dictionary
        atoms = self._dense_atoms().view(-1, self.in_channels // d.channels, *self.kernel_size)  # [J * n_a, ...]
        pooled = self._convolve(x, atoms.repeat(d.channels, 1, 1, 1), None, d.channels)
        if d.channels > 1 and d.columns > 1:  # from channels of columns to columns of channels
            pooled = pooled.unflatten(1, (d.channels, d.columns, d.atoms)).transpose(1, 2).flatten(1, 3)
        parts = []
        for (first, count, _), rows in zip(self._runs, self._rows(), strict=True):
            group = pooled[:, first * d.per_unit : (first + count) * d.per_unit]
            bias = None if self.bias is None else self.bias[rows]
            parts.append(functional.conv2d(group, self.coefficients[rows, :, None, None], bias, groups=count))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        if self.padding not in ((0, 0), "valid"):
            text += f", padding={self.padding!r}"
        if self.dilation != (1, 1):
            text += f", dilation={self.dilation}"
        if self.padding_mode != "zeros":
            text += f", padding_mode={self.padding_mode}"
        return f"{text}, {self._size_repr()}"
