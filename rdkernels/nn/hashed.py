"""Linear layers whose weights live in a hashed bank of their own or in one that several layers share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import hashing
from ..ops.hashed_linear import DTYPES, hashed_linear
from .entry import Described, float_of, int_of

#: What the state dict's int64 entry `map` holds, in this order; `scale` as the bits of a float64, since a floating
#: entry would not survive a checkpoint cast to 16 bits. Same entry and same bank: same virtual matrix.
MAP_FIELDS = ("map_version", "seed", "slots", "go", "gi", "out_features", "in_features", "hashed_bias", "scale")

_FIT_BLOCK = 2**20  # virtual weights a step of `from_linear`: 8 MiB an int64 temporary


class WeightBank(nn.Module):
    """The real weights that one or several hashed layers read.

    Args:
        size: number of values; each layer's granule must divide it into whole slots.
        bound: the values start uniform in `[-bound, bound]`.
        device, dtype: of the parameter `weight` `[size]`.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is allowed.
    """

    def __init__(self, size: int, *, bound: float = 1.0, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        _check_size("WeightBank", "size", size)
        _check_dtype("WeightBank", dtype)
        self.size, self.bound = size, float(bound)
        self.weight = nn.Parameter(torch.empty(size, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every value anew, uniform in `[-bound, bound]`."""
        nn.init.uniform_(self.weight, -self.bound, self.bound)

    def extra_repr(self) -> str:
        return f"{self.size}, bytes={self.size * self.weight.element_size()}"


class HashedLinear(Described):
    """`y = scale * x @ V.T + bias` with `V` `[out, in]` a hash of a small bank: `nn.Linear` in fewer weights.

    One call of `rdkernels.hashed_linear`, whose docstring has the formula, dtypes, determinism and source. `V` is never
    built outside `materialize()`.

    Args:
        in_features, out_features: sizes of x's last dimension and of the result's.
        bias: True, False, or "hashed" (granule "element" only): the bias is then read from the bank too.
        compression: `out * in` over the bank's length; `slots = max(1, round(out * in / (compression * go * gi)))`.
            Not looked at where `bank` is given, whose length decides.
        granule: "element", "chunk", "tile" or a pair `(go, gi)`.
        seed: uint32, which map. None draws one from torch's default CPU generator; processes that train one model must
            draw the same (the same `torch.manual_seed`) or be given it.
        bank: a `WeightBank` to share with other layers; each keeps its own seed and scale.
        scale: multiplies the virtual matrix and a hashed bias.
        device, dtype: of bank and bias; with `bank` they are the bank's.

    Shapes: x `[..., in]`, result `[..., out]`. Parameters: `bank.weight` `[slots * go * gi]` and, for `bias=True`,
    `bias` `[out]`, both uniform in `[-1/sqrt(in), 1/sqrt(in)]` at first, as in `nn.Linear`; a bank that is given is
    left as it is.

    The state dict holds the parameters and `map`, the int64 values of `MAP_FIELDS`. Loading one whose map differs from
    the layer's raises RuntimeError that names both values.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is allowed.
    """

    _entry, _fields = "map", MAP_FIELDS

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool | str = True,
        *,
        compression: float = 64,
        granule: hashing.Granule = "chunk",
        seed: int | None = None,
        bank: WeightBank | None = None,
        scale: float = 1.0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_size("HashedLinear", "in_features", in_features)
        _check_size("HashedLinear", "out_features", out_features)
        if not isinstance(bias, bool) and bias != "hashed":
            raise ValueError(f'HashedLinear: bias must be True, False or "hashed", got {bias!r}')
        if isinstance(scale, bool) or not isinstance(scale, (int, float)):
            raise TypeError(f"HashedLinear: scale must be a real number, got {type(scale).__name__}")
        _check_dtype("HashedLinear", dtype)
        self.granule = hashing.resolve_granule(granule)
        per_slot = self.granule[0] * self.granule[1]
        if bias == "hashed" and per_slot != 1:
            raise ValueError(f'HashedLinear: bias="hashed" needs granule "element", got {granule!r}')
        self.in_features, self.out_features, self.scale = in_features, out_features, float(scale)
        self.hashed_bias = bias == "hashed"
        if bank is None:
            self.slots = hashing.slot_count(out_features, in_features, compression, granule)
        else:
            self.slots = _slots_of(bank, per_slot, device, dtype)
            device, dtype = bank.weight.device, bank.weight.dtype
        self.seed = hashing.check_seed(draw_seed() if seed is None else seed)
        self._owns_bank = bank is None
        bound = in_features**-0.5
        self.bank = WeightBank(self.slots * per_slot, bound=bound, device=device, dtype=dtype) if bank is None else bank
        own_bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias is True else None
        self.register_parameter("bias", own_bias)
        self._reset_bias()

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        compression: float = 64,
        granule: hashing.Granule = "chunk",
        seed: int | None = None,
        scale: float = 1.0,
        hashed_bias: bool = False,
    ) -> HashedLinear:
        """The hashed layer closest to `linear`: its bank minimises `||scale * V(bank) - linear.weight||_F`.

        Every bank entry is the mean of `sign * weight` over its members, divided by `scale`; an entry without members
        is 0. Sums are float64 on the CPU in coordinate order: the same result on every device. The bias is copied, or
        with `hashed_bias` one more column of the weight.

        Raises:
            TypeError, ValueError: as the constructor; `scale` must not be 0, and the weight finite.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"HashedLinear.from_linear: linear must be an nn.Linear, got {type(linear).__name__}")
        if scale == 0:
            raise ValueError("HashedLinear.from_linear: scale must not be 0, got 0")
        weight = linear.weight.detach()
        hashed_bias = hashed_bias and linear.bias is not None
        layer = cls(
            linear.in_features,
            linear.out_features,
            "hashed" if hashed_bias else linear.bias is not None,
            compression=compression,
            granule=granule,
            seed=seed,
            scale=scale,
            device=weight.device,
            dtype=weight.dtype,
        )
        with torch.no_grad():
            if hashed_bias:
                weight = torch.cat([weight, linear.bias.detach()[:, None]], dim=1)
            if not weight.is_meta:
                layer.bank.weight.copy_(_signed_mean(weight, layer.slots, layer.granule, layer.seed) / scale)
            if layer.bias is not None:
                layer.bias.copy_(linear.bias)
        return layer.train(linear.training)

    @property
    def compression(self) -> float:
        """Virtual weights over the bank's values, as reached."""
        return self.out_features * self.in_features / self.bank.size

    @property
    def map(self) -> Tensor:
        """The int64 values of `MAP_FIELDS`, on the CPU: the state dict's entry of that name."""
        shape = (self.out_features, self.in_features)
        fields = (
            hashing.MAP_VERSION,
            self.seed,
            self.slots,
            *self.granule,
            *shape,
            self.hashed_bias,
            int_of(self.scale),
        )
        return torch.tensor(fields, dtype=torch.int64, device="cpu")

    def reset_parameters(self) -> None:
        """Draw bias and bank anew as the constructor does; a bank that came from outside is left alone."""
        if self._owns_bank:
            self.bank.reset_parameters()
        self._reset_bias()

    def _reset_bias(self) -> None:
        if self.bias is not None:
            bound = self.in_features**-0.5
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Tensor) and x.dim() and x.shape[-1] != self.in_features:
            raise ValueError(
                f"HashedLinear: x must have in_features = {self.in_features} as its last dimension, got {list(x.shape)}"
            )
        return hashed_linear(
            x,
            self.bank.weight,
            self.out_features,
            granule=self.granule,
            seed=self.seed,
            bias="hashed" if self.hashed_bias else self.bias,
            scale=self.scale,
        )

    def materialize(self) -> Tensor:
        """The weight `[out, in]`, scale included: the layer is `F.linear(x, materialize(), materialize_bias())`.

        Differentiable with respect to the bank. It allocates `out * in` values and indices.
        """
        weight = self.bank.weight
        return self.scale * hashing.virtual_weight(weight, self.out_features, self.in_features, self.granule, self.seed)

    def materialize_bias(self) -> Tensor | None:
        """The bias `[out]`: the parameter, the map's column `in` times the scale where it is hashed, or None."""
        if not self.hashed_bias:
            return self.bias
        o = torch.arange(self.out_features, device=self.bank.weight.device)
        i = torch.full_like(o, self.in_features)
        index, sign = hashing.index_and_sign_at(o, i, self.slots, self.granule, self.seed)
        return self.scale * (self.bank.weight[index] * sign.to(self.bank.weight.dtype))

    def extra_repr(self) -> str:
        item = self.bank.weight.element_size()
        stored = item * (self.bank.size + (0 if self.bias is None else self.out_features))
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={'hashed' if self.hashed_bias else self.bias is not None}, "
            f"granule={hashing.granule_name(self.granule)}, seed={self.seed}, scale={self.scale:g}, "
            f"compression={self.compression:.4g}, bytes={stored} (dense {item * self.in_features * self.out_features})"
        )

    @classmethod
    def _shown(cls, values):
        return {**super()._shown(values), "scale": float_of(values[-1])}


def _signed_mean(weight: Tensor, slots: int, granule: tuple[int, int], seed: int) -> Tensor:
    """Mean of `sign * weight` over the members of each bank entry, float64 on the CPU; 0 where there are none."""
    size = slots * granule[0] * granule[1]
    if not weight.isfinite().all():
        raise ValueError("HashedLinear.from_linear: weight must be finite")
    total, count = (torch.zeros(size, dtype=dtype, device="cpu") for dtype in (torch.float64, torch.int64))
    out, in_ = weight.shape
    step = max(1, _FIT_BLOCK // in_)
    i = torch.arange(in_, device="cpu")[None, :]
    for start in range(0, out, step):
        block = weight[start : start + step].to(device="cpu", dtype=torch.float64)
        o = torch.arange(start, start + block.shape[0], device="cpu")[:, None]
        index, sign = hashing.index_and_sign_at(o, i, slots, granule, seed)
        total.index_add_(0, index.reshape(-1), (block * sign).reshape(-1))
        count += torch.bincount(index.reshape(-1), minlength=size)
    return total / count.clamp(min=1)


def draw_seed() -> int:
    return int(torch.randint(2**32, (), dtype=torch.int64, device="cpu"))  # the CPU also under torch.device("meta")


def _slots_of(bank: WeightBank, per_slot: int, device: Any, dtype: torch.dtype | None) -> int:
    if not isinstance(bank, WeightBank):
        raise TypeError(f"HashedLinear: bank must be a WeightBank, got {type(bank).__name__}")
    if bank.size % per_slot:
        raise ValueError(
            f"HashedLinear: bank must be a whole number of slots of {per_slot} values, got {bank.size} values"
        )
    if dtype not in (None, bank.weight.dtype):
        raise ValueError(f"HashedLinear: dtype must be None or the bank's {bank.weight.dtype}, got {dtype}")
    if device is not None and torch.empty(0, device=device).device != bank.weight.device:
        raise ValueError(f"HashedLinear: device must be None or the bank's {bank.weight.device}, got {device}")
    return bank.size // per_slot


def _check_size(owner: str, name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{owner}: {name} must be an int >= 1, got {value!r}")


def _check_dtype(owner: str, dtype: torch.dtype | None) -> None:
    if dtype is not None and dtype not in DTYPES:
        raise TypeError(f"{owner}: dtype must be None or one of {list(DTYPES)}, got {dtype}")
