"""Fast compressed layers for PyTorch: hashed-weight linear layers that never build their weight matrix."""

from __future__ import annotations

import importlib.metadata

from . import hashing, native
from .ops import hashed_linear as _room  # declares the operators; must come before the compiled libraries
from .ops.hashed_linear import hashed_linear
from .registry import attach_native, backends, use

native.load()
attach_native(_room.KERNEL_DTYPES, native.runs_on)

from . import nn  # noqa: E402

__version__ = importlib.metadata.version("rdkernels")
__all__ = ["backends", "build_info", "hashed_linear", "hashing", "nn", "use"]


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
