"""Finds and loads the compiled libraries, and says why not."""

from __future__ import annotations

import pathlib

import torch

_HERE = pathlib.Path(__file__).parent

#: The instruction set torch itself chose; `ATEN_CPU_CAPABILITY=default|avx2|avx512` overrides both.
ISA = {"AVX512": "avx512", "AVX2": "avx2"}.get(torch.backends.cpu.get_cpu_capability(), "base")

#: What became of each library: its file name, or the reason it is not loaded.
status: dict[str, str] = {}


def loaded(kind: str) -> bool:
    """Whether the library of `kind` ("cpu", "cuda") is in this process."""
    return status.get(kind, "").endswith(".so")


def _load(kind: str, stem: str) -> None:
    found = sorted(_HERE.glob(f"{stem}.*so"))
    if not found:
        status[kind] = f"not built: no {stem} library beside the package"
        return
    try:
        torch.ops.load_library(str(found[0]))
        status[kind] = found[0].name
    except OSError as error:
        status[kind] = f"not loaded: {error.__cause__ or error}"


def load() -> None:
    """Load the CPU library of this machine's instruction set (else the base one) and the CUDA library."""
    _load("cpu", f"_C_{ISA}")
    if not loaded("cpu") and ISA != "base" and list(_HERE.glob("_C_base.*so")):
        reason = status["cpu"]
        _load("cpu", "_C_base")
        status["cpu_note"] = f"{ISA}: {reason}; base used instead"
    _load("cuda", "_C_cuda")
