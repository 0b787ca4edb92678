"""`bicluster_conv2d`: the contract, and what only this operation promises."""

import dataclasses

import pytest
from contract import Lane, lanes
from conv_suite import LowRankConv, drawn, holds, refuses
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rdkernels.ops.bicluster_conv2d import cases

OP = "bicluster_conv2d"
FAST = [lane for lane in lanes(OP) if not lane.slow and lane.kind in ("fp32", "bf16")]


class TestContract(LowRankConv):
    op = OP
    cases = cases.CORRECTNESS
    written_for = ("native",)


@pytest.mark.parametrize("lane", FAST, ids=str)
@settings(suppress_health_check=[HealthCheck.differing_executors])
@given(
    case=drawn(cases.BiclusterCase, st.just((1, 1, 1, 1))),
    ranks=st.tuples(*[st.integers(1, 3)] * 2, *[st.integers(1, 20)] * 2),
)
def test_any_problem(lane: Lane, case: cases.BiclusterCase, ranks: tuple[int, int, int, int]) -> None:
    case = dataclasses.replace(case, ranks=ranks, c=ranks[0] * case.c, out=ranks[1] * case.out)
    holds(lane, case)


def test_bad_input() -> None:
    """One error each, naming the argument, before any pass runs."""
    refuses(next(case for case in cases.CORRECTNESS if case.name == "plain"))
