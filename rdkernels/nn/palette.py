"""Layers whose weights are indices into a codebook of few trained values."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import fits
from ..fits.budget import check_rank
from ..fits.palette import Init, check_palette
from ..ops.palette_linear import DTYPES, pack, packed_shape, palette_linear, unpack
from .entry import Described
from .lowrank import errors_of

#: What the state dict's int64 entry `palette` begins with, the weight's shape after it.
PALETTE_FIELDS = ("palette_version", "bits", "zero")
_VERSION = 1

Layer = TypeVar("Layer", bound="Palette")
IntOrPair = int | Sequence[int]


class Palette(Described):
    """What palette layers share: a codebook that is trained and packed indices that are not."""

    _dense_type: ClassVar[Any]  # nn.Linear or nn.Conv2d
    _entry, _fields = "palette", PALETTE_FIELDS
    coded = "indices"  # the buffer whose entropy-coded size is `coded_bits()`
    codebook: nn.Parameter
    indices: Tensor
    bias: nn.Parameter | None

    def _register(
        self, shape: tuple[int, ...], bias: bool, bits: int, zero: bool, init: Init, device: Any, dtype: Any
    ) -> None:
        owner = type(self).__name__
        with errors_of(owner):
            check_palette(bits, zero, init)
        if not isinstance(bias, bool):
            raise TypeError(f"{owner}: bias must be True or False, got {bias!r}")
        if dtype is not None and dtype not in DTYPES:
            raise TypeError(f"{owner}: dtype must be None or one of {list(DTYPES)}, got {dtype}")
        self.bits, self.zero, self.init, self._shape = bits, zero, init, shape
        made = {"device": device, "dtype": dtype}
        self.codebook = nn.Parameter(torch.empty(2**bits - zero, **made))
        self.register_parameter("bias", nn.Parameter(torch.empty(shape[0], **made)) if bias else None)
        packed = packed_shape(shape[0], math.prod(shape[1:]), bits)
        self.register_buffer("indices", torch.zeros(packed, dtype=torch.uint8, device=device))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw a weight and a bias as the dense twin does, and fit the codebook and the indices to the weight."""
        bound = math.prod(self._shape[1:]) ** -0.5
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)
        if not self.codebook.is_meta:
            drawn = torch.empty(self._shape, device=self.codebook.device, dtype=torch.float32)
            self._fit(drawn.uniform_(-bound, bound))

    @torch.no_grad()
    def _fit(self, weight: Tensor) -> None:
        values, index = fits.palette(weight, self.bits, zero=self.zero, init=self.init)
        self.codebook.copy_(values[int(self.zero) :])
        self.indices.copy_(pack(index.flatten(1), self.bits))

    @classmethod
    def _filled(cls: type[Layer], layer: Layer, dense: Any) -> Layer:
        """`layer`, made on the meta device, fitted to `dense`."""
        layer.to_empty(device=dense.weight.device)
        with torch.no_grad():
            if not dense.weight.is_meta:
                with errors_of(f"{cls.__name__}.from_dense"):
                    layer._fit(dense.weight)
                if layer.bias is not None:
                    layer.bias.copy_(dense.bias)
        return layer.train(dense.training)

    @classmethod
    def _checked(cls, dense: Any) -> Any:
        kind, owner = cls._dense_type, f"{cls.__name__}.from_dense"
        if not isinstance(dense, kind) or isinstance(dense.weight, nn.UninitializedParameter):
            raise TypeError(f"{owner}: dense must be an initialised nn.{kind.__name__}, got {type(dense).__name__}")
        return dense

    def _values(self) -> Tensor:
        """The codebook `[2**bits]`, the entry that is 0 in front if there is one."""
        return functional.pad(self.codebook, (1, 0)) if self.zero else self.codebook

    def materialize(self) -> Tensor:
        """The weight of the dense twin that computes the same, in its shape; differentiable by the codebook."""
        values, index = self._values(), self.index().flatten().int()
        if torch.is_grad_enabled() and values.requires_grad:
            # An entry's gradient sums its members in float64, and on CUDA, unlike index_select's, in a fixed order.
            return values.double()[index].to(values.dtype).view(self._shape)
        return values.index_select(0, index).view(self._shape)

    def index(self) -> Tensor:
        """The uint8 index of each weight into the codebook (with `zero`, behind an entry that is 0), in its shape."""
        return unpack(self.indices, self.bits, math.prod(self._shape[1:]))[: self._shape[0]].reshape(self._shape)

    def _counts(self) -> Tensor:
        return torch.bincount(self.index().flatten(), minlength=2**self.bits)

    def coded_bits(self) -> float:
        """`n H` with `H = -sum p log2 p` over the shares p of the codebook's entries among the n weights.

        No code of one index after another needs fewer bits; an arithmetic coder comes that close. The code's table is
        not counted.
        """
        counts = self._counts().double()
        return float(torch.special.entr(counts / counts.sum()).sum() / math.log(2) * counts.sum())

    def huffman_bits(self) -> int:
        """Bits of the indices in their Huffman code, the table not counted: at most a bit a weight above the bound."""
        heap = [n for n in self._counts().tolist() if n]
        heapq.heapify(heap)
        total = heap[0] if len(heap) == 1 else 0
        while len(heap) > 1:
            both = heapq.heappop(heap) + heapq.heappop(heap)
            total += both
            heapq.heappush(heap, both)
        return total

    @property
    def palette(self) -> Tensor:
        """The int64 values of `PALETTE_FIELDS` and the weight's shape, on the CPU: the state dict's entry."""
        return torch.tensor((_VERSION, self.bits, self.zero, *self._shape), dtype=torch.int64, device="cpu")

    @classmethod
    def _shown(cls, values):
        fixed = len(PALETTE_FIELDS)
        return {**super()._shown(values[:fixed]), "shape": values[fixed:]}

    def _palette_repr(self) -> str:
        item, bias = self.codebook.element_size(), 0 if self.bias is None else self._shape[0]
        stored = item * (len(self.codebook) + bias) + self.indices.numel()
        dense = item * (math.prod(self._shape) + bias)
        return f"bias={self.bias is not None}, bits={self.bits}, zero={self.zero}, bytes={stored} (dense {dense})"


class PaletteLinear(Palette):
    """`y = x @ W.T + bias` with each weight one of `2**bits` values: `nn.Linear` in `bits` bits a weight.

    One call of `rdkernels.palette_linear`, whose docstring has the dtypes, determinism and source; the weight is read
    from the packed indices and never built outside `materialize()`.

    Args:
        in_features, out_features, bias, device, dtype: as in `nn.Linear`.
        bits: of an index, 1 to 8.
        zero: the first of the `2**bits` values is 0 and not a parameter, so that no optimiser can move it.
        init: where the fit's centroids start, see `rdkernels.fits.palette`.

    Shapes: x `[..., in]`, result `[..., out]`. Parameters: `codebook` `[2**bits - zero]`, `bias` `[out]` or None.
    Buffer: `indices`, packed uint8, which training leaves as they are: the gradient of a value is the sum of its
    weights'.

    The state dict holds these and `palette`, the int64 values of `PALETTE_FIELDS` and the weight's shape. Loading one
    that differs in them raises RuntimeError that names both values.

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
        bits: int,
        zero: bool = False,
        init: Init = "optimal",
    ) -> None:
        super().__init__()
        with errors_of("PaletteLinear"):
            self.in_features = check_rank("in_features", in_features)
            self.out_features = check_rank("out_features", out_features)
        self._register((out_features, in_features), bias, bits, zero, init, device, dtype)

    @classmethod
    def from_dense(cls, dense: nn.Linear, bits: int, *, zero: bool = False, init: Init = "optimal") -> PaletteLinear:
        """The layer closest to `dense`: its weight by `rdkernels.fits.palette`, its bias copied.

        Args:
            dense: device, dtype and training mode are kept.
            bits, zero, init: of the layer; with `zero`, the weights that are 0 stay 0.

        Raises:
            TypeError, ValueError: naming the argument, what came and what is allowed.
        """
        linear = cls._checked(dense)
        made = {"device": "meta", "dtype": linear.weight.dtype, "bits": bits, "zero": zero, "init": init}
        return cls._filled(cls(linear.in_features, linear.out_features, linear.bias is not None, **made), linear)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Tensor) and x.dim() and x.shape[-1] != self.in_features:
            raise ValueError(
                f"PaletteLinear: x must be [..., in] with in = in_features = {self.in_features}, got {list(x.shape)}"
            )
        return palette_linear(x, self._values(), self.indices, self.out_features, self.bias, bits=self.bits)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, {self._palette_repr()}"


class PaletteConv2d(Palette):
    """`nn.Conv2d` with each weight one of `2**bits` values; the weight is built anew in every call.

    Args:
        in_channels to dtype: as in `nn.Conv2d`.
        bits, zero, init: as in `PaletteLinear`.

    Parameters, buffer, state dict, raises: as `PaletteLinear`.
    """

    _dense_type = nn.Conv2d
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] | str
    dilation: tuple[int, int]
    groups: int
    padding_mode: str
    _GEOMETRY = (
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
    )

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
        bits: int,
        zero: bool = False,
        init: Init = "optimal",
    ) -> None:
        super().__init__()
        with errors_of("PaletteConv2d"):
            where: Any = (
                in_channels,
                out_channels,
                kernel_size,
                stride,
                padding,
                dilation,
                groups,
                bias,
                padding_mode,
                "meta",
            )
            dense: Any = nn.Conv2d(*where)  # its checks, its arguments as pairs
        for name in self._GEOMETRY:
            setattr(self, name, getattr(dense, name))
        self._sides = tuple(dense._reversed_padding_repeated_twice)
        self._register(tuple(dense.weight.shape), bias, bits, zero, init, device, dtype)

    @classmethod
    def from_dense(cls, dense: nn.Conv2d, bits: int, *, zero: bool = False, init: Init = "optimal") -> PaletteConv2d:
        """The layer closest to `dense`: as `PaletteLinear.from_dense`."""
        conv = cls._checked(dense)
        where = {name: getattr(conv, name) for name in cls._GEOMETRY}
        made = {"device": "meta", "dtype": conv.weight.dtype, "bits": bits, "zero": zero, "init": init}
        return cls._filled(cls(**where, bias=conv.bias is not None, **made), conv)

    def forward(self, x: Tensor) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            x, padding = functional.pad(x, self._sides, mode=self.padding_mode), 0
        weight = self.materialize()
        return functional.conv2d(x, weight, self.bias, self.stride, padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        where = ", ".join(f"{name}={getattr(self, name)}" for name in self._GEOMETRY[2:])
        return f"{self.in_channels}, {self.out_channels}, {where}, {self._palette_repr()}"
