"""Static evidence of compiled Triton kernels, without a GPU: registers, spills, shared memory, instructions."""

from __future__ import annotations

import collections
import pathlib
import re
import subprocess
import tempfile
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
MMA = re.compile(r"^(HMMA|HGMMA|UTC\w*MMA|v_mfma)")
ATOMIC = re.compile(r"^(ATOMG?(\.|$)|REDG?(\.|$)|global_atomic|buffer_atomic|flat_atomic)")  # of global memory
_BIN = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def inspect(
    kernel: Any, types: dict[str, str], constants: dict[str, Any], target: str, warps: int, stages: int
) -> dict[str, Any]:
    """Compile `kernel` for `target`; every pointer and every int named in upper case "I32" is a multiple of 16."""
    aligned = {n: t for n, t in types.items() if t.startswith("*") or t == "I32"}
    source = ASTSource(
        fn=kernel,
        signature={**{n: t.lower() for n, t in types.items()}, **dict.fromkeys(constants, "constexpr")},
        constexprs=constants,
        attrs={(kernel.arg_names.index(n),): [["tt.divisibility", 16]] for n in aligned},
    )
    amd = target.startswith("gfx")
    options = {"num_warps": warps, "num_stages": min(stages, 2) if amd else stages}
    built = triton.compile(source, target=TARGETS[target], options=options)
    found = _amd(built.asm["amdgcn"]) if amd else _nvidia(built.asm["cubin"])
    return {**found, "shared": built.metadata.shared}


def _nvidia(cubin: bytes) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _run("cuobjdump", "-res-usage", file.name)
        text = _run("nvdisasm", "-c", file.name)
    ops = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", text, re.M)
    return {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "spills": sum(op.startswith(("LDL", "STL")) for op in ops),
        **_count(ops),
    }


def _amd(text: str) -> dict[str, Any]:
    ops = re.findall(r"^\s+([a-z]+_[a-z0-9_]+)", text, re.M)

    def number(key: str) -> int:
        return int(re.search(rf"\.{key}:\s+(\d+)", text)[1])

    return {
        "registers": number("vgpr_count"),
        "spills": number("vgpr_spill_count"),
        **_count([op for op in ops if op.split("_")[0] in ("v", "s", "ds", "global", "buffer", "flat", "scratch")]),
    }


def _count(ops: list[str]) -> dict[str, Any]:
    return {
        "instructions": sum(op != "NOP" for op in ops),
        "mma": sum(bool(MMA.match(op)) for op in ops),
        "atomics": sum(bool(ATOMIC.match(op)) for op in ops),
        "opcodes": dict(collections.Counter(ops)),
    }


def _run(tool: str, *arguments: str) -> str:
    done = subprocess.run([str(_BIN / tool), *arguments], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr
