"""Forms that put channels into groups of equal size: monochromatic and biclustered weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .budget import Budget, MultiplyAdds, pair_of_ranks
from .covariance import unwhiten, whiten
from .hooi import hooi, hosvd_energies
from .svd import leading

_SEEDS = range(6)  # of the starts
_ROUNDS = 50


def even_sizes(items: int, groups: int) -> list[int]:
    """Sizes of `groups` groups of `items` things that differ by one at most, the larger ones first."""
    return [items // groups + (n < items % groups) for n in range(groups)]


def check_clusters(clusters: object, inputs: int, outputs: int) -> tuple[int, int]:
    """`clusters`, an int (both) or (G, H) with G a divisor of the inputs' number and H of the outputs'."""
    pair = pair_of_ranks(clusters, name="clusters")
    for n, (size, name) in enumerate(((inputs, "input"), (outputs, "output"))):
        if size % pair[n]:
            raise ValueError(f"clusters[{n}] must divide the {size} {name} channels, got {pair[n]}")
    return pair


def _assign(gain: Tensor, sizes: Sequence[int]) -> Tensor:
    """The group of each item that maximises the sum of `gain` `[items, groups]` with groups of exactly these sizes."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ImportError("balanced clusters need scipy: pip install 'rdkernels[compress]'") from error
    group = torch.arange(len(sizes), device="cpu").repeat_interleave(torch.tensor(sizes, device="cpu"))
    rows, seats = linear_sum_assignment(gain[:, group].numpy(), maximize=True)
    return group[torch.from_numpy(seats)[torch.from_numpy(rows).argsort()]]


def _basis(items: Tensor, dim: int) -> Tensor:
    """`[D, dim]`: the leading subspace of the items `[n, D, K]`."""
    return leading(items.transpose(0, 1).flatten(1), dim)


def balanced_subspaces(items: Tensor, sizes: Sequence[int], dim: int) -> tuple[Tensor, Tensor]:
    """Groups of exactly these sizes whose items lie closest to one subspace of `dim` dimensions a group.

    `items` `[n, D, K]`: what item f gives to a subspace of basis B is `||B^T items[f]||^2`; the sum over the items is
    maximised by turns over the groups (an assignment problem) and the bases (singular vectors), neither of which can
    lower it, from several starts of fixed seeds. A vector and its negative are the same line.

    Returns:
        The group of each item, int64 `[n]`, and the bases `[len(sizes), D, dim]`.
    """
    count, best = len(sizes), (-1.0, torch.empty(0), torch.empty(0))
    for seed in _SEEDS:
        generator = torch.Generator().manual_seed(seed)
        bases = _spread_start(items, count, dim, generator)
        groups, value = torch.empty(0), -1.0
        for _ in range(_ROUNDS):
            gain = torch.einsum("fdk,gdq->fgqk", items, bases).square().sum((2, 3))
            groups = _assign(gain, sizes)
            bases = torch.stack([_basis(items[groups == g], dim) for g in range(count)])
            reached = float(gain.gather(1, groups[:, None]).sum())  # by the bases of the round before
            if reached <= value * (1 + 1e-12):
                break
            value = reached
        if value > best[0] * (1 + 1e-12):
            best = value, groups, bases
    return best[1], best[2]


def _spread_start(items: Tensor, count: int, dim: int, generator: torch.Generator) -> Tensor:
    """Subspaces of single items and their nearest, each next item drawn by what the ones before leave of it."""
    energy = items.square().sum((1, 2))
    left, bases = energy.clone(), []
    for _ in range(count):
        weights = left.clamp(min=0) + 1e-12 * energy + 1e-300
        first = int(torch.multinomial(weights / weights.sum(), 1, generator=generator))
        line = torch.linalg.svd(items[first], full_matrices=False).U[:, :1]  # [D, 1]
        near = torch.einsum("fdk,dq->fqk", items, line).square().sum((1, 2)) / energy.clamp(min=1e-300)
        bases.append(_basis(items[near.topk(min(len(items), dim)).indices], dim))
        left = left.minimum(energy - torch.einsum("fdk,dq->fqk", items, bases[-1]).square().sum((1, 2)))
    return torch.stack(bases)


def monochromatic(
    weight: Tensor, budget: Budget, *, stride: Sequence[int] = (1, 1), covariance: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """`weight` `[O, C, kh, kw]` -> colours `[C', C]`, filters `[O, kh, kw]`, assignment int64 `[O]`.

    The budget's rank is the number of colours C', from 1 to O. Outputs are dealt to the colours in groups of equal size
    (where C' divides O, else sizes differ by one) so that `sum_f ||W_f - u_f s_f^T||^2` is smallest: given the colours,
    each filter is the least-squares one `s_f = W_f^T u`, so a group's best colour is the leading singular vector of
    its `[W_f ...]`. (Denton clusters the first singular vectors by k-means and keeps each filter's own s_f.)

    Source: Denton et al., NIPS 2014, section 3.3.
    """
    white, inverse = whiten(weight, covariance)
    o = weight.shape[0]
    shape, items = tuple(weight.shape), white.flatten(2)
    total = max(float(items.square().sum()), 1e-300)

    def fit(count: int) -> tuple[tuple[Tensor, Tensor], float]:
        groups, bases = balanced_subspaces(items, even_sizes(o, count), 1)
        colours = bases[:, :, 0]
        kept = float(torch.einsum("fck,fc->fk", items, colours[groups]).square().sum())
        return (groups, colours), kept / total if total > 1e-300 else 1.0

    groups, colours = budget.search(
        o, lambda r: MultiplyAdds.monochromatic(shape, stride, r), MultiplyAdds.dense(shape), fit
    )
    filters = torch.einsum("ockl,oc->okl", white, colours[groups])
    return unwhiten(colours, inverse).contiguous(), filters.contiguous(), groups


def bicluster(
    weight: Tensor, budget: Budget, *, clusters: int | Sequence[int], stride: Sequence[int] = (1, 1)
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`weight` `[O, C, kh, kw]` -> inner, core, outer, inputs, outputs of `rdkernels.bicluster_conv2d`.

    Inputs and outputs are put into G and H clusters of equal size, either by the subspaces that their normalised
    unfoldings span, and each pair of clusters is decomposed by HOOI to the budget's ranks (K1, K2), the same for all
    pairs. Full ranks are (C / G, O / H).

    Source: Denton et al., NIPS 2014, section 3.4, with HOOI in place of two successive SVDs.
    """
    o, c, kh, kw = shape = tuple(weight.shape)
    g, h = check_clusters(clusters, c, o)
    white, _ = whiten(weight, None)
    full = c // g, o // h
    known = budget.energy is None
    guess = tuple(max(1, n // 4) for n in full)

    def cost(k1: int, k2: int) -> int:
        return MultiplyAdds.bicluster(shape, stride, (g, h), k1, k2)

    k1, k2 = budget.two(full, cost, MultiplyAdds.dense(shape), lambda: torch.empty(0)) if known else guess
    inputs = _cluster_order(white.transpose(0, 1).flatten(1), g, k1)
    outputs = _cluster_order(white.flatten(1), h, k2)
    pairs = white[outputs][:, inputs].reshape(h, o // h, g, c // g, kh, kw).permute(2, 0, 1, 3, 4, 5)
    if not known:

        def kept() -> Tensor:
            energies = torch.stack([hosvd_energies(pair) for pair in pairs.flatten(0, 1)]).sum(0)
            return energies / energies[-1, -1] if energies[-1, -1] > 0 else torch.ones_like(energies)

        k1, k2 = budget.two(full, cost, MultiplyAdds.dense(shape), kept)
    found = [[hooi(pair, k1, k2) for pair in row] for row in pairs]
    inner, core, outer = (torch.stack([torch.stack([f[n] for f in row]) for row in found]) for n in range(3))
    return inner.contiguous(), core.contiguous(), outer.permute(1, 2, 0, 3).contiguous(), inputs, outputs


def _cluster_order(rows: Tensor, count: int, dim: int) -> Tensor:
    """The rows' numbers, cluster after cluster and ascending in each."""
    if count == 1:
        return torch.arange(len(rows), device="cpu")
    if rows.shape[1] > rows.shape[0]:
        rows = torch.linalg.qr(rows.T, mode="r").R.T  # the same angles in fewer coordinates
    items = torch.nn.functional.normalize(rows, dim=1)[:, :, None]
    groups, _ = balanced_subspaces(items, even_sizes(len(rows), count), min(dim, rows.shape[1]))
    return torch.argsort(groups, stable=True)
