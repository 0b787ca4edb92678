"""Which way a low-rank layer computes a call: dense, as the unfused chain of torch calls, or fused; as measured.

A layer's forward is `run`. Calls that need no gradients are planned: the first one of a new kind times the three
candidates, `decide` takes one, and the times are kept in memory and on disk.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib.metadata
import os
import threading
import weakref
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import registry
from ..ops.convolution import memory_format
from . import candidates, device, store
from .candidates import NAMES, Layer
from .store import Times

__all__ = ["NAMES", "TOLERANCE", "Candidate", "Explanation", "decide", "explain", "plan", "run"]

TOLERANCE = 1.03  # a candidate this much slower than the best is as fast

_ALLOWED = (*NAMES, "measure")


class _Measure:
    """Forces one measurement of each kind of call for as long as this object is in force."""


_Force = str | _Measure | None
_BY_ENVIRONMENT = object()
_force: contextvars.ContextVar[Any] = contextvars.ContextVar("rdkernels_plan", default=_BY_ENVIRONMENT)
_plans: weakref.WeakKeyDictionary[Layer, dict[tuple, str]] = weakref.WeakKeyDictionary()
_measuring = threading.Lock()  # two at once would time each other


def decide(times: Mapping[str, float]) -> str:
    """The candidate to take, from the seconds of each: the fastest, or the fused one if it is as fast within 3 %.

    What is taken is thus never slower than the dense layer by more than 3 %.

    Raises:
        ValueError: `times` is empty.
    """
    if not times:
        raise ValueError("decide: times must have at least one candidate, got none")
    best = min(times, key=times.__getitem__)
    return "fused" if times.get("fused", float("inf")) <= TOLERANCE * times[best] else best


def _checked(where: str, name: str | None) -> _Force:
    if name is None or name in NAMES:
        return name
    if name == "measure":
        return _Measure()
    raise ValueError(f"{where} must be one of {list(_ALLOWED)} or None, got {name!r}")


@functools.cache
def _from_environment() -> _Force:
    return _checked("RDKERNELS_PLAN", os.environ.get("RDKERNELS_PLAN") or None)


@contextlib.contextmanager
def plan(name: str | None) -> Iterator[None]:
    """Force the planned calls inside the block: "dense", "unfused", "fused", or "measure" to measure each kind anew.

    None lifts the forcing, also that by `RDKERNELS_PLAN`. It holds for the thread or task that runs the block. Calls
    that are not planned, such as those that need gradients, are fused whatever is forced.

    Raises:
        ValueError: another name.
    """
    token = _force.set(_checked("plan", name))
    try:
        yield
    finally:
        _force.reset(token)


def _forced() -> _Force:
    force = _force.get()
    return _from_environment() if force is _BY_ENVIRONMENT else force


def run(layer: Layer, x: Tensor, residual: Tensor | None) -> Tensor:
    """`layer` on x, by the candidate that is planned for such calls."""
    if torch.compiler.is_compiling() or not _planned(layer, x, residual):
        return layer._fused(x, residual)
    force = _forced()
    if force is None and _fixed():
        return layer._fused(x, residual)
    key = _kind(x, residual, force)
    plans = _plans.get(layer)
    name = plans.get(key) if plans is not None else None
    return candidates.run(name or _choose(layer, x, residual, force, key), layer, x, residual)


def _planned(layer: Layer, x: Any, residual: Any) -> bool:
    """An eager call on plain tensors that needs no gradients."""
    if type(x) not in (Tensor, torch.nn.Parameter) or not (x.is_cpu or x.is_cuda):
        return False
    if (
        torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
    ):
        return False
    if torch.is_grad_enabled() and (
        x.requires_grad
        or (residual is not None and residual.requires_grad)
        or any(t is not None and t.requires_grad for t in layer._parameters.values())
        or any(t.requires_grad for t in layer._factors())  # a parametrised one is no parameter of the layer's own
    ):
        return False
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def _fixed() -> bool:
    """Whether the fused operation itself was asked for: by a backend, or for the same bits in every run."""
    return registry.forced() is not None or torch.are_deterministic_algorithms_enabled()


def _kind(x: Tensor, residual: Tensor | None, force: _Force) -> tuple:
    """What a layer's plans depend on, quick to make at every call."""
    added = None if residual is None else (residual.shape, residual.dtype, residual.device)
    dtype = candidates.computing_dtype(x)
    return force, x.shape, x.stride(), x.dtype, dtype, x.device, added, torch.get_num_threads()


def _choose(layer: Layer, x: Tensor, residual: Tensor | None, force: _Force, kind: tuple) -> str:
    if not candidates.regular(layer, x, residual):
        return "fused"  # it says what is wrong
    if isinstance(force, str):
        name = force
    elif x.numel() == 0:
        name = "fused"
    else:
        times, _ = _times(layer, x, residual, again=force is not None)
        if not times:
            return "fused"  # as above
        name = decide(times)
    _plans.setdefault(layer, {})[kind] = name
    return name


def _times(layer: Layer, x: Tensor, residual: Tensor | None, again: bool) -> tuple[Times, dict[str, str]]:
    """The candidates' times on such calls, from memory, disk or a measurement; the errors if measured now."""
    where, key = device.device_name(x.device), _lasting_kind(layer, x, residual)
    with _measuring:
        known = None if again else store.find(where, key)
        if known is not None:
            return known, {}
        calls = {name: partial(candidates.run, name, layer, x, residual) for name in NAMES}
        times, errors = device.measure(calls, device.synchronizer(x.device))
        if times:
            store.keep(where, key, times)
        if "dense" not in _plans.get(layer, {}).values():
            candidates.forget_dense(layer)  # made again if it is taken; if not, the layer stays as small as it is
        return times, errors


def _lasting_kind(layer: Layer, x: Tensor, residual: Tensor | None) -> str:
    """All that the times depend on, but for the device, in words."""
    where = candidates.where_of(layer)
    epilogue = [name for name, there in (("bias", layer.bias), ("residual", residual)) if there is not None]
    layout = torch.contiguous_format if where is None else memory_format(x)
    form = "rows" if where is None else str(layout).removeprefix("torch.")
    return "; ".join(
        (
            f"{layer._op} {' '.join('x'.join(map(str, t.shape)) for t in layer._factors())}",
            "" if where is None else f"stride, padding, dilation {' '.join(map(str, where))}",
            f"epilogue {'+'.join([*epilogue, layer.activation or 'none'])}",
            f"x {'x'.join(map(str, x.shape))} {x.dtype} as {candidates.computing_dtype(x)}",
            f"{form}{'' if x.is_contiguous(memory_format=layout) else ' strided'}",
            f"threads {torch.get_num_threads()}",
            f"backends {'/'.join(registry.backends(layer._op))}",
            f"rdkernels {importlib.metadata.version('rdkernels')}",
            f"torch {torch.__version__}",
        )
    )


from .explanation import Candidate, Explanation, explain  # noqa: E402  it asks the functions above
