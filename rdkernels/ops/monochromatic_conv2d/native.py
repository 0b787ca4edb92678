"""What the CPU kernel is given: the outputs sorted by colour, each colour's filters as strips."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..chain import NativeCall, native_chain
from ..packing import STRIP, pack, packed
from . import OP

HALF = STRIP // 2


def sorted_filters(colours: Tensor, filters: Tensor, assignment: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Colours and filters, flat; the outputs of each colour; each sorted output's channel, None if they are sorted."""
    low, high = (int(v) for v in torch.aminmax(assignment))
    if low < 0 or high >= colours.shape[0]:
        raise ValueError(f"{OP}: assignment must be in [0, {colours.shape[0]}), got values from {low} to {high}")
    order = torch.argsort(assignment, stable=True)
    counts = torch.bincount(assignment, minlength=colours.shape[0])
    parts: list[Tensor | list[Tensor]] = [colours.flatten()]
    for own in filters.flatten(1)[order].split(counts.tolist()):
        rest = len(own) % STRIP
        whole = len(own) - rest if 0 < rest <= HALF else len(own)
        if whole:
            parts.append([own[:whole].T[None]])
        if whole < len(own):
            parts.append(F.pad(own[whole:].T, (0, HALF - len(own) + whole)).flatten())
    kept_order = None if torch.equal(order, torch.arange(len(order))) else order
    return pack(*parts), counts, kept_order


@native_chain(OP, ("kh", "kw"), tensors=("counts", "order"))
def prepare(x: Tensor, factors: tuple[Tensor, ...]) -> NativeCall:
    weights, counts, order = packed(OP, factors, sorted_filters)
    return NativeCall(weights, tuple(factors[1].shape[1:]), (counts, order))
