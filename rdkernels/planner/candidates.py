"""The three ways to compute a layer, and what each of them costs."""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import ops
from ..ops import chain
from ..ops.convolution import Activation, Geometry, geometry, memory_format
from ..ops.packing import held, stamp, watch_optimizers
from ..ops.stages import Conv, apply_activation, run_stages

NAMES = ("dense", "unfused", "fused")
Layer = Any  # an `rdkernels.nn` layer with `_op`, `_factors`, `_compose`, `_fused`, `bias`, `activation`

_geometry = functools.lru_cache(256)(geometry)


def where_of(layer: Layer) -> Geometry | None:
    """The layer's geometry; None where it is no convolution."""
    if layer._op == "lowrank_linear":
        return None
    return _geometry(layer._op, *layer.kernel_size, layer.stride, layer.padding, layer.dilation)


def computing_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a call on x computes in: autocast's where it is on."""
    kind = "cuda" if x.is_cuda else "cpu"
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return x.dtype


def output_shape(layer: Layer, x: Tensor) -> tuple[int, ...]:
    """The shape of the result."""
    where = where_of(layer)
    if where is None:
        return (*x.shape[:-1], layer.out_features)
    return (x.shape[0], layer.out_channels, *where.out(x.shape[2], x.shape[3], *layer.kernel_size))


def regular(layer: Layer, x: Tensor, residual: Tensor | None) -> bool:
    """Whether the operation takes this call: plain torch would also take, and broadcast, what the operation refuses."""
    where = where_of(layer)
    if x.dim() == 0 if where is None else x.dim() != 4 or 0 in x.shape[1:]:
        return False
    shape = output_shape(layer, x)
    if where is not None and min(shape[2:]) < 1:
        return False
    if residual is not None and (residual.shape != shape or residual.device != x.device):
        return False
    if residual is not None and computing_dtype(residual) != computing_dtype(x):
        return False
    return _takes(layer._factors(), x)


def _takes(factors: tuple[Tensor, ...], x: Tensor) -> bool:
    first = factors[0]
    return first.device == x.device and (first.dtype == x.dtype or computing_dtype(x) != x.dtype)


class _Weight(NamedTuple):
    """A dense weight and the factors that it was made of, as they were."""

    value: Tensor
    stamps: tuple[tuple[Callable[[], Tensor | None], tuple[int, ...], object], ...]


_weights: weakref.WeakKeyDictionary[Layer, dict[tuple, _Weight]] = weakref.WeakKeyDictionary()


def dense_weight(
    layer: Layer, factors: tuple[Tensor, ...], dtype: torch.dtype, form: torch.memory_format | None
) -> Tensor:
    """The layer's dense weight, from the last call if no factor was written or replaced since.

    It is composed in float64 and rounded once. Which writes are seen: as for packed factors (`ops/packing.py`).
    """
    watch_optimizers()
    own = _weights.get(layer)
    found = own.get((dtype, form)) if own else None
    if found is not None and all(
        ref() is t and was == stamp(t) for t, (ref, was, _) in zip(factors, found.stamps, strict=True)
    ):
        return found.value
    with torch.no_grad():
        wide = [t.detach().double() if t.is_floating_point() else t for t in factors]
        weight = layer._compose(*wide).to(dtype)
        weight = weight.contiguous() if form is None else weight.contiguous(memory_format=form)
    if not any(t.is_inference() for t in factors):  # these have no version
        stamps = tuple((weakref.ref(t), stamp(t), held(t)) for t in factors)
        _weights.setdefault(layer, {})[dtype, form] = _Weight(weight, stamps)
    return weight


def forget_dense(layer: Layer) -> None:
    """Give back the memory of the layer's dense weights."""
    _weights.pop(layer, None)


def _cast(dtype: torch.dtype, *tensors: Tensor | None) -> list[Any]:
    return [t.to(dtype) if t is not None and t.is_floating_point() else t for t in tensors]


def _dense(layer: Layer, x: Tensor, residual: Tensor | None, factors: tuple[Tensor, ...]) -> Tensor:
    where, bias, act = where_of(layer), layer.bias, Activation[layer.activation or "none"]
    weight = dense_weight(layer, factors, x.dtype, None if where is None else memory_format(x))
    if bias is not None and bias.dtype != x.dtype:
        bias = bias.to(x.dtype)
    if where is None:
        y = F.linear(x, weight, bias)
    else:
        padding = (where.top, where.left)
        if not where.symmetric:
            x, padding = F.pad(x, (where.left, where.right, where.top, where.bottom)), (0, 0)
        y = F.conv2d(x, weight, bias, where[:2], padding, where[6:])
    if residual is not None:
        y = y.add_(residual)
    return apply_activation(y, act)


def _unfused(layer: Layer, x: Tensor, residual: Tensor | None, factors: tuple[Tensor, ...]) -> Tensor:
    where, act = where_of(layer), Activation[layer.activation or "none"]
    bias, *own = _cast(x.dtype, layer.bias, *factors)
    if where is None:
        return ops.lowrank_linear.unfused(x, own[0], own[1], bias, residual, act)
    return chain.unfused(layer._op, x, own, bias, residual, where, act)


def run(name: str, layer: Layer, x: Tensor, residual: Tensor | None) -> Tensor:
    """The layer's output by candidate `name`, in x's memory format; no gradients."""
    if name == "fused":
        return layer._fused(x, residual)
    factors = layer._factors()
    if not _takes(factors, x):  # the layer was moved or cast since this call was planned: the operation says so
        return layer._fused(x, residual)
    compute = _dense if name == "dense" else _unfused
    dtype = computing_dtype(x)
    if dtype == x.dtype:
        y = compute(layer, x, residual, factors)
    else:
        x, residual = _cast(dtype, x, residual)
        with torch.autocast(x.device.type, enabled=False):  # the casts are done
            y = compute(layer, x, residual, factors)
    return y if x.dim() != 4 or layer._op == "lowrank_linear" else y.contiguous(memory_format=memory_format(x))


class Cost(NamedTuple):
    """Multiply-adds; bytes moved at least; bytes of maps written to memory only to be read again."""

    macs: int
    moved: int
    intermediate: int


def costs(layer: Layer, x: Tensor, residual: Tensor | None) -> dict[str, Cost]:
    """What each candidate costs, by the shapes alone.

    Moved are x, weights, bias, residual and y once, and every intermediate twice. A multiply-add with a border's zero
    counts.
    """
    where, shape, item = where_of(layer), output_shape(layer, x), computing_dtype(x).itemsize
    y = item * math.prod(shape)
    factors = [t.to(device="meta") for t in layer._factors()]
    epilogue = y * ((residual is not None) + (layer.activation is not None))  # passes over the map, apart from the bias
    if where is None:
        rows = math.prod(x.shape[:-1])
        own = chained = rows * sum(t.numel() for t in factors)
        full = rows * layer.in_features * layer.out_features
        between = item * rows * factors[0].shape[0]
        weight = item * layer.in_features * layer.out_features
    else:
        stages = getattr(ops, layer._op).stages(factors, where)
        maps = run_stages(x.to(device="meta"), stages)[1:]
        convs = [(s, m) for s, m in zip(stages, maps, strict=True) if isinstance(s, Conv)]
        chained = sum(m.numel() * s.weight[0].numel() for s, m in convs)
        own = chained if where.symmetric else math.prod((x.shape[0], *x.shape[2:])) * layer._sizes()[0]  # no `Pad`
        taps = layer.in_channels * math.prod(layer.kernel_size)
        full, weight = math.prod(shape) * taps, item * layer.out_channels * taps
        between = sum(item * m.numel() for m in maps[:-1]) + (y if layer.bias is not None else 0)
    added = 0 if layer.bias is None else item * layer.bias.numel()
    ends = item * x.numel() + added + (0 if residual is None else y) + y
    small = sum(t.numel() * (item if t.is_floating_point() else t.itemsize) for t in factors)
    inside = between + epilogue
    return {
        "dense": Cost(full, ends + weight + 2 * epilogue, epilogue),
        "unfused": Cost(chained, ends + small + 2 * inside, inside),
        "fused": Cost(own, ends + small, 0),
    }
