"""`pytest bench`: the low-rank linear layer beside dense torch and the unfused chain; the ratio is an extra."""

import pytest

from rdkernels.ops.lowrank_linear.cases import BENCH


@pytest.mark.parametrize("threads", (1, 2))
@pytest.mark.parametrize("problem", BENCH, ids=str)
def test_lowrank_linear(interleave, problem, threads):
    interleave(problem, threads)
