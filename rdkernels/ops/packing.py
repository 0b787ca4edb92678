"""Factors as the native kernels read them, packed once and kept until a factor changes.

A matrix `[depth, columns]` becomes strips of sixteen columns, `[strip][depth][16]`, zeros beyond the last column. A map
of R ranks is cut into panels of `panel()` ranks; a stage that reads it has its rows in the order [tap][rank] of each
panel (`csrc/common/panels.h`).
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..registry import define_native

define_native("lowrank_panel() -> int")
define_native("lowrank_strips(Tensor(a!) packed, int offset, int rows, int row, Tensor matrix) -> ()")
STRIP = 16


@functools.cache
def panel() -> int:
    """Ranks of a panel, a constant of the loaded library's instruction set."""
    return torch.ops.rdkernels_native.lowrank_panel()


def wide(columns: int) -> int:
    """Columns in whole strips."""
    return columns + -columns % STRIP


def panels(taps: Tensor) -> list[Tensor]:
    """`[taps, R, columns]` cut into panels of R."""
    return list(taps.split(panel(), dim=1))


def pack(*parts: Tensor | Sequence[Tensor]) -> Tensor:
    """One after another: flat tensors as they stand, and lists of matrices `[taps, depth, columns]` as the strips of
    the matrix that has them below one another, tap after tap of each."""
    made = [(p, [len(p)]) if isinstance(p, Tensor) else (p, [len(m) * m.shape[1] for m in p]) for p in parts]
    sizes = [sum(rows) if isinstance(p, Tensor) else sum(rows) * wide(p[0].shape[2]) for p, rows in made]
    packed = torch.empty(sum(sizes), dtype=torch.float32, device="cpu")
    offset = 0
    for (part, rows), size in zip(made, sizes, strict=True):
        if isinstance(part, Tensor):
            packed[offset : offset + size] = part
        else:
            row = 0
            for matrix, own in zip(part, rows, strict=True):
                torch.ops.rdkernels_native.lowrank_strips(packed, offset, sum(rows), row, matrix)
                row += own
        offset += size
    return packed


def core_lines(core: Tensor) -> list[Tensor]:
    """`[R2, R1, kh, kw]` line after line, each in panels of R1."""
    return [part for line in core.unbind(2) for part in panels(line.permute(2, 1, 0))]


@functools.cache
def watch_optimizers() -> None:
    """From now on every optimizer's step raises the version counters of what it wrote: fused ones leave them as is."""
    register_optimizer_step_post_hook(_raise_versions)


def _raise_versions(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    stepped = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    torch.autograd.graph.increment_version(stepped)


_differentiated: dict[int, int] = {}


def differentiated(tensors: Sequence[Tensor]) -> None:
    """A backward went through these: what an optimizer writes next, a compiled one too, whose step nothing tells of."""
    if torch.compiler.is_compiling():
        return
    for t in tensors:
        if t.is_leaf and t.requires_grad:
            _differentiated[id(t)] = _differentiated.get(id(t), 0) + 1


def stamp(t: Tensor) -> tuple[int, int, int, int]:
    """While `held(t)` is kept: differs from that of before if `t` may have been written since, see `derived`."""
    return t._version, _differentiated.get(id(t), 0), t.data_ptr(), t.untyped_storage()._cdata


def held(t: Tensor) -> StorageWeakRef:
    """Keeps the address of the storage of `t`, not its memory, from being that of another storage."""
    return StorageWeakRef(t.untyped_storage())


class _Derived(NamedTuple):
    state: tuple
    refs: tuple[weakref.ref, ...]
    held: tuple[StorageWeakRef, ...]
    made: dict[Any, Any]


_derived: dict[tuple[int, ...], _Derived] = {}


def derived(tensors: Sequence[Tensor]) -> dict[Any, Any]:
    """What callers keep of these tensors: one dict for as long as none of them is written, then an empty one.

    Seen are writes that raise a tensor's version counter, as every in-place operation does, new storage, the steps of
    every `torch.optim.Optimizer`, and those of a compiled one, which raise none, by the backward before them; a write
    through `.data` is not. Inference tensors have no counter: their dict is never kept.
    """
    if any(t.is_inference() for t in tensors):
        return {}
    watch_optimizers()
    key = tuple(map(id, tensors))
    state = tuple((stamp(t), t.shape, t.stride(), t.dtype) for t in tensors)
    found = _derived.get(key)
    if found is None or found.state != state or any(ref() is not t for ref, t in zip(found.refs, tensors, strict=True)):
        refs = tuple(weakref.ref(t, functools.partial(_forget, key)) for t in tensors)
        found = _derived[key] = _Derived(state, refs, tuple(map(held, tensors)), {})
    return found.made


def _forget(key: tuple[int, ...], ref: weakref.ref) -> None:
    found = _derived.get(key)
    if found is not None and any(ref is own for own in found.refs):  # else other tensors have these ids by now
        del _derived[key]


def packed(op: str, factors: Sequence[Tensor], pack: Callable[..., Any]) -> Any:
    """`pack(*factors)` in float32, kept while `derived` keeps it."""
    kept = derived(factors)
    if op not in kept:
        with torch.no_grad():
            kept[op] = pack(*(t.detach().to(torch.float32) if t.is_floating_point() else t for t in factors))
    return kept[op]
