"""Tucker-2: the two channel modes of a weight in bases of their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .budget import Budget, MultiplyAdds
from .covariance import unwhiten, whiten
from .svd import leading

_SWEEPS = 100
_GAIN = 1e-4  # a sweep that takes less than this share of the squared residual is the last
_ROUNDING = 1e-14  # of the energy


def _inputs(weight: Tensor) -> Tensor:
    return weight.transpose(0, 1).flatten(1)  # [C, O * kh * kw]


def hosvd_energies(weight: Tensor) -> Tensor:
    """`[C, O]`: the squared norm of the HOSVD core of ranks (R1, R2), at (R1 - 1, R2 - 1)."""
    outer, inner = leading(weight.flatten(1), weight.shape[0]), leading(_inputs(weight), weight.shape[1])
    core = torch.einsum("ocij,oq,cp->qpij", weight, outer, inner)
    return core.square().sum((2, 3)).T.cumsum(0).cumsum(1)


def hooi(weight: Tensor, r1: int, r2: int) -> tuple[Tensor, Tensor, Tensor]:
    """inner `[R1, C]`, core `[R2, R1, kh, kw]`, outer `[O, R2]` with orthonormal inner rows and outer columns.

    From the HOSVD, either basis is replaced by the best for the other until the core's energy stands still; no sweep
    can lower it.
    """
    outer, inner = leading(weight.flatten(1), r2), leading(_inputs(weight), r1)
    total, before = float(weight.square().sum()), float("-inf")
    for _ in range(_SWEEPS):
        core = torch.einsum("ocij,oq,cp->qpij", weight, outer, inner)
        energy = float(core.square().sum())
        if energy - before <= max(_GAIN * (total - energy), _ROUNDING * total):
            break
        before = energy
        outer = leading(torch.einsum("ocij,cp->opij", weight, inner).flatten(1), r2)
        inner = leading(_inputs(torch.einsum("ocij,oq->qcij", weight, outer)), r1)
    return inner.T, torch.einsum("ocij,oq,cp->qpij", weight, outer, inner), outer


def tucker(
    weight: Tensor, budget: Budget, *, stride: Sequence[int] = (1, 1), covariance: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """`weight` `[O, C, kh, kw]` -> inner `[R1, C]`, core `[R2, R1, kh, kw]`, outer `[O, R2]` by HOOI from the HOSVD.

    Full ranks are (C, O). With `energy` the ranks are those at which the HOSVD keeps the share; HOOI adds to it.

    Source: De Lathauwer, De Moor, Vandewalle, "On the best rank-1 and rank-(R1, ..., RN) approximation of higher-order
    tensors", SIAM J. Matrix Anal. Appl. 2000, algorithm 4.2.
    """
    white, inverse = whiten(weight, covariance)
    o, c = weight.shape[:2]
    shape = tuple(weight.shape)

    def kept() -> Tensor:
        energies = hosvd_energies(white)
        return energies / energies[-1, -1] if energies[-1, -1] > 0 else torch.ones_like(energies)

    ranks = budget.two(
        (c, o), lambda r1, r2: MultiplyAdds.tucker(shape, stride, r1, r2), MultiplyAdds.dense(shape), kept
    )
    inner, core, outer = hooi(white, *ranks)
    return unwhiten(inner, inverse).contiguous(), core.contiguous(), outer.contiguous()
