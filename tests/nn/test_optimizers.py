"""What is kept of a layer's factors is made anew after every optimizer's step: fused ones raise no version counter."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import rdkernels as rd

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": lambda p, **o: torch.optim.SGD(p, 0.05, momentum=0.9, **o),
    "Adam": lambda p, **o: torch.optim.Adam(p, 0.02, **o),
    "AdamW": lambda p, **o: torch.optim.AdamW(p, 0.02, **o),
    "Adagrad": lambda p, **o: torch.optim.Adagrad(p, 0.05, **o),
}
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: rd.nn.LowRankLinear(20, 24, rank=4),
    "separable": lambda: rd.nn.SeparableConv2d(6, 8, 3, rank=4),
    "cp": lambda: rd.nn.CPConv2d(6, 8, 3, rank=5),
    "tucker": lambda: rd.nn.TuckerConv2d(6, 8, 3, rank=(3, 4)),
    "monochromatic": lambda: rd.nn.MonochromaticConv2d(6, 8, 3, colours=2),
    "bicluster": lambda: rd.nn.BiclusterConv2d(6, 8, 3, clusters=2, rank=2),
    "hashed": lambda: rd.nn.HashedLinear(20, 24, compression=4, seed=1),
    "palette": lambda: rd.nn.PaletteLinear(20, 24, bits=3),
    "predicted": lambda: rd.nn.PredictedLinear(20, 24, fraction=0.5, dictionary="gauss", seed=1),
}


def trained(
    layer: nn.Module, make: Callable[..., torch.optim.Optimizer], x: torch.Tensor, **options: bool
) -> list[torch.Tensor]:
    """The outputs before, between and after four steps, without gradients and with."""
    optimizer, seen = make(layer.parameters(), **options), []
    for _ in range(4):
        with torch.no_grad():
            seen.append(layer(x))
        y = layer(x)
        seen.append(y.detach())
        optimizer.zero_grad()
        (y - 1).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        return [*seen, layer(x)]


@pytest.mark.parametrize("plan", ["fused", "unfused", "dense"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", LAYERS)
def test_fused_optimizers_train_as_others_do(kind: str, optimizer: str, plan: str, monkeypatch) -> None:
    monkeypatch.setenv("RDKERNELS_PLAN", plan)
    layer = LAYERS[kind]()
    x = torch.randn(2, 6, 7, 9) if hasattr(layer, "kernel_size") else torch.randn(5, 20)
    want = trained(copy.deepcopy(layer), OPTIMIZERS[optimizer], x, fused=False, foreach=False)
    found = trained(layer, OPTIMIZERS[optimizer], x, fused=True)
    for step, (a, b) in enumerate(zip(found, want, strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=f"output {step}")
    assert not torch.allclose(found[0], found[-1], atol=1e-3)


def test_the_hook_tells_of_what_was_stepped_only() -> None:
    rd.ops.packing.watch_optimizers()
    moved, still = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    moved.grad = torch.ones(3)
    versions = moved._version, still._version
    torch.optim.SGD([moved, still], 0.1, fused=True).step()
    assert moved._version > versions[0] and still._version == versions[1]


@pytest.mark.parametrize("plan", ["fused", "dense"])
@pytest.mark.parametrize("kind", ["linear", "separable", "tucker", "bicluster"])
def test_a_step_that_nothing_tells_of(kind: str, plan: str, monkeypatch) -> None:
    """As a compiled optimizer's: a fused kernel called outside of any optimizer."""
    monkeypatch.setenv("RDKERNELS_PLAN", plan)
    layer = LAYERS[kind]()
    x = torch.randn(2, 6, 7, 9) if hasattr(layer, "kernel_size") else torch.randn(5, 20)
    parameters = list(layer.parameters())
    for _ in range(3):
        with torch.no_grad():
            layer(x)
        layer(x).square().mean().backward()
        versions = [p._version for p in parameters]
        grads = [p.grad for p in parameters]
        options = {"weight_decay": 0.0, "momentum": 0.0, "lr": 0.1, "dampening": 0.0, "nesterov": False}
        torch._fused_sgd_(parameters, grads, [], **options, maximize=False, is_first_step=True)
        assert [p._version for p in parameters] == versions  # what makes it hard to see
        with torch.no_grad(), rd.use("reference"):
            want = copy.deepcopy(layer)(x)
        with torch.no_grad():
            torch.testing.assert_close(layer(x), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("plan", ["fused", "unfused", "dense"])
@pytest.mark.parametrize("kind", ["linear", "separable", "cp", "tucker", "bicluster"])
def test_other_storage_at_the_same_address_is_seen(kind: str, plan: str, monkeypatch) -> None:
    monkeypatch.setenv("RDKERNELS_PLAN", plan)
    layer = LAYERS[kind]()
    x = torch.randn(2, 6, 7, 9) if hasattr(layer, "kernel_size") else torch.randn(5, 20)
    factor = next(layer.parameters())
    memory = bytearray(factor.detach().numpy().tobytes())
    assigned = [torch.frombuffer(memory, dtype=torch.float32).view(factor.shape) for _ in range(2)]
    with torch.no_grad():
        factor.data = assigned.pop(0)
        address, version, before = factor.data_ptr(), factor._version, layer(x)
        factor.data = torch.zeros(0)
        memory[:] = bytes(len(memory))
        factor.data = assigned.pop(0)
        assert (factor.data_ptr(), factor._version) == (address, version)  # nothing else tells of it
        after, want = layer(x), copy.deepcopy(layer)(x)
    torch.testing.assert_close(after, want)
    assert not torch.allclose(after, before)
