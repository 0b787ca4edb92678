"""Builds what these tests run, with ninja, into tests/native/build/: two compilations at a time, only what changed.

    python tests/native/make.py [target ...]      # as a rule the tests call `build`

    probe_<variant>        the pybind11 module: the map, the vector functions and every kernel, on numpy arrays
    check_<variant>        the driver (check.cpp) under the address and undefined-behaviour sanitizers
    check_neon             the driver for aarch64, for an emulator

A variant is an instruction set of the shipped build with its flags, or `wide`: the sixteen-lane source that AVX-512
gets (its register blocks, transposes and accumulators), compiled for AVX2.
"""

from __future__ import annotations

import ast
import pathlib
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig

import ninja
import pybind11
import torch

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = HERE / "build"
CROSS = "aarch64-linux-gnu-g++"


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
SANITIZE = ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# Half the compile time: checks by call, and none twice (the address sanitizer sees null and the object's end too).
SANITIZE += ["--param", "asan-instrumentation-with-call-threshold=0", "-fno-sanitize=null,object-size"]


def runs_here(variant: str) -> bool:
    """Whether this CPU has the variant's instructions."""
    flag = {"avx2": "avx2", "wide": "avx2", "avx512": "avx512_f"}.get(variant)
    return not ISAS.get("avx2") or flag is None or bool(torch.cpu.get_capabilities().get(flag))


def targets() -> dict[str, tuple[str, str, list[str]]]:
    """File to build -> compiler, source, flags."""
    flags = [*shipped("FLAGS"), "-I../../../csrc"]
    python = [f"-isystem{path}" for path in (sysconfig.get_paths()["include"], pybind11.get_include())]
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    made = {}
    for name, isa in VARIANTS.items():
        extra = [*isa, *python, f"-DRDK_MODULE={MODULES[name]}", "-shared"]
        made[MODULES[name] + suffix] = "c++", "module.cpp", [*flags, *extra]
    for name in SANITIZED:
        made[DRIVERS[name]] = "c++", "check.cpp", [*flags, *VARIANTS[name], *SANITIZE]
    if shutil.which(CROSS):
        made["check_neon"] = CROSS, "check.cpp", [*flags, "-static"]
    return made


def build(*wanted: str) -> None:
    """Bring `wanted` (nothing: everything) up to date; raises CalledProcessError with the compiler's own message."""
    BUILD.mkdir(exist_ok=True)
    rules = "rule compile\n  command = $cxx $flags -MMD -MF $out.d $in -o $out\n  depfile = $out.d\n  deps = gcc\n"
    edges = [
        f"build {out}: compile ../{source}\n  cxx = {cxx}\n  flags = {shlex.join(flags)}\n"
        for out, (cxx, source, flags) in targets().items()
    ]
    (BUILD / "build.ninja").write_text(rules + "".join(edges))
    subprocess.run([pathlib.Path(ninja.BIN_DIR, "ninja"), "-C", BUILD, "-j2", "--quiet", *wanted], check=True)


if __name__ == "__main__":
    build(*sys.argv[1:])
