"""`cp_conv2d`: the contract, and what only this operation promises."""

import pytest
from contract import Lane, lanes
from conv_suite import LowRankConv, drawn, holds, refuses
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rdkernels.ops.cp_conv2d import cases

OP = "cp_conv2d"
FAST = [lane for lane in lanes(OP) if not lane.slow and lane.kind in ("fp32", "bf16")]


class TestContract(LowRankConv):
    op = OP
    cases = cases.CORRECTNESS


@pytest.mark.parametrize("lane", FAST, ids=str)
@settings(suppress_health_check=[HealthCheck.differing_executors])
@given(case=drawn(cases.CPCase, st.tuples(st.integers(1, 40))))
def test_any_problem(lane: Lane, case: cases.CPCase) -> None:
    holds(lane, case)


def test_bad_input() -> None:
    """One error each, naming the argument, before any pass runs."""
    refuses(next(case for case in cases.CORRECTNESS if case.name == "plain"))
