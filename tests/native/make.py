"""Builds what these tests run, with ninja, into tests/native/build/: two compilations at a time, only what changed.

    python tests/native/make.py [target ...]      # as a rule the tests call `build`

    probe_<variant>        the pybind11 module: the map, the vector functions and every kernel, on numpy arrays
    check_<variant>        the driver (check.cpp) under the address and undefined-behaviour sanitizers
    check_neon             the driver for aarch64, for an emulator
    lowrank_check_<...>    the same for the low-rank kernels (lowrank_check.cpp)
    controls_<build>       the host-run CUDA controls (simt/controls.cu) as a program
    simt_<build>           and as a pybind11 module
    cuda_<build>           the hashed linear CUDA kernels, both ways (cuda_main.cpp, cuda_module.cpp)
    lowrank_cuda_<build>   the low-rank chains' likewise (lowrank_cuda_main.cpp, lowrank_cuda_module.cpp)
    mutant_<n>_<build>     the program with a fault in the kernels (mutants.py)

A variant is an instruction set of the shipped build with its flags, or `wide`: the sixteen-lane source that AVX-512
gets (its register blocks, transposes and accumulators), compiled for AVX2. Device code is built for the host (simt/)
in three ways: for values, under the address and undefined-behaviour sanitizers, and with a trace of every access.
"""

from __future__ import annotations

import ast
import functools
import os
import pathlib
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig

import ninja
import pybind11
import torch

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from native import mutants  # noqa: E402  also where this file is the program

ROOT = HERE.parents[1]
BUILD = HERE / "build"
CROSS = "aarch64-linux-gnu-g++"
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")


def shipped(name: str):
    """A literal of setup.py, such as the flags of the shipped build."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == [name]:
            return ast.literal_eval(node.value)
    raise LookupError(f"setup.py assigns no {name}")


ISAS = shipped("X86_ISAS") if platform.machine() in ("x86_64", "AMD64") else {"base": []}
VARIANTS = {**ISAS, "wide": [*ISAS.get("avx2", []), "-DRDK_LANES=16", "-O1"]}
SANITIZED = [name for name in VARIANTS if name != "avx512"]
MODULES = {name: f"probe_{name}" for name in VARIANTS}
DRIVERS = {name: f"check_{name}" for name in SANITIZED}
LOWRANK_DRIVERS = {name: f"lowrank_check_{name}" for name in SANITIZED}
SANITIZE = ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# Half the compile time: checks by call, and none twice (the address sanitizer sees null and the object's end too).
SANITIZE += ["--param", "asan-instrumentation-with-call-threshold=0", "-fno-sanitize=null,object-size"]

# Device code built for the host. The trace has the instrumentation of the thread sanitizer, and hooks.cpp in its place.
SIMT_BUILDS = {
    "values": ["-O2", "-g1"],
    "asan": SANITIZE,
    "trace": ["-O1", "-g1", "-DSIMT_TRACE", "-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0"],
}
SIMT_RUNTIME = ["fiber.cpp", "runtime.cpp", "memory.cpp", "collectives.cpp"]
SIMT_TRACE = ["trace.cpp", "shadow.cpp", "hooks.cpp"]
SIMT_PROGRAMS = {  # name -> source, built in every way
    "controls": "simt/controls_main.cpp",
    "cuda": "cuda_main.cpp",
    "lowrank_cuda": "lowrank_cuda_main.cpp",
}
# likewise, but for the sanitizers, which are for programs
SIMT_MODULES = {
    "simt": "simt/controls_module.cpp",
    "cuda": "cuda_module.cpp",
    "lowrank_cuda": "lowrank_cuda_module.cpp",
}
CUDA_MISSING = (
    "no CUDA headers: install a CUDA toolkit (or pip install nvidia-cuda-runtime nvidia-cuda-nvcc nvidia-cuda-crt "
    "nvidia-cuda-cccl), and set CUDA_HOME to the folder that has include/cuda_fp16.h"
)


@functools.cache
def cuda_home() -> pathlib.Path | None:
    """The CUDA toolkit: CUDA_HOME, else the one behind nvcc (which may be a wrapper script)."""
    home, nvcc = os.environ.get("CUDA_HOME"), shutil.which("nvcc")
    if not home and nvcc:
        # the temporaries that it names it does not make
        said = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
        home = top[1] if (top := re.search(r"^#\$ TOP=(.+)$", said, re.MULTILINE)) else None
    return pathlib.Path(home) if home and pathlib.Path(home, "include", "cuda_fp16.h").exists() else None


def nvcc() -> str | None:
    """The CUDA compiler."""
    inside = pathlib.Path(cuda_home() or "", "bin", "nvcc")
    return str(inside) if inside.exists() else shutil.which("nvcc")


def runs_here(variant: str) -> bool:
    """Whether this CPU has the variant's instructions."""
    flag = {"avx2": "avx2", "wide": "avx2", "avx512": "avx512_f"}.get(variant)
    return not ISAS.get("avx2") or flag is None or bool(torch.cpu.get_capabilities().get(flag))


Edge = tuple[str, list[str], list[str]]  # compiler, inputs, flags


def targets() -> dict[str, Edge]:
    """File to build -> how."""
    flags = [*shipped("FLAGS"), "-I../../../csrc"]
    made = {}
    for name, isa in VARIANTS.items():
        extra = [*isa, *python_flags(), f"-DRDK_MODULE={MODULES[name]}", "-shared"]
        made[MODULES[name] + SUFFIX] = "c++", ["../module.cpp"], [*flags, *extra]
    for name in SANITIZED:
        made[DRIVERS[name]] = "c++", ["../check.cpp"], [*flags, *VARIANTS[name], *SANITIZE]
        made[LOWRANK_DRIVERS[name]] = "c++", ["../lowrank_check.cpp"], [*flags, *VARIANTS[name], *SANITIZE]
    if shutil.which(CROSS):
        made["check_neon"] = CROSS, ["../check.cpp"], [*flags, "-static"]
        made["lowrank_check_neon"] = CROSS, ["../lowrank_check.cpp"], [*flags, "-static"]
    if cuda_home():
        for how in SIMT_BUILDS:
            made |= simt_targets(how, flags)
    return made


def simt_targets(how: str, flags: list[str]) -> dict[str, Edge]:
    """The host-run device code in one of its builds: the runtime once, and what is linked with it."""
    flags = [
        *flags,
        "-I..",
        f"-isystem{cuda_home() / 'include'}",
        "-DRDK_SIMT",
        "-Wno-unknown-pragmas",
        *SIMT_BUILDS[how],
    ]
    plain = [flag for flag in flags if flag != "-fsanitize=thread"]  # the runtime, and every link
    runtime = {
        f"simt_{how}_{pathlib.Path(source).stem}.o": ("c++", [f"../simt/{source}"], [*plain, "-O2", "-c"])
        for source in SIMT_RUNTIME + (SIMT_TRACE if how == "trace" else [])
    }
    made = dict(runtime)
    for name, source in SIMT_PROGRAMS.items():
        made[f"{name}_{how}.o"] = "c++", [f"../{source}"], [*flags, "-c"]
        made[f"{name}_{how}"] = "c++", [f"{name}_{how}.o", *runtime], [*plain, "-pie"]
    for name, source in SIMT_MODULES.items() if how != "asan" else ():
        module = f"{name}_{how}"
        made[f"{module}.module.o"] = "c++", [f"../{source}"], [*flags, *python_flags(), f"-DSIMT_MODULE={module}", "-c"]
        made[module + SUFFIX] = "c++", [f"{module}.module.o", *runtime], [*plain, "-shared"]
    for n, mutant in enumerate(mutants.MUTANTS):
        if how in mutants.builds(mutant):
            first = [f"-Imutants/{n}", "-DRDK_ONLY_BF16", *(flag for flag in flags if flag != "-O2")]
            made[f"mutant_{n}_{how}.o"] = "c++", [f"../{SIMT_PROGRAMS[mutant.program]}"], [*first, "-O1", "-c"]
            made[f"mutant_{n}_{how}"] = "c++", [f"mutant_{n}_{how}.o", *runtime], [*plain, "-pie"]
    return made


def python_flags() -> list[str]:
    return [f"-isystem{path}" for path in (sysconfig.get_paths()["include"], pybind11.get_include())]


def build(*wanted: str) -> None:
    """Bring `wanted` (nothing: everything) up to date; raises CalledProcessError with the compiler's own message."""
    BUILD.mkdir(exist_ok=True)
    for n, mutant in enumerate(mutants.MUTANTS):
        mutants.write(mutant, BUILD / "mutants" / str(n))
    rules = "rule compile\n  command = $cxx $flags -MMD -MF $out.d $in -o $out\n  depfile = $out.d\n  deps = gcc\n"
    rules += "rule link\n  command = $cxx $in $flags -o $out\n"
    edges = []
    for out, (cxx, inputs, flags) in targets().items():
        rule = "link" if inputs[0].endswith(".o") else "compile"
        edges.append(f"build {out}: {rule} {' '.join(inputs)}\n  cxx = {cxx}\n  flags = {shlex.join(flags)}\n")
    (BUILD / "build.ninja").write_text(rules + "".join(edges))
    subprocess.run([pathlib.Path(ninja.BIN_DIR, "ninja"), "-C", BUILD, "-j2", "--quiet", *wanted], check=True)


if __name__ == "__main__":
    build(*sys.argv[1:])
