"""The steps of `gpu_check.py`: what is looked for on the machine, what is run, how its output is judged."""

from __future__ import annotations

import os
import pathlib
import re
import shlex
import shutil
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass, field

import gpu_verdicts as verdicts
import torch
from gpu_verdicts import Done, Outcome

import rdkernels as rd
from rdkernels.benchmark import gpu, machine

ROOT = pathlib.Path(__file__).resolve().parents[1]
OUT = ROOT / "build" / "gpu-check"
BACKENDS = ("native", "triton")
TOOLS = {"memcheck": "store", "racecheck": None, "synccheck": None, "initcheck": "read"}  # tool -> known fault
GET_SANITIZER = (
    "pip install nvidia-cuda-sanitizer-api (for CUDA 12: nvidia-cuda-sanitizer-api-cu12), or install the CUDA toolkit"
)
TOOLKIT = "/usr/local/cuda"
NOT_OURS = "at6native|at_cuda_detail|3cub|thrust|cutlass|cublas"  # mangled names of torch's own kernels


@dataclass(frozen=True)
class Command:
    """A Python command line in the repository's root, under `prefix`, with more environment."""

    arguments: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()

    def __str__(self) -> str:
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        prefix = [pathlib.Path(part).name if os.sep in part else shlex.quote(part) for part in self.prefix]
        return " ".join([*variables, *prefix, "python", *map(shlex.quote, self.arguments)])


@dataclass(frozen=True)
class Machine:
    """What is here: the GPU's name or None, the sanitizer or None, and lines that say more."""

    gpu: str | None
    sanitizer: str | None
    lines: tuple[str, ...]


def find_sanitizer() -> str | None:
    """compute-sanitizer on PATH, in a CUDA toolkit, or of the pip package."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), TOOLKIT]
    places = os.pathsep.join([os.environ.get("PATH", ""), *(f"{home}/bin" for home in homes if home)])
    packaged = pathlib.Path(sysconfig.get_path("purelib"), "nvidia").glob("**/bin/compute-sanitizer")
    return shutil.which("compute-sanitizer", path=places) or next((str(p) for p in packaged if p.is_file()), None)


def look() -> Machine:
    info = rd.build_info()
    lines = [f"torch {info['torch']}, CUDA {torch.version.cuda}, ROCm {torch.version.hip}"]
    name = None
    if torch.cuda.is_available():
        stamp = gpu.Cuda().stamp()
        name = str(stamp["gpu"])
        lines += [f"{key}: {value}" for key, value in stamp.items()]
    else:
        lines.append("no GPU that torch can use")
    lines += [f"{key}: {info[key]}" for key in ("native_cuda", "triton")]
    sanitizer = find_sanitizer()
    lines.append(f"compute-sanitizer: {'found' if sanitizer else f'not here; {GET_SANITIZER}'}")
    lines.append(f"commit: {machine.commit()}")
    return Machine(name, sanitizer, tuple(lines))


def slug(name: str) -> str:
    """A GPU's name as a file name: "NVIDIA H100 80GB HBM3" -> "nvidia-h100-80gb-hbm3"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


@dataclass(frozen=True)
class Step:
    """Commands and what their output amounts to. `rehearse` replaces the arguments where there is no GPU."""

    name: str
    proves: str
    commands: tuple[Command, ...]
    judge: Callable[[list[Done]], Outcome]
    rehearsal: tuple[str, ...] = ()


def steps(here: Machine, backends: tuple[str, ...], quick: bool, dtypes: str) -> list[Step]:
    """All steps but the first, which is to look at the machine."""
    require = {
        "RDK_REQUIRE": ",".join(["cuda", *(f"{b}-cuda" for b in backends)]),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }

    def pytest(name: str, proves: str, *arguments: str, wanted: tuple[str, ...] = ()) -> Step:
        xml = OUT / f"{name}.xml"
        line = ("-m", "pytest", *arguments, "-q", f"--junitxml={xml.relative_to(ROOT)}")
        collect = ("-m", "pytest", *arguments, "-q", "--collect-only")
        return Step(name, proves, (Command(line, require),), lambda done: verdicts.tests(done[0], xml, wanted), collect)

    def sanitize(tool: str, fault: str | None) -> Step:
        prefix = (here.sanitizer or "compute-sanitizer", "--tool", tool, "--target-processes", "application-only")
        prefix += ("--error-exitcode", str(verdicts.ERRORS_FOUND), "--print-limit", "20")
        prefix += ("--report-api-errors", "no") if tool == "memcheck" else ()  # torch asks for what it may not get
        prefix += ("--kernel-name-exclude", f"regex={NOT_OURS}") if tool == "initcheck" else ()
        alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        smoke = Command(("tests/gpu_smoke.py", *backends), alone, prefix)
        broken = (Command(("tests/gpu_smoke.py", "--broken", fault), alone, prefix),) if fault else ()
        proves = {
            "memcheck": "no kernel reads or writes out of bounds or misaligned",
            "racecheck": "no two threads of a block race for shared memory",
            "synccheck": "no barrier is used wrongly",
            "initcheck": "no kernel reads global memory that nobody wrote",
        }[tool]
        return Step(
            tool,
            proves,
            (*broken, smoke),
            lambda done: verdicts.sanitizer(done[-1], done[0] if fault else None),
            ("tests/gpu_smoke.py", *backends, "--list"),
        )

    result = ROOT / "bench" / "results" / f"{slug(here.gpu or 'name of the gpu')}.json"
    if quick:
        result = OUT / "quick.json"
    timed = ["-m", "rdkernels", "bench", "--device", "cuda", "--dtype", dtypes, *(["--quick"] if quick else [])]
    plot = (OUT / result.with_suffix(".png").name).relative_to(ROOT)
    kinds = ("fp32", "bf16", "fp16")
    return [
        pytest(
            "contract",
            "every case, dtype and layout, forward, backward and double backward, keeps the accuracy rule on the GPU",
            "tests",
            "-k",
            "cuda",
            wanted=tuple(f"{b}-cuda-{kind}" for b in backends for kind in kinds),
        ),
        pytest(
            "triton",
            "the map, other blocks and broken kernels of Triton on the GPU",
            "tests/test_triton.py::test_triton_gpu",
        ),
        pytest(
            "gpu",
            "CUDA graphs, the same bits on two streams, the current stream and device, peak memory",
            "tests/test_gpu.py",
            wanted=backends,
        ),
        *(sanitize(tool, fault) for tool, fault in TOOLS.items()),
        Step(
            "bench",
            "the time beside cuBLAS, row by row; a report, never a condition",
            (Command((*timed, "--json", str(result.relative_to(ROOT)), "--plot", str(plot))),),
            lambda done: verdicts.bench(done[0], result),
            (*timed, "--only", "^$"),
        ),
    ]
