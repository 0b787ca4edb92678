"""Where an operation meets its backends: `define` a pass, attach `backend`s, `pick` one per call.

An operation (`hashed_linear`) is a family of passes (`hashed_linear_fwd`, `hashed_linear_bwd_x`, ...). Every pass is
declared once, from one schema string, as a public operator and as its native twin; the compiled libraries only
register implementations of the twin. The backend is chosen inside the operator, on real tensors, so that
`torch.compile` sees one opaque operator whatever runs behind it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

NAMESPACE = "rdkernels"
ORDER = ("native", "triton", "reference")

_LIB = torch.library.Library(NAMESPACE, "DEF")
_NATIVE_LIB = torch.library.Library(f"{NAMESPACE}_native", "DEF")
_DEVICES = (("cpu", "CPU"), ("cuda", "CUDA"))


@dataclass(frozen=True)
class Backend:
    """One implementation of one pass: `serves(*args)` says whether it takes a call, `run(*args)` is the call."""

    serves: Callable[..., bool]
    run: Callable[..., Any]


_PASSES: dict[str, dict[str, Backend]] = {}  # pass -> backend name -> implementation
_ORDERS: dict[str, Callable[..., tuple[str, ...]]] = {}  # pass -> what orders its backends on a GPU, if not ORDER
_FAMILY: dict[str, list[str]] = {}  # operation -> its passes
_CPU: dict[str, tuple[str, Callable[..., Any]]] = {}  # pass -> the twin that must have a CPU kernel, what then runs
_GPU: dict[str, Callable[..., bool]] = {}  # pass -> whether the CUDA library takes a call, where it does not take all
_traces: list[list[tuple[str, str]]] = []


def _checked(name: str | None) -> str | None:
    if name is not None and name not in ORDER:
        raise ValueError(f"backend must be one of {list(ORDER)} or None, got {name!r}")
    return name


_forced: str | None = _checked(os.environ.get("RDKERNELS_BACKEND") or None)


def define(op: str, suffix: str, schema: str, fake: Callable[..., Any]) -> None:
    """Declare `torch.ops.rdkernels.<op>_<suffix>` and its native twin from one schema."""
    name = f"{op}_{suffix}"
    _LIB.define(name + schema)
    _NATIVE_LIB.define(name + schema.replace("SymInt", "int"))  # the stable ABI has no SymInt
    _PASSES[name] = {}
    _FAMILY.setdefault(op, []).append(name)
    _LIB.impl(name, lambda *args: _run(name, args), "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_LIB)


def define_whole(name: str, schema: str, fake: Callable[..., Any], run: Callable[..., Any]) -> None:
    """Declare `torch.ops.rdkernels.<name>` with one implementation in Python: opaque to tracers, not a pass."""
    _LIB.define(name + schema)
    _LIB.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_LIB)


def define_native(schema: str) -> None:
    """Declare an operator that only the compiled libraries implement, such as a question about the last call."""
    _NATIVE_LIB.define(schema)


define_native("allow_tf32(bool allowed) -> ()")


def _run(name: str, args: tuple) -> Any:
    run, kind = pick(name, args), args[0].device.type
    if not torch.is_autocast_enabled(kind):
        return run(*args)
    with torch.autocast(kind, enabled=False):  # the casts are done; a backend's own torch calls keep their dtypes
        return run(*args)


def backend(name: str, backend_name: str, serves: Callable[..., bool] = lambda *_: True) -> Callable:
    """Attach the decorated function to pass `name` as `backend_name`."""
    _checked(backend_name)

    def attach(run: Callable) -> Callable:
        _PASSES[name][backend_name] = Backend(serves, run)
        return run

    return attach


def order(name: str, rule: Callable[..., tuple[str, ...]]) -> None:
    """On a GPU, the backends of pass `name` are asked in the order `rule(*args)`, not in that of `ORDER`."""
    _ORDERS[name] = rule


def native_on_cpu(name: str, twin: str) -> Callable:
    """On the CPU, pass `name` is the decorated function if the libraries implement `twin`; it calls that itself."""

    def attach(run: Callable) -> Callable:
        _CPU[name] = twin, run
        return run

    return attach


def native_on_gpu(name: str, serves: Callable[..., bool]) -> None:
    """The CUDA library takes only those calls of pass `name` for which `serves(*args)` holds."""
    _GPU[name] = serves


def attach_native(dtypes: tuple[torch.dtype, ...], runs_on: Callable[[torch.device], bool]) -> None:
    """After the compiled libraries are loaded: a pass is native on each device whose kernel is registered.

    `runs_on(device)` is asked at a call on a GPU, never before: it may start CUDA.
    """
    devices = _DEVICES if torch.version.cuda else _DEVICES[:1]  # a CPU torch pays nothing for the CUDA library
    for name, table in _PASSES.items():
        runs: dict[str, Callable[..., Any]] = {}
        for device, key in devices:
            twin, wrapper = _CPU.get(name, (name, None)) if device == "cpu" else (name, None)
            if torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}_native::{twin}", key):
                runs[device] = wrapper or getattr(getattr(torch.ops, f"{NAMESPACE}_native"), name).default
        if not runs:
            continue
        if "cuda" in runs:
            runs["cuda"] = _as_precise_as_torch(runs["cuda"])

        def serves(x: torch.Tensor, *rest: Any, on: dict[str, Callable] = runs, name: str = name) -> bool:
            kind = x.device.type
            if kind not in on or x.dtype not in dtypes:
                return False
            return kind == "cpu" or (runs_on(x.device) and (not rest or _GPU.get(name, _always)(x, *rest)))

        def run(x: torch.Tensor, *args: Any, on: dict[str, Callable] = runs) -> Any:
            return on[x.device.type](x, *args)

        table["native"] = Backend(serves, next(iter(runs.values())) if len(runs) == 1 else run)


def _always(*_: Any) -> bool:
    return True


def _as_precise_as_torch(run: Callable) -> Callable:
    """float32 products on CUDA may round to tf32 where torch's own may: the stable ABI cannot ask, so it is told."""
    allow = getattr(torch.ops, f"{NAMESPACE}_native").allow_tf32.default

    def call(x: torch.Tensor, *args: Any) -> Any:
        if x.is_cuda and x.dtype == torch.float32:
            allow(torch.backends.cuda.matmul.fp32_precision == "tf32")
        return run(x, *args)

    return call


def _chosen(name: str, args: tuple) -> str | None:
    table = _PASSES[name]
    ordered = _ORDERS[name](*args) if name in _ORDERS and args[0].is_cuda else ORDER
    for candidate in (_forced,) if _forced else ordered:
        if candidate in table and table[candidate].serves(*args):
            return candidate
    return None


def pick(name: str, args: tuple) -> Callable[..., Any]:
    """The implementation of pass `name` for this call: the forced backend, else the first in order that serves."""
    table, candidate = _PASSES[name], _chosen(name, args)
    if candidate is not None:
        note(name, candidate)
        return table[candidate].run
    x = args[0]
    raise RuntimeError(
        f"{NAMESPACE}::{name}: no backend of {sorted(table)} serves {x.dtype} on {x.device}"
        + (f" (forced: {_forced!r})" if _forced else "")
    )


def note(name: str, backend_name: str) -> None:
    """Pass `name` is run by that backend: what `trace` records."""
    for record in _traces:
        record.append((name, backend_name))


def picks(name: str, backend_name: str, *args: Any) -> bool:
    """Whether `pick` would choose `backend_name` for a call with these leading arguments."""
    return _chosen(name, args) == backend_name


def run(name: str, *args: Any) -> Any:
    """`torch.ops.rdkernels.<name>(*args)`, without the dispatcher where nothing but this library would see the call.

    Tracers, dispatch modes, functorch and tensor subclasses get the operator; a plain eager call saves about 10 us.
    """
    return _run(name, args) if plain(args) else getattr(torch.ops.rdkernels, name)(*args)


def plain(args: tuple) -> bool:
    """Whether nothing but this library would see a call with these arguments."""
    return (
        not torch.compiler.is_compiling()
        and args[0].device.type in ("cpu", "cuda")
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_tracing_state() is None
        and _PLAIN.issuperset(map(type, args))
    )


_PLAIN = {torch.Tensor, torch.nn.Parameter, int, bool, float, type(None)}


@contextlib.contextmanager
def use(name: str | None) -> Iterator[None]:
    """Force every operation to backend `name` ("native", "triton" or "reference") inside the block; None lifts it.

    A call that the forced backend cannot serve raises `RuntimeError`. The choice is process-wide, not per thread.
    """
    global _forced
    before, _forced = _forced, _checked(name)
    try:
        yield
    finally:
        _forced = before


def forced() -> str | None:
    """The backend that `use` or `RDKERNELS_BACKEND` forces."""
    return _forced


@contextlib.contextmanager
def trace() -> Iterator[list[tuple[str, str]]]:
    """Record `(pass, backend)` of every call inside the block: how a test proves which backend ran."""
    record: list[tuple[str, str]] = []
    _traces.append(record)
    try:
        yield record
    finally:
        _traces[:] = [r for r in _traces if r is not record]


def backends(op: str) -> tuple[str, ...]:
    """The backends attached to every pass of operation `op` in this process, in the order they are tried."""
    if op not in _FAMILY:
        raise ValueError(f"op must be one of {sorted(_FAMILY)}, got {op!r}")
    return tuple(b for b in ORDER if all(b in _PASSES[name] for name in _FAMILY[op]))


def operations() -> tuple[str, ...]:
    """The names of all operations, in order of definition."""
    return tuple(_FAMILY)


def serves(op: str, backend_name: str, *args: Any) -> bool:
    """Whether `backend_name` takes calls whose leading tensor is `args[0]` in every pass of `op`."""
    return backend_name in backends(op) and all(_PASSES[n][backend_name].serves(*args) for n in _FAMILY[op])
