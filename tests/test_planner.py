"""The planner: what it takes, what runs then, what it remembers, and what it tells."""

import copy
import json
import math
import multiprocessing
import os
import pathlib
import sys
import threading
import warnings
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

import rdkernels as rd
from rdkernels import planner, registry
from rdkernels.nn import (
    BiclusterConv2d,
    CPConv2d,
    LowRankLinear,
    MonochromaticConv2d,
    SeparableConv2d,
    TuckerConv2d,
)
from rdkernels.ops.bicluster_conv2d.cases import BiclusterCase
from rdkernels.ops.cp_conv2d.cases import CPCase
from rdkernels.ops.monochromatic_conv2d.cases import MonochromaticCase
from rdkernels.ops.separable_conv2d.cases import SeparableCase
from rdkernels.ops.tucker_conv2d.cases import TuckerCase
from rdkernels.planner import candidates, device, store
from rdkernels.testing import assert_accurate

CHANNELS_LAST = torch.channels_last
RANKS = {
    SeparableConv2d: dict(rank=5),
    CPConv2d: dict(rank=7),
    TuckerConv2d: dict(rank=(4, 5)),
    MonochromaticConv2d: dict(colours=3),
    BiclusterConv2d: dict(clusters=2, rank=(2, 3)),
}
CASES = {
    SeparableConv2d: (SeparableCase, (5,)),
    CPConv2d: (CPCase, (7,)),
    TuckerConv2d: (TuckerCase, (4, 5)),
    MonochromaticConv2d: (MonochromaticCase, (3,)),
    BiclusterConv2d: (BiclusterCase, (2, 2, 2, 3)),
}
FORMS = [*RANKS, LowRankLinear]


@pytest.fixture(autouse=True)
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    """Planning as outside the tests, with an empty cache of its own and a small budget."""
    torch.use_deterministic_algorithms(False)  # under it nothing is chosen by time
    monkeypatch.setenv("RDKERNELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RDKERNELS_PLAN", raising=False)
    monkeypatch.setattr(device, "BUDGET", 0.002)
    planner._from_environment.cache_clear()
    with rd.use(None):
        yield tmp_path / "cache"
    planner._from_environment.cache_clear()


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch):
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


@pytest.fixture
def torch_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
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


# -- the decision ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("times", "taken"),
    [
        (dict(dense=1.0, unfused=2.0, fused=3.0), "dense"),
        (dict(dense=2.0, unfused=1.0, fused=3.0), "unfused"),
        (dict(dense=3.0, unfused=2.0, fused=1.0), "fused"),
        (dict(dense=1.0, unfused=2.0, fused=1.029), "fused"),
        (dict(dense=1.0, unfused=2.0, fused=1.031), "dense"),
        (dict(dense=1.0, unfused=0.98, fused=1.02), "unfused"),  # as fast as dense, but not as the best
        (dict(dense=1.0, unfused=1.0, fused=1.0), "fused"),
        (dict(dense=1.0, unfused=0.5), "unfused"),
        (dict(fused=1.0), "fused"),
        (dict(dense=1.0), "dense"),
    ],
)
def test_decide(times: dict[str, float], taken: str) -> None:
    assert planner.decide(times) == taken


@given(st.dictionaries(st.sampled_from(planner.NAMES), st.floats(1e-7, 10), min_size=1))
def test_decide_is_never_slower_than_dense_by_more_than_the_tolerance(times: dict[str, float]) -> None:
    assert times[planner.decide(times)] <= 1.03 * min(times.values())


def test_decide_needs_a_candidate() -> None:
    with pytest.raises(ValueError, match="times must have at least one candidate"):
        planner.decide({})


# -- what runs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", planner.NAMES)
@pytest.mark.parametrize("cls", FORMS)
@torch.no_grad()
def test_forced_candidate_runs(cls: type, name: str, torch_calls: list, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = built(cls)
    x = batch(layer)
    with planner.plan(name):
        assert ran(layer, torch_calls, x) == name
    monkeypatch.setenv("RDKERNELS_PLAN", name)
    planner._from_environment.cache_clear()
    assert ran(layer, torch_calls, x) == name
    with planner.plan("dense" if name == "fused" else "fused"):  # the block counts more
        assert ran(layer, torch_calls, x) != name


@pytest.mark.parametrize("name", planner.NAMES)
@torch.no_grad()
def test_measured_candidate_runs(name: str, torch_calls: list, timed) -> None:
    told = timed(**{n: 1.0 if n == name else 2.0 for n in planner.NAMES})
    layer = built(SeparableConv2d)
    assert [ran(layer, torch_calls, batch(layer)) for _ in range(2)][1] == name
    assert told.count == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("cls", FORMS)
@torch.no_grad()
def test_candidates_agree(cls: type, dtype: torch.dtype) -> None:
    """Each within the accuracy rule, against the dense layer in float64 and in the dtype, in x's memory format."""
    geometries = [{}] if cls is LowRankLinear else [{}, {"padding": "same"}, {"stride": (2, 1), "dilation": (1, 2)}]
    for more in geometries:
        layer = built(cls, dtype, activation="silu", **more)
        for form in (torch.contiguous_format,) if cls is LowRankLinear else (torch.contiguous_format, CHANNELS_LAST):
            x = batch(layer, dtype=dtype, form=form)
            residual = torch.randn(candidates.output_shape(layer, x)).to(dtype)
            wide = copy.deepcopy(layer).double()

            def dense(layer: nn.Module, x: Tensor, residual: Tensor) -> Tensor:
                weight = layer.materialize()
                if isinstance(layer, LowRankLinear):
                    y = F.linear(x, weight, layer.bias)
                else:
                    y = F.conv2d(x, weight, layer.bias, layer.stride, layer.padding, layer.dilation)
                return F.silu(y + residual)

            exact, peer = dense(wide, x.double(), residual.double()), dense(layer, x, residual)
            for name in planner.NAMES:
                with planner.plan(name):
                    y = layer(x, residual)
                assert y.dtype == dtype
                assert cls is LowRankLinear or y.is_contiguous(memory_format=form)
                if dtype != torch.bfloat16 and dtype != torch.float16:
                    assert_accurate(y, exact, peer, name)
                else:  # the chain rounds between its stages, to a value of the size of what it rounds
                    error = (y.double() - exact).abs().max() / exact.abs().max()
                    assert error < 4 * torch.finfo(dtype).eps, name


@torch.no_grad()
def test_planned_equals_forced_bit_for_bit(timed) -> None:
    layer = built(CPConv2d)
    x = batch(layer)
    for name in planner.NAMES:
        timed(**{n: 1.0 if n == name else 2.0 for n in planner.NAMES})
        with planner.plan("measure"):
            got = layer(x)
        with planner.plan(name):
            assert torch.equal(got, layer(x))


def test_gradients_are_fused_whatever_is_forced(torch_calls: list, timed) -> None:
    told = timed(dense=1.0, fused=2.0)
    layer = built(TuckerConv2d)
    x = batch(layer)
    with planner.plan("dense"):
        assert ran(layer, torch_calls, x) == "fused"
    layer(x).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())
    layer.requires_grad_(False)
    assert ran(layer, torch_calls, x.requires_grad_()) == "fused"
    residual = torch.zeros_like(layer(x)).requires_grad_()
    assert ran(layer, torch_calls, x.detach(), residual.detach().requires_grad_()) == "fused"
    assert told.count == 0
    ran(layer, torch_calls, x.detach())
    assert ran(layer, torch_calls, x.detach()) == "dense" and told.count == 1  # nothing needs a gradient


def test_traced_calls_are_fused_unmeasured(timed) -> None:
    told = timed(dense=1.0, fused=2.0)
    layer = built(SeparableConv2d).requires_grad_(False)
    x = batch(layer)
    expected = layer._fused(x, None)
    with torch.no_grad():
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), expected)
        exported = torch.export.export(layer, (x,))
        assert torch.equal(exported.module()(x), expected)
        mapped = torch.func.vmap(lambda t: t * 2)(x)  # a transform that ends leaves nothing behind
        assert torch.equal(mapped, x * 2)
        made = torch.fx.experimental.proxy_tensor.make_fx(layer)(x)
        assert torch.equal(made(x), expected)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            assert layer(x).shape == layer(mode.from_tensor(x)).shape == expected.shape
    ops = {str(node.target) for traced in (exported, made) for node in traced.graph.nodes if node.op == "call_function"}
    assert any("separable_conv2d_fwd" in name for name in ops) and not any("convolution" in name for name in ops)
    assert told.count == 0


@torch.no_grad()
def test_deterministic_algorithms_and_forced_backends_are_fused(torch_calls: list, timed) -> None:
    told = timed(dense=1.0, fused=2.0)
    layer = built(CPConv2d)
    x = batch(layer)
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert ran(layer, torch_calls, x) == "fused"
    with planner.plan("dense"):
        assert ran(layer, torch_calls, x) == "dense"
    torch.use_deterministic_algorithms(False)
    with rd.use("reference"):
        assert ran(layer, torch_calls, x) == "fused"
    assert told.count == 0


@torch.no_grad()
def test_empty_batch_is_not_measured(timed, torch_calls: list) -> None:
    told = timed(dense=1.0, fused=2.0)
    for cls in FORMS:
        layer = built(cls)
        assert layer(batch(layer)[:0]).shape[0] == 0
        for name in planner.NAMES:
            with planner.plan(name):
                assert layer(batch(layer)[:0]).shape == candidates.output_shape(layer, batch(layer)[:0])
    assert told.count == 0


@torch.no_grad()
def test_autocast_computes_in_its_dtype() -> None:
    layer = built(SeparableConv2d, activation="relu")
    x = batch(layer)
    residual = torch.randn(candidates.output_shape(layer, x))
    for name in planner.NAMES:
        with planner.plan(name):
            plain = layer(x, residual)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                y = layer(x, residual)
        assert y.dtype == torch.bfloat16 and plain.dtype == torch.float32
        torch.testing.assert_close(y.float(), plain, rtol=0.02, atol=0.03)


@pytest.mark.parametrize("name", planner.NAMES)
@torch.no_grad()
def test_bad_calls_are_refused_by_every_candidate(name: str) -> None:
    """Also those that plain torch takes: an image without a batch, a residual that it would broadcast."""
    layer = built(SeparableConv2d)
    x = batch(layer)
    residual = torch.zeros(candidates.output_shape(layer, x))
    bad = [
        ((x[0], None), ValueError, "x must have shape"),
        ((x, residual[:1]), ValueError, "residual must have shape"),
        ((x, residual.double()), TypeError, "dtype"),
        ((x.double(), None), TypeError, "dtype"),
        ((x[..., :0], None), ValueError, "x must"),
        ((x.int(), None), TypeError, "x must"),
        (([1.0], None), TypeError, "x must"),
    ]
    with planner.plan(name):
        layer(x, residual)
        for arguments, error, text in bad:
            with pytest.raises(error, match=text):
                layer(*arguments)
        layer.double()  # after the plan was made
        with pytest.raises(TypeError, match="dtype"):
            layer(x, residual)


@torch.no_grad()
def test_a_candidate_that_raises_is_dropped(torch_calls: list, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = built(SeparableConv2d)
    own = candidates.run

    def run(name: str, *args):
        if name in broken:
            raise RuntimeError(f"no backend for {name}")
        return own(name, *args)

    monkeypatch.setattr(candidates, "run", run)
    broken = {"unfused", "fused"}
    layer(batch(layer))
    assert ran(layer, torch_calls, batch(layer)) == "dense"
    broken = {"dense"}
    told = layer.explain(batch(layer, n=1))
    assert {c.name: c.error for c in told.candidates}["dense"] == "RuntimeError: no backend for dense"
    assert told.taken in ("unfused", "fused") and "no backend for dense" in str(told)


# -- what a plan depends on, and the dense weight ----------------------------------------------------------------------


@torch.no_grad()
def test_each_kind_of_call_is_measured_once(timed, threads) -> None:
    told = timed(dense=1.0, fused=2.0)
    layer = built(CPConv2d)
    x = batch(layer)
    threads(1)
    y = layer(x)
    kinds = [
        lambda: layer(x.contiguous(memory_format=CHANNELS_LAST)),
        lambda: layer(batch(layer, n=3)),
        lambda: layer(x, y),
        lambda: built(CPConv2d, stride=2)(x),
        lambda: built(CPConv2d, dilation=2)(x),
        lambda: built(CPConv2d, padding=0)(x),
        lambda: built(CPConv2d, bias=False)(x),
        lambda: built(CPConv2d, activation="relu")(x),
        lambda: built(CPConv2d, torch.float64)(x.double()),
        lambda: CPConv2d(6, 8, (3, 2), padding=1, rank=8)(x),
        lambda: SeparableConv2d(6, 8, (3, 2), padding=1, rank=7)(x),
        lambda: (threads(2), layer(x), threads(1)),
    ]
    for number, call in enumerate(kinds, 2):
        call()
        assert told.count == number, f"kind {number} was not measured"
        call()
    layer(x)
    built(CPConv2d)(x.clone())  # another layer, the same kind
    copy.deepcopy(layer)(x)
    assert told.count == len(kinds) + 1


@torch.no_grad()
def test_written_and_replaced_factors_refresh_the_dense_weight() -> None:
    layer = built(CPConv2d)
    x = batch(layer)

    def check() -> Tensor:
        with planner.plan("dense"):
            y = layer(x.to(layer.bias.dtype))
        torch.testing.assert_close(y, layer._fused(x.to(layer.bias.dtype), None))
        return y

    first = check()
    layer.inner.mul_(2)
    assert not torch.equal(first, check())
    layer.outer = nn.Parameter(torch.randn_like(layer.outer))
    check()
    layer.load_state_dict({k: v + 1 for k, v in layer.state_dict().items()}, assign=True)
    check()
    layer.double()
    assert check().dtype == torch.float64
    changed = {k: v * 3 for k, v in layer.named_parameters()}
    with planner.plan("dense"):
        y = torch.func.functional_call(layer, changed, (x.double(),))
    expected = torch.func.functional_call(layer, changed, (x.double(),))
    torch.testing.assert_close(y, expected)
    check()


@torch.no_grad()
def test_the_dense_weight_is_kept_only_where_it_is_taken(timed) -> None:
    layer = built(SeparableConv2d)
    timed(dense=2.0, unfused=3.0, fused=1.0)
    layer(batch(layer))
    assert layer not in candidates._weights
    timed(dense=1.0, unfused=3.0, fused=2.0)
    layer(batch(layer, n=1))
    made = candidates.dense_weight(layer, layer._factors(), torch.float32, torch.contiguous_format)
    layer(batch(layer, n=1))
    again = candidates.dense_weight(layer, layer._factors(), torch.float32, torch.contiguous_format)
    assert again is made  # composed once


@torch.no_grad()
def test_inference_tensors_are_never_stale() -> None:
    with torch.inference_mode():
        layer = built(SeparableConv2d)
        x = batch(layer)
        with planner.plan("dense"):
            first = layer(x)
            layer.vertical.mul_(2)
            torch.testing.assert_close(layer(x) - layer.bias[:, None, None], 2 * (first - layer.bias[:, None, None]))


# -- forcing -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_measure_measures_again_once_a_block(timed, monkeypatch: pytest.MonkeyPatch) -> None:
    told = timed(dense=1.0, fused=2.0)
    layer = built(SeparableConv2d)
    x = batch(layer)
    for _ in range(2):
        layer(x)
    assert told.count == 1
    for count in (2, 3):
        with planner.plan("measure"):
            layer(x)
            layer(x)
        assert told.count == count
    monkeypatch.setenv("RDKERNELS_PLAN", "measure")
    planner._from_environment.cache_clear()
    layer(x)
    layer(x)
    assert told.count == 4


@torch.no_grad()
def test_unknown_plans_are_named_at_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = r"must be one of \['dense', 'unfused', 'fused', 'measure'\] or None, got 'fast'"
    with pytest.raises(ValueError, match=f"plan {allowed}"), planner.plan("fast"):
        pass
    monkeypatch.setenv("RDKERNELS_PLAN", "fast")
    planner._from_environment.cache_clear()
    layer = built(LowRankLinear)
    for _ in range(2):
        with pytest.raises(ValueError, match=f"RDKERNELS_PLAN {allowed}"):
            layer(batch(layer))
    with planner.plan(None):
        layer(batch(layer))


def test_plan_holds_for_its_thread_alone(torch_calls: list) -> None:
    layer = built(SeparableConv2d).requires_grad_(False)
    x = batch(layer)
    inside, found = threading.Event(), []

    def other() -> None:
        with planner.plan("dense"):
            inside.set()
            done.wait(10)
            found.append(planner._forced())

    done = threading.Event()
    thread = threading.Thread(target=other)
    with planner.plan("unfused"):
        thread.start()
        assert inside.wait(10)
        assert ran(layer, torch_calls, x) == "unfused"
        done.set()
        thread.join()
    assert found == ["dense"] and planner._forced() is None


# -- memory ------------------------------------------------------------------------------------------------------------


def forget_in_memory() -> None:
    """As a new process would start."""
    store._known.clear()
    store._warned.clear()
    planner._plans.clear()


@torch.no_grad()
def test_plans_outlive_the_process(cache: pathlib.Path, timed, torch_calls: list) -> None:
    told = timed(dense=1.0, unfused=2.0, fused=3.0)
    layer = built(SeparableConv2d)
    layer(batch(layer))
    (file,) = cache.glob("plans-*.json")
    content = json.loads(file.read_text())
    assert content["device"] == device.device_name(torch.device("cpu"))
    ((key, times),) = content["plans"].items()
    assert times == told.times and key.startswith("separable_conv2d 5x6x3 8x5x2; ")
    for part in ("x 2x6x9x7 torch.float32", f"threads {torch.get_num_threads()}", f"torch {torch.__version__}"):
        assert part in key
    forget_in_memory()
    assert ran(layer, torch_calls, batch(layer)) == "dense" and told.count == 1
    assert not list(cache.glob("*.tmp"))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"plans": 3}', '{"plans": {"KEY": {"dense": "fast"}}}', '{"plans": {"KEY": {}}}', "\xff"]
)
def test_corrupt_files_are_measured_over(cache: pathlib.Path, text: str) -> None:
    forget_in_memory()
    cache.mkdir()
    path = store.path_of("a device")
    path.write_bytes(text.replace("KEY", "some key").encode("latin-1"))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert store.find("a device", "some key") is None
        store.keep("a device", "some key", {"fused": 1.0})
        store.keep("a device", "other key", {"fused": 2.0})
    assert len(told) == ("KEY" not in text)
    assert all("is no file of plans" in str(w.message) and str(path) in str(w.message) for w in told)
    forget_in_memory()
    assert store.find("a device", "some key") == {"fused": 1.0}
    assert store.find("a device", "other key") == {"fused": 2.0}


@torch.no_grad()
def test_unwritable_folder_is_one_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, timed) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RDKERNELS_CACHE", str(tmp_path / "file" / "below"))
    told = timed(dense=1.0, fused=2.0)
    layer = built(SeparableConv2d)
    with pytest.warns(RuntimeWarning, match="cannot be ") as seen:
        for n in (1, 2, 3, 1, 2, 3):
            layer(batch(layer, n=n))
    assert len(seen) == 1 and told.count == 3


def write(start, who: str) -> None:
    start.wait(60)
    for n in range(30):
        store.keep("a device", f"{who} {n}", {"fused": 1.0 + n})


@pytest.mark.skipif(store.fcntl is None, reason="no lock on this system")
def test_two_processes_keep_each_others_plans(cache: pathlib.Path) -> None:
    fork = multiprocessing.get_context("fork")
    start = fork.Event()
    writers = [fork.Process(target=write, args=(start, who)) for who in ("one", "two")]
    for writer in writers:
        writer.start()
    start.set()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    found = json.loads(store.path_of("a device").read_text())["plans"]
    assert found == {f"{who} {n}": {"fused": 1.0 + n} for who in ("one", "two") for n in range(30)}


@pytest.mark.skipif(sys.platform != "linux", reason="the folder of this system")
def test_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.folder() == pathlib.Path(os.environ["RDKERNELS_CACHE"])
    monkeypatch.delenv("RDKERNELS_CACHE")
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert store.folder() == pathlib.Path("/elsewhere/rdkernels")
    for unset in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert store.folder() == pathlib.Path("/home/someone/.cache/rdkernels")
    assert store.path_of("A (TM) x, y").name != store.path_of("A TM x y").name


# -- measuring ---------------------------------------------------------------------------------------------------------


def test_measure_takes_medians_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only the calls move."""
    now, order = [0.0], []
    monkeypatch.setattr(device, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(device, "BUDGET", 0.1)
    steps = {"a": iter([9.0, 0.001, 0.5] + [0.001] * 999), "b": iter([9.0] + [0.002] * 999), "c": iter([9.0] * 99)}

    def call(name: str):
        def run() -> None:
            order.append(name)
            now[0] += next(steps[name])

        return run

    def broken() -> None:
        raise RuntimeError("why")

    times, errors = device.measure({"a": call("a"), "b": call("b"), "c": call("c"), "d": broken})
    assert times == pytest.approx({"a": 0.001, "b": 0.002, "c": 9.0}) and errors == {"d": "RuntimeError: why"}
    assert order == [*"abc", *"abc", *"bca", *"cab", *"abc", *"bca"]  # warm-up, then rounds, rotated
    del steps["c"]
    steps |= {"a": iter([0.001] * 999), "b": iter([0.002] * 999)}
    order.clear()
    device.measure({"a": call("a"), "b": call("b")})
    assert order.count("a") == order.count("b") == 1 + math.ceil(0.1 / 0.003)


# -- explain -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_explain_against_numbers_by_hand(timed, capsys: pytest.CaptureFixture) -> None:
    timed(dense=3e-3, unfused=1e-3, fused=1.02e-3)
    layer = SeparableConv2d(4, 5, 3, padding=1, rank=3, activation="relu")
    told = layer.explain(torch.randn(2, 4, 6, 6))
    x, y, pixels = 4 * 2 * 4 * 36, 4 * 2 * 5 * 36, 2 * 36
    macs, factors, between = pixels * 3 * (4 * 3 + 5 * 3), 4 * (3 * 4 * 3 + 5 * 3 * 3), 4 * pixels * 3
    numbers = {c.name: (c.macs, c.moved, c.intermediate) for c in told.candidates}
    assert numbers == {
        "dense": (pixels * 5 * 4 * 9, x + 4 * 5 * 4 * 9 + 4 * 5 + 3 * y, y),  # relu is a pass of its own
        "unfused": (macs, x + factors + 4 * 5 + 5 * y + 2 * between, between + 2 * y),
        "fused": (macs, x + factors + 4 * 5 + y, 0),
    }
    for c in told.candidates:
        assert c.roofline == max(2 * c.macs / told.flops, c.moved / told.bandwidth) > 0
    assert [c.seconds for c in told.candidates] == [3e-3, 1e-3, 1.02e-3]
    assert told.taken == "fused" and told.why == "within 3% of the fastest, unfused"
    assert capsys.readouterr().out == f"{told}\n"
    row = next(line for line in str(told).splitlines() if line.startswith("fused "))
    assert "1,020.0" in row and row.endswith("taken")
    assert told.device in str(told) and "x [2, 4, 6, 6] float32" in str(told)


@torch.no_grad()
def test_explain_of_the_linear_layer(timed) -> None:
    timed(dense=3.0, unfused=2.0, fused=1.0)
    told = LowRankLinear(24, 20, rank=6, bias=False, dtype=torch.float64).explain(torch.randn(5, 3, 24).double())
    x, y, factors, between = 8 * 15 * 24, 8 * 15 * 20, 8 * 6 * 44, 8 * 15 * 6
    assert {c.name: (c.macs, c.moved, c.intermediate) for c in told.candidates} == {
        "dense": (15 * 24 * 20, x + 8 * 24 * 20 + y, 0),
        "unfused": (15 * 6 * 44, x + factors + y + 2 * between, between),
        "fused": (15 * 6 * 44, x + factors + y, 0),
    }


@pytest.mark.parametrize("cls", RANKS)
def test_macs_are_those_of_the_operations_cases(cls: type) -> None:
    kind, ranks = CASES[cls]
    for where in ({"padding": 1}, {"stride": (2, 3), "padding": (1, 2), "dilation": (2, 1)}, {"padding": "same"}):
        case = kind("case", 2, 6, 9, 7, 8, (3, 2), ranks, **where)
        layer = built(cls, **where)
        found = candidates.costs(layer, batch(layer), None)
        assert found["fused"].macs == case.macs() and found["dense"].macs == case.dense_macs()
        padded = where["padding"] == "same" and cls in (SeparableConv2d, CPConv2d)  # torch's first stages run on zeros
        assert (found["unfused"].macs > case.macs()) if padded else (found["unfused"].macs == case.macs())


@torch.no_grad()
def test_explain_says_why(timed) -> None:
    timed(dense=1.0, unfused=2.0, fused=3.0)
    layer = built(SeparableConv2d)
    x = batch(layer)
    assert (layer.explain(x).taken, layer.explain(x).why) == ("dense", "the fastest")
    with planner.plan("unfused"):
        told = layer.explain(x)
        assert told.taken == "unfused" and "forced" in told.why
    with rd.use("reference"):
        told = layer.explain(x)
        assert told.taken == "fused" and "backend is forced" in told.why
    assert "empty" in layer.explain(x[:0]).why
    with pytest.raises(ValueError, match="x must have shape"):
        layer.explain(x[0])
    layer.requires_grad_(True)
    assert layer.explain(x).taken == "dense"  # what it does without gradients


def test_a_known_plan_is_found_quickly(monkeypatch: pytest.MonkeyPatch, timed) -> None:
    """The goal is 5 us; the bound leaves room for a busy machine."""
    import timeit

    timed(dense=1.0, fused=2.0)
    layer = built(LowRankLinear)
    x = batch(layer)
    with torch.no_grad():
        layer(x)
        monkeypatch.setattr(candidates, "run", lambda *_: None)
        seconds = min(timeit.repeat(lambda: planner.run(layer, x, None), number=500, repeat=20)) / 500
    assert seconds < 15e-6
