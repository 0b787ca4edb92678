"""A codebook of few values for a weight of many: k-means in one dimension."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Init = Literal["density", "linear"]
_ROUNDS = 2000  # of Lloyd's iteration; it ends where no boundary moves, mostly long before
_STEPS = 8  # a centroid, of the density that places the first ones
_SWINGS, _MOMENTUM = 100, 0.95
_GAIN = 1e-4  # of the distortion: less is not worth another round of moves


def palette(
    weight: Tensor, bits: int, *, zero: bool = False, init: Init = "density", rounds: int = _ROUNDS
) -> tuple[Tensor, Tensor]:
    """`weight` -> codebook float64 `[2**bits]`, ascending, and the index of each weight's nearest entry.

    Lloyd's iteration on the sorted weights: the members of a centroid are then a range, found by one binary search, and
    their mean is a difference of two prefix sums. One sort, then `2**bits * log(n)` operations a round.

    Args:
        weight: any shape, finite, not empty.
        bits: of an index, 1 to 8.
        zero: weights that are exactly 0 (pruned) are the members of entry 0, which is 0, and of no other; the
            other `2**bits - 1` entries, ascending, fit the rest.
        init: where centroids start: "density", closer together where there are more weights (as their number to the
            power 1/3, the best density for squared errors), which ends close to the least distortion (200,000 normal
            values: within 0.01 % at 4 and 6 bits, 1 % at 8); or "linear", evenly from the least weight to the greatest,
            which spends more entries on the few large weights and which Han et al. found best for accuracy.
        rounds: at most that many.

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
    centres = _kmeans(free.sort().values, entries, init, rounds) if free.numel() else flat.new_zeros(entries)
    index = torch.searchsorted((centres[1:] + centres[:-1]) / 2, flat) + zero
    if zero:
        index.masked_fill_(flat == 0, 0)
        centres = torch.cat([flat.new_zeros(1), centres])
    return centres, index.to(torch.uint8).reshape(weight.shape).to(weight.device)


def check_palette(bits: object, zero: object, init: object = "density") -> None:
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
        return line.settled(_start(values, entries, init), rounds)
    centres, moves = line.settled(line.swung(_start(values, entries, init)), rounds), entries // 2
    least = line.distortion(centres)
    while moves:
        moved = line.moved(centres, moves)
        moved = centres if moved is None else line.settled(line.swung(moved), rounds)
        reached = line.distortion(moved)
        if reached < least * (1 - _GAIN):
            centres, least = moved, reached
        else:
            moves //= 2
    return centres


class _Line:
    """Sorted values: the members of a centroid are a range, and their sums are differences."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        start = values.new_zeros(1)
        self.sums, self.squares = (torch.cat([start, v.cumsum(0)]) for v in (values, values.square()))

    def bounds(self, centres: Tensor) -> Tensor:
        """Where the members of each begin, and the end."""
        ends = torch.searchsorted(self.values, (centres[1:] + centres[:-1]) / 2)
        return torch.cat([ends.new_zeros(1), ends, ends.new_full((1,), len(self.values))])

    def means(self, bounds: Tensor, centres: Tensor) -> Tensor:
        """Of the members; where there are none the centroid stays. Ascending: rounding may not swap two."""
        members = bounds.diff()
        return torch.where(members > 0, self.sums[bounds].diff() / members, centres).cummax(0).values

    def swung(self, centres: Tensor) -> Tensor:
        """Lloyd's iteration with momentum: on its own it creeps, and ends when a step no longer moves a member."""
        before = centres
        for _ in range(_SWINGS):
            means = self.means(self.bounds(centres), centres)
            centres, before = (means + _MOMENTUM * (means - before)).cummax(0).values, means
        return before

    def settled(self, centres: Tensor, rounds: int) -> Tensor:
        """Lloyd's iteration, until no member changes."""
        bounds = torch.empty(0)
        for _ in range(rounds):
            before, bounds = bounds, self.bounds(centres)
            if torch.equal(bounds, before):
                break
            centres = self.means(bounds, centres)
        return centres

    def distortion(self, centres: Tensor) -> float:
        """Sum of squared distances."""
        bounds = self.bounds(centres)
        members, sums = bounds.diff(), self.sums[bounds].diff()
        return float((self.squares[bounds].diff() - 2 * centres * sums + centres.square() * members).sum())

    def moved(self, centres: Tensor, count: int) -> Tensor | None:
        """Up to `count` centroids, each merged with its neighbour, now split others, where that looks like a gain."""
        bounds = self.bounds(centres)
        members, sums = bounds.diff(), self.sums[bounds].diff()
        cost = _between(members[:-1], centres[:-1], members[1:], centres[1:])
        cut = torch.searchsorted(self.values, centres).clamp(bounds[:-1], bounds[1:])
        left, left_sum = cut - bounds[:-1], self.sums[cut] - self.sums[bounds[:-1]]
        low, high = left_sum / left, (sums - left_sum) / (members - left)
        gain = _between(left, low, members - left, high)
        taken = torch.zeros(len(centres), dtype=torch.bool)
        chosen: list[tuple[int, int]] = []
        sources, targets = cost.argsort(stable=True).tolist(), gain.argsort(stable=True, descending=True).tolist()
        costs, gains = cost.tolist(), gain.tolist()
        for target in targets:
            if len(chosen) == count or taken[target]:
                continue
            free = (s for s in sources if not (taken[s] or taken[s + 1] or target in (s, s + 1)))
            source = next(free, None)
            if source is None or not gains[target] > costs[source]:
                break
            taken[[source, source + 1, target]] = True
            chosen.append((source, target))
        if not chosen:
            return None
        merged, split = (torch.tensor(side) for side in zip(*chosen, strict=True))
        both = members[merged] + members[merged + 1]
        centres = centres.clone()
        centres[merged] = torch.where(both > 0, (sums[merged] + sums[merged + 1]) / both, centres[merged])
        centres[merged + 1] = low[split]
        centres[split] = high[split]
        return centres.sort().values


def _between(n: Tensor, mean: Tensor, m: Tensor, other: Tensor) -> Tensor:
    """What the sum of squares about one mean of two lots has more than that about a mean each."""
    return torch.where((n > 0) & (m > 0), n * m * (mean - other).square() / (n + m), 0.0)


def _start(values: Tensor, entries: int, init: Init) -> Tensor:
    low, high = values[0], values[-1]
    if init == "linear":
        return torch.linspace(float(low), float(high), entries, dtype=values.dtype)
    steps = torch.linspace(0, len(values) - 1, min(len(values), _STEPS * entries), dtype=values.dtype).round().long()
    edges = values[steps]  # as many weights between any two: their density is 1 / distance
    share = torch.cat([values.new_zeros(1), edges.diff().pow(2 / 3).cumsum(0)])  # density ** (1 / 3) * distance
    wanted = share[-1] * (torch.arange(entries, dtype=values.dtype) + 0.5) / entries
    right = torch.searchsorted(share, wanted).clamp(1, len(share) - 1)
    into = (wanted - share[right - 1]) / (share[right] - share[right - 1])
    return edges[right - 1] + into * (edges[right] - edges[right - 1])
