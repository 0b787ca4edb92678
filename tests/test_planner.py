"""The planner: what it takes and what runs then."""

import copy
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planner_suite import CHANNELS_LAST, FORMS, batch, built, cache_fixture, ran, timed_fixture, torch_calls_fixture  # noqa: F401
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

import rdkernels as rd
from rdkernels import planner
from rdkernels.nn import CPConv2d, LowRankLinear, SeparableConv2d, TuckerConv2d
from rdkernels.planner import candidates
from rdkernels.testing import assert_accurate

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
    parametrised = copy.deepcopy(layer)
    nn.utils.parametrize.register_parametrization(parametrised, "inner", nn.Identity())
    parametrised.parametrizations.inner.original.requires_grad_()
    assert ran(parametrised, torch_calls, x.detach()) == "fused"
    assert told.count == 0
    ran(layer, torch_calls, x.detach())
    assert ran(layer, torch_calls, x.detach()) == "dense" and told.count == 1  # nothing needs a gradient
    with torch.no_grad():
        assert ran(parametrised, torch_calls, x.detach()) == "dense"


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
        inside = []
        torch.func.vmap(lambda t: inside.append(planner._planned(layer, t, None)) or t)(x)
        assert inside == [False] and planner._planned(layer, x, None)
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
