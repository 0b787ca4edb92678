"""Fast compressed layers for PyTorch: hashed-weight linear layers that never build their weight matrix, and low-rank
convolutions in one pass."""

from __future__ import annotations

import importlib.metadata

from . import hashing, native
from .ops import convolution as _convolution  # declares the operators; must come before the compiled libraries
from .ops.bicluster_conv2d import bicluster_conv2d
from .ops.cp_conv2d import cp_conv2d
from .ops.hashed_linear import hashed_linear
from .ops.lowrank_linear import lowrank_linear
from .ops.monochromatic_conv2d import monochromatic_conv2d
from .ops.palette_linear import palette_linear
from .ops.separable_conv2d import separable_conv2d
from .ops.tucker_conv2d import tucker_conv2d
from .registry import attach_native, backends, use

native.load()
attach_native(_convolution.KERNEL_DTYPES, native.runs_on)

from . import compress, datasets, distill, fits, nn, planner  # noqa: E402
from .compress import (  # noqa: E402
    CP,
    Bicluster,
    Hashed,
    LowRank,
    Monochromatic,
    Palette,
    Predicted,
    Separable,
    Tucker,
    alternate,
    convert,
    size,
    strip,
)
from .distill import attention_relation, hidden, kd, mimic  # noqa: E402

__version__ = importlib.metadata.version("rdkernels")
__all__ = [
    "CP",
    "Bicluster",
    "Hashed",
    "LowRank",
    "Monochromatic",
    "Palette",
    "Predicted",
    "Separable",
    "Tucker",
    "alternate",
    "attention_relation",
    "backends",
    "bicluster_conv2d",
    "build_info",
    "compress",
    "convert",
    "cp_conv2d",
    "datasets",
    "distill",
    "fits",
    "hashed_linear",
    "hashing",
    "hidden",
    "kd",
    "lowrank_linear",
    "mimic",
    "monochromatic_conv2d",
    "nn",
    "palette_linear",
    "planner",
    "separable_conv2d",
    "size",
    "strip",
    "tucker_conv2d",
    "use",
]


def build_info() -> dict[str, str]:
    """What runs here and why: versions, the instruction set, each compiled library or the reason it is not used.

    Asks for the GPU, and so starts CUDA where there is one; importing the package does not.
    """
    import platform

    import torch

    from .ops.hashed_linear import triton

    return {
        "rdkernels": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu_capability": native.ISA,
        **{f"native_{kind}": text for kind, text in native.info().items()},
        "triton": triton.status(),
        "map_version": str(hashing.MAP_VERSION),
    }
