"""A codebook of few values for a weight of many: k-means in one dimension."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Init = Literal["optimal", "linear"]
_ROUNDS = 2000  # of Lloyd's iteration; it ends where no boundary moves, mostly long before
_CELLS = 1024  # between which the first search puts its boundaries
_STEPS = 4  # a cell, of the density that places the cells
_REACH = 12  # places to either side that a boundary may move to in a round of the second search
_GAIN = 1e-6  # of the distortion: a round that gains less is followed by one of smaller steps


def palette(
    weight: Tensor, bits: int, *, zero: bool = False, init: Init = "optimal", rounds: int = _ROUNDS
) -> tuple[Tensor, Tensor]:
    """`weight` -> codebook float64 `[2**bits]`, ascending, and the index of each weight's nearest entry.

    On the sorted weights the members of a centroid are a range, and what they cost is a difference of prefix sums. One
    sort; then dynamic programming finds the best boundaries between 1,024 cells, moves them in ever smaller steps, all
    at once, and Lloyd's iteration ends it.

    Args:
        weight: any shape, finite, not empty.
        bits: of an index, 1 to 8.
        zero: weights that are exactly 0 (pruned) are the members of entry 0, which is 0, and of no other; the
            other `2**bits - 1` entries, ascending, fit the rest.
        init: "optimal": the least distortion, within 0.01 % at up to 6 bits and 0.1 % at 8, exactly that of up to 1,024
            weights at up to 6; or "linear": Lloyd's iteration from centroids evenly between the least weight and the
            greatest, which spends more entries on the few large weights and which Han et al. found best for accuracy.
        rounds: of Lloyd's iteration at most.

    Returns:
        The codebook, on the CPU; the indices, uint8 of the weight's shape and on its device. Where the weight has no
        more different values than the codebook, it has exactly these, the greatest repeated to fill it.

    Deterministic: no random start.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is allowed.

    Source: Han, Mao, Dally, "Deep Compression", ICLR 2016, section 3.
    """
    check_palette(bits, zero, init)
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        raise TypeError(
            f"weight must be a floating-point Tensor, got {getattr(weight, 'dtype', type(weight).__name__)}"
        )
    flat = weight.detach().reshape(-1).to("cpu", torch.float64)
    if not flat.numel() or not bool(flat.isfinite().all()):
        raise ValueError(f"weight must be finite and not empty, got shape {list(weight.shape)}")
    entries = 2**bits - zero
    free = flat[flat != 0] if zero else flat
    with torch.device("cpu"):
        centres = _kmeans(free.sort().values, entries, init, rounds) if free.numel() else flat.new_zeros(entries)
    index = torch.searchsorted((centres[1:] + centres[:-1]) / 2, flat) + zero
    if zero:
        index.masked_fill_(flat == 0, 0)
        centres = torch.cat([flat.new_zeros(1), centres])
    return centres, index.to(torch.uint8).reshape(weight.shape).to(weight.device)


def check_palette(bits: object, zero: object, init: object = "optimal") -> None:
    """What every palette is checked for."""
    if isinstance(bits, bool) or not isinstance(bits, int):
        raise TypeError(f"bits must be an int, got {bits!r}")
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must be from 1 to 8, got {bits}")
    if not isinstance(zero, bool):
        raise TypeError(f"zero must be True or False, got {zero!r}")
    if init not in get_args(Init):
        raise ValueError(f"init must be one of {list(get_args(Init))}, got {init!r}")


def _kmeans(values: Tensor, entries: int, init: Init, rounds: int) -> Tensor:
    """`entries` centroids, ascending, of the sorted float64 values."""
    distinct = values[torch.cat([values.new_ones(1, dtype=torch.bool), values[1:] != values[:-1]])]
    if len(distinct) <= entries:
        return torch.cat([distinct, distinct[-1:].expand(entries - len(distinct))])
    line = _Line(values)
    if init == "linear":
        return line.settled(torch.linspace(float(values[0]), float(values[-1]), entries, dtype=values.dtype), rounds)
    bounds = line.moved(line.between_cells(entries))
    return line.settled(line.means(bounds, values[bounds[:-1]]), rounds)


class _Line:
    """Sorted values, cut by boundaries: the members of a centroid are a range, and their sums are differences."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        start = values.new_zeros(1)
        self.sums, self.squares = (torch.cat([start, v.cumsum(0)]) for v in (values, values.square()))

    def cost(self, begin: Tensor, end: Tensor) -> Tensor:
        """Sum of squares about their mean of the values from `begin` to `end`; infinite where there are none."""
        members, sums = end - begin, self.sums[end] - self.sums[begin]
        squares = self.squares[end] - self.squares[begin]
        return (squares - sums.square() / members).clamp(min=0).masked_fill(members <= 0, float("inf"))

    def between_cells(self, entries: int) -> Tensor:
        """The boundaries `[entries + 1]` of least cost among those of the cells."""
        at = self.cells()
        cost = self.cost(at, at[:, None])  # [end, begin]
        best, back = cost[:, 0], []
        for _ in range(entries - 1):
            best, begin = (cost + best).min(1)
            back.append(begin)
        chosen = [len(at) - 1]
        for begin in reversed(back):
            chosen.append(int(begin[chosen[-1]]))
        return at[[0, *reversed(chosen)]]

    def cells(self) -> Tensor:
        """Where cells begin and end: each value alone if they are few, else as many as fit a quantizer's entries.

        Those are closer together where there are more values, as their number to the power 1/3.
        """
        count, values = len(self.values), self.values
        if count <= _CELLS:
            return torch.arange(count + 1)
        steps = torch.linspace(0, count - 1, min(count, _STEPS * _CELLS), dtype=values.dtype).round().long()
        edges = values[steps]  # as many weights between any two: their density is 1 / distance
        share = torch.cat([values.new_zeros(1), edges.diff().pow(2 / 3).cumsum(0)])  # density ** (1 / 3) * distance
        wanted = share[-1] * torch.arange(1, _CELLS, dtype=values.dtype) / _CELLS
        right = torch.searchsorted(share, wanted).clamp(1, len(share) - 1)
        into = (wanted - share[right - 1]) / (share[right] - share[right - 1])
        cuts = torch.searchsorted(values, edges[right - 1] + into * (edges[right] - edges[right - 1]))
        return torch.cat([cuts.new_zeros(1), cuts, cuts.new_full((1,), count)]).unique()

    def moved(self, bounds: Tensor) -> Tensor:
        """The boundaries, moved together as far as it lowers the cost: each to the best of places on both sides."""
        least, part = float("inf"), 4
        while True:
            gaps = bounds.diff()
            step = (torch.minimum(gaps[1:], gaps[:-1]) // part).clamp(min=1)
            found, cost = self.best_nearby(bounds, step)
            ended = cost >= least * (1 - _GAIN)
            if cost < least:
                bounds, least = found, cost
            if ended and bool((step == 1).all()):
                return bounds
            part *= 4 if ended else 1

    def best_nearby(self, bounds: Tensor, step: Tensor) -> tuple[Tensor, float]:
        """The boundaries of least cost among those up to `_REACH` steps from `bounds`, and that cost."""
        away = torch.arange(-_REACH, _REACH + 1)
        places = bounds[:, None].repeat(1, len(away))
        places[1:-1] = (places[1:-1] + away * step[:, None]).clamp(0, len(self.values))
        cost = self.cost(places[:-1, :, None], places[1:, None])  # [entry, begin, end]
        best, back = cost[0, 0], []
        for one in cost[1:]:
            best, begin = (best[:, None] + one).min(0)
            back.append(begin)
        chosen = [int(best.argmin())]
        for begin in reversed(back):
            chosen.append(int(begin[chosen[-1]]))
        picked = torch.tensor([0, *reversed(chosen)])
        return places.gather(1, picked[:, None])[:, 0], float(best.min())

    def means(self, bounds: Tensor, centres: Tensor) -> Tensor:
        """Of the members; where there are none the centroid stays. Ascending: rounding may not swap two."""
        members = bounds.diff()
        return torch.where(members > 0, self.sums[bounds].diff() / members, centres).cummax(0).values

    def settled(self, centres: Tensor, rounds: int) -> Tensor:
        """Lloyd's iteration, until no member changes."""
        bounds = torch.empty(0)
        for _ in range(rounds):
            ends = torch.searchsorted(self.values, (centres[1:] + centres[:-1]) / 2)
            before, bounds = bounds, torch.cat([ends.new_zeros(1), ends, ends.new_full((1,), len(self.values))])
            if torch.equal(bounds, before):
                break
            centres = self.means(bounds, centres)
        return centres
