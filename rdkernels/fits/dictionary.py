"""Fixed dictionaries that predict a weight from few of its values: Denil et al. 2013, "Predicting Parameters in Deep
Learning".

A unit's weights `w` `[n_v]`, a function on the inputs, are `U v` with `U` `[n_v, n_a]` fixed and `v` `[n_a]` trained.
With several columns, each has an index set and a `U` of its own and serves its share of the units. All in float64 on
the CPU; index sets come from the hash of `rdkernels.hashing`, the same on every machine and without random state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import hashing
from .budget import check_rank

KINDS = ("se", "emp", "emp2", "gauss", "identity", "dct")
GIVEN = "given"  # the kind of a dictionary that came as a tensor
FROM_DATA = ("emp", "emp2")
STORED = (*FROM_DATA, GIVEN)  # what no recipe makes again
_NEEDS_TOPOLOGY = ("se", "dct")
_USES = {
    "se": ("seed", "ridge", "sigma", "whiten"),
    "emp": ("seed", "ridge", "whiten"),
    "emp2": ("seed", "ridge", "whiten"),
    "gauss": ("seed",),
    "identity": ("seed",),
    "dct": (),
    GIVEN: ("seed",),
}
_NEGLIGIBLE = 1e-20  # of the largest value: far below float64's rounding of a sum that holds both


def _count(n: int) -> Tensor:
    return torch.arange(n, device="cpu")  # the CPU also under torch.device("cuda")


def index_sets(size: int, count: int, columns: int, seed: int) -> Tensor:
    """For each column, `count` of `0 .. size - 1`, uniform without replacement, sorted: int64 `[columns, count]`.

    Position p of column j is taken by the rank of XXH32(p, j; seed) (`rdkernels.hashing.xxh32_pair`).
    """
    p, j = _count(size), _count(columns)[:, None]
    order = hashing.xxh32_pair(p, j, hashing.check_seed(seed)).argsort(dim=1, stable=True)
    return order[:, :count].sort(dim=1).values


def grid(positions: Sequence[int]) -> Tensor:
    """Coordinates of the positions of a grid in row-major order: float64 `[n, len(positions)]`."""
    axes = [_count(n).double() for n in positions]
    return torch.cartesian_prod(*axes).reshape(-1, len(axes))


def squared_exponential(left: Tensor, right: Tensor, sigma: float) -> Tensor:
    """`exp(-||l - r||^2 / (2 sigma^2))` for the points `left` `[m, d]` and `right` `[n, d]`: `[m, n]`."""
    return torch.exp((left[:, None] - right[None]).square().sum(-1) / (-2 * sigma**2))


def ridge_predictor(rows: Tensor, alpha: Tensor, ridge: float) -> Tensor:
    """`U = k_a^T (K_a + ridge I)^-1` `[n_v, n_a]`: what kernel ridge regression predicts from the values at `alpha`.

    Args:
        rows: `k_a` `[n_a, n_v]`, the rows `alpha` of a symmetric kernel over all positions.
        alpha: int64 `[n_a]`; `K_a` is `rows[:, alpha]`.
        ridge: lambda >= 0, in the kernel's units.

    Raises:
        ValueError: `K_a + ridge I` is singular.
    """
    system = rows[:, alpha] + ridge * torch.eye(len(alpha), dtype=rows.dtype, device="cpu")
    solution, failed = torch.linalg.solve_ex(system, rows)
    if failed or not solution.isfinite().all():
        raise ValueError(f"ridge must be larger, as the kernel at the chosen positions is singular, got {ridge}")
    return solution.T


def gaussian(size: int, count: int, columns: int, seed: int) -> Tensor:
    """Independent normal values of variance `1 / size`, so that atoms have about unit length: `[columns, size, count]`.

    Box-Muller of two hashes a value.
    """
    hashing.check_seed(seed)
    p, q = _count(size)[:, None], 2 * _count(columns * count)
    radius, angle = ((hashing.xxh32_pair(p, q + k, seed).double() + 0.5) / 2**32 for k in (0, 1))
    values = (-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos() / size**0.5
    return values.reshape(size, columns, count).transpose(0, 1).contiguous()


def cosines(positions: Sequence[int], count: int) -> Tensor:
    """The `count` lowest of the grid's orthonormal cosines (DCT-II): `[n_v, count]`.

    By the sum over the axes of `(frequency / length)^2`; of equal ones the first in row-major order.
    """
    frequencies = grid(positions)
    lengths = torch.tensor(positions, dtype=torch.float64, device="cpu")
    lowest = frequencies[(frequencies / lengths).square().sum(1).argsort(stable=True)[:count]]  # [count, d]
    angle = math.pi * (grid(positions)[:, None] + 0.5) * lowest / lengths  # [n_v, count, d]
    scale = torch.where(lowest == 0, 1.0, 2.0).to(torch.float64) / lengths
    return (angle.cos() * scale.sqrt()).prod(-1)


def clean(atoms: Tensor, dtype: torch.dtype) -> Tensor:
    """`atoms` in `dtype`, zero where negligible beside the largest or subnormal.

    A squared exponential is full of subnormal values; a product with them takes a CPU many times as long.
    """
    if not atoms.numel():
        return atoms.to(dtype)
    least = max(_NEGLIGIBLE * float(atoms.abs().max()), torch.finfo(dtype).tiny)
    return torch.where(atoms.abs() < least, 0.0, atoms).to(dtype)


@dataclass(frozen=True)
class Dictionary:
    """The recipe of a layer's fixed atoms: with the inputs' covariance or the tensor where it needs one, all of U.

    `of` makes and checks one. `U` of a column is block diagonal, the same block `[positions, atoms]` for each of
    `channels`; of one block unless the topology has channels.
    """

    kind: str  # of KINDS, or GIVEN
    channels: int
    positions: tuple[int, ...]
    atoms: int
    columns: int
    seed: int = 0
    ridge: float = 0.0
    sigma: float = 0.0
    whiten: bool = False

    @classmethod
    def of(
        cls,
        inputs: int,
        outputs: int,
        dictionary: str | Tensor,
        fraction: float,
        *,
        columns: int = 1,
        topology: Sequence[int] | None = None,
        ridge: float = 0.1,
        sigma: float = 1.0,
        whiten: bool = True,
        seed: int = 0,
    ) -> Dictionary:
        """The recipe for a weight `[outputs, inputs]`; settings that `dictionary` does not use are left at zero.

        Raises:
            TypeError, ValueError: naming the argument, what came and what is allowed.
        """
        kind = check_settings(dictionary, fraction, columns, ridge, sigma, whiten, seed)
        if columns > outputs:
            raise ValueError(f"columns must be at most the outputs, {outputs}, got {columns}")
        channels, positions = _layout(inputs, kind, topology)
        most = math.prod(positions)
        count = round(fraction * most)
        if count < 1:
            raise ValueError(f"fraction must be at least half of one of the {most} positions, got {fraction}")
        if isinstance(dictionary, Tensor) and (dictionary.dim() != 2 or len(dictionary) != inputs):
            raise ValueError(f"dictionary must have shape [{inputs}, atoms], got {list(dictionary.shape)}")
        if isinstance(dictionary, Tensor) and dictionary.shape[1] < count:
            raise ValueError(
                f"dictionary must have at least {count} atoms for fraction {fraction}, got {dictionary.shape[1]}"
            )
        given = {"seed": seed, "ridge": float(ridge), "sigma": float(sigma), "whiten": whiten}
        used: dict[str, Any] = {name: given[name] for name in _USES[kind]}
        return cls(kind, channels, positions, count, columns, **used)

    @property
    def inputs(self) -> int:
        return self.channels * math.prod(self.positions)

    @property
    def per_unit(self) -> int:
        """Trained values of a unit: n_a, over all channels."""
        return self.channels * self.atoms

    def index_sets(self, size: int | None = None) -> Tensor:
        """The columns' index sets, of the positions or of a tensor's `size` atoms: int64 `[columns, atoms]`."""
        return index_sets(math.prod(self.positions) if size is None else size, self.atoms, self.columns, self.seed)

    def build(self, source: Tensor | None = None) -> Tensor:
        """One channel's block of `U^T` for every column, float64 `[columns, atoms, positions]`.

        Args:
            source: for "emp" and "emp2" the covariance `[n_v, n_v]`, for a given dictionary the tensor `[n_v, n]`.

        The ridge is relative to the mean of the kernel's diagonal, which is 1 for "se".
        """
        if self.kind == "gauss":
            return gaussian(self.inputs, self.atoms, self.columns, self.seed).mT.contiguous()
        if self.kind == "dct":
            return cosines(self.positions, self.atoms).T[None].contiguous()
        if self.kind == "identity":
            one = torch.zeros(self.columns, self.atoms, self.inputs, dtype=torch.float64, device="cpu")
            return one.scatter_(2, self.index_sets()[..., None], 1.0)
        if self.kind == "se":
            points = grid(self.positions)
            return self._predictors(lambda alpha: squared_exponential(points[alpha], points, self.sigma), 1.0)
        assert source is not None
        wide = source.detach().to(device="cpu", dtype=torch.float64)
        if self.kind == GIVEN:
            return wide.T[self.index_sets(wide.shape[1])]
        return self._predictors(lambda alpha: wide[alpha], float(wide.diagonal().mean()))

    def _predictors(self, rows_at: Any, level: float) -> Tensor:
        """`U^T` of every column by a kernel, of which `rows_at` gives the rows of an index set."""
        found = []
        for alpha in self.index_sets():
            rows = rows_at(alpha)
            found.append(ridge_predictor(rows, alpha, self.ridge * level).T if self.whiten else rows)
        return torch.stack(found)


def check_settings(
    dictionary: str | Tensor,
    fraction: float,
    columns: int = 1,
    ridge: float = 0.1,
    sigma: float = 1.0,
    whiten: bool = True,
    seed: int | None = None,
) -> str:
    """The kind of the dictionary; raises TypeError or ValueError where a setting fits no weight at all."""
    if isinstance(dictionary, Tensor):
        kind = GIVEN
        if not dictionary.is_floating_point():
            raise TypeError(f"dictionary must be a floating Tensor, got {dictionary.dtype}")
    elif dictionary in KINDS:
        kind = dictionary
    else:
        raise ValueError(f"dictionary must be one of {list(KINDS)} or a Tensor [inputs, atoms], got {dictionary!r}")
    for name, value in (("fraction", fraction), ("ridge", ridge), ("sigma", sigma)):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} must be a real number, got {type(value).__name__}")
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}")
    if check_rank("columns", columns) > 1 and kind == "dct":
        raise ValueError(f'columns must be 1 with dictionary "dct", whose atoms are no choice, got {columns}')
    if not 0 <= ridge < math.inf:
        raise ValueError(f"ridge must be a finite number >= 0, got {ridge}")
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma must be a finite number > 0, got {sigma}")
    if not isinstance(whiten, bool):
        raise TypeError(f"whiten must be True or False, got {whiten!r}")
    if seed is not None:
        hashing.check_seed(seed)
    return kind


def check_topology(topology: Sequence[int]) -> tuple[int, ...]:
    """`topology` as a tuple; raises TypeError or ValueError where it is no sizes of a grid."""
    if not isinstance(topology, Sequence) or isinstance(topology, str):
        raise TypeError(f"topology must be None or a tuple of sizes, got {topology!r}")
    return tuple(check_rank(f"topology[{n}]", size) for n, size in enumerate(topology))


def _layout(inputs: int, kind: str, topology: Sequence[int] | None) -> tuple[int, tuple[int, ...]]:
    """Channels and positions of the atoms."""
    if topology is None:
        if kind in _NEEDS_TOPOLOGY:
            raise ValueError(
                f'topology must say how the {inputs} inputs lie for dictionary "{kind}": (length,), (height, width) '
                f"or (channels, height, width), got None"
            )
        return 1, (inputs,)
    sizes = check_topology(topology)
    if not 1 <= len(sizes) <= 3 or math.prod(sizes) != inputs:
        raise ValueError(
            f"topology must be (length,), (height, width) or (channels, height, width) of {inputs} inputs, got {sizes}"
        )
    if kind not in _NEEDS_TOPOLOGY:
        return 1, (inputs,)
    return (sizes[0], sizes[1:]) if len(sizes) == 3 else (1, sizes)
