"""What the convolution rooms share: their arguments, checked, and the geometry that their passes are given."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DTYPES = (*KERNEL_DTYPES, torch.float64)


class Activation(enum.IntEnum):
    """What the epilogue applies last; the value is what a pass is given."""

    none = 0
    relu = 1
    gelu = 2  # x * Phi(x), by erf
    silu = 3


class Geometry(NamedTuple):
    """Stride, padding and dilation of one convolution, as a pass is given them (vertical first)."""

    stride_h: int
    stride_w: int
    top: int
    bottom: int
    left: int
    right: int
    dilation_h: int
    dilation_w: int

    def out(self, h: int, w: int, kh: int, kw: int) -> tuple[int, int]:
        """The size of the output of a `kh` x `kw` kernel on an `h` x `w` map; not positive where it does not fit."""
        return (
            (h + self.top + self.bottom - self.dilation_h * (kh - 1) - 1) // self.stride_h + 1,
            (w + self.left + self.right - self.dilation_w * (kw - 1) - 1) // self.stride_w + 1,
        )

    @property
    def symmetric(self) -> bool:
        return self.top == self.bottom and self.left == self.right

    @property
    def padding(self) -> tuple[int, int]:
        """What torch's own argument can say of it: nothing where the sides differ."""
        return (self.top, self.left) if self.symmetric else (0, 0)

    @property
    def stride(self) -> tuple[int, int]:
        return self.stride_h, self.stride_w

    @property
    def dilation(self) -> tuple[int, int]:
        return self.dilation_h, self.dilation_w


IntOrPair = int | Sequence[int]


def _pair(op: str, name: str, value: IntOrPair, least: int) -> tuple[int, int]:
    if type(value) is int and value >= least:
        return value, value
    pair = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, (tuple, list)) else ()
    if len(pair) != 2 or any(isinstance(v, bool) or not isinstance(v, int) or v < least for v in pair):
        words = ' or "same" or "valid"' if name == "padding" else ""
        raise ValueError(f"{op}: {name} must be an int >= {least} or a pair of them{words}, got {value!r}")
    return pair


def geometry(op: str, kh: int, kw: int, stride: IntOrPair, padding: IntOrPair | str, dilation: IntOrPair) -> Geometry:
    """The geometry of a call, as `torch.nn.functional.conv2d` reads these arguments; "same" needs stride 1."""
    sh, sw = _pair(op, "stride", stride, 1)
    dh, dw = _pair(op, "dilation", dilation, 1)
    if padding == "valid":
        padding = 0
    if isinstance(padding, str):
        if padding != "same":
            raise ValueError(f'{op}: padding must be an int >= 0, a pair of them, "same" or "valid", got {padding!r}')
        if (sh, sw) != (1, 1):
            raise ValueError(f'{op}: padding="same" needs stride 1, got stride {(sh, sw)}')
        h, w = dh * (kh - 1), dw * (kw - 1)
        return Geometry(1, 1, h // 2, h - h // 2, w // 2, w - w // 2, dh, dw)  # the odd one below and right, as torch
    ph, pw = _pair(op, "padding", padding, 0)
    return Geometry(sh, sw, ph, ph, pw, pw, dh, dw)


def check_tensor(op: str, name: str, t: Tensor, shape: Sequence[int | str], x: Tensor | None = None) -> None:
    """`t` must be a floating tensor of `shape` (a name stands for any positive size), on x's device."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{op}: {name} must be a Tensor, got {type(t).__name__}")
    if t.dtype not in DTYPES:
        raise TypeError(f"{op}: {name} must have one of the dtypes {list(DTYPES)}, got {t.dtype}")
    fits = t.dim() == len(shape)
    for have, want in zip(t.shape, shape, strict=False):
        fits = fits and (have >= 1 if isinstance(want, str) else have == want)
    if not fits:
        raise ValueError(f"{op}: {name} must have shape [{', '.join(map(str, shape))}], got {list(t.shape)}")
    if x is not None and t.device != x.device:
        raise ValueError(f"{op}: {name} must be on x's device {x.device}, got {t.device}")


def check_image(op: str, x: Tensor) -> None:
    """`x` must be a floating `[N, C, H, W]`; N may be 0."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: x must be a Tensor, got {type(x).__name__}")
    if x.dtype not in DTYPES:
        raise TypeError(f"{op}: x must have one of the dtypes {list(DTYPES)}, got {x.dtype}")
    if x.dim() != 4 or 0 in x.shape[1:]:
        raise ValueError(f"{op}: x must have shape [N, C, H, W], got {list(x.shape)}")


def check_index(op: str, name: str, t: Tensor, shape: Sequence[int], x: Tensor) -> None:
    """`t` must be int64 of `shape`, on the device of x."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{op}: {name} must be a Tensor, got {type(t).__name__}")
    if t.dtype != torch.int64:
        raise TypeError(f"{op}: {name} must be int64, got {t.dtype}")
    if tuple(t.shape) != tuple(shape):
        raise ValueError(f"{op}: {name} must have shape {list(shape)}, got {list(t.shape)}")
    if t.device != x.device:
        raise ValueError(f"{op}: {name} must be on x's device {x.device}, got {t.device}")


def check_output(op: str, x: Tensor, kh: int, kw: int, where: Geometry) -> tuple[int, int]:
    """The output's height and width, both positive."""
    h, w = where.out(x.shape[2], x.shape[3], kh, kw)
    if h < 1 or w < 1:
        raise ValueError(
            f"{op}: a {kh} x {kw} kernel of dilation {where[6:]} does not fit x of {x.shape[2]} x {x.shape[3]} "
            f"with padding {where[2:6]}"
        )
    return h, w


def check_epilogue(
    op: str, x: Tensor, shape: Sequence[int], bias: Tensor | None, residual: Tensor | None, activation: str | None
) -> Activation:
    """Bias, residual and the name of the activation; the latter's code."""
    if bias is not None:
        check_tensor(op, "bias", bias, shape[1:2] if x.dim() == 4 and op != "lowrank_linear" else shape[-1:], x)
    if residual is not None:
        check_tensor(op, "residual", residual, shape, x)
    if activation is None:
        return Activation.none
    names = [a.name for a in Activation if a]
    if activation not in names:
        raise ValueError(f"{op}: activation must be None or one of {names}, got {activation!r}")
    return Activation[activation]


def in_one_dtype(op: str, x: Tensor, *others: Tensor | None) -> list[Any]:
    """The tensors in autocast's dtype where that is on, but float64; every floating one must then have x's dtype."""
    kind, given = x.device.type, list(others)
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
        x, given = x.to(dtype), [t.to(dtype) if t is not None and t.is_floating_point() else t for t in given]
    for t in given:
        if t is not None and t.is_floating_point() and t.dtype != x.dtype:
            raise TypeError(f"{op}: every tensor must have x's dtype {x.dtype}, got {t.dtype}")
    return [x, *given]


def memory_format(x: Tensor) -> torch.memory_format:
    """The format of the output: channels_last where x's channels lie side by side, as torch's convolutions."""
    return torch.channels_last if x.stride(1) == 1 and not x.is_contiguous() else torch.contiguous_format


def new_output(x: Tensor, channels: int, h: int, w: int) -> Tensor:
    """Uninitialised `[N, channels, h, w]` in x's memory format."""
    return torch.empty((x.shape[0], channels, h, w), dtype=x.dtype, device=x.device, memory_format=memory_format(x))
