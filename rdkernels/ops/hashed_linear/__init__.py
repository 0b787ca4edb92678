"""Linear layer whose weight matrix is a hash of a small bank: the contract.

The three passes are the three partial derivatives of one trilinear form,
`T(dy, x, bank) = scale * sum_{m,o,i} dy[m,o] * x[m,i] * V(bank)[o,i]`, so each is differentiated by the other two
and double backward needs no further kernel.
"""

from __future__ import annotations

import numbers
from typing import Any

import torch
from torch import Tensor

from ... import hashing
from ...registry import define, define_native

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DTYPES = (*KERNEL_DTYPES, torch.float64)

define(
    "hashed_linear",
    "fwd",
    "(Tensor x, Tensor bank, Tensor? bias, SymInt out_features, int go, int gi, int seed, float scale, "
    "bool hashed_bias) -> Tensor",
    fake=lambda x, bank, bias, out_features, *_: x.new_empty(x.shape[0], out_features),
)
define(
    "hashed_linear",
    "bwd_x",
    "(Tensor dy, Tensor bank, SymInt in_features, int go, int gi, int seed, float scale) -> Tensor",
    fake=lambda dy, bank, in_features, *_: dy.new_empty(dy.shape[0], in_features),
)
define(
    "hashed_linear",
    "bwd_bank",
    "(Tensor dy, Tensor x, SymInt slots, int go, int gi, int seed, float scale, bool hashed_bias) -> Tensor",
    fake=lambda dy, x, slots, go, gi, *_: x.new_empty(slots * go * gi),
)
define_native("hashed_linear_path() -> int")
define_native("hashed_linear_cuda_path() -> int")
PATHS = ("none", "few_rows", "many_rows", "bank_grad")  # of the native kernels' last call, by these two

from . import order, reference, triton  # noqa: E402,F401  they attach themselves to the passes above

_ops: Any = torch.ops.rdkernels
Map = tuple[int, int, int, float]  # go, gi, seed, scale


def _needs_graph(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


class _Fwd(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bank, bias, out_features, hashed_map, hashed_bias):
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, bank)
        ctx.args = x.shape[1], hashed_map, hashed_bias
        return _ops.hashed_linear_fwd(x, bank, bias, out_features, *hashed_map, hashed_bias)

    @staticmethod
    def backward(ctx, dy):
        x, bank = ctx.saved_tensors
        in_features, hashed_map, hashed_bias = ctx.args
        dx = _bwd_x(dy, bank, in_features, hashed_map) if ctx.needs_input_grad[0] else None
        dbank = _bwd_bank(dy, x, bank, hashed_map, hashed_bias) if ctx.needs_input_grad[1] else None
        dbias = dy.sum(0, dtype=_accumulator(dy)).to(dy.dtype) if ctx.needs_input_grad[2] else None
        return dx, dbank, dbias, None, None, None


class _BwdX(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dy, bank, in_features, hashed_map):
        ctx.save_for_backward(dy, bank)
        ctx.hashed_map = hashed_map
        return _ops.hashed_linear_bwd_x(dy, bank, in_features, *hashed_map)

    @staticmethod
    def backward(ctx, ddx):
        dy, bank = ctx.saved_tensors
        d_dy = _fwd(ddx, bank, None, dy.shape[1], ctx.hashed_map, False) if ctx.needs_input_grad[0] else None
        dbank = _bwd_bank(dy, ddx, bank, ctx.hashed_map, False) if ctx.needs_input_grad[1] else None
        return d_dy, dbank, None, None


class _BwdBank(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dy, x, slots, hashed_map, hashed_bias):
        ctx.save_for_backward(dy, x)
        ctx.args = hashed_map, hashed_bias
        return _ops.hashed_linear_bwd_bank(dy, x, slots, *hashed_map, hashed_bias)

    @staticmethod
    def backward(ctx, ddbank):
        dy, x = ctx.saved_tensors
        hashed_map, hashed_bias = ctx.args
        d_dy = _fwd(x, ddbank, None, dy.shape[1], hashed_map, hashed_bias) if ctx.needs_input_grad[0] else None
        dx = _bwd_x(dy, ddbank, x.shape[1], hashed_map) if ctx.needs_input_grad[1] else None
        return d_dy, dx, None, None, None


def _fwd(x: Tensor, bank: Tensor, bias: Tensor | None, out_features: int, hashed_map: Map, hashed_bias: bool) -> Tensor:
    if _needs_graph(x, bank, bias):
        return _Fwd.apply(x, bank, bias, out_features, hashed_map, hashed_bias)
    return _ops.hashed_linear_fwd(x, bank, bias, out_features, *hashed_map, hashed_bias)


def _bwd_x(dy: Tensor, bank: Tensor, in_features: int, hashed_map: Map) -> Tensor:
    if _needs_graph(dy, bank):
        return _BwdX.apply(dy, bank, in_features, hashed_map)
    return _ops.hashed_linear_bwd_x(dy, bank, in_features, *hashed_map)


def _bwd_bank(dy: Tensor, x: Tensor, bank: Tensor, hashed_map: Map, hashed_bias: bool) -> Tensor:
    slots = bank.shape[0] // (hashed_map[0] * hashed_map[1])
    if _needs_graph(dy, x):
        return _BwdBank.apply(dy, x, slots, hashed_map, hashed_bias)
    return _ops.hashed_linear_bwd_bank(dy, x, slots, *hashed_map, hashed_bias)


def _accumulator(t: Tensor) -> torch.dtype:
    return torch.promote_types(t.dtype, torch.float32)


def hashed_linear(
    x: Tensor,
    bank: Tensor,
    out_features: int,
    *,
    granule: hashing.Granule = "chunk",
    seed: int = 0,
    bias: Tensor | str | None = None,
    scale: float = 1.0,
) -> Tensor:
    """`y = scale * x @ V.T + bias`, where the virtual matrix `V[o, i] = sign(o, i) * bank[index(o, i)]` is never built.

    `index` and `sign` are the virtual weight map, version 1 (`rdkernels.hashing`). With `bias="hashed"` the bias is the
    map's next column, as in the paper: `y = scale * [x, 1] @ V'.T` with `V'` of shape `[out, in + 1]`, that is
    `bias[o] = scale * V[o, in]`.

    Args:
        x: `[..., in]`; any strides, any number of leading dimensions (also none, also of size 0).
        bank: `[slots * go * gi]`, the real weights; the number of slots follows from its length.
        out_features: `out`, the rows of `V`.
        granule: "element" (1, 1), "chunk" (1, 16), "tile" (32, 32) or a pair `(go, gi)`: the block one hash places.
        seed: uint32, which map.
        bias: `[out]`, `None`, or `"hashed"` (granule "element" only).
        scale: a number that multiplies the virtual matrix.

    Returns:
        `[..., out]` in x's dtype.

    Dtypes: float32, bfloat16, float16 (accumulated in float32 in every pass, rounded once) and float64 (reference
    backend). `x`, `bank` and a bias tensor share one dtype and device; under autocast they are cast to its dtype first.

    Gradients: `dx = scale * dy @ V`; `dbank[k]` is the sum of `scale * sign * (dy.T @ x)[o, i]` over every `(o, i)` the
    map sends to `k`; `dbias = sum_m dy`. All are differentiable again. Deterministic: the same bits from run to run and
    for any number of threads (the reference backend: as torch's matmul is).

    Raises:
        TypeError, ValueError: before any work, naming the argument, what came and what is allowed.

    Source: Chen, Wilson, Tyree, Weinberger, Chen, "Compressing Neural Networks with the Hashing Trick", ICML 2015,
    equations 3 (forward), 8 (sign), 10 to 12 (gradients).
    """
    go, gi = hashing.resolve_granule(granule)
    _check(x, bank, out_features, go, gi, bias, scale)
    hashing.check_seed(seed)
    hashed_bias = isinstance(bias, str)
    tensor_bias = None if isinstance(bias, str) else bias
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
        x, bank = x.to(dtype), bank.to(dtype)
        tensor_bias = tensor_bias if tensor_bias is None else tensor_bias.to(dtype)
    else:
        _check_same_dtype(x, bank, tensor_bias)
    rows = x if x.dim() == 2 else x[None] if x.dim() == 1 else x.flatten(0, -2)
    y = _fwd(rows, bank, tensor_bias, out_features, (go, gi, seed, float(scale)), hashed_bias)
    return y if x.dim() == 2 else y.reshape(*x.shape[:-1], out_features)


def _check(
    x: Tensor, bank: Tensor, out_features: int, go: int, gi: int, bias: Tensor | str | None, scale: float
) -> None:
    for name, t in (("x", x), ("bank", bank)):
        if not isinstance(t, Tensor):
            raise TypeError(f"hashed_linear: {name} must be a Tensor, got {type(t).__name__}")
        if t.dtype not in DTYPES:
            raise TypeError(f"hashed_linear: {name} must have one of the dtypes {list(DTYPES)}, got {t.dtype}")
    if x.dim() == 0:
        raise ValueError("hashed_linear: x must have at least one dimension [..., in], got a 0-d tensor")
    if bank.dim() != 1 or bank.shape[0] == 0 or bank.shape[0] % (go * gi):
        raise ValueError(
            f"hashed_linear: bank must be 1-D with a whole number (at least one) of slots of {go} x {gi} = {go * gi} "
            f"values for granule {(go, gi)}, got shape {list(bank.shape)}"
        )
    slots = bank.shape[0] // (go * gi)
    if slots > hashing.MAX_SLOTS:
        raise ValueError(f"hashed_linear: bank must have at most {hashing.MAX_SLOTS} slots, got {slots}")
    if bank.device != x.device:
        raise ValueError(f"hashed_linear: bank must be on x's device {x.device}, got {bank.device}")
    if isinstance(out_features, bool) or not isinstance(out_features, int) or out_features < 1:
        raise ValueError(f"hashed_linear: out_features must be an int >= 1, got {out_features!r}")
    if isinstance(scale, bool) or not isinstance(scale, numbers.Real):
        raise TypeError(f"hashed_linear: scale must be a real number, got {type(scale).__name__}")
    if bias is None:
        return
    if isinstance(bias, str):
        if bias != "hashed":
            raise ValueError(f'hashed_linear: bias must be a Tensor, None or "hashed", got {bias!r}')
        if (go, gi) != (1, 1):
            raise ValueError(f'hashed_linear: bias="hashed" needs granule "element", got granule {(go, gi)}')
    elif not isinstance(bias, Tensor):
        raise TypeError(f'hashed_linear: bias must be a Tensor, None or "hashed", got {type(bias).__name__}')
    elif bias.dtype not in DTYPES:
        raise TypeError(f"hashed_linear: bias must have one of the dtypes {list(DTYPES)}, got {bias.dtype}")
    elif bias.shape != (out_features,):
        raise ValueError(f"hashed_linear: bias must have shape [{out_features}], got {list(bias.shape)}")
    elif bias.device != x.device:
        raise ValueError(f"hashed_linear: bias must be on x's device {x.device}, got {bias.device}")


def _check_same_dtype(x: Tensor, bank: Tensor, bias: Tensor | None) -> None:
    for name, t in (("bank", bank), ("bias", bias)):
        if t is not None and t.dtype != x.dtype:
            raise TypeError(f"hashed_linear: {name} must have x's dtype {x.dtype}, got {t.dtype}")
