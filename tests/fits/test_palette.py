"""The palette's fit: against the exact optimum, and what it promises of zeros, few values and outliers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rdkernels import fits


def distortion(weight: torch.Tensor, codebook: torch.Tensor, index: torch.Tensor) -> float:
    return float((weight.double() - codebook[index.long()]).square().sum())


def optimum(values: list[float], entries: int) -> float:
    """The least sum of squared distances, by dynamic programming over the sorted values."""
    v = torch.tensor(sorted(values), dtype=torch.float64)
    n = len(v)
    sums, squares = (torch.cat([v.new_zeros(1), t.cumsum(0)]) for t in (v, v.square()))
    i, j = torch.arange(n + 1)[:, None], torch.arange(n + 1)
    cost = squares[j] - squares[i] - (sums[j] - sums[i]).square() / (j - i).clamp(min=1)  # of [i, j) in one
    cost = torch.where(i < j, cost.clamp(min=0), torch.where(i == j, 0.0, float("inf")))
    best = cost[0]
    for _ in range(entries - 1):
        best = (best[:, None] + cost).min(0).values
    return float(best[-1])


def drawn(kind: str, n: int) -> torch.Tensor:
    torch.manual_seed(1)
    normal, other = torch.randn(n), torch.randn(n)
    return {
        "normal": normal,
        "uniform": torch.rand(n) - 0.3,
        "laplace": normal * other,
        "student": normal / (torch.randn(3, n).square().mean(0)).sqrt(),
        "two": torch.where(other > 0, normal, 20 + normal / 10),
    }[kind]


KINDS = ["normal", "uniform", "laplace", "student", "two"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5])
def test_few_values_reach_the_optimum(kind: str, bits: int) -> None:
    weight = drawn(kind, 700)
    found = distortion(weight, *fits.palette(weight, bits))
    assert found == pytest.approx(optimum(weight.tolist(), 2**bits), rel=1e-9)


@pytest.mark.parametrize(("bits", "kind"), [*((4, kind) for kind in KINDS), (6, "student")])
def test_more_values_than_cells_come_close(kind: str, bits: int) -> None:
    weight = drawn(kind, 1300)
    best = optimum(weight.tolist(), 2**bits)
    assert best * (1 - 1e-9) <= distortion(weight, *fits.palette(weight, bits)) <= best * (1 + 1e-3)


def test_linear_does_not_reach_it() -> None:
    """Negative control."""
    weight = drawn("student", 700)
    assert distortion(weight, *fits.palette(weight, 3, init="linear")) > 1.1 * optimum(weight.tolist(), 8)


def test_many_weights_come_close_to_the_best_quantizer() -> None:
    """Of normal values, with 16 levels: 0.009497 (Max, 1960)."""
    weight = drawn("normal", 300_000)
    assert distortion(weight, *fits.palette(weight, 4)) / weight.numel() == pytest.approx(0.009497, rel=0.01)


@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=60), st.integers(1, 8), st.booleans(), st.booleans())
def test_any_values(values: list[float], bits: int, zero: bool, linear: bool) -> None:
    weight = torch.tensor(values)
    codebook, index = fits.palette(weight, bits, zero=zero, init="linear" if linear else "optimal")
    assert codebook.shape == (2**bits,) and codebook.dtype == torch.float64 and bool(codebook.isfinite().all())
    free = codebook[1:] if zero else codebook
    assert bool((free.diff() >= 0).all())
    assert index.shape == weight.shape and index.dtype == torch.uint8
    if zero:
        assert float(codebook[0]) == 0 and torch.equal(index == 0, weight == 0)
    gap = (weight.double() - codebook[index.long()]).abs()
    nearest = (weight.double()[:, None] - free).abs().min(1).values
    assert torch.allclose(torch.where(weight == 0, gap, nearest) if zero else nearest, gap, atol=1e-12)
    if len(set(weight[weight != 0].tolist() if zero else values)) <= len(free):
        assert float(gap.max()) == 0


def test_linear_keeps_an_outlier() -> None:
    weight = torch.cat([drawn("normal", 2000), torch.tensor([40.0])])
    codebook, _ = fits.palette(weight, 3, init="linear")
    assert float(codebook[-1]) == 40
    assert distortion(weight, *fits.palette(weight, 3)) < distortion(weight, *fits.palette(weight, 3, init="linear"))


def test_constant_and_pruned() -> None:
    codebook, index = fits.palette(torch.full((3, 2), 0.5), 2)
    assert codebook.tolist() == [0.5] * 4 and index.shape == (3, 2)
    codebook, index = fits.palette(torch.zeros(5), 2, zero=True)
    assert codebook.tolist() == [0] * 4 and index.tolist() == [0] * 5


def test_deterministic_without_torchs_generator() -> None:
    weight = drawn("normal", 1000)
    state = torch.get_rng_state()
    first = fits.palette(weight, 5)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first, fits.palette(weight, 5), strict=True))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight": torch.tensor([1.0, float("nan")])}, ValueError, "weight must be finite"),
        ({"weight": torch.tensor([])}, ValueError, "weight must be finite and not empty"),
        ({"weight": torch.tensor([1])}, TypeError, "weight must be a floating-point Tensor"),
        ({"bits": 0}, ValueError, "bits must be from 1 to 8"),
        ({"bits": 2.0}, TypeError, "bits must be an int"),
        ({"zero": 1}, TypeError, "zero must be True or False"),
        ({"init": "random"}, ValueError, "init must be one of"),
    ],
)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fits.palette(**{"weight": torch.ones(3), "bits": 2, **change})
