"""The planner: the costs of the candidates, and what `explain` tells."""

import pytest
import torch
from planner_suite import RANKS, batch, built, cache_fixture, timed_fixture, torch_calls_fixture  # noqa: F401

import rdkernels as rd
from rdkernels import planner
from rdkernels.nn import BiclusterConv2d, CPConv2d, LowRankLinear, MonochromaticConv2d, SeparableConv2d, TuckerConv2d
from rdkernels.ops.bicluster_conv2d.cases import BiclusterCase
from rdkernels.ops.cp_conv2d.cases import CPCase
from rdkernels.ops.monochromatic_conv2d.cases import MonochromaticCase
from rdkernels.ops.separable_conv2d.cases import SeparableCase
from rdkernels.ops.tucker_conv2d.cases import TuckerCase
from rdkernels.planner import candidates

CASES = {
    SeparableConv2d: (SeparableCase, (5,)),
    CPConv2d: (CPCase, (7,)),
    TuckerConv2d: (TuckerCase, (4, 5)),
    MonochromaticConv2d: (MonochromaticCase, (3,)),
    BiclusterConv2d: (BiclusterCase, (2, 2, 2, 3)),
}


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
    with pytest.raises(TypeError, match="x must be a Tensor, got list"):
        layer.explain([1.0])
    layer.requires_grad_(True)
    assert layer.explain(x).taken == "dense"  # what it does without gradients
