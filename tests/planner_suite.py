"""What the tests of the planner share: layers, fake clocks, which candidate ran."""

import pathlib
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rdkernels as rd
from rdkernels import planner, registry
from rdkernels.nn import BiclusterConv2d, CPConv2d, LowRankLinear, MonochromaticConv2d, SeparableConv2d, TuckerConv2d
from rdkernels.planner import device

CHANNELS_LAST = torch.channels_last
RANKS = {
    SeparableConv2d: dict(rank=5),
    CPConv2d: dict(rank=7),
    TuckerConv2d: dict(rank=(4, 5)),
    MonochromaticConv2d: dict(colours=3),
    BiclusterConv2d: dict(clusters=2, rank=(2, 3)),
}
FORMS = [*RANKS, LowRankLinear]


@pytest.fixture(name="cache", autouse=True)
def cache_fixture(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    """Planning as outside the tests, with an empty cache of its own and a small budget."""
    torch.use_deterministic_algorithms(False)  # under it nothing is chosen by time
    monkeypatch.setenv("RDKERNELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RDKERNELS_PLAN", raising=False)
    monkeypatch.setattr(device, "BUDGET", 0.002)
    planner._from_environment.cache_clear()
    with rd.use(None):
        yield tmp_path / "cache"
    planner._from_environment.cache_clear()


@pytest.fixture(name="timed")
def timed_fixture(monkeypatch: pytest.MonkeyPatch):
    """`timed(dense=..., ...)` replaces the clock by these seconds and counts the measurements in `.count`."""
    told = SimpleNamespace(count=0, times={})

    def measure(calls, wait):
        told.count += 1
        for name in told.times:
            calls[name]()
        return dict(told.times), {}

    monkeypatch.setattr(device, "measure", measure)

    def install(**times: float) -> SimpleNamespace:
        told.times = times
        return told

    return install


@pytest.fixture(name="torch_calls")
def torch_calls_fixture(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the weights of all calls of F.conv2d and F.linear."""
    seen: list[tuple[int, ...]] = []
    for name, own in (("conv2d", F.conv2d), ("linear", F.linear)):

        def spy(x, weight, *args, own=own):
            seen.append(tuple(weight.shape))
            return own(x, weight, *args)

        monkeypatch.setattr(F, name, spy)
    return seen


def built(cls: type, dtype: torch.dtype = torch.float32, **more) -> nn.Module:
    torch.manual_seed(3)
    if cls is LowRankLinear:
        return LowRankLinear(24, 20, rank=6, dtype=dtype, activation=more.get("activation"))
    return cls(6, 8, (3, 2), **({"padding": 1, "dtype": dtype} | more), **RANKS[cls])


def batch(layer: nn.Module, n: int = 2, dtype: torch.dtype = torch.float32, form=torch.contiguous_format) -> Tensor:
    torch.manual_seed(4)
    if isinstance(layer, LowRankLinear):
        return torch.randn(n, 3, 24).to(dtype)
    return torch.randn(n, 6, 9, 7).to(dtype).contiguous(memory_format=form)


def ran(layer: nn.Module, torch_calls: list, x: Tensor, residual: Tensor | None = None) -> str:
    """Which candidate computed `layer(x)`, by what was called."""
    torch_calls.clear()
    with registry.trace() as ops:
        layer(x, residual)
    if ops:
        return "fused"
    return "dense" if torch_calls == [tuple(layer.materialize().shape)] else "unfused" if len(torch_calls) > 1 else "?"
