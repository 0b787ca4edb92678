"""Where an operation meets its backends: order, force, trace, errors."""

import os
import subprocess
import sys

import pytest
import torch

import rdkernels as rd
from rdkernels import registry

OP = "hashed_linear"


def call(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return rd.hashed_linear(torch.ones(2, 20, dtype=dtype), torch.ones(32, dtype=dtype), 3)


@pytest.fixture
def stand_in(monkeypatch):
    """Attach one function to the forward pass under every backend's name, each serving what the table says."""

    def attach(serves: dict[str, bool]) -> None:
        reference = registry._PASSES["hashed_linear_fwd"]["reference"].run
        table = {name: registry.Backend(lambda *_, yes=yes: yes, reference) for name, yes in serves.items()}
        monkeypatch.setitem(registry._PASSES, "hashed_linear_fwd", table)

    return attach


@pytest.mark.parametrize(
    ("serves", "picked"),
    [
        (dict(reference=True, triton=True, native=True), "native"),
        (dict(reference=True, triton=True, native=False), "triton"),
        (dict(reference=True, triton=True), "triton"),
        (dict(reference=True, triton=False, native=False), "reference"),
    ],
)
def test_the_first_that_serves_is_picked(stand_in, serves: dict[str, bool], picked: str) -> None:
    stand_in(serves)
    with registry.trace() as ran:
        call()
    assert ran == [("hashed_linear_fwd", picked)]


def test_none_serves(stand_in) -> None:
    stand_in(dict(native=False, triton=False))
    with registry.trace() as ran, pytest.raises(RuntimeError) as error:
        call()
    text = "rdkernels::hashed_linear_fwd: no backend of ['native', 'triton'] serves torch.float32 on cpu"
    assert str(error.value) == text and ran == []


def test_forced_backend_never_falls_back(stand_in) -> None:
    stand_in(dict(native=False, reference=True))
    with rd.use("native"), pytest.raises(RuntimeError, match=r"serves torch\.float32 on cpu \(forced: 'native'\)"):
        call()


def test_use_nests_and_ends() -> None:
    before = registry._forced
    with rd.use("reference"):
        with rd.use(None):
            assert registry._forced is None
            with rd.use("native"):
                assert registry._forced == "native"
        assert registry._forced == "reference"
    with pytest.raises(KeyError), rd.use("reference"):
        raise KeyError
    assert registry._forced == before


def test_use_of_an_unknown_backend() -> None:
    with (
        pytest.raises(
            ValueError, match=r"backend must be one of \['native', 'triton', 'reference'\] or None, got 'fast'"
        ),
        rd.use("fast"),
    ):
        pass


def test_trace_nests() -> None:
    with rd.use("reference"), registry.trace() as outer:
        call()
        with registry.trace() as inner:
            call(torch.float64)
    call()
    one = ("hashed_linear_fwd", "reference")
    assert outer == [one, one] and inner == [one]


def test_backends() -> None:
    assert rd.backends(OP)[-1] == "reference"
    assert list(rd.backends(OP)) == [name for name in registry.ORDER if name in rd.backends(OP)]
    with pytest.raises(ValueError, match=r"op must be one of \[.*'hashed_linear'.*\], got 'nothing'"):
        rd.backends("nothing")


def test_backends_needs_every_pass(monkeypatch) -> None:
    registry_ = registry._PASSES["hashed_linear_fwd"]
    monkeypatch.setitem(registry_, "triton", registry_["reference"])
    for name in ("hashed_linear_bwd_x", "hashed_linear_bwd_bank"):
        monkeypatch.setitem(registry._PASSES, name, {k: v for k, v in registry._PASSES[name].items() if k != "triton"})
    assert "triton" not in rd.backends(OP)


def test_serves() -> None:
    assert registry.serves(OP, "reference", torch.ones(1, 1, dtype=torch.float64))
    assert not registry.serves(OP, "native", torch.ones(1, 1, dtype=torch.float64))


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}
    )


def test_environment_forces_a_backend() -> None:
    code = "import rdkernels.registry as r; print(r._forced)"
    assert python(code, RDKERNELS_BACKEND="reference").stdout.strip() == "reference"
    assert python(code, RDKERNELS_BACKEND="").stdout.strip() == "None"
    wrong = python(code, RDKERNELS_BACKEND="fast")
    assert (
        wrong.returncode
        and "backend must be one of ['native', 'triton', 'reference'] or None, got 'fast'" in wrong.stderr
    )


def test_build_info_names_everything() -> None:
    info = rd.build_info()
    assert {"rdkernels", "torch", "cpu_capability", "native_cpu", "native_cuda", "triton", "map_version"} <= set(info)
    assert all(isinstance(text, str) and text for text in info.values())


def test_order_on_a_gpu_is_the_table():
    """The entries hold from their capability on, for 16-bit dtypes; everything else keeps the common order."""
    from rdkernels.ops.hashed_linear import order

    sizes = {"few": 8, "many": 512, "any": 512}
    granules = {"element": (1, 1), "chunk": (1, 16), "tile": (32, 32)}
    for name in ("fwd", "bwd_x", "bwd_bank"):
        for size in ("any",) if name == "bwd_bank" else ("few", "many"):
            for granule, (go, gi) in granules.items():
                least = order.FROM.get((name, size, granule))
                for capability in ((8, 0), (9, 0), (10, 0)):
                    first = "triton" if least is not None and capability >= least else "native"
                    assert order.choose(name, sizes[size], go, gi, 2, capability)[0] == first
                    assert order.choose(name, sizes[size], go, gi, 4, capability) == registry.ORDER
    assert set(order.TRITON_FIRST) == set(registry.ORDER)


def test_pick_follows_the_order_of_a_gpu(monkeypatch):
    """Only where the leading tensor is on a GPU, and never against a forced backend."""
    tables = {"native": registry.Backend(lambda *_: True, "n"), "triton": registry.Backend(lambda *_: True, "t")}
    monkeypatch.setitem(registry._PASSES, "made_up", tables)
    monkeypatch.setitem(registry._ORDERS, "made_up", lambda x: ("triton", "native"))
    on_gpu = type("OnGpu", (), {"is_cuda": True})()
    assert registry.pick("made_up", (on_gpu,)) == "t"
    assert registry.pick("made_up", (torch.empty(1),)) == "n"
    with registry.use("native"):
        assert registry.pick("made_up", (on_gpu,)) == "n"
