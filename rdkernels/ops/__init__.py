"""One room per operation."""

from . import (  # noqa: F401
    bicluster_conv2d,
    cp_conv2d,
    hashed_linear,
    lowrank_linear,
    monochromatic_conv2d,
    palette_linear,
    separable_conv2d,
    tucker_conv2d,
)
