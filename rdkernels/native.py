"""Finds and loads the compiled libraries, and says why not."""

from __future__ import annotations

import ctypes
import functools
import pathlib
import re

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


def serves_arch(archs: str, major: int, minor: int) -> bool:
    """Whether code for `archs`, such as "80;90;100+PTX", runs on a GPU of compute capability `major.minor`.

    Machine code runs on its own and later minors of its major ("a": on its own only), PTX on anything later.
    """
    for number, kind, ptx in re.findall(r"(\d+)([af]?)(\+PTX)?", archs):
        own = divmod(int(number), 10)
        if own == (major, minor) or (kind != "a" and own[0] == major and own[1] <= minor):
            return True
        if ptx and not kind and own <= (major, minor):
            return True
    return False


@functools.cache
def cuda_unused(index: int) -> str:
    """Why GPU `index` does not run the CUDA library, "" if it does. Starts CUDA where there is a GPU."""
    if not loaded("cuda"):
        return status["cuda"]
    if torch.version.cuda is None:
        return "torch without CUDA"
    if not torch.cuda.is_available():
        return "no GPU"
    library = ctypes.CDLL(str(_HERE / status["cuda"]))  # in this process already
    archs = ctypes.string_at(ctypes.addressof(ctypes.c_char.in_dll(library, "rdk_cuda_archs"))).decode()
    built = ctypes.c_int.in_dll(library, "rdk_cuda_version").value
    driver = torch._C._cuda_getDriverVersion()  # type: ignore[attr-defined]
    if driver // 1000 < built // 1000:  # any driver of the runtime's major version serves
        return f"the driver is for CUDA {driver // 1000}, this library for {built // 1000}: a newer driver is needed"
    major, minor = torch.cuda.get_device_capability(index)
    return "" if serves_arch(archs, major, minor) else f"built for {archs}, this GPU is {major}{minor}"


def runs_on(device: torch.device) -> bool:
    """Whether the libraries run on `device`: any CPU, a GPU that the CUDA library was built for."""
    return device.type == "cpu" or not cuda_unused(device.index or 0)


def info() -> dict[str, str]:
    """`status`, and for a loaded CUDA library whether this machine's first GPU uses it. Starts CUDA if there is one."""
    reason = cuda_unused(0) if loaded("cuda") else ""
    return {**status, "cuda": f"{status['cuda']}, {reason}: not used" if reason else status["cuda"]}
