"""Low-rank convolutions as layers: the arguments of `nn.Conv2d` and ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from .. import compress
from ..compress.budget import MultiplyAdds, check_rank, pair_of_ranks
from ..compress.clusters import check_clusters, even_sizes
from ..ops.bicluster_conv2d import bicluster_conv2d
from ..ops.convolution import geometry
from ..ops.cp_conv2d import cp_conv2d
from ..ops.monochromatic_conv2d import monochromatic_conv2d
from ..ops.separable_conv2d import separable_conv2d
from ..ops.tucker_conv2d import tucker_conv2d
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
        calibrator: compress.InputCovariance | None = None,
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
            factors = cls._fit(
                weight, compress.Budget(rank, energy, macs, rank_multiple), stride=conv.stride, **options
            )
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
    _fit = staticmethod(compress.separable)

    def _shapes(self, device: Any, *, rank: int) -> Shapes:
        o, c, kh, kw = self._shape()
        self.rank = check_rank("rank", rank)
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
    _fit = staticmethod(compress.cp)

    def _shapes(self, device: Any, *, rank: int) -> Shapes:
        o, c, kh, kw = self._shape()
        self.rank = check_rank("rank", rank)
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
    _fit = staticmethod(compress.tucker)

    def _shapes(self, device: Any, *, rank: IntOrPair) -> Shapes:
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
    _fit = staticmethod(compress.monochromatic)

    def _shapes(self, device: Any, *, colours: int, assignment: Tensor | None = None) -> Shapes:
        o, c, kh, kw = self._shape()
        self._count = check_rank("colours", colours)
        even = torch.repeat_interleave(torch.arange(colours, device="cpu"), torch.tensor(even_sizes(o, colours)))
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
        clusters: IntOrPair,
        rank: IntOrPair,
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
    def _fit(weight: Tensor, budget: compress.Budget, *, clusters: IntOrPair = (2, 2), **options: Any):
        if "covariance" in options:
            raise ValueError('metric must be "weight", got "input_cov": whitening mixes the channels of all clusters')
        return compress.bicluster(weight, budget, clusters=clusters, **options)

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
