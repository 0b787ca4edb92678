"""The fits: optimal where a closed form says so, monotone, exact on planted structure, balanced, deterministic."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from rdkernels.fits import Budget, CPDegenerate, bicluster, cp, linear, monochromatic, separable, tucker
from rdkernels.fits.als import _fit, _orthogonal_start, _sweeps, full_rank
from rdkernels.fits.clusters import balanced_subspaces, even_sizes
from rdkernels.fits.hooi import hooi, hosvd_energies
from rdkernels.fits.svd import leading


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def compose_cp(inner: Tensor, vertical: Tensor, horizontal: Tensor, outer: Tensor) -> Tensor:
    return torch.einsum("rc,ri,rj,or->ocij", inner, vertical, horizontal, outer)


def relative(weight: Tensor, other: Tensor) -> float:
    return float((weight - other).norm() / weight.norm())


SIZES = st.integers(1, 6)
SHAPES = st.tuples(SIZES, SIZES, st.integers(1, 4), st.integers(1, 4))


# -- closed forms ------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.data())
def test_separable_is_the_best_of_its_rank(shape: tuple[int, ...], data) -> None:
    """The error is the tail of the unfolding's singular values: Eckart-Young."""
    o, c, kh, kw = shape
    rank = data.draw(st.integers(1, min(c * kh, o * kw)))
    weight = normal(*shape)
    vertical, horizontal = separable(weight, Budget(rank=rank))
    assert vertical.shape == (rank, c, kh) and horizontal.shape == (o, rank, kw)
    tail = torch.linalg.svdvals(weight.permute(1, 2, 0, 3).reshape(c * kh, o * kw))[rank:].square().sum()
    error = (weight - torch.einsum("rci,orj->ocij", vertical, horizontal)).square().sum()
    torch.testing.assert_close(error, tail, rtol=1e-9, atol=1e-20)
    torch.testing.assert_close(vertical.norm(), horizontal.norm())  # the same scale on either side


@settings(max_examples=20, deadline=None)
@given(SIZES, SIZES, st.data())
def test_linear_is_the_best_of_its_rank(out: int, in_: int, data) -> None:
    rank = data.draw(st.integers(1, min(out, in_)))
    weight = normal(out, in_)
    down, up = linear(weight, Budget(rank=rank))
    tail = torch.linalg.svdvals(weight)[rank:].square().sum()
    torch.testing.assert_close((weight - up @ down).square().sum(), tail, rtol=1e-9, atol=1e-20)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_leading(n: int, m: int, data) -> None:
    """Orthonormal, and nothing of that rank keeps more."""
    rank = data.draw(st.integers(1, n))
    matrix = normal(n, m)
    basis = leading(matrix, rank)
    torch.testing.assert_close(basis.T @ basis, torch.eye(rank, dtype=torch.float64))
    torch.testing.assert_close(
        (basis.T @ matrix).square().sum(), torch.linalg.svdvals(matrix)[:rank].square().sum(), rtol=1e-9, atol=1e-12
    )


# -- Tucker ------------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(SHAPES, st.data())
def test_hooi_keeps_at_least_what_hosvd_keeps(shape: tuple[int, ...], data) -> None:
    o, c = shape[:2]
    r1, r2 = data.draw(st.integers(1, c)), data.draw(st.integers(1, o))
    weight = normal(*shape)
    inner, core, outer = hooi(weight, r1, r2)
    torch.testing.assert_close(inner @ inner.T, torch.eye(r1, dtype=torch.float64))
    torch.testing.assert_close(outer.T @ outer, torch.eye(r2, dtype=torch.float64))
    kept = float(core.square().sum())
    assert kept >= float(hosvd_energies(weight)[r1 - 1, r2 - 1]) - 1e-9
    error = float((weight - torch.einsum("oq,qpij,pc->ocij", outer, core, inner)).square().sum())
    assert error == pytest.approx(float(weight.square().sum()) - kept, abs=1e-9)


def test_hooi_beats_hosvd() -> None:
    weight = normal(20, 16, 3, 3)
    _, core, _ = tucker(weight, Budget(rank=(4, 5)))
    assert float(core.square().sum()) > 1.02 * float(hosvd_energies(weight)[3, 4])


def test_tucker_finds_its_ranks() -> None:
    weight = torch.einsum("oq,qpij,pc->ocij", normal(12, 3), normal(3, 2, 3, 3, seed=1), normal(2, 10, seed=2))
    inner, core, outer = tucker(weight, Budget(energy=1.0))
    assert core.shape == (3, 2, 3, 3)
    assert relative(weight, torch.einsum("oq,qpij,pc->ocij", outer, core, inner)) < 1e-12


# -- CP ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "rank"), [((8, 6, 3, 3), 1), ((8, 6, 3, 3), 6), ((8, 6, 3, 3), 9), ((12, 3, 5, 5), 7), ((9, 8, 1, 1), 4)]
)
def test_cp_finds_planted_terms(shape: tuple[int, ...], rank: int) -> None:
    o, c, kh, kw = shape
    planted = normal(rank, c, seed=1), normal(rank, kh, seed=2), normal(rank, kw, seed=3), normal(o, rank, seed=4)
    weight = compose_cp(*planted)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CPDegenerate)
        assert relative(weight, compose_cp(*cp(weight, Budget(rank=rank)))) < 1e-6


@settings(max_examples=25, deadline=None)
@given(SHAPES)
def test_cp_is_exact_at_full_rank(shape: tuple[int, ...]) -> None:
    weight = normal(*shape)
    assert relative(weight, compose_cp(*cp(weight, Budget(rank=full_rank(shape))))) < 1e-12


def test_orthogonal_start_has_orthogonal_terms() -> None:
    """Their energies add up, nothing cancels; and the fit is never worse than this start."""
    weight = normal(7, 5, 3, 2)
    for rank in (1, 4, 11, 30):
        start = _orthogonal_start(weight, rank)
        assert start.energy() == pytest.approx(float(start.norms().square().sum()))
        _, share = _fit(weight, rank)
        assert share >= start.energy() / float(weight.square().sum()) - 1e-9


def test_cp_is_balanced() -> None:
    inner, vertical, horizontal, outer = cp(normal(12, 10, 3, 3), Budget(rank=6))
    norms = torch.stack([inner.norm(dim=1), vertical.norm(dim=1), horizontal.norm(dim=1), outer.norm(dim=0)])
    torch.testing.assert_close(norms, norms[:1].expand(4, -1))


def test_cp_residual_is_the_true_one() -> None:
    """The share of energy that the search goes by, against the composed weight."""
    weight = normal(12, 10, 3, 3)
    terms, share = _fit(weight, 9)
    assert 1 - relative(weight, compose_cp(*terms)) ** 2 == pytest.approx(share, abs=1e-9)


def falling(o: int, c: int) -> Tensor:
    """A weight whose channels' spectrum falls as a trained one's does: plain ALS on it degenerates."""
    left, right = (normal(n, n, seed=n) * torch.logspace(0, -1.3, n, dtype=torch.float64) for n in (o, c))
    return torch.einsum("ocij,op,cq->pqij", normal(o, c, 3, 3), left, right)


def test_cp_is_held_back_from_degeneracy() -> None:
    """Where plain ALS (the negative control) cancels, the fit does not, and is no worse than the start."""
    weight, rank = falling(32, 24), 20
    plain, _ = _sweeps(weight, _orthogonal_start(weight, rank), 400)
    assert plain.ratio() > 5
    terms, share = _fit(weight, rank)
    assert terms.ratio() <= 5
    assert share > _orthogonal_start(weight, rank).energy() / float(weight.square().sum())
    assert share > 0.995 * (1 - relative(weight, compose_cp(*plain)) ** 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CPDegenerate)
        cp(weight, Budget(rank=rank))


def test_border_rank_is_not_chased() -> None:
    """Border rank 2, rank 3: terms of rank 2 would come ever closer by growing against each other."""
    a, b = torch.eye(2, dtype=torch.float64)
    weight = sum(torch.einsum("o,c,i->oci", *t) for t in ((a, a, b), (a, b, a), (b, a, a)))[..., None]
    assert _fit(weight, 2)[0].ratio() <= 5
    assert relative(weight, compose_cp(*cp(weight, Budget(rank=2)))) < 0.1
    assert relative(weight, compose_cp(*cp(weight, Budget(rank=3)))) < 1e-6


def test_degenerate_weight_warns() -> None:
    """Two large terms that nearly cancel, and nothing else meets the weight: met, with a warning that has the ratio."""
    one = [normal(1, n, seed=n) for n in (4, 3, 5, 6)]
    near = [t + 0.02 * normal(1, t.shape[1], seed=9) for t in one]
    inner, vertical, horizontal, outer = (torch.cat(pair) for pair in zip(one, near, strict=True))
    weight = compose_cp(inner, vertical, horizontal, (outer * torch.tensor([[1.0], [-1.0]])).T)
    with pytest.warns(CPDegenerate, match=r"2 rank-one terms are \d+(\.\d+)? times the norm of their sum"):
        assert relative(weight, compose_cp(*cp(weight, Budget(rank=2)))) < 1e-5


# -- groups ------------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.data())
def test_groups_have_their_sizes(items: int, data) -> None:
    count = data.draw(st.integers(1, items))
    sizes = even_sizes(items, count)
    assert sum(sizes) == items and max(sizes) - min(sizes) <= 1
    groups, bases = balanced_subspaces(normal(items, 3, 4), sizes, 1)
    assert torch.bincount(groups, minlength=count).tolist() == sizes
    torch.testing.assert_close(bases.norm(dim=1), torch.ones(count, 1, dtype=torch.float64))


def test_a_line_has_no_sign() -> None:
    """Items on two lines, of either sign: the groups are the lines."""
    lines = torch.tensor([[1.0, 0.1, 0.0], [0.0, 0.2, 1.0]], dtype=torch.float64)
    which = torch.tensor([0, 1, 1, 0, 0, 1, 0, 1])
    sign = torch.tensor([1, -1, 1, -1, 1, 1, -1, -1], dtype=torch.float64)
    items = (lines[which] * sign[:, None] * torch.arange(1, 9)[:, None])[:, :, None]
    groups, _ = balanced_subspaces(items, [4, 4], 1)
    assert torch.equal(groups == groups[0], which == which[0])


def plain_monochromatic(weight: Tensor, colours: int) -> float:
    """Denton's way: first singular vectors, balanced k-means of them, each filter's own s; the squared error."""
    o = weight.shape[0]
    left, values, right = torch.linalg.svd(weight.flatten(2), full_matrices=False)
    vectors, own = left[:, :, 0], values[:, :1] * right[:, 0]
    centres = vectors[:: o // colours][:colours].clone()
    for _ in range(50):
        cost = torch.cdist(vectors, centres).square().repeat_interleave(o // colours, 1)
        _, seats = linear_sum_assignment(cost.numpy())
        groups = torch.from_numpy(seats) // (o // colours)
        centres = torch.stack([vectors[groups == g].mean(0) for g in range(colours)])
    return float((weight.flatten(2) - centres[groups][:, :, None] * own[:, None]).square().sum())


@pytest.mark.parametrize("colours", [2, 4, 6])
def test_monochromatic_beats_the_plain_recipe(colours: int) -> None:
    weight = normal(24, 3, 5, 5) + 2 * normal(24, 3, 1, 1, seed=1) * normal(24, 1, 5, 5, seed=2)
    found, filters, assignment = monochromatic(weight, Budget(rank=colours))
    assert torch.bincount(assignment).tolist() == [24 // colours] * colours
    ours = float((weight - found[assignment][:, :, None, None] * filters[:, None]).square().sum())
    assert ours < 0.9 * plain_monochromatic(weight, colours)


def test_monochromatic_filters_are_the_least_squares_ones() -> None:
    weight = normal(10, 3, 4, 4)
    colours, filters, assignment = monochromatic(weight, Budget(rank=3))
    for o in range(10):
        best = torch.linalg.lstsq(colours[assignment[o]][:, None], weight[o].flatten(1)).solution
        torch.testing.assert_close(filters[o].flatten(), best[0])
    assert sorted(torch.bincount(assignment).tolist()) == [3, 3, 4]


def planted_bicluster(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Clusters in subspaces of their own, shuffled: the weight and the clusters of its inputs and outputs."""
    g, h, k1, k2, c, o = 2, 3, 2, 2, 12, 18
    inner, core = normal(g, h, k1, c // g, seed=seed), normal(g, h, k2, k1, 3, 3, seed=seed + 1)
    outer = normal(h, o // h, g, k2, seed=seed + 2)
    inner, outer = inner[:, :1].expand(-1, h, -1, -1), outer[:, :, :1].expand(-1, -1, g, -1)
    ordered = torch.einsum("hbgq,ghqpij,ghpa->hbgaij", outer, core, inner).reshape(o, c, 3, 3)
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.randperm(o, generator=generator), torch.randperm(c, generator=generator)
    return ordered[rows][:, columns], columns // (c // g), rows // (o // h)


@pytest.mark.parametrize("seed", [0, 10, 20])
def test_bicluster_finds_planted_clusters(seed: int) -> None:
    weight, columns, rows = planted_bicluster(seed)
    inner, core, outer, inputs, outputs = bicluster(weight, Budget(rank=(2, 2)), clusters=(2, 3))
    for order, truth, size in ((inputs, columns, 6), (outputs, rows, 6)):
        assert all(len(set(part.tolist())) == 1 for part in truth[order].split(size))
    ordered = torch.einsum("hbgq,ghqpij,ghpa->hbgaij", outer, core, inner).reshape(18, 12, 3, 3)
    assert relative(weight[outputs][:, inputs], ordered) < 1e-9


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_bicluster_orders_are_permutations(g: int, h: int, own: int, outs: int) -> None:
    *_, inputs, outputs = bicluster(normal(h * outs, g * own, 2, 2), Budget(rank=1), clusters=(g, h))
    assert sorted(inputs.tolist()) == list(range(g * own)) and sorted(outputs.tolist()) == list(range(h * outs))


# -- all of them -------------------------------------------------------------------------------------------------------

ALL = {
    "separable": lambda w, b: separable(w, b),
    "cp": lambda w, b: cp(w, b),
    "tucker": lambda w, b: tucker(w, b),
    "monochromatic": lambda w, b: monochromatic(w, b),
    "bicluster": lambda w, b: bicluster(w, b, clusters=2),
    "linear": lambda w, b: linear(w.flatten(1), b),
}


@pytest.mark.parametrize("form", ALL)
def test_fits_are_deterministic(form: str) -> None:
    weight, before = normal(12, 8, 3, 3), torch.get_rng_state()
    first = ALL[form](weight, Budget(rank=2))
    torch.randn(5)
    state = torch.get_rng_state()
    second = ALL[form](weight, Budget(rank=2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    torch.set_rng_state(before)


@pytest.mark.parametrize("form", ALL)
@pytest.mark.parametrize("bound", [dict(rank=2), dict(energy=0.5)])
def test_weight_of_zeros(form: str, bound: dict) -> None:
    found = ALL[form](torch.zeros(4, 4, 3, 3), Budget(**bound))
    assert all(t.isfinite().all() for t in found)
    if form == "cp":
        assert compose_cp(*found).abs().max() == 0


@pytest.mark.parametrize("form", ALL)
def test_half_precision_weights_are_fitted_in_float64(form: str) -> None:
    weight = normal(8, 6, 3, 3).bfloat16()
    for got, want in zip(ALL[form](weight, Budget(rank=2)), ALL[form](weight.double(), Budget(rank=2)), strict=True):
        assert torch.equal(got, want)
