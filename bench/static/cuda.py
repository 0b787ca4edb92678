"""The CUDA kernels of csrc/*/cuda*.cu and their dense twins, compiled and counted.

    python -m bench.static.cuda --write       rewrite tests/budget_cuda.json: a rise is a diff to defend

Compiles two files at a time into tests/native/build/cuda; what did not change is not compiled again.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import itertools
import json
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from . import bounds, cubin

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUDGET = ROOT / "tests" / "budget_cuda.json"
BUILD = ROOT / "tests" / "native" / "build" / "cuda"
FLAGS = ["-std=c++20", "-O3", "-lineinfo", "-Xptxas=-v,-warn-spills", "-DTORCH_TARGET_VERSION=0x020D000000000000"]
TWINS = [ROOT / "tests" / "native" / name for name in ("dense.cu", "dense_conv.cu")]  # the same with stored weights
TYPES = {"__nv_bfloat16": "bf16", "__half": "fp16", "float": "fp32"}

# Dynamic shared memory of a launch, as C++ of the arguments of the kernel's template.
DYNAMIC = {
    "many_rows": "ManyRowsTiles<{0}, {1}>::kBytes",
    "dense_rows": "{0}::kStages * (ManyRowsTiles<{0}, {1}>::X::kSize + ManyRowsTiles<{0}, {1}>::V::kSize)"
    " * sizeof({0}::Value)",
    "bank_panel": "{0}::kBytes",
    "bank_owner": "OwnerBlock<{0}, {1}>::kBytes",
    "few_rows": "kFewRows<{0}> * (kForwardCols + 4) * 4",
    "few_rows_grad": "kFewRows<{0}> * (kInputGradCols + 4) * 4",
    "chain": "layer<{0}, {1}>()",
    "dense_conv": "2 * ({0}::A::kSize + {0}::Wide::kSize) * sizeof({0}::T)",
}
INCLUDES = ("hashed_linear/launch.cuh", "cp_conv2d/depthwise.cuh", "tucker_conv2d/core.cuh")
# A chain's depends on the problem: 3 x 3 taps, 128 ranks, a tile of 8 x 8.
LAYER = """template <class C, class Room>
constexpr unsigned layer() {
  ChainArgs<typename C::T> args{};
  args.y = args.x = axis(8, 56, 56, 3, 1, 1, 1);
  args.ranks = args.first.rows.rows = 128;
  args.rows = Room::rows(args);
  return C::kWork + args.rows * 128 * sizeof(typename C::T) + Room::bytes(args);
}
"""


def compiler() -> str | None:
    """nvcc: CUDA_HOME's, that on PATH, or the one that pip installed."""
    places = [pathlib.Path(os.environ["CUDA_HOME"])] if os.environ.get("CUDA_HOME") else []
    if shutil.which("nvcc") and not places:
        return shutil.which("nvcc")
    found = importlib.util.find_spec("nvidia")
    places += [
        home for path in (found.submodule_search_locations if found else ()) for home in pathlib.Path(path).glob("cu*")
    ]
    return next((str(home / "bin" / "nvcc") for home in places if (home / "bin" / "nvcc").exists()), None)


def nvcc() -> str | None:
    """The version of nvcc, None where there is none."""
    if not (command := compiler()):
        return None
    text = subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"release [\d.]+, V([\d.]+)", text)[1]


def sources() -> list[pathlib.Path]:
    return [*sorted(ROOT.glob("csrc/*/cuda*.cu")), *TWINS]


def shipped_flags() -> list[str]:
    """What setup.py gives to nvcc, where it names it; else the flags above alone."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ["NVCC_FLAGS"]:
            return ast.literal_eval(node.value)
    return []


def included(source: pathlib.Path) -> list[pathlib.Path]:
    """The source and the headers of csrc that it includes, in any depth."""
    found = [source]
    for path in found:
        names = re.findall(r'^#include "(.+)"', path.read_text(), re.MULTILINE)
        found += [h for name in names if (h := ROOT / "csrc" / name).exists() and h not in found]
    return found


def compile_(jobs: list[tuple[pathlib.Path, str]], build: pathlib.Path = BUILD) -> list[pathlib.Path]:
    """A cubin per (source, target), two at a time; the compiler's output stands beside it as .log."""
    build.mkdir(parents=True, exist_ok=True)
    torch = importlib.util.find_spec("torch")
    includes = [f"-isystem={path}/include" for path in torch.submodule_search_locations] if torch else []
    includes += [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests' / 'native'}"]
    flags = [*shipped_flags(), *(flag for flag in FLAGS if flag not in shipped_flags())]
    common = hashlib.sha256(repr((nvcc(), flags)).encode())

    def one(job: tuple[pathlib.Path, str]) -> pathlib.Path:
        source, target = job
        key = common.copy()
        for path in included(source):
            key.update(path.read_bytes())
        made = build / f"{source.parent.name}-{source.stem}-{target}-{key.hexdigest()[:16]}.cubin"
        if not made.exists():
            for old in build.glob(f"{source.parent.name}-{source.stem}-{target}-*"):
                old.unlink()
            aside = made.with_suffix(".part")
            command = [compiler(), *flags, f"-arch={target}", "-cubin", *includes, "-o", str(aside), str(source)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{source.name} for {target}:\n{done.stderr[-4000:]}")
            made.with_suffix(".log").write_text(done.stdout + done.stderr)
            aside.rename(made)
        return made

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, jobs))


def short(name: str) -> str:
    """`many_rows<Block<bf16, tensor, 128, 128>, Forward, tile>` of a demangled name."""
    for number, member in _members().items():
        name = name.replace(number, member)
    name = re.sub(r"\b(__nv_bfloat16|__half|float)\b", lambda m: TYPES[m[1]], name)
    return name.replace("rdk::gpu::", "").replace(" >", ">")


@functools.cache
def _members() -> dict[str, str]:
    """The headers' enumerators by how a demangled name writes them."""
    text = "\n".join(path.read_text() for path in ROOT.glob("csrc/**/*.cuh"))
    return {
        f"(rdk::gpu::{enum}){number}": member.strip()
        for enum, members in re.findall(r"enum class (\w+) \{([^}]*)\}", text)
        for number, member in enumerate(members.split(","))
    }


def arguments(name: str) -> list[str]:
    """The arguments of the outermost template of `name`."""
    inside, depth, parts = name.partition("<")[2].rstrip().removesuffix(">"), 0, [""]
    for sign in inside:
        depth += (sign in "<(") - (sign in ">)")
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts]


def dynamic(names: list[str], build: pathlib.Path = BUILD) -> dict[str, int]:
    """Bytes of dynamic shared memory of kernels by their demangled names, as the headers compute them."""
    wanted = {}
    for name in names:
        template = name.removeprefix("rdk::gpu::").partition("<")[0]
        if template in DYNAMIC:
            wanted[name] = DYNAMIC[template].format(*arguments(name))
    program = build / "shared.cu"
    program.write_text(
        "".join(f'#include "{name}"\n' for name in INCLUDES)
        + "\nnamespace rdk::gpu {\n"
        + LAYER
        + f"__device__ const unsigned bytes[] = {{{', '.join(wanted.values())}}};\n"
        "__global__ void keep(unsigned* to) { *to = bytes[*to]; }\n}  // namespace rdk::gpu\n"
    )
    made = program.with_suffix(".ptx")
    flags = [flag for flag in shipped_flags() if flag.startswith(("-std", "--expt"))]
    command = [compiler(), *flags, "-arch=sm_80", f"-I{ROOT / 'csrc'}", "-ptx", "-o", str(made), str(program)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    listed = re.search(r"\.b8 \S*bytes\S*\[\d+\] = \{([\d, ]+)\}", made.read_text())[1]
    numbers = struct.unpack(f"<{len(wanted)}I", bytes(map(int, listed.split(","))).ljust(4 * len(wanted), b"\0"))
    return dict(zip(wanted, numbers, strict=True))


def compiled() -> list[tuple[str, pathlib.Path]]:
    """Target and cubin of every source."""
    jobs = list(itertools.product(sources(), [gpu.arch for gpu in bounds.GPUS]))
    return [(target, made) for (_, target), made in zip(jobs, compile_(jobs), strict=True)]


def kernels() -> dict[str, dict[str, tuple[cubin.Kernel, int]]]:
    """`{short name: {target: (kernel, bytes of dynamic shared memory)}}` of everything compiled."""
    found = [(target, kernel) for target, made in compiled() for kernel in cubin.read(made)]
    shared = dynamic(sorted({kernel.name for _, kernel in found if "rdk::gpu::" in kernel.name}))
    table: dict[str, dict[str, tuple[cubin.Kernel, int]]] = {}
    for target, kernel in found:
        table.setdefault(short(kernel.name), {})[target] = kernel, shared.get(kernel.name, 0)
    return table


def twin(name: str) -> str:
    """The dense twin of a many-rows kernel."""
    block, way, *_ = arguments(name)
    return f"dense_rows<{block}, {way}>"


def count(gpu: bounds.Gpu, kernel: cubin.Kernel, shared: int) -> dict[str, Any]:
    """What the budget holds of a kernel."""
    warps = max(1, kernel.threads // 32)
    blocks, limit = bounds.occupancy(gpu, kernel.registers, kernel.shared + shared, warps)
    return {
        "registers": kernel.registers,
        "spills": kernel.spills,
        "stack": kernel.stack,
        "threads": kernel.threads,
        "shared": kernel.shared + shared,
        "blocks": blocks,
        "limit": limit,
        "instructions": sum(i.op != "NOP" for i in kernel.code),
        "loop": len(kernel.body),
        "nested": kernel.nested,
        "stalls": sum(i.stall for i in kernel.body),
        "mma": sum(i.pipe == "tensor" for i in kernel.code),
        "atomics": kernel.atomics,
        "unknown": sorted({i.op for i in kernel.code if i.pipe == "unknown"}),
        "mix": cubin.mix(kernel.body),
        "moves": cubin.widths(kernel.body),
    }


def measure() -> dict[str, Any]:
    """The budget's content: every kernel on every target; kept beside the cubins that it was read from."""
    key = hashlib.sha256("".join(made.name for _, made in compiled()).encode())
    for path in sorted(pathlib.Path(__file__).parent.glob("*.py")):
        key.update(path.read_bytes())
    kept = BUILD / f"measured-{key.hexdigest()[:16]}.json"
    if not kept.exists():
        for old in BUILD.glob("measured-*"):
            old.unlink()
        kept.write_text(written(_measure()))
    return json.loads(kept.read_text())


def _measure() -> dict[str, Any]:
    found = kernels()
    table: dict[str, dict] = {}
    for name, targets in sorted(found.items()):
        for gpu in bounds.GPUS:
            if gpu.arch not in targets:
                continue
            kernel, shared = targets[gpu.arch]
            entry = table.setdefault(name, {})[gpu.arch] = count(gpu, kernel, shared)
            if name.startswith("many_rows<"):
                rows = int(arguments(arguments(name)[0])[2])
                dense, _ = found[twin(name)][gpu.arch]
                entry["extra"] = round(bounds.extra(kernel, dense, rows, kernel.threads // 32), 2)
    return {"nvcc": nvcc(), "kernels": table}


def written(measured: dict[str, Any]) -> str:
    """JSON with a line per kernel and target."""
    lines = [f'{{\n "nvcc": {json.dumps(measured["nvcc"])},\n "kernels": {{']
    for n, (name, targets) in enumerate(measured["kernels"].items()):
        inside = ",\n".join(f"   {json.dumps(target)}: {json.dumps(entry)}" for target, entry in targets.items())
        comma = "," if n + 1 < len(measured["kernels"]) else ""
        lines.append(f"  {json.dumps(name)}: {{\n{inside}\n  }}{comma}")
    return "\n".join([*lines, " }\n}\n"])


if __name__ == "__main__":
    text = written(measure())
    if "--write" in sys.argv:
        BUDGET.write_text(text)
    else:
        print(text, end="")
