"""`monochromatic_conv2d`: the contract, and what only this operation promises."""

import pytest
import torch
from contract import Lane, lanes
from conv_suite import LowRankConv, drawn, holds, refuses
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rdkernels as rd
from rdkernels.ops.monochromatic_conv2d import cases

OP = "monochromatic_conv2d"
FAST = [lane for lane in lanes(OP) if not lane.slow and lane.kind in ("fp32", "bf16")]


class TestContract(LowRankConv):
    op = OP
    cases = cases.CORRECTNESS
    written_for = ("native",)


@pytest.mark.parametrize("lane", FAST, ids=str)
@settings(suppress_health_check=[HealthCheck.differing_executors])
@given(case=drawn(cases.MonochromaticCase, st.tuples(st.integers(1, 7))))
def test_any_problem(lane: Lane, case: cases.MonochromaticCase) -> None:
    holds(lane, case)


def test_bad_input() -> None:
    """One error each, naming the argument, before any pass runs."""
    refuses(next(case for case in cases.CORRECTNESS if case.name == "plain"))


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ([0, 1, 2, 3, 0, 1, 2], ValueError, r"assignment must be in \[0, 3\), got values from 0 to 3"),
        ([0, -1, 2, 0, 0, 1, 2], ValueError, "got values from -1 to 2"),
        ([0, 1], ValueError, "assignment must have shape"),
        ([0.0] * 7, TypeError, "assignment must be int64"),
    ],
)
def test_bad_assignment(values: list, error: type[Exception], message: str) -> None:
    case = next(case for case in cases.CORRECTNESS if case.name == "plain")
    given, _ = case.arguments(case.tensors(torch.float32))
    with pytest.raises(error, match=message):
        rd.monochromatic_conv2d(*given[:-1], torch.tensor(values))
