"""A model without this package: every compressed layer as plain torch modules that compute the same."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..nn import HashedLinear, LowRankLinear, WeightBank
from ..nn.lowrank import LowRank
from ..ops.chain import stages_of
from ..ops.convolution import geometry
from ..ops.stages import Conv, Pad, Select, Stage
from .match import LAYERS, compressed

_ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


@torch.enable_grad()  # so that a weight made of trained factors is seen to be trained
def strip(model: nn.Module) -> nn.Module:
    """A copy of `model` in which torch's own modules compute what rdkernels' layers did: for export, or to load without
    this package.

    | layer | becomes |
    | --- | --- |
    | `LowRankLinear` | two `nn.Linear` |
    | `SeparableConv2d`, `CPConv2d`, `TuckerConv2d` | the chain of `nn.Conv2d` that the operation stands for |
    | `MonochromaticConv2d` | 1 x 1 to a map of each output's colour, then a depthwise `nn.Conv2d` |
    | `BiclusterConv2d` | 1 x 1, a grouped `nn.Conv2d`, 1 x 1; the orders of the channels are in the outer two |
    | any other | `nn.Linear` or `nn.Conv2d` of `materialize()`: the dense size again |

    Several modules in a row, an activation included, are an `nn.Sequential` in the layer's place, under its name.
    Dtype, device, training mode and `requires_grad` are kept; the parameters are new tensors, shared with nothing, but
    that a layer used twice stays one. The given model is not changed, and everything else in it is deep-copied.

    In float32 and float64 results agree to rounding. In 16 bits torch rounds between the stages, which a fused
    operation does not.

    What cannot be carried over: the argument `residual` of low-rank layers (a stripped one takes x alone: add the
    residual, then apply the activation, in the model), their attributes and `explain`. A `WeightBank` of the model's
    own, which nothing reads any more, becomes an `nn.Identity`. `rdkernels.distill.Unnormalize` stays: torch calls
    alone.

    Raises:
        TypeError: `model` is not an nn.Module.
        ValueError: naming the layer: it has hooks, which a plain module would not run, or a subclass's own forward.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"strip: model must be an nn.Module, got {type(model).__name__}")
    plain: dict[int, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, WeightBank):
            plain[id(module)] = nn.Identity().train(module.training)
        elif compressed(module):
            _check(name, module)
            plain[id(module)] = _plain(module).train(module.training)
    return copy.deepcopy(model, plain)  # a memo: what stands for each object, wherever the model holds it


def _check(name: str, module: nn.Module) -> None:
    what = f"strip: {name or 'the model'} ({type(module).__name__})"
    if not type(module).forward.__module__.startswith(LAYERS):
        raise ValueError(f"{what} must have its class's forward, got {type(module).forward.__qualname__}")
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    found = [kind.strip("_") for kind in hooks if getattr(module, kind)]
    if found:
        raise ValueError(f"{what} must have no hooks, got {found}; remove them first")


def _plain(layer: Any) -> nn.Module:
    if isinstance(layer, LowRankLinear):
        modules: list[nn.Module] = [_linear(layer.down, None), _linear(layer.up, layer.bias)]
    elif isinstance(layer, LowRank):
        modules = _chain(layer)
    else:
        bias = layer.materialize_bias() if isinstance(layer, HashedLinear) else layer.bias
        modules = [_dense(layer, layer.materialize(), bias)]
    activation = getattr(layer, "activation", None)
    if activation is not None:
        modules.append(_ACTIVATIONS[activation]())
    return modules[0] if len(modules) == 1 else nn.Sequential(*modules)


def _dense(layer: Any, weight: Tensor, bias: Tensor | None) -> nn.Module:
    if weight.dim() == 2:
        return _linear(weight, bias)
    groups, mode = getattr(layer, "groups", 1), getattr(layer, "padding_mode", "zeros")
    return _conv(weight, bias, layer.stride, layer.padding, layer.dilation, groups, mode)


def _chain(layer: Any) -> list[nn.Module]:
    """The operation's own stages; the bias in the last."""
    kh, kw = layer.kernel_size
    where = geometry(layer._op, kh, kw, layer.stride, layer.padding, layer.dilation)
    stages = _without_selections(stages_of(layer._op, layer._factors(), where))
    modules: list[nn.Module] = []
    for stage in stages:
        if isinstance(stage, Pad):
            modules.append(nn.ZeroPad2d(stage))
        elif isinstance(stage, Conv):
            bias = layer.bias if stage is stages[-1] else None
            modules.append(_conv(stage.weight, bias, stage.stride, stage.padding, stage.dilation, stage.groups))
    return modules


def _without_selections(stages: Sequence[Stage]) -> list[Stage]:
    """The same chain with each selection of channels in the weights of a convolution beside it.

    In the rows of the one before it where that is not grouped, else in the columns of the one after it, which is then
    not grouped any more.
    """
    found: list[Stage] = []
    before: Conv | None = None  # the last convolution in `found`
    waiting: Tensor | None = None
    for stage in stages:
        if isinstance(stage, Select):
            if before is None or before.groups > 1:
                waiting = stage.order
                continue
            place = next(n for n, s in enumerate(found) if s is before)
            found[place] = before = before._replace(weight=before.weight[stage.order])
            continue
        if isinstance(stage, Conv):
            before = stage = stage if waiting is None else _ungrouped(stage, waiting)
            waiting = None
        found.append(stage)
    return found


def _ungrouped(conv: Conv, order: Tensor) -> Conv:
    """One convolution of all channels that computes `conv` of the channels `order`, a permutation."""
    outputs, each, *taps = conv.weight.shape
    weight = conv.weight.new_zeros(outputs, each * conv.groups, *taps)
    rows = outputs // conv.groups
    for g in range(conv.groups):
        own = slice(g * rows, (g + 1) * rows)
        weight[own, order[g * each : (g + 1) * each]] = conv.weight[own]
    return conv._replace(weight=weight, groups=1)


def _own(t: Tensor) -> nn.Parameter:
    """The tensor's values in memory of their own."""
    return nn.Parameter(t.detach().clone(memory_format=torch.contiguous_format), requires_grad=t.requires_grad)


def _linear(weight: Any, bias: Any) -> nn.Linear:
    outputs, inputs = weight.shape
    return _filled(nn.Linear(inputs, outputs, bias is not None, device="meta"), weight, bias)


def _conv(
    weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int = 1, mode: str = "zeros"
) -> nn.Conv2d:
    outputs, each, *kernel = weight.shape
    where: Any = (kernel, stride, padding, dilation, groups, bias is not None, mode, "meta")
    return _filled(nn.Conv2d(each * groups, outputs, *where), weight, bias)


def _filled(module: Any, weight: Tensor, bias: Tensor | None) -> Any:
    """`module`, made on the meta device, which draws nothing, with values."""
    module.weight = _own(weight)
    if bias is not None:
        module.bias = _own(bias)
    return module
