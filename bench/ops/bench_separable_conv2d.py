"""`pytest bench`: the separable convolution beside dense torch and the unfused chain; the ratio is an extra."""

import pytest

from rdkernels.ops.separable_conv2d.cases import BENCH


@pytest.mark.parametrize("threads", (1, 2))
@pytest.mark.parametrize("problem", BENCH, ids=str)
def test_separable_conv2d(interleave, problem, threads):
    interleave(problem, threads)
