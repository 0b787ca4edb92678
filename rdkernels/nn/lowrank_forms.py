"""Low-rank convolutions as layers, one class a form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import fits
from ..fits.budget import MultiplyAdds, check_rank, pair_of_ranks
from ..fits.clusters import check_clusters, even_sizes
from ..ops.bicluster_conv2d import bicluster_conv2d
from ..ops.cp_conv2d import cp_conv2d
from ..ops.monochromatic_conv2d import monochromatic_conv2d
from ..ops.separable_conv2d import separable_conv2d
from ..ops.tucker_conv2d import tucker_conv2d
from .lowrank import Shapes
from .lowrank_conv import IntOrPair, _LowRankConv2d


class SeparableConv2d(_LowRankConv2d):
    """`nn.Conv2d` as a kh x 1 and a 1 x kw convolution through R ranks, fused: `rdkernels.separable_conv2d`.

    Args:
        in_channels ... dtype: as in `nn.Conv2d`; groups must be 1 and padding_mode "zeros".
        rank: R >= 1.
        activation: None, "relu", "gelu" (by erf) or "silu", applied last.

    Parameters: `vertical` `[R, C, kh]`, `horizontal` `[O, R, kw]`, `bias` `[O]` or None.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is allowed.
    """

    _op, _function, _names = "separable_conv2d", staticmethod(separable_conv2d), ("vertical", "horizontal")
    _fit = staticmethod(fits.separable)

    def _shapes(self, device: Any, *, rank: int | None = None) -> Shapes:
        o, c, kh, kw = self._shape()
        self.rank = rank = check_rank("rank", rank)
        return {"vertical": ((rank, c, kh), c * kh), "horizontal": ((o, rank, kw), rank * kw)}

    @staticmethod
    def _ranks(vertical: Tensor, horizontal: Tensor) -> dict[str, Any]:
        return {"rank": vertical.shape[0]}

    @staticmethod
    def _compose(vertical: Tensor, horizontal: Tensor) -> Tensor:
        return torch.einsum("orj,rci->ocij", horizontal, vertical)

    def _macs(self) -> int:
        return MultiplyAdds.separable(self._shape(), self.stride, self.rank)


class CPConv2d(_LowRankConv2d):
    """`nn.Conv2d` with a weight of R outer products, in one pass: `rdkernels.cp_conv2d`.

    Args:
        in_channels ... dtype: as in `nn.Conv2d`; groups must be 1 and padding_mode "zeros".
        rank: R >= 1.
        activation: None, "relu", "gelu" (by erf) or "silu", applied last.

    Parameters: `inner` `[R, C]`, `vertical` `[R, kh]`, `horizontal` `[R, kw]`, `outer` `[O, R]`, `bias` `[O]` or None.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is allowed.
    """

    _op, _function, _names = "cp_conv2d", staticmethod(cp_conv2d), ("inner", "vertical", "horizontal", "outer")
    _fit = staticmethod(fits.cp)

    def _shapes(self, device: Any, *, rank: int | None = None) -> Shapes:
        o, c, kh, kw = self._shape()
        self.rank = rank = check_rank("rank", rank)
        return {
            "inner": ((rank, c), c),
            "vertical": ((rank, kh), kh),
            "horizontal": ((rank, kw), kw),
            "outer": ((o, rank), rank),
        }

    @staticmethod
    def _ranks(inner: Tensor, *_: Tensor) -> dict[str, Any]:
        return {"rank": inner.shape[0]}

    @staticmethod
    def _compose(inner: Tensor, vertical: Tensor, horizontal: Tensor, outer: Tensor) -> Tensor:
        terms = inner[:, :, None, None] * vertical[:, None, :, None] * horizontal[:, None, None, :]
        return (outer @ terms.flatten(1)).unflatten(1, terms.shape[1:])

    def _macs(self) -> int:
        return MultiplyAdds.cp(self._shape(), self.stride, self.rank)


class TuckerConv2d(_LowRankConv2d):
    """`nn.Conv2d` between two smaller channel spaces, in one pass: `rdkernels.tucker_conv2d`.

    Args:
        in_channels ... dtype: as in `nn.Conv2d`; groups must be 1 and padding_mode "zeros".
        rank: (R1, R2), or an int for both.
        activation: None, "relu", "gelu" (by erf) or "silu", applied last.

    Parameters: `inner` `[R1, C]`, `core` `[R2, R1, kh, kw]`, `outer` `[O, R2]`, `bias` `[O]` or None.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is allowed.
    """

    _op, _function, _names = "tucker_conv2d", staticmethod(tucker_conv2d), ("inner", "core", "outer")
    _fit = staticmethod(fits.tucker)

    def _shapes(self, device: Any, *, rank: IntOrPair | None = None) -> Shapes:
        o, c, kh, kw = self._shape()
        self.rank = r1, r2 = pair_of_ranks(rank)
        return {"inner": ((r1, c), c), "core": ((r2, r1, kh, kw), r1 * kh * kw), "outer": ((o, r2), r2)}

    @staticmethod
    def _ranks(inner: Tensor, core: Tensor, outer: Tensor) -> dict[str, Any]:
        return {"rank": (inner.shape[0], outer.shape[1])}

    @staticmethod
    def _compose(inner: Tensor, core: Tensor, outer: Tensor) -> Tensor:
        return torch.einsum("oq,qpij,pc->ocij", outer, core, inner)

    def _macs(self) -> int:
        return MultiplyAdds.tucker(self._shape(), self.stride, *self.rank)


class MonochromaticConv2d(_LowRankConv2d):
    """First layer whose filters each see one of C' colours, in one pass: `rdkernels.monochromatic_conv2d`.

    Args:
        in_channels ... dtype: as in `nn.Conv2d`; groups must be 1 and padding_mode "zeros".
        colours: C' >= 1.
        assignment: int64 `[O]`, the colour of each output; by default contiguous groups of equal size.
        activation: None, "relu", "gelu" (by erf) or "silu", applied last.

    Parameters: `colours` `[C', C]`, `filters` `[O, kh, kw]`, `bias` `[O]` or None. Buffer: `assignment`.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is allowed.
    """

    _op, _function, _names = "monochromatic_conv2d", staticmethod(monochromatic_conv2d), ("colours", "filters")
    _index_names = ("assignment",)
    _fit = staticmethod(fits.monochromatic)

    def _shapes(self, device: Any, *, colours: int | None = None, assignment: Tensor | None = None) -> Shapes:
        o, c, kh, kw = self._shape()
        self._count = colours = check_rank("colours", colours)
        sizes = torch.tensor(even_sizes(o, colours), device="cpu")
        even = torch.arange(colours, device="cpu").repeat_interleave(sizes)
        self._register_index("assignment", assignment, even, device)
        return {"colours": ((colours, c), c), "filters": ((o, kh, kw), kh * kw)}

    @staticmethod
    def _ranks(colours: Tensor, filters: Tensor, assignment: Tensor) -> dict[str, Any]:
        return {"colours": colours.shape[0]}

    @staticmethod
    def _compose(colours: Tensor, filters: Tensor, assignment: Tensor) -> Tensor:
        return colours[assignment][:, :, None, None] * filters[:, None]

    def _macs(self) -> int:
        return MultiplyAdds.monochromatic(self._shape(), self.stride, self._count)

    def _index_problem(self, name: str, value: Tensor) -> str | None:
        low, high = (int(v) for v in torch.aminmax(value))
        if low >= 0 and high < self._count:
            return None
        return f"{name} must be in [0, {self._count}), got values from {low} to {high}"


class BiclusterConv2d(_LowRankConv2d):
    """`nn.Conv2d` with inputs and outputs in clusters, each pair a Tucker-2, in one pass: `rdkernels.bicluster_conv2d`.

    Args:
        in_channels ... dtype: as in `nn.Conv2d`; groups must be 1 and padding_mode "zeros".
        clusters: (G, H), or an int for both; G divides in_channels and H out_channels.
        rank: (K1, K2) of each pair, or an int for both.
        inputs, outputs: int64 permutations `[C]` and `[O]`, cluster after cluster; by default as the channels come.
        activation: None, "relu", "gelu" (by erf) or "silu", applied last.

    Parameters: `inner` `[G, H, K1, C/G]`, `core` `[G, H, K2, K1, kh, kw]`, `outer` `[H, O/H, G, K2]`, `bias` `[O]` or
    None. Buffers: `inputs`, `outputs`.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is allowed.
    """

    _op, _function, _names = "bicluster_conv2d", staticmethod(bicluster_conv2d), ("inner", "core", "outer")
    _index_names = ("inputs", "outputs")

    def _shapes(
        self,
        device: Any,
        *,
        clusters: IntOrPair | None = None,
        rank: IntOrPair | None = None,
        inputs: Tensor | None = None,
        outputs: Tensor | None = None,
    ) -> Shapes:
        o, c, kh, kw = self._shape()
        self.clusters = g, h = check_clusters(clusters, c, o)
        self.rank = k1, k2 = pair_of_ranks(rank)
        self._register_index("inputs", inputs, torch.arange(c, device="cpu"), device)
        self._register_index("outputs", outputs, torch.arange(o, device="cpu"), device)
        return {
            "inner": ((g, h, k1, c // g), c // g),
            "core": ((g, h, k2, k1, kh, kw), k1 * kh * kw),
            "outer": ((h, o // h, g, k2), g * k2),
        }

    @staticmethod
    def _fit(weight: Tensor, budget: fits.Budget, *, clusters: IntOrPair = (2, 2), **options: Any):
        if "covariance" in options:
            raise ValueError('metric must be "weight", got "input_cov": whitening mixes the channels of all clusters')
        return fits.bicluster(weight, budget, clusters=clusters, **options)

    @staticmethod
    def _ranks(inner: Tensor, core: Tensor, *_: Tensor) -> dict[str, Any]:
        return {"clusters": tuple(core.shape[:2]), "rank": (core.shape[3], core.shape[2])}

    @staticmethod
    def _compose(inner: Tensor, core: Tensor, outer: Tensor, inputs: Tensor, outputs: Tensor) -> Tensor:
        ordered = torch.einsum("hbgq,ghqpij,ghpa->hbgaij", outer, core, inner).flatten(2, 3).flatten(0, 1)
        return ordered[torch.argsort(outputs)][:, torch.argsort(inputs)]

    def _macs(self) -> int:
        return MultiplyAdds.bicluster(self._shape(), self.stride, self.clusters, *self.rank)

    def _index_problem(self, name: str, value: Tensor) -> str | None:
        if torch.equal(value.sort().values, torch.arange(value.numel(), device=value.device)):
            return None
        return f"{name} must be a permutation of 0 ... {value.numel() - 1}, got {value.tolist()}"
