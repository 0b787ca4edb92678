"""The predicted linear layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import fits
from ..fits.budget import check_rank
from .lowrank import errors_of
from .predicted import Predicted, weight_of


class PredictedLinear(Predicted):
    """`y = x @ W.T + bias`, each column of units with weights `U v`: fixed atoms U, trained coefficients v.

    Denil et al. 2013, equation 3 and section 3: U predicts a unit's weights from their values at a few inputs.

    Args:
        in_features, out_features, bias, device, dtype: as in `nn.Linear`.
        fraction: trained coefficients over weights; a unit has `n_a = round(fraction * n_v)` of its `n_v` weights, for
            a topology with channels that many of each channel's.
        dictionary: of the atoms, the columns of U.
            "se": ridge predictor by a squared exponential over the coordinates of `topology`; zero between channels.
            "emp", "emp2": ridge predictor by the covariance of the inputs, or of their squares; needs `observer`.
            "gauss": independent normal values. "identity": a unit sees n_a of the inputs.
            "dct": the lowest cosines of `topology`. A Tensor `[in, n]`: n_a of its atoms, without a predictor.
        columns: groups of units with index sets, and so atoms, of their own.
        topology: how the inputs lie, in row-major order: (length,), (height, width) or (channels, height, width).
        ridge: lambda of the ridge predictor over the mean of the kernel's diagonal. The authors took 0.1 for "se" and
            1e-3 for "emp2".
        sigma: of "se", in pixels.
        whiten: True, the ridge predictor `k_a^T (K_a + lambda I)^-1`; False, the kernel's own columns `k_a^T`.
        seed: uint32, of the index sets and "gauss". None draws one from torch's default CPU generator; processes that
            train one model must draw the same or be given it.
        observer: an `rdkernels.fits.WeightInputCovariance` that has seen the layer's inputs. Without one the atoms of
            "emp" and "emp2" are NaN until a state dict is loaded.

    Shapes: x `[..., in]`, result `[..., out]`. Parameters: `coefficients` `[out, n_a]`, `bias` `[out]` or None.

    The state dict holds the parameters, `recipe`, the int64 values of `RECIPE_FIELDS`, and the atoms that come from
    data. Loading one whose recipe differs from the layer's raises RuntimeError that names both values.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is allowed.
    """

    _dense_type = nn.Linear

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        fraction: float,
        dictionary: str | Tensor = "se",
        columns: int = 1,
        topology: Sequence[int] | None = None,
        ridge: float = 0.1,
        sigma: float = 1.0,
        whiten: bool = True,
        seed: int | None = None,
        observer: fits.WeightInputCovariance | None = None,
    ) -> None:
        super().__init__()
        with errors_of("PredictedLinear"):
            self.in_features = check_rank("in_features", in_features)
            self.out_features = check_rank("out_features", out_features)
            self._register(
                in_features,
                out_features,
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
    def from_dense(cls, linear: nn.Linear, **settings: Any) -> PredictedLinear:
        """The layer closest to `linear`: of all coefficients the least squares of `||W - W~||_F`.

        Args:
            linear: its bias is copied; device, dtype and training mode are kept.
            settings: the constructor's keyword-only arguments.

        Raises:
            TypeError, ValueError: naming the argument, what came and what is allowed.
        """
        with errors_of("PredictedLinear.from_dense"):
            weight = weight_of(cls, "linear", linear)
        shape = (linear.in_features, linear.out_features, linear.bias is not None)
        layer = cls(*shape, weight.device, weight.dtype, **settings)
        with errors_of("PredictedLinear.from_dense"):
            return layer._fill(linear)

    def materialize(self) -> Tensor:
        return self._expand()

    def forward(self, x: Tensor) -> Tensor:
        if not x.dim() or x.shape[-1] != self.in_features:
            raise ValueError(
                f"PredictedLinear: x must have in_features = {self.in_features} as its last dimension, "
                f"got {list(x.shape)}"
            )
        if self._order(x, x.numel() // self.in_features) == "expand":
            return functional.linear(x, self._expand(), self.bias)
        return self._pool(x.reshape(-1, self.in_features)).view(*x.shape[:-1], self.out_features)

    def _pool(self, x: Tensor) -> Tensor:
        """`x` `[B, in]` times the atoms of every column, then the coefficients column by column."""
        d, batch = self.dictionary, x.shape[0]
        if d.kind == "identity":  # a copy of x for each column, so that no two terms of its gradient race
            index = self.index[:, None].expand(-1, batch, -1)
            pooled = x.expand(d.columns, -1, -1).gather(2, index)
        else:
            pooled = functional.linear(x.reshape(batch * d.channels, d.inputs // d.channels), self.atoms.flatten(0, 1))
            pooled = pooled.view(batch, d.channels, d.columns, d.atoms)
            pooled = pooled.permute(2, 0, 1, 3).reshape(d.columns, batch, d.per_unit)
        parts = []
        for (first, count, width), rows in zip(self._runs, self._rows(), strict=True):
            own = self.coefficients[rows].view(count, width, d.per_unit).mT
            group = pooled[first : first + count]
            if self.bias is None:
                y = torch.bmm(group, own)
            else:
                y = torch.baddbmm(self.bias[rows].view(count, 1, width), group, own)
            parts.append(y.transpose(0, 1).reshape(batch, count * width))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, {self._size_repr()}"
