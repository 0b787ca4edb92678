"""What the CPU kernel is given: the outputs sorted by colour, each colour's filters as strips, small ones in pairs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ..chain import NativeCall, native_chain
from ..packing import STRIP, pack, packed
from . import OP

HALF = STRIP // 2


def strips(own: Tensor) -> Iterator[Tensor | list[Tensor]]:
    """One colour's filters, sixteen side by side; what is left, if at most eight, as eight."""
    rest = len(own) % STRIP
    whole = len(own) - rest if 0 < rest <= HALF else len(own)
    if whole:
        yield [own[:whole].T[None]]
    if whole < len(own):
        yield F.pad(own[whole:].T, (0, HALF - len(own) + whole)).flatten()


def sorted_filters(colours: Tensor, filters: Tensor, assignment: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Colours and filters, flat; the outputs of each colour; each sorted output's channel, None if they are sorted."""
    low, high = (int(v) for v in torch.aminmax(assignment))
    if low < 0 or high >= colours.shape[0]:
        raise ValueError(f"{OP}: assignment must be in [0, {colours.shape[0]}), got values from {low} to {high}")
    order = torch.argsort(assignment, stable=True)
    counts = torch.bincount(assignment, minlength=colours.shape[0])
    parts: list[Tensor | list[Tensor]] = [colours.flatten()]
    sizes, split = counts.tolist(), filters.flatten(1)[order].split(counts.tolist())
    k = 0
    while k < len(sizes):
        if all(0 < size <= HALF for size in sizes[k : k + 2]) and k + 1 < len(sizes):
            pair = [F.pad(own.T, (0, HALF - len(own))) for own in split[k : k + 2]]
            parts.append(torch.stack(pair, 2).flatten())  # a tap's filters of the two colours in turn
            k += 2
        else:
            parts.extend(strips(split[k]))
            k += 1
    kept_order = None if torch.equal(order, torch.arange(len(order), device="cpu")) else order
    return pack(*parts), counts, kept_order


@native_chain(OP, ("kh", "kw"), tensors=("counts", "order"))
def prepare(x: Tensor, factors: tuple[Tensor, ...]) -> NativeCall:
    weights, counts, order = packed(OP, factors, sorted_filters)
    return NativeCall(weights, tuple(factors[1].shape[1:]), (counts, order))
