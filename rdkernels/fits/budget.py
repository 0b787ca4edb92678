"""What decides a rank, and what a rank costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

Fit = TypeVar("Fit")
_ROUNDING = 1e-12  # shares of energy are sums in float64


@dataclass(frozen=True)
class Budget:
    """How large the ranks of a fit shall be: exactly one of `rank`, `energy` and `macs`.

    Args:
        rank: the rank itself, from 1 to full; for the forms with two ranks an int (both) or a pair.
        energy: the share in (0, 1] of the weight's squared Frobenius norm (in the metric of the fit) that is kept at
            least; the smallest rank is taken, with two ranks the pair of fewest multiply-adds.
        macs: the factor > 0 by which the multiply-adds of one output position fall at least; the largest rank is taken.
        rank_multiple: with `macs`, a rank of at least this much is rounded down to a multiple of it.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is allowed.
    """

    rank: int | Sequence[int] | None = None
    energy: float | None = None
    macs: float | None = None
    rank_multiple: int = 16

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in ("rank", "energy", "macs") if getattr(self, name) is not None}
        if len(given) != 1:
            raise ValueError(f"exactly one of rank, energy and macs must be given, got {given or 'none'}")
        for name, value in given.items():
            if name != "rank" and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise TypeError(f"{name} must be a real number, got {type(value).__name__}")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ValueError(f"energy must be in (0, 1], got {self.energy}")
        if self.macs is not None and not 0 < self.macs < math.inf:
            raise ValueError(f"macs must be a finite number > 0, got {self.macs}")
        check_rank("rank_multiple", self.rank_multiple)

    def one(self, full: int, cost: Callable[[int], int], dense: int, kept: Callable[[], Tensor]) -> int:
        """The rank from 1 to `full`; entry r - 1 of `kept()` is the share of energy that rank r keeps."""
        if self.rank is not None:
            return check_rank("rank", self.rank, full)
        if self.macs is not None:
            return self._within(full, cost, dense)
        return self.smallest(kept())

    def smallest(self, kept: Tensor) -> int:
        """The smallest rank that keeps the energy, the last one at most."""
        enough = kept >= self._share
        return int(enough.int().argmax()) + 1 if enough.any() else len(kept)

    def two(
        self, full: tuple[int, int], cost: Callable[[Any, Any], Any], dense: int, kept: Callable[[], Tensor]
    ) -> tuple[int, int]:
        """The ranks, each from 1 to its own `full`; `kept()` `[full]` holds the shares of energy of all pairs.

        With `macs` both ranks are equal, but for one that has reached its own full rank.
        """
        if self.rank is not None:
            return pair_of_ranks(self.rank, full)
        if self.macs is not None:
            both = self._within(max(full), lambda r: cost(min(r, full[0]), min(r, full[1])), dense)
            return min(both, full[0]), min(both, full[1])
        first, second = (torch.arange(1, n + 1, device="cpu") for n in full)
        prices = cost(first[:, None], second[None, :])
        share = kept() >= self._share
        share[-1, -1] = True
        cheapest = int(prices.masked_fill(~share, torch.iinfo(torch.int64).max).argmin())
        return cheapest // full[1] + 1, cheapest % full[1] + 1

    def search(
        self, full: int, cost: Callable[[int], int], dense: int, fit: Callable[[int], tuple[Fit, float]], least: int = 1
    ) -> Fit:
        """The fit of the rank, for forms whose energy only a fit tells: `fit(rank)` gives it and its share.

        Ranks from `least` up are tried by doubling, then by bisection.
        """
        if self.energy is None:
            return fit(self.one(full, cost, dense, lambda: torch.empty(0)))[0]
        low, high = least - 1, least
        found, share = fit(high)
        while share < self._share:
            if high == full:
                raise ValueError(f"energy must be at most {share:.6g}, what full rank {full} keeps, got {self.energy}")
            low, high = high, min(2 * high, full)
            found, share = fit(high)
        while high - low > 1:
            middle = (low + high) // 2
            trial, share = fit(middle)
            low, high, found = (middle, high, found) if share < self._share else (low, middle, trial)
        return found

    @property
    def _share(self) -> float:
        return (self.energy or 0) - _ROUNDING

    def _within(self, full: int, cost: Callable[[int], int], dense: int) -> int:
        rank = sum(dense >= (self.macs or 0) * cost(r) for r in range(1, full + 1))
        if rank == 0:
            raise ValueError(f"macs must be at most {dense / cost(1):.4g}, what rank 1 reaches, got {self.macs}")
        return rank if rank < self.rank_multiple else rank - rank % self.rank_multiple


def check_rank(name: str, value: object, full: int | None = None) -> int:
    """`value`, an int from 1 to `full`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < 1 or (full is not None and value > full):
        allowed = ">= 1" if full is None else f"from 1 to {full}"
        raise ValueError(f"{name} must be {allowed}, got {value}")
    return value


def pair_of_ranks(value: object, full: Sequence[int | None] = (None, None), name: str = "rank") -> tuple[int, int]:
    """`value`, an int (both) or a pair, each from 1 to its own `full`."""
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"{name} must be an int or a pair of them, got {value!r}")
    first, second = (check_rank(f"{name}[{n}]", v, most) for n, (v, most) in enumerate(zip(pair, full, strict=True)))
    return first, second


class MultiplyAdds:
    """Multiply-adds of one output position (all its channels), by form; borders of the map are left out.

    `shape` is the dense weight's `[O, C, kh, kw]`. Stages before the stride work on the input's map and count its
    positions per output position.
    """

    @staticmethod
    def dense(shape: Sequence[int]) -> int:
        return math.prod(shape)

    @staticmethod
    def separable(shape: Sequence[int], stride: Sequence[int], rank: int) -> int:
        o, c, kh, kw = shape
        return rank * (c * kh * stride[1] + o * kw)

    @staticmethod
    def cp(shape: Sequence[int], stride: Sequence[int], rank: int) -> int:
        o, c, kh, kw = shape
        return rank * (c * stride[0] * stride[1] + kh * stride[1] + kw + o)

    @staticmethod
    def tucker(shape: Sequence[int], stride: Sequence[int], r1: Any, r2: Any) -> Any:
        o, c, kh, kw = shape
        return c * r1 * (stride[0] * stride[1]) + r1 * r2 * (kh * kw) + r2 * o

    @staticmethod
    def monochromatic(shape: Sequence[int], stride: Sequence[int], colours: int) -> int:
        o, c, kh, kw = shape
        return colours * c * stride[0] * stride[1] + o * kh * kw

    @staticmethod
    def bicluster(shape: Sequence[int], stride: Sequence[int], clusters: Sequence[int], k1: Any, k2: Any) -> Any:
        (o, c, kh, kw), (g, h) = shape, clusters
        return g * h * MultiplyAdds.tucker((o // h, c // g, kh, kw), stride, k1, k2)

    @staticmethod
    def linear(shape: Sequence[int], rank: int) -> int:
        return rank * (shape[0] + shape[1])
