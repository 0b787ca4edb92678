"""The specs: what they accept, the layer they make, and that fit, fresh and refit mean one thing."""

import dataclasses
import zlib
from typing import Any

import pytest
import torch
from torch import nn

import rdkernels as rd
from rdkernels.compress import InputCovariance, Spec

C, O = 6, 8  # noqa: E741

CONV: dict[str, tuple[Spec, type[nn.Module]]] = {
    "lowrank": (rd.LowRank(3), rd.nn.SeparableConv2d),
    "separable": (rd.Separable(3), rd.nn.SeparableConv2d),
    "cp": (rd.CP(4), rd.nn.CPConv2d),
    "tucker": (rd.Tucker((3, 4)), rd.nn.TuckerConv2d),
    "monochromatic": (rd.Monochromatic(4), rd.nn.MonochromaticConv2d),
    "bicluster": (rd.Bicluster((2, 3), clusters=(3, 2)), rd.nn.BiclusterConv2d),
}
LINEAR: dict[str, tuple[Spec, type[nn.Module]]] = {
    "lowrank": (rd.LowRank(3), rd.nn.LowRankLinear),
    "hashed": (rd.Hashed(4, seed=5), rd.nn.HashedLinear),
    "hashed bias": (rd.Hashed(4, seed=5, hashed_bias=True), rd.nn.HashedLinear),
    "hashed chunk": (rd.Hashed(4, "chunk", seed=5), rd.nn.HashedLinear),
}


def conv(**more: Any) -> nn.Conv2d:
    return nn.Conv2d(C, O, (3, 2), stride=2, padding=1, dilation=(1, 2), dtype=torch.float64, **more).eval()


def linear(**more: Any) -> nn.Linear:
    return nn.Linear(20, 12, dtype=torch.float64, **more).eval()


ALL = [pytest.param(*v, conv, id=f"conv {k}") for k, v in CONV.items()]
ALL += [pytest.param(*v, linear, id=f"linear {k}") for k, v in LINEAR.items()]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("spec", "cls", "dense"), ALL)
def test_the_layer_made(spec: Spec, cls: type[nn.Module], dense: Any, bias: bool) -> None:
    layer = dense(bias=bias)
    assert spec.problem(layer) is None and isinstance(layer, spec.types)
    before = {name: p.clone() for name, p in layer.named_parameters()}
    for made in (spec.fit(layer), spec.fresh(layer)):
        assert type(made) is cls and not made.training
        assert made.materialize().shape == layer.weight.shape and made.materialize().dtype == torch.float64
        x = torch.randn(2, C, 7, 7).double() if dense is conv else torch.randn(2, 20).double()
        y = made(x)
        assert y.shape == layer(x).shape
        own_bias = made.materialize_bias() if isinstance(made, rd.nn.HashedLinear) else made.bias
        assert (own_bias is not None) == bias
        twin = dense(bias=bias)
        with torch.no_grad():
            twin.weight.copy_(made.materialize())
            if bias:
                twin.bias.copy_(own_bias)
        torch.testing.assert_close(y, twin(x))
    assert all(torch.equal(before[name], p) for name, p in layer.named_parameters())


@pytest.mark.parametrize(("spec", "cls", "dense"), ALL)
def test_a_fit_is_closer_than_chance_and_fresh_is_random(spec: Spec, cls: type[nn.Module], dense: Any) -> None:
    layer = dense()
    near, one, two = spec.fit(layer), spec.fresh(layer), spec.fresh(layer)
    gap = [(layer.weight - m.materialize()).norm() for m in (near, one)]
    assert gap[0] < layer.weight.norm() < gap[1]
    assert not torch.equal(one.materialize(), two.materialize())
    torch.manual_seed(7)
    first = spec.fresh(layer).materialize()
    torch.manual_seed(7)
    assert torch.equal(first, spec.fresh(layer).materialize())


@pytest.mark.parametrize(("spec", "cls", "dense"), ALL)
def test_refit_projects_in_place(spec: Spec, cls: type[nn.Module], dense: Any) -> None:
    layer = dense()
    weight, values = layer.weight, layer.weight.detach().clone()
    near = spec.fit(layer).materialize()
    error = spec.refit(layer)
    assert layer.weight is weight and 0 < error < 1
    if "bias" not in repr(spec) or not spec.hashed_bias:  # type: ignore[attr-defined]
        torch.testing.assert_close(weight, near, check_dtype=False)
        assert spec.refit(layer) < 1e-3  # it is there already; iterations may end a little apart
    assert error == pytest.approx(float((weight - values).detach().norm() / values.norm()))


@pytest.mark.parametrize("spec", [rd.Separable, rd.CP, rd.Tucker, rd.Monochromatic, rd.Bicluster, rd.LowRank])
def test_ratio_decides_the_rank_alike(spec: Any) -> None:
    """A fresh layer has the shape that a fit to the same ratio has."""
    dense = nn.Conv2d(16, 32, 3, padding=1)
    for multiple in (1, 16):
        chosen = spec(ratio=2.0, rank_multiple=multiple)
        shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (chosen.fit(dense), chosen.fresh(dense))]
        assert shapes[0] == shapes[1]
        own, full = chosen.fresh(dense)._sizes()
        assert full >= 2 * own


def test_energy_needs_a_weight() -> None:
    layer = nn.Linear(20, 12)
    chosen = rd.LowRank(energy=0.5)
    near = chosen.fit(layer)
    assert near.relative_error(layer) <= 0.5**0.5  # type: ignore[operator]
    with pytest.raises(ValueError, match="LowRank: rank or ratio must be given for a fresh layer"):
        chosen.fresh(layer)


def test_input_cov_is_the_metric_of_the_fit() -> None:
    """It beats the weight's own metric on the inputs that the observer saw, and loses on the weight."""
    layer, x = nn.Linear(20, 12), torch.randn(500, 20) * torch.logspace(0, -2, 20)
    chosen = rd.LowRank(3, metric="input_cov")
    observer = chosen.observer(layer)
    assert isinstance(observer, InputCovariance) and rd.LowRank(3).observer(layer) is None
    with observer.attached(layer):
        layer(x)
    ours, plain = chosen.fit(layer, observer), rd.LowRank(3).fit(layer)
    error = [(layer(x) - m(x)).norm() for m in (ours, plain)]
    assert error[0] < 0.9 * error[1]
    assert ours.relative_error(layer) > plain.relative_error(layer)  # type: ignore[operator]
    with pytest.raises(ValueError, match="calibrator must be given"):
        chosen.fit(layer)


def test_hashed_seeds() -> None:
    layer = nn.Linear(20, 12)
    assert rd.Hashed(4, seed=5).fit(layer).seed == 5
    assert rd.Hashed(4, seed=5).for_layer("fc1").seed == (5 + zlib.crc32(b"fc1")) % 2**32
    drawn = [rd.Hashed(4).for_layer("fc1").seed for _ in range(2)]
    assert drawn[0] != drawn[1] and None not in drawn
    assert rd.LowRank(3).for_layer("fc1") == rd.LowRank(3)


def test_hashed_bias_is_fitted_with_the_weight() -> None:
    """Each entry is the mean of its members, the biases among them."""
    layer = nn.Linear(7, 5, dtype=torch.float64)
    near = rd.Hashed(4, seed=5, hashed_bias=True).fit(layer)
    assert near.hashed_bias and near.bias is None
    whole = torch.cat([layer.weight, layer.bias[:, None]], 1).detach().requires_grad_()
    bank = near.bank.weight.detach().requires_grad_()
    o, i = torch.arange(5)[:, None], torch.arange(8)[None, :]
    index, sign = rd.hashing.index_and_sign_at(o, i, near.slots, near.granule, near.seed)
    (bank[index] * sign - whole).square().sum().backward()
    assert bank.grad is not None and bank.grad.abs().max() < 1e-12  # least squares


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: rd.LowRank(), "LowRank: exactly one of rank, energy and ratio must be given, got none"),
        (lambda: rd.Tucker(3, ratio=2), "Tucker: exactly one of rank, energy and ratio"),
        (lambda: rd.CP(0), "CP: rank must be >= 1, got 0"),
        (lambda: rd.CP((3, 4)), "CP: rank must be an int"),
        (lambda: rd.Tucker((3, 4, 5)), "Tucker: rank must be an int or a pair"),
        (lambda: rd.LowRank(energy=1.5), r"LowRank: energy must be in \(0, 1\], got 1.5"),
        (lambda: rd.LowRank(ratio=0), "LowRank: ratio must be a finite number > 0, got 0"),
        (lambda: rd.LowRank(ratio="2"), "LowRank: ratio must be a real number, got '2'"),
        (lambda: rd.LowRank(3, rank_multiple=0), "LowRank: rank_multiple must be >= 1"),
        (lambda: rd.LowRank(3, metric="data"), 'LowRank: metric must be "weight" or "input_cov"'),
        (lambda: rd.CP(3, activation="tanh"), "CP: activation must be None or one of"),
        (lambda: rd.Bicluster(3, clusters=(2, 2, 2)), "Bicluster: clusters must be an int or a pair"),
        (lambda: rd.Hashed(0), "Hashed: compression must be a finite number > 0, got 0"),
        (lambda: rd.Hashed(8, "row"), "Hashed: granule must be one of"),
        (lambda: rd.Hashed(8, seed=-1), "Hashed: seed must be an int"),
        (lambda: rd.Hashed(8, "chunk", hashed_bias=True), 'Hashed: hashed_bias=True needs granule "element"'),
    ],
)
def test_a_bad_spec_is_refused_when_made(make: Any, text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=text):
        make()


@pytest.mark.parametrize(
    ("spec", "layer", "text"),
    [
        (rd.CP(4), nn.Conv2d(6, 8, 3, groups=2), "groups must be 1, got 2"),
        (rd.CP(4), nn.Conv2d(6, 8, 3, padding_mode="circular"), "padding_mode must be \"zeros\", got 'circular'"),
        (rd.LowRank(13), nn.Linear(20, 12), "rank must be from 1 to 12, got 13"),
        (rd.Tucker((3, 9)), nn.Conv2d(6, 8, 3), r"rank\[1\] must be from 1 to 8, got 9"),
        (rd.Bicluster(1, clusters=4), nn.Conv2d(6, 8, 3), r"clusters\[0\] must divide the 6 input channels, got 4"),
        (rd.LowRank(ratio=100), nn.Linear(20, 12), "ratio must be at most 7.5, what rank 1 reaches, got 100"),
        (rd.Hashed(8), nn.Linear(20, 12, dtype=torch.complex64), "dtype must be one of"),
        (rd.CP(4), nn.Conv2d(6, 8, 3, dtype=torch.complex64), "dtype must be one of"),
    ],
)
def test_problems(spec: Spec, layer: nn.Module, text: str) -> None:
    problem = spec.problem(layer)
    assert problem is not None
    with pytest.raises(ValueError, match=text):
        raise ValueError(problem)


def test_specs_are_values() -> None:
    assert rd.Tucker([3, 4]) == rd.Tucker((3, 4)) and len({rd.Tucker([3, 4]), rd.Tucker((3, 4)), rd.CP(3)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        rd.LowRank(3).rank = 4  # type: ignore[misc]
