"""What a budget chooses is what it promises, and no rank that is smaller (energy) or larger (macs) does."""

import builtins
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import rdkernels as rd
from rdkernels.fits import Budget
from rdkernels.fits.budget import MultiplyAdds
from rdkernels.ops.bicluster_conv2d.cases import BiclusterCase
from rdkernels.ops.cp_conv2d.cases import CPCase
from rdkernels.ops.monochromatic_conv2d.cases import MonochromaticCase
from rdkernels.ops.separable_conv2d.cases import SeparableCase
from rdkernels.ops.tucker_conv2d.cases import TuckerCase


def conv(c: int = 12, o: int = 16, kernel: int = 3, **where) -> nn.Conv2d:
    """Dense, with a spectrum that falls."""
    generator = torch.Generator().manual_seed(0)
    made = nn.Conv2d(c, o, kernel, dtype=torch.float64, **where)
    left, right = (torch.randn(n, n, generator=generator, dtype=torch.float64) for n in (o, c))
    with torch.no_grad():
        made.weight.copy_(torch.randn(o, c, kernel, kernel, generator=generator, dtype=torch.float64))
        left, right = left * torch.logspace(0, -1.5, o), right * torch.logspace(0, -1.5, c)
        made.weight.copy_(torch.einsum("ocij,op,cq->pqij", made.weight, left, right))
    return made


FORMS = {
    "separable": rd.nn.SeparableConv2d,
    "cp": rd.nn.CPConv2d,
    "tucker": rd.nn.TuckerConv2d,
    "bicluster": rd.nn.BiclusterConv2d,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("energy", [0.3, 0.9, 0.99])
def test_energy_is_kept(form: str, energy: float) -> None:
    dense = conv(8, 10)
    layer = FORMS[form].from_dense(dense, energy=energy)
    assert 1 - layer.relative_error(dense) ** 2 >= energy - 1e-9


@pytest.mark.parametrize("energy", [0.3, 0.9, 0.999, 1.0])
def test_energy_takes_the_smallest_rank(energy: float) -> None:
    dense, linear = conv(), nn.Linear(20, 30, dtype=torch.float64)
    for layer, twin in (
        (rd.nn.SeparableConv2d.from_dense(dense, energy=energy), dense),
        (rd.nn.LowRankLinear.from_dense(linear, energy=energy), linear),
    ):
        if layer.rank > 1:
            smaller = type(layer).from_dense(twin, rank=layer.rank - 1)
            assert 1 - smaller.relative_error(twin) ** 2 < energy
        assert 1 - layer.relative_error(twin) ** 2 >= energy - 1e-9


def test_energy_takes_the_cheapest_pair() -> None:
    """Against every pair of ranks, decomposed by an HOSVD written out here."""
    dense = conv()
    weight, total = dense.weight.detach(), float(dense.weight.detach().square().sum())
    left = torch.linalg.svd(weight.flatten(1)).U
    right = torch.linalg.svd(weight.transpose(0, 1).flatten(1)).U
    chosen = rd.nn.TuckerConv2d.from_dense(dense, energy=0.9).rank
    price = MultiplyAdds.tucker(weight.shape, (1, 1), *chosen)
    enough = []
    for r1 in range(1, 13):
        for r2 in range(1, 17):
            core = torch.einsum("ocij,oq,cp->qpij", weight, left[:, :r2], right[:, :r1])
            if float(core.square().sum()) >= 0.9 * total:
                enough.append(MultiplyAdds.tucker(weight.shape, (1, 1), r1, r2))
    assert price == min(enough)


def test_energy_of_colours() -> None:
    """The smallest number of colours that keeps the share; where none does, the error says what is kept at most."""
    generator = torch.Generator().manual_seed(1)
    colours = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    filters = torch.randn(16, 5, 5, generator=generator, dtype=torch.float64)
    dense = nn.Conv2d(3, 16, 5, dtype=torch.float64)
    with torch.no_grad():
        dense.weight.copy_(colours[torch.arange(16) % 4][:, :, None, None] * filters[:, None])
    layer = rd.nn.MonochromaticConv2d.from_dense(dense, energy=0.999999)
    assert layer.colours.shape == (4, 3) and layer.relative_error(dense) < 1e-3
    with pytest.raises(ValueError, match=r"energy must be at most 0\.\d+, what full rank 16 keeps, got 0.99"):
        rd.nn.MonochromaticConv2d.from_dense(conv(), energy=0.99)


@pytest.mark.parametrize("form", [*FORMS, "linear"])
@pytest.mark.parametrize("multiple", [1, 16])
@pytest.mark.parametrize("macs", [2.5, 4.0])
def test_macs_takes_the_largest_rank(form: str, multiple: int, macs: float) -> None:
    torch.manual_seed(0)
    if form == "linear":
        layer = rd.nn.LowRankLinear.from_dense(nn.Linear(240, 320), macs=macs, rank_multiple=multiple)
    else:
        dense = nn.Conv2d(64, 96, 3, stride=1)
        more = {"clusters": (2, 2)} if form == "bicluster" else {}
        layer = FORMS[form].from_dense(dense, macs=macs, rank_multiple=multiple, **more)
    own, dense_macs = layer._sizes()
    assert dense_macs / own >= macs
    ranks = (layer.rank,) if isinstance(layer.rank, int) else layer.rank
    assert all(rank % multiple == 0 for rank in ranks if rank >= multiple)
    one_more = [rank + multiple for rank in ranks]
    if form == "linear":
        larger = rd.nn.LowRankLinear(240, 320, rank=one_more[0])
    else:
        more = {"clusters": (2, 2)} if form == "bicluster" else {}
        larger = FORMS[form](64, 96, 3, rank=tuple(one_more) if len(ranks) == 2 else one_more[0], **more)
    own, dense_macs = larger._sizes()
    assert dense_macs / own < macs


def test_macs_counts_the_stride() -> None:
    """Stages before the stride cost more per output: fewer ranks for the same factor."""
    ranks = [
        rd.nn.TuckerConv2d.from_dense(conv(32, 32, stride=stride), macs=2.0, rank_multiple=1).rank
        for stride in (1, 2, 4)
    ]
    assert ranks[0] > ranks[1] > ranks[2]


def test_small_ranks_are_not_rounded() -> None:
    assert rd.nn.SeparableConv2d.from_dense(conv(), macs=4.0).rank == 5  # 1728 / 4 / (36 + 48)


@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
def test_multiply_adds_are_those_of_the_cases(stride: tuple[int, int]) -> None:
    """Per output position, of a map without borders: two counts of the same thing, one in the room, one here."""
    size = {"n": 1, "c": 12, "h": 6 * stride[0], "w": 5 * stride[1], "out": 16, "kernel": (3, 3)}
    shape, where = (16, 12, 3, 3), {"stride": stride, "padding": 1}
    for case, own in (
        (SeparableCase("s", **size, ranks=(7,), **where), MultiplyAdds.separable(shape, stride, 7)),
        (CPCase("c", **size, ranks=(7,), **where), MultiplyAdds.cp(shape, stride, 7)),
        (TuckerCase("t", **size, ranks=(5, 7), **where), MultiplyAdds.tucker(shape, stride, 5, 7)),
        (MonochromaticCase("m", **size, ranks=(4,), **where), MultiplyAdds.monochromatic(shape, stride, 4)),
        (BiclusterCase("b", **size, ranks=(2, 4, 3, 2), **where), MultiplyAdds.bicluster(shape, stride, (2, 4), 3, 2)),
    ):
        assert case.size == (6, 5)
        assert case.macs() == own * math.prod(case.size), case.op
        assert case.dense_macs() == MultiplyAdds.dense(shape) * math.prod(case.size)


@given(
    st.lists(st.floats(0.001, 1), min_size=1, max_size=30),
    st.floats(0.01, 1),
)
def test_one_energy(values: list[float], energy: float) -> None:
    kept = torch.tensor(values, dtype=torch.float64).sort(descending=True).values.cumsum(0)
    kept = kept / kept[-1]
    rank = Budget(energy=energy).one(len(kept), lambda r: r, 1, lambda: kept)
    assert kept[rank - 1] >= energy - 1e-12 or rank == len(kept)
    assert rank == 1 or kept[rank - 2] < energy


@given(st.integers(1, 300), st.floats(0.1, 50), st.integers(1, 40))
def test_one_macs(full: int, macs: float, multiple: int) -> None:
    dense = 1000
    if dense < macs * 10:
        with pytest.raises(ValueError, match="macs must be at most 100"):
            Budget(macs=macs, rank_multiple=multiple).one(full, lambda r: 10 * r, dense, torch.Tensor)
        return
    rank = Budget(macs=macs, rank_multiple=multiple).one(full, lambda r: 10 * r, dense, torch.Tensor)
    step = multiple if rank >= multiple else 1
    assert dense >= macs * 10 * rank and 1 <= rank <= full
    assert rank + step > full or dense < macs * 10 * (rank + step)


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 10))
def test_search_finds_the_first_rank(full: int, first: int, least: int) -> None:
    """Where the share grows with the rank, the search ends at the first that keeps enough."""
    first, least = min(first, full), min(least, full)
    tried = []

    def fit(rank: int) -> tuple[int, float]:
        tried.append(rank)
        return rank, 0.9 if rank >= first else 0.1

    assert Budget(energy=0.5).search(full, int, 1, fit, least) == max(first, least)
    assert len(tried) <= 2 * full.bit_length() + 2


def test_scipy_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Balanced clusters alone need it; without it the error says what to install."""
    real = builtins.__import__

    def without(module: str, *args, **kwargs):
        if module.startswith("scipy"):
            raise ImportError(module)
        return real(module, *args, **kwargs)

    monkeypatch.setattr("builtins.__import__", without)
    assert rd.nn.TuckerConv2d.from_dense(conv(), rank=2).rank == (2, 2)
    with pytest.raises(ImportError, match=r"pip install 'rdkernels\[compress\]'"):
        rd.nn.MonochromaticConv2d.from_dense(conv(), rank=2)
