"""`pytest bench`: the monochromatic convolution beside dense torch and the unfused chain; the ratio is an extra."""

import pytest

from rdkernels.ops.monochromatic_conv2d.cases import BENCH


@pytest.mark.parametrize("threads", (1, 2))
@pytest.mark.parametrize("problem", BENCH, ids=str)
def test_monochromatic_conv2d(interleave, problem, threads):
    interleave(problem, threads)
