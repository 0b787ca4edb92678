"""Build rdkernels: pure Python by default, native kernels where torch and compilers are at hand.

RDK_BUILD=auto|pure|cpu|cuda  what to build (auto: whatever the machine can; cpu, cuda: fail where it cannot)
RDK_ISA=base|avx2|avx512      one instruction set only for the CPU (development)
RDK_CUDA_ARCHS=80;90;100+PTX  the GPU architectures; +PTX adds code that later ones compile for themselves
CUDA_HOME                     the CUDA toolkit; else that of the nvcc on PATH, else the one installed by pip
CXX, RDK_CXXFLAGS             the compiler and extra flags, such as -fsanitize=address,undefined
RDK_NVCCFLAGS                 extra flags of nvcc, such as -lineinfo

Torch is found, never imported: any torch >= 2.13 serves, a CPU build too, for CUDA as well. docs/building.md.
"""

import functools
import importlib.util
import os
import pathlib
import platform
import re
import shlex
import shutil
import subprocess
import sys
import threading
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
X86 = ("x86_64", "AMD64")
ISAS = X86_ISAS if platform.machine() in X86 else {"base": []}
MODE = os.environ.get("RDK_BUILD") or "auto"
CXX = os.environ.get("CXX", "c++")
CUDA_ARCHS = os.environ.get("RDK_CUDA_ARCHS") or "80;90;100+PTX"
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
NVCC_FLAGS = [
    "-std=c++20",
    "-O3",
    "--expt-relaxed-constexpr",
    "-diag-suppress=1675",  # GCC's pragmas
    "-Xcompiler=-fPIC,-fvisibility=hidden,-Wno-psabi",
    "--compress-mode=size",
]
JOBS = max(2, os.cpu_count() or 1)
SLOTS = threading.Semaphore(JOBS)


def package_root(name):
    spec = importlib.util.find_spec(name)
    return pathlib.Path(next(iter(spec.submodule_search_locations))) if spec else None


def files(*patterns):
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


@functools.cache
def cuda_home():
    """The toolkit: CUDA_HOME, else where the nvcc on PATH says it is (it may be a wrapper), else pip's nvidia-*."""
    if os.environ.get("CUDA_HOME"):
        return pathlib.Path(os.environ["CUDA_HOME"])
    if nvcc := shutil.which("nvcc"):
        told = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
        if top := re.search(r"^#\$ TOP=(.+)$", told, re.M):
            return pathlib.Path(top[1].strip()).resolve()
    nvidia = package_root("nvidia")
    return next((path for path in sorted(nvidia.glob("cu*")) if (path / "bin/nvcc").exists()), None) if nvidia else None


def cudart():
    folders = ("lib64", f"targets/{platform.machine()}-linux/lib", "lib")
    return next((p for f in folders if (p := cuda_home() / f / "libcudart_static.a").exists()), None)


def gencodes():
    """-gencode for each of `80;90;100+PTX`: machine code, and PTX too where it says so."""
    if not re.fullmatch(r"\d+[af]?(\+PTX)?(;\d+[af]?(\+PTX)?)*", CUDA_ARCHS):
        sys.exit(f"RDK_CUDA_ARCHS must be like '80;90;100+PTX', got {CUDA_ARCHS!r}")
    archs = [arch.partition("+") for arch in CUDA_ARCHS.split(";")]
    codes = [(n, f"[sm_{n},compute_{n}]" if ptx else f"sm_{n}") for n, _, ptx in archs]
    return [f"-gencode=arch=compute_{n},code={code}" for n, code in codes]


def nvcc_fault():
    """Why nvcc cannot build here, "" if it can: it compiles an empty file for every architecture asked for."""
    command = [cuda_home() / "bin/nvcc", *NVCC_FLAGS, *gencodes(), "-ccbin", CXX, "-c", "-x", "cu", os.devnull]
    tried = subprocess.run([*command, "-o", os.devnull], capture_output=True, text=True)
    return (tried.stdout + tried.stderr).strip().splitlines()[-1] if tried.returncode else ""


def smaller(target, source):
    """-O2 where it is as fast as -O3 (within 3 %, measured): 110 kB less of a wheel."""
    hashed = "hashed_linear" in source  # whose backward on AVX2 takes 10 % longer then
    return ["-O2"] if (target == "base" and platform.machine() in X86) or (target == "avx2" and not hashed) else []


def cpu_missing():
    wanted = (("torch", package_root("torch")), (f"a C++ compiler ({CXX})", shutil.which(CXX)))
    return [name for name, found in wanted if not found]


def cuda_missing():
    if not files("csrc/*/cuda*.cu"):
        return ["a CUDA source (csrc/*/cuda*.cu)"]
    if not cuda_home() or not (cuda_home() / "bin/nvcc").exists():
        return [f"nvcc (CUDA_HOME={cuda_home()} has none)" if cuda_home() else "nvcc"]
    if not cudart():
        return [f"libcudart_static.a of the toolkit with nvcc ({cuda_home()})"]
    fault = "" if cpu_missing() else nvcc_fault()
    return [f"an nvcc that compiles for {CUDA_ARCHS} here ({fault})"] if fault else []


def extensions():
    """What this machine can build of what RDK_BUILD asks for: decided, and said in one line, before compiling."""
    if MODE not in ("auto", "pure", "cpu", "cuda"):
        sys.exit(f"RDK_BUILD must be auto, pure, cpu or cuda, got {MODE!r}")
    if MODE == "pure":
        return []
    no_cpu = cpu_missing()
    no_cuda = ["RDK_BUILD=cuda, not cpu"] if MODE == "cpu" else cuda_missing()
    missing = no_cpu + (no_cuda if MODE == "cuda" else [])
    if missing and MODE != "auto":
        hint = "; torch must be installed and pip run with --no-build-isolation" if "torch" in missing else ""
        sys.exit(f"RDK_BUILD={MODE} needs {', '.join(missing)}{hint}")
    if no_cpu:
        print(f"rdkernels: pure-Python build, {', '.join(no_cpu)} not visible to it")
        return []
    wanted = os.environ.get("RDK_ISA")
    if wanted and wanted not in ISAS:
        sys.exit(f"RDK_ISA must be one of {list(ISAS)}, got {wanted!r}")
    isas = [isa for isa in ISAS if wanted in (None, isa)]
    cuda = f"CUDA for {CUDA_ARCHS}" if not no_cuda else f"not CUDA, which needs {', '.join(no_cuda)}"
    print(f"rdkernels: builds for the CPU ({', '.join(isas)}); {cuda}")
    sources, headers = files("csrc/*/cpu*.cpp"), files("csrc/**/*.h")
    cpu = [Extension(f"rdkernels._C_{isa}", sources, depends=headers, py_limited_api=True) for isa in isas]
    if no_cuda:
        return cpu
    sources = [*files("csrc/*/cuda*.cu"), "csrc/common/cuda_target.cpp"]
    headers = files("csrc/**/*.h", "csrc/**/*.cuh")
    return [Extension("rdkernels._C_cuda", sources, depends=headers, py_limited_api=True), *cpu]  # the longest first


class Build(build_ext):
    """Compile each extension for its target against torch's stable ABI; no Python.h, no torch import."""

    def finalize_options(self):
        super().finalize_options()
        self.parallel = JOBS  # the extensions side by side; as an option it is lost in editable builds

    def build_extension(self, ext):
        torch, out = package_root("torch"), pathlib.Path(self.get_ext_fullpath(ext.name)).resolve()
        target = ext.name.rsplit("_", 1)[1]
        work = pathlib.Path(self.build_temp, target).resolve()
        for folder in (work, out.parent):
            folder.mkdir(parents=True, exist_ok=True)
        extra = shlex.split(os.environ.get("RDK_CXXFLAGS", ""))
        includes = [f"-DTORCH_TARGET_VERSION={STABLE_ABI}", "-isystem", str(torch / "include"), "-Icsrc"]
        privacy = [f"-ffile-prefix-map={ROOT}=.", f"-ffile-prefix-map={torch}=torch"]
        cxx = [CXX, *FLAGS, *ISAS.get(target, []), *includes, *privacy, *extra]
        libraries = [f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10"]
        if target == "cuda":
            cxx += ["-isystem", str(cuda_home() / "include"), f'-DRDK_CUDA_ARCHS="{CUDA_ARCHS}"']
            threads = max(1, JOBS // sum(s.endswith(".cu") for s in ext.sources))  # an architecture each
            nvcc = [str(cuda_home() / "bin/nvcc"), *NVCC_FLAGS, *gencodes(), f"--threads={threads}", "-ccbin", CXX]
            nvcc += [*includes, *(f"-Xcompiler={flag}" for flag in [*privacy, *extra])]
            nvcc += shlex.split(os.environ.get("RDK_NVCCFLAGS", ""))
            # Hidden: else these symbols would bind to the libcudart, of any version, that torch has loaded.
            libraries += [str(cudart()), "-Wl,--exclude-libs,ALL", "-ldl", "-lrt", "-lpthread"]

        def build(source):
            object_ = work / f"{source.replace('/', '_')}.o"
            compiler = nvcc if source.endswith(".cu") else [*cxx, *smaller(target, source)]
            command = [*compiler, "-c", source, "-o", str(object_)]
            with SLOTS:
                print(shlex.join(command), flush=True)
                subprocess.check_call(command, cwd=ROOT)
            return str(object_)

        objects = list(ThreadPoolExecutor(JOBS).map(build, ext.sources))
        strip = [] if extra else ["-Wl,-s"]
        subprocess.check_call([CXX, "-shared", *objects, "-o", str(out), *libraries, *strip, *extra])


native = extensions()
setup(
    ext_modules=native,
    cmdclass={"build_ext": Build},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if native else {},
)
