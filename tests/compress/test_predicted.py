"""The spec `Predicted`: what it fits, draws, observes and refuses; in a model, by `convert`."""

import dataclasses
import re
import zlib

import pytest
import safetensors.torch
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

import rdkernels as rd
from rdkernels.compress import Predicted
from rdkernels.fits import WeightInputCovariance
from rdkernels.nn import PredictedConv2d, PredictedLinear

ATOMS = torch.randn(64, 30, generator=torch.Generator().manual_seed(0))
LINEAR = [Predicted(0.25, kind, 1 + (kind != "dct"), (8, 8), seed=3) for kind in ("se", "gauss", "identity", "dct")]
LINEAR += [Predicted(0.25, kind, 2, seed=3) for kind in ("emp", "emp2", ATOMS)]
CONV = [Predicted(0.25, kind, seed=3) for kind in ("se", "emp", "emp2", "gauss", "identity", "dct")]


def kind(spec: Predicted) -> str:
    return spec.dictionary if isinstance(spec.dictionary, str) else "tensor"


def seen(spec: Predicted, module: nn.Module, x: torch.Tensor) -> WeightInputCovariance | None:
    observer = spec.observer(module)
    assert (observer is not None) == (kind(spec) in ("emp", "emp2"))
    if observer is not None:
        with observer.attached(module):
            module(x)
    return observer


def layers(spec: Predicted) -> list[tuple[nn.Module, torch.Tensor]]:
    found: list[tuple[nn.Module, torch.Tensor]] = []
    if spec in LINEAR:
        found += [
            (nn.Linear(64, 10, bias, dtype=torch.float64), torch.randn(200, 64).double()) for bias in (True, False)
        ]
    if spec in CONV:
        where = dict(padding=1, dilation=2, padding_mode="circular", dtype=torch.float64)
        found += [
            (nn.Conv2d(3, 8, 3, 2, bias=bias, **where), torch.randn(4, 3, 12, 12).double()) for bias in (True, False)
        ]
    return found


@pytest.mark.parametrize("spec", [*LINEAR, *CONV], ids=kind)
def test_fit_fresh_and_refit(spec: Predicted) -> None:
    for dense, x in layers(spec):
        dense.eval()
        assert isinstance(dense, spec.types) and spec.problem(dense) is None
        before = dense.weight.detach().clone()
        observer = seen(spec, dense, x)
        near, drawn = spec.fit(dense, observer), spec.fresh(dense, observer)
        for layer in (near, drawn):
            assert type(layer) is (PredictedLinear if isinstance(dense, nn.Linear) else PredictedConv2d)
            assert not layer.training and layer.coefficients.dtype == torch.float64
            assert layer.dictionary.seed == (0 if spec.dictionary == "dct" else 3)
            weight, bias = layer.materialize().detach(), layer.bias
            twin = {"weight": weight} | ({} if bias is None else {"bias": bias.detach()})
            torch.testing.assert_close(layer(x), torch.func.functional_call(dense, twin, (x,)))
        assert (near.bias is None) == (dense.bias is None) and (near.bias is None or torch.equal(near.bias, dense.bias))
        assert near.relative_error(dense) < 0.95 < 1.2 < drawn.relative_error(dense)
        assert torch.equal(dense.weight, before)
        error = spec.refit(dense, observer)
        assert error == pytest.approx(near.relative_error(_holding(before)), rel=1e-9)
        torch.testing.assert_close(dense.weight, near.materialize())
        assert spec.refit(dense, observer) < 1e-7  # a projection


def _holding(weight: torch.Tensor) -> nn.Module:
    module = nn.Module()
    module.weight = nn.Parameter(weight)
    return module


def test_a_value() -> None:
    spec = Predicted(0.1, topology=[8, 8])
    assert spec == Predicted(0.1, topology=(8, 8)) != Predicted(0.1, topology=(8, 8), sigma=2.0)
    assert hash(spec) == hash(Predicted(0.1, topology=(8, 8))) and spec != 3
    atoms = torch.randn(4, 4)
    given = Predicted(0.5, atoms)
    assert given == Predicted(0.5, atoms.clone()) != Predicted(0.5, atoms + 1) and given != Predicted(0.5, "gauss")
    assert hash(given) == hash(Predicted(0.5, atoms.clone()))
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.fraction = 0.5  # type: ignore[misc]
    assert rd.Predicted is Predicted


def test_seeds_in_a_model() -> None:
    assert Predicted(0.5, "gauss", seed=7).for_layer("a").seed == 7 + zlib.crc32(b"a")
    torch.manual_seed(0)
    drawn = Predicted(0.5, "gauss").for_layer("a")
    torch.manual_seed(0)
    assert drawn == Predicted(0.5, "gauss").for_layer("a") != Predicted(0.5, "gauss").for_layer("a")


@pytest.mark.parametrize(
    ("spec", "module", "text"),
    [
        (Predicted(0.5), nn.Linear(4, 4), 'topology must say how the 4 inputs lie for dictionary "se"'),
        (Predicted(0.5, topology=(3, 3)), nn.Linear(4, 4), "topology must be .* of 4 inputs, got \\(3, 3\\)"),
        (Predicted(0.1, "gauss"), nn.Linear(4, 4), "fraction must be at least half of one of the 4 positions, got 0.1"),
        (Predicted(0.5, "gauss", 5), nn.Linear(4, 4), "columns must be at most the outputs, 4, got 5"),
        (
            Predicted(0.5, torch.ones(3, 3)),
            nn.Linear(4, 4),
            "dictionary must have shape \\[4, atoms\\], got \\[3, 3\\]",
        ),
        (
            Predicted(0.5, "gauss"),
            nn.Linear(4, 4, dtype=torch.complex64),
            "dtype must be floating, got torch.complex64",
        ),
        (Predicted(0.5), nn.Conv2d(4, 4, 3, groups=2), "groups must be 1, got 2"),
        (Predicted(0.5, topology=(3, 3)), nn.Conv2d(1, 1, 3), "topology must be None for an nn.Conv2d"),
        (Predicted(0.25), nn.Conv2d(8, 8, 1), "fraction must be at least half of one of the 1 positions, got 0.25"),
    ],
)
def test_problems(spec: Predicted, module: nn.Module, text: str) -> None:
    problem = spec.problem(module)
    assert problem is not None and re.match(text, problem)
    for make in (spec.fit, spec.fresh):
        if "topology must be None" not in text:
            with pytest.raises((TypeError, ValueError), match=text):
                make(module)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (dict(fraction=0.0), r"fraction must be in \(0, 1\], got 0.0"),
        (dict(dictionary="pca"), r"dictionary must be one of .*got 'pca'"),
        (dict(columns=1.5), r"columns must be an int, got 1.5"),
        (dict(topology=8), r"topology must be None or a tuple of sizes, got 8"),
        (dict(ridge=float("inf")), r"ridge must be a finite number >= 0, got inf"),
        (dict(sigma=-1), r"sigma must be a finite number > 0, got -1"),
        (dict(seed=2**32), r"seed must be an int in 0"),
    ],
)
def test_errors(arguments: dict, text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"Predicted: {text}"):
        Predicted(**{"fraction": 0.5, **arguments})


@pytest.mark.parametrize("make", ["fit", "fresh"])
def test_data_is_needed(make: str) -> None:
    with pytest.raises(ValueError, match=r'Predicted: dictionary "emp" needs the layer\'s inputs'):
        getattr(Predicted(0.5, "emp"), make)(nn.Linear(4, 4))


def test_a_net_of_predicted_layers_learns_digits() -> None:
    """Denil's MLP in small: a quarter of the weights trained, SE below and the empirical covariance above."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    net = nn.Sequential(nn.Linear(64, 60), nn.Tanh(), nn.Linear(60, 60), nn.Tanh(), nn.Linear(60, 10))
    specs = {"0": Predicted(0.25, "se", 5, (8, 8)), "2": Predicted(0.25, "emp", 5, ridge=1e-3)}
    net = rd.compress.convert(net, specs, init="fresh", data=x[:1200])
    assert [type(net[n]) for n in (0, 2, 4)] == [PredictedLinear, PredictedLinear, nn.Linear]
    assert net[0].dictionary.seed != net[2].dictionary.seed
    assert rd.compress.size(net).trained == 4 * (60 * 16 + 60 + 60 * 15 + 60 + 610)
    optimiser = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(150):
        optimiser.zero_grad()
        cross_entropy(net(x[:1200]), y[:1200]).backward()
        optimiser.step()
    accuracy = float((net(x[1200:]).argmax(1) == y[1200:]).double().mean())
    assert accuracy > 0.88  # 0.1 by chance

    state = safetensors.torch.load(safetensors.torch.save(net.state_dict()))
    other = nn.Sequential(nn.Linear(64, 60), nn.Tanh(), nn.Linear(60, 60), nn.Tanh(), nn.Linear(60, 10))
    layer = net[0].dictionary
    other[0] = PredictedLinear(64, 60, fraction=0.25, columns=5, topology=(8, 8), seed=layer.seed)
    other[2] = PredictedLinear(60, 60, fraction=0.25, dictionary="emp", columns=5)
    other.load_state_dict(state)
    assert torch.equal(other(x), net(x))
    torch.testing.assert_close(rd.compress.strip(net)(x), net(x), rtol=1e-4, atol=1e-4)
