"""`pytest bench`: the palette linear layer beside dense torch; the ratio stands in each result's extra info."""

import pytest

from rdkernels.ops.palette_linear.cases import BENCH


@pytest.mark.parametrize("threads", (1, 2))
@pytest.mark.parametrize("problem", BENCH, ids=str)
def test_palette_linear(interleave, problem, threads):
    interleave(problem, threads)
