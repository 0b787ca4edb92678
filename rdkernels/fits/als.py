"""CP: a weight as a sum of outer products, by alternating least squares."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .budget import Budget, MultiplyAdds
from .covariance import unwhiten, whiten
from .svd import leading, shares

_SEEDS = (0, 1)  # of the random starts
_TRIAL, _SWEEPS = 20, 400  # sweeps of every start, and of the best one after that
_GAIN = 1e-4  # a sweep that takes less than this share of the squared residual is the last
_EXACT = 1e-15  # of the squared norm: what is left is rounding
_PROXIMAL = 1e-10  # pull towards the last factors, by the Gram matrix's mean diagonal: no bias, no singular system
_DEGENERATE = 5.0
_PENALTIES = (1e-4, 1e-3, 1e-2)  # on the terms' squared norms: out of swamps, and the next ones out of degeneracy
_MET = 1e-10  # of the squared norm: a weight that is met, by whatever terms


class CPDegenerate(UserWarning):
    """The rank-one terms of a CP fit are much larger than their sum: they cancel, and fine-tuning will be unstable."""


class _Terms(NamedTuple):
    """`W[o,c,i,j] = sum_r outer[o,r] * inner[r,c] * vertical[r,i] * horizontal[r,j]`."""

    inner: Tensor
    vertical: Tensor
    horizontal: Tensor
    outer: Tensor

    def norms(self) -> Tensor:
        """The norm of each rank-one term."""
        rows = (self.inner, self.vertical, self.horizontal, self.outer.T)
        return torch.stack([t.norm(dim=1) for t in rows]).prod(0)

    def ratio(self) -> float:
        """The root of the terms' summed squared norms over the norm of their sum: 1 where they are orthogonal."""
        return float(self.norms().norm()) / max(self.energy(), 1e-300) ** 0.5

    def balanced(self) -> _Terms:
        """The same sum, each term's norm spread evenly over its four vectors."""
        level = self.norms() ** 0.25
        rows = [
            torch.nn.functional.normalize(t, dim=1, eps=1e-300) * level[:, None]
            for t in (self.inner, self.vertical, self.horizontal, self.outer.T)
        ]
        return _Terms(rows[0], rows[1], rows[2], rows[3].T)

    def energy(self) -> float:
        """The squared norm of the sum."""
        rows = (self.inner, self.vertical, self.horizontal, self.outer.T)
        return float(torch.stack([t @ t.T for t in rows]).prod(0).sum())


def full_rank(shape: Sequence[int]) -> int:
    """The rank at which `_orthogonal_start` is exact."""
    o, c, kh, kw = shape
    return kh * kw * min(o, c)


def _orthogonal_start(weight: Tensor, rank: int) -> _Terms:
    """The largest of a set of mutually orthogonal terms: singular vectors of the O x C slices in a spatial HOSVD basis.

    Nothing cancels, so it is never degenerate, and it is exact at full rank.
    """
    o, c, kh, kw = weight.shape
    down = leading(weight.permute(2, 0, 1, 3).flatten(1), kh)
    across = leading(weight.permute(3, 0, 1, 2).flatten(1), kw)
    slices = torch.einsum("ocij,ip,jq->pqoc", weight, down, across).reshape(kh * kw, o, c)
    left, values, right = torch.linalg.svd(slices, full_matrices=False)
    best = values.flatten().topk(rank).indices
    place, n = best // values.shape[1], best % values.shape[1]
    return _Terms(
        right[place, n], down.T[place // kw], across.T[place % kw], (left[place, :, n] * values[place, n, None]).T
    )


def _eigen_start(weight: Tensor, rank: int) -> _Terms:
    """Exact for a weight of this CP rank (rank <= O, C): the eigenvectors that two mixtures of its slices share.

    Source: Leurgans, Ross, Abel, "A decomposition for three-way arrays", SIAM J. Matrix Anal. Appl. 1993.
    """
    _, c, kh, kw = weight.shape
    outer = leading(weight.flatten(1), rank)
    inner = leading(weight.transpose(0, 1).flatten(1), rank)
    core = torch.einsum("ocij,oq,cp->ijqp", weight, outer, inner).reshape(kh * kw, rank, rank)
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, kh * kw, generator=generator, dtype=torch.float64, device="cpu")
    mixed = torch.linalg.lstsq(torch.einsum("kqp,k->pq", core, first), torch.einsum("kqp,k->pq", core, second)).solution
    vectors = torch.linalg.eig(mixed).eigenvectors.real  # columns: dual to the outer factor
    spread = outer @ torch.linalg.pinv(vectors.T)
    rest = torch.linalg.lstsq(spread, weight.flatten(1)).solution.reshape(rank, c, kh * kw)
    left, values, right = torch.linalg.svd(rest, full_matrices=False)
    lines = right[:, 0].reshape(rank, kh, kw)
    down, scale, across = torch.linalg.svd(lines, full_matrices=False)
    return _Terms(left[:, :, 0] * values[:, :1], down[:, :, 0] * scale[:, :1], across[:, 0], spread)


def _random_start(weight: Tensor, rank: int, seed: int) -> _Terms:
    generator = torch.Generator().manual_seed(seed)
    o, c, kh, kw = weight.shape
    inner, vertical, horizontal, outer = (
        torch.randn(rank, size, generator=generator, dtype=torch.float64, device="cpu") for size in (c, kh, kw, o)
    )
    return _Terms(inner, vertical, horizontal, outer.T)


def _solve(product: Tensor, gram: Tensor, old: Tensor, penalty: float) -> Tensor:
    """Rows `[R, n]` that minimise the objective, next to the old ones where it is flat.

    A row's squared norm times its entry of the Gram matrix's diagonal is the squared norm of its term.
    """
    pull = _PROXIMAL * gram.diagonal().mean().clamp(min=1e-300)
    return torch.linalg.solve(gram + torch.diag(penalty * gram.diagonal() + pull), product + pull * old)


def _sweeps(weight: Tensor, start: _Terms, count: int, penalty: float = 0.0) -> tuple[_Terms, float]:
    """At most `count` sweeps of ALS from `start`; the terms and their squared residual.

    What falls is the squared residual plus `penalty` times the terms' summed squared norms.
    """
    o, c, kh, kw = weight.shape
    total = float(weight.square().sum())
    flat = weight.reshape(o, -1)
    terms, residual, objective = start.balanced(), float("inf"), float("inf")
    for _ in range(count):
        inner, vertical, horizontal, outer = terms
        gi, gv, gh, go = inner @ inner.T, vertical @ vertical.T, horizontal @ horizontal.T, outer.T @ outer
        through = (outer.T @ flat).reshape(-1, c, kh, kw)
        inner = _solve(torch.einsum("rcij,ri,rj->rc", through, vertical, horizontal), gv * gh * go, inner, penalty)
        gi = inner @ inner.T
        maps = torch.einsum("rcij,rc->rij", through, inner)
        vertical = _solve(torch.einsum("rij,rj->ri", maps, horizontal), gi * gh * go, vertical, penalty)
        gv = vertical @ vertical.T
        horizontal = _solve(torch.einsum("rij,ri->rj", maps, vertical), gi * gv * go, horizontal, penalty)
        gh = horizontal @ horizontal.T
        rows = torch.einsum("rc,ri,rj->rcij", inner, vertical, horizontal).reshape(-1, c * kh * kw)
        product, gram = rows @ flat.T, gi * gv * gh
        found = _solve(product, gram, outer.T, penalty)
        before = objective
        residual = total - 2 * float((product * found).sum()) + float((found @ found.T * gram).sum())
        terms = _Terms(inner, vertical, horizontal, found.T).balanced()
        objective = residual + (penalty * float(terms.norms().square().sum()) if penalty else 0.0)
        if residual <= _EXACT * total or before - objective <= _GAIN * objective:
            break
    return terms, max(residual, 0.0)


def _fit(weight: Tensor, rank: int) -> tuple[_Terms, float]:
    """Terms that do not cancel, unless only such meet the weight, and the share of energy that they keep."""
    total = float(weight.square().sum())
    if total == 0:
        return _orthogonal_start(weight, rank), 1.0
    starts = [_orthogonal_start(weight, rank)]
    if rank == full_rank(weight.shape):
        return starts[0].balanced(), 1.0
    if rank <= min(weight.shape[:2]) and weight.shape[2] * weight.shape[3] > 1:
        starts.append(_eigen_start(weight, rank))
    starts += [_random_start(weight, rank, seed) for seed in _SEEDS]
    terms, residual = min((_sweeps(weight, start, _TRIAL) for start in starts), key=lambda found: found[1])
    if residual <= _MET * total:
        return terms, 1 - residual / total
    found = [(starts[0], total - starts[0].energy())]
    for penalty in _PENALTIES:
        terms, residual = _sweeps(weight, terms, _SWEEPS, penalty)
        found.append((terms, residual))
        if terms.ratio() <= _DEGENERATE:
            break
    found.append(_sweeps(weight, terms, _SWEEPS))
    if found[-1][1] > _MET * total:
        found = [(t, residual) for t, residual in found if t.ratio() <= _DEGENERATE]  # the first one is
    terms, residual = min(found, key=lambda pair: pair[1])
    return terms.balanced(), 1 - residual / total


def cp(
    weight: Tensor, budget: Budget, *, stride: Sequence[int] = (1, 1), covariance: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`weight` `[O, C, kh, kw]` -> inner `[R, C]`, vertical `[R, kh]`, horizontal `[R, kw]`, outer `[O, R]` by ALS.

    Starts: mutually orthogonal terms from SVDs, generalised eigenvectors where R <= O, C, and two random ones of fixed
    seeds; the best after a few sweeps is run to the end, with a small penalty on the norms of the terms and then
    without. Where the root of the terms' summed squared norms exceeds 5 times the norm of the sum, the fit is
    degenerate, and one that is not is taken: a penalised one or the first start. Deterministic. Full rank is
    `kh * kw * min(O, C)`, where the first start is exact. `energy` costs a fit for every rank tried.

    Warns:
        CPDegenerate: where the weight is met exactly, but by a degenerate sum.

    Source: Lebedev et al., ICLR 2015, section 3 (the form); Carroll, Chang, Psychometrika 1970 (ALS); Phan et al.,
    "Stable low-rank tensor decomposition for compression of convolutional neural network", ECCV 2020 (degeneracy).
    """
    white, inverse = whiten(weight, covariance)
    shape = tuple(weight.shape)
    modes = (white.flatten(1), white.transpose(0, 1).flatten(1))  # no rank below either unfolding's can keep the share
    least = 1
    if budget.energy is not None:
        kept = [shares(torch.linalg.svdvals(torch.linalg.qr(m.T, mode="r").R)) for m in modes]
        least = max(budget.smallest(k) for k in kept)
    terms = budget.search(
        full_rank(shape),
        lambda r: MultiplyAdds.cp(shape, stride, r),
        MultiplyAdds.dense(shape),
        lambda r: _fit(white, r),
        least,
    )
    ratio = terms.ratio()
    if ratio > _DEGENERATE:
        warnings.warn(
            f"the norms of the {len(terms.inner)} rank-one terms are {ratio:.3g} times the norm of their sum: they "
            "cancel; take another rank, or a Tucker or separable form",
            CPDegenerate,
            stacklevel=2,
        )
    if inverse is not None:
        terms = terms._replace(inner=unwhiten(terms.inner, inverse)).balanced()
    return terms.inner, terms.vertical, terms.horizontal, terms.outer.contiguous()
