"""`pytest bench`: the biclustered convolution beside dense torch and the unfused chain; the ratio is an extra."""

import pytest

from rdkernels.ops.bicluster_conv2d.cases import BENCH


@pytest.mark.parametrize("threads", (1, 2))
@pytest.mark.parametrize("problem", BENCH, ids=str)
def test_bicluster_conv2d(interleave, problem, threads):
    interleave(problem, threads)
