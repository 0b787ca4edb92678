"""A call like an earlier one goes straight to the CPU kernel: nothing is checked, chosen or packed a second time.

What Python does before a kernel takes 30 us, as long as a tenth of a small map's convolution; a repeated call half of
that. The first call of a kind is recorded by the pass that serves it, and kept with its factors.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import registry
from .packing import derived

Launch = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]
KINDS = 32  # of calls of a function that are kept with the factors of a layer

_recording = threading.local()
_SIMPLE = {int, str, type(None)}
_TENSORS = {Tensor, torch.nn.Parameter}


def record(name: str, launch: Launch) -> None:
    """Pass `name` says how it serves a call: `launch(x, bias, residual)` again is all that another such call needs."""
    calls = getattr(_recording, "calls", None)
    if calls is not None:
        calls.append((name, launch))


def replayed(given: int) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Of a public function `f(x, *factors, bias=None, *, residual=None, **options)` with `given` factors and indices.

    Replayed are plain eager calls on the CPU that need no gradients, whose tensors have the shapes, strides and dtypes
    of an earlier call's, and whose factors are its, unchanged.
    """

    def attach(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.wraps(function)
        def call(x: Tensor, *args: Any, **options: Any) -> Tensor:
            if torch.compiler.is_compiling() or not given <= len(args) <= given + 1:
                return function(x, *args, **options)
            factors, bias = args[:given], args[given] if len(args) > given else options.get("bias")
            residual = options.get("residual")
            named = {name: value for name, value in options.items() if name != "bias" and name != "residual"}
            if not _repeatable(x, factors, bias, residual) or not all(map(_exact, named.values())):
                return function(x, *args, **options)
            launches = derived(factors).setdefault(function, {})
            key = x.shape, x.stride(), x.dtype, _kind(bias), _kind(residual), *named.items()
            if key not in launches:
                return _recorded(function, launches, key, x, args, options)
            name, launch = launches[key]
            registry.note(name, "native")
            return launch(x, bias, residual)

        return call

    return attach


def _kind(t: Tensor | None) -> tuple | None:
    return None if t is None else (t.shape, t.stride(), t.dtype, t.device)


def _exact(value: Any) -> bool:
    """Whether equal values are the same argument: True == 1 == 1.0, and only 1 is a stride."""
    return type(value) in _SIMPLE or (type(value) is tuple and _SIMPLE.issuperset(map(type, value)))


def _repeatable(x: Any, factors: tuple[Any, ...], bias: Any, residual: Any) -> bool:
    tensors = (x, *factors, bias, residual)
    return (
        _TENSORS.issuperset(map(type, (x, *factors)))
        and (bias is None or type(bias) in _TENSORS)
        and (residual is None or type(residual) in _TENSORS)
        and registry.plain(tensors)
        and x.is_cpu
        and registry.forced() in (None, "native")
        and not torch.is_autocast_enabled("cpu")
        and not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors))
    )


def _recorded(
    function: Callable[..., Tensor], launches: dict, key: tuple, x: Tensor, args: tuple, options: dict
) -> Tensor:
    before, _recording.calls = getattr(_recording, "calls", None), []
    try:
        y = function(x, *args, **options)
        calls = _recording.calls
    finally:
        _recording.calls = before
    if len(calls) == 1:
        if len(launches) >= KINDS:
            del launches[next(iter(launches))]
        launches[key] = calls[0]
    return y
