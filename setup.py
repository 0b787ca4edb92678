"""Build rdkernels: pure Python by default, native kernels where torch and a C++ compiler are at hand.

RDK_BUILD=auto|pure|cpu   what to build (auto: whatever the machine can; cpu: fail where it cannot)
RDK_ISA=base|avx2|avx512  build one instruction set only (development)
CXX, RDK_CXXFLAGS         the compiler and extra flags, such as -fsanitize=address,undefined

Torch is found, never imported: any torch >= 2.13 serves.
"""

import importlib.util
import os
import pathlib
import platform
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = pathlib.Path(__file__).parent.resolve()
STABLE_ABI = "0x020D000000000000"  # torch 2.13
X86_ISAS = {
    "base": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c", "-mprefer-vector-width=512"],
}
ISAS = X86_ISAS if platform.machine() in ("x86_64", "AMD64") else {"base": []}
MODE = os.environ.get("RDK_BUILD", "auto")
CXX = os.environ.get("CXX", "c++")
FLAGS = [
    "-std=c++20",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
    "-Wno-maybe-uninitialized",
    "-fno-math-errno",
]


def torch_root():
    spec = importlib.util.find_spec("torch")
    return pathlib.Path(next(iter(spec.submodule_search_locations))) if spec else None


def extensions():
    if MODE not in ("auto", "pure", "cpu"):
        sys.exit(f"RDK_BUILD must be auto, pure or cpu, got {MODE!r}")
    if MODE == "pure":
        return []
    torch, compiler = torch_root(), shutil.which(CXX)
    if not torch or not compiler:
        missing = ", ".join(
            name for name, found in (("torch", torch), (f"a C++ compiler ({CXX})", compiler)) if not found
        )
        if MODE == "cpu":
            sys.exit(f"RDK_BUILD=cpu needs {missing}; torch must be installed and pip run with --no-build-isolation")
        print(f"rdkernels: pure-Python build, {missing} not visible to it")
        return []
    sources = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/*/cpu*.cpp"))
    headers = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/**/*.h"))
    wanted = os.environ.get("RDK_ISA")
    if wanted and wanted not in ISAS:
        sys.exit(f"RDK_ISA must be one of {list(ISAS)}, got {wanted!r}")
    return [
        Extension(f"rdkernels._C_{isa}", sources, depends=headers, py_limited_api=True)
        for isa in ISAS
        if wanted in (None, isa)
    ]


class Build(build_ext):
    """Compile each extension for its instruction set against torch's stable ABI; no Python.h, no torch import."""

    def finalize_options(self):
        super().finalize_options()
        self.parallel = os.cpu_count()  # the instruction sets side by side; as an option it is lost in editable builds

    def build_extension(self, ext):
        torch, out = torch_root(), pathlib.Path(self.get_ext_fullpath(ext.name)).resolve()
        isa = ext.name.rsplit("_", 1)[1]
        work = pathlib.Path(self.build_temp, isa).resolve()
        for folder in (work, out.parent):
            folder.mkdir(parents=True, exist_ok=True)
        extra = shlex.split(os.environ.get("RDK_CXXFLAGS", ""))
        includes = [f"-DTORCH_TARGET_VERSION={STABLE_ABI}", f"-isystem{torch / 'include'}", f"-I{ROOT / 'csrc'}"]
        privacy = [f"-ffile-prefix-map={ROOT}=.", f"-ffile-prefix-map={torch}=torch"]
        compile_ = [CXX, *FLAGS, *ISAS[isa], *includes, *privacy, *extra]

        def build(source):
            target = work / f"{source.replace('/', '_')}.o"
            command = [*compile_, "-c", source, "-o", str(target)]
            print(shlex.join(command), flush=True)
            subprocess.check_call(command, cwd=ROOT)
            return str(target)

        objects = list(ThreadPoolExecutor(2).map(build, ext.sources))
        strip = [] if extra else ["-Wl,-s"]
        link = [CXX, "-shared", *objects, "-o", str(out), f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10", *strip, *extra]
        subprocess.check_call(link)


native = extensions()
setup(
    ext_modules=native,
    cmdclass={"build_ext": Build},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if native else {},
)
