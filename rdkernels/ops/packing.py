"""Factors as the native kernels read them, packed once and kept until a factor changes.

A matrix `[depth, columns]` becomes strips of sixteen columns, `[strip][depth][16]`, zeros beyond the last column. A map
of R ranks is cut into panels of `panel()` ranks; a stage that reads it has its rows in the order [tap][rank] of each
panel (`csrc/common/panels.h`).
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..registry import define_native

define_native("lowrank_panel() -> int")
STRIP = 16


@functools.cache
def panel() -> int:
    """Ranks of a panel, a constant of the loaded library's instruction set."""
    return torch.ops.rdkernels_native.lowrank_panel()


def strips(matrix: Tensor) -> Tensor:
    """`[depth, columns]` -> the strips, flat."""
    depth, columns = matrix.shape
    wide = F.pad(matrix, (0, -columns % STRIP))
    return wide.view(depth, -1, STRIP).transpose(0, 1).reshape(-1)


def panels(taps: Tensor) -> Tensor:
    """`[taps, R, columns]` -> `[taps * R, columns]`, panel after panel, tap after tap in each."""
    return torch.cat([part.flatten(0, 1) for part in taps.split(panel(), dim=1)])


def core_lines(core: Tensor) -> Tensor:
    """`[R2, R1, kh, kw]` -> `[kh * kw * R1, R2]`: line after line, each in panels of R1."""
    return torch.cat([panels(line.permute(2, 1, 0)) for line in core.unbind(2)])


_kept: dict[tuple, tuple[tuple[weakref.ref, ...], Any]] = {}


def packed(op: str, factors: Sequence[Tensor], pack: Callable[..., Any]) -> Any:
    """`pack(*factors)` in float32, from the last call with these tensors if none was written since.

    Seen are writes that raise a tensor's version counter, as every in-place operation does; a write through `.data` is
    not. Inference tensors have no counter and are packed at every call.
    """
    if any(t.is_inference() for t in factors):
        return _pack(factors, pack)
    key = (op, *((id(t), t._version, t.data_ptr(), t.shape, t.stride(), t.dtype) for t in factors))
    found = _kept.get(key)
    if found is not None and all(ref() is t for ref, t in zip(found[0], factors, strict=True)):
        return found[1]
    ids = [(op, *(part[0] for part in key[1:]))]
    for old in [k for k in _kept if (k[0], *(part[0] for part in k[1:])) in ids]:  # an older version of the same
        del _kept[old]
    made = _pack(factors, pack)
    refs = tuple(weakref.ref(t, lambda _, key=key: _kept.pop(key, None)) for t in factors)
    _kept[key] = refs, made
    return made


def _pack(factors: Sequence[Tensor], pack: Callable[..., Any]) -> Any:
    with torch.no_grad():
        return pack(*(t.detach().to(torch.float32) if t.is_floating_point() else t for t in factors))
