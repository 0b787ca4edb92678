"""The Triton kernels of every room, compiled for their targets as the room launches them; here, the hashed layer's.

python -m bench.static.room --write       rewrite tests/budget.json: a rise is a diff to defend
"""

from __future__ import annotations

import importlib.metadata
import json
import pathlib
import re
import sys
import tempfile
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from . import cubin, lowrank

BUDGET = pathlib.Path(__file__).parents[2] / "tests" / "budget.json"
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
SIZES = {"bf16": 2, "fp16": 2, "fp32": 4}
GRANULES = {"element": (1, 1), "chunk": (1, 16), "tile": (32, 32)}

PROBLEMS = [  # pass, granule, dtype, rows: at 4096 x 4096
    *((name, granule, "bf16", 512) for name in ("fwd", "bwd_x", "bwd_bank") for granule in GRANULES),
    *((name, "chunk", "fp32", 512) for name in ("fwd", "bwd_x", "bwd_bank")),
    ("bwd_bank", "tile", "fp32", 512),
    ("fwd", "chunk", "fp16", 8),
    *(("fwd", granule, "fp32", 1) for granule in GRANULES),
    ("bwd_x", "tile", "bf16", 1),
]
NAMES = ["-".join(map(str, problem)) for problem in PROBLEMS] + ["gather-element", "gather-chunk", "keys", "combine"]
NAMES += lowrank.NAMES


def launch(name: str, target: str) -> tuple:
    """A problem's kernel, the types of its arguments, its constants and its blocks, as the room launches it."""
    if name in lowrank.NAMES:
        return lowrank.launch(name, target)
    from rdkernels.ops.hashed_linear import triton as room
    from rdkernels.ops.hashed_linear import triton_kernels as k

    plain = room.Config(0, 0, 0, 1, 4, 3)
    if name == "keys":
        return k.bank_keys, types_of("keys:*i32 granules:i32 across:I32 slots:i32 seed:i32"), {"BLOCK": 1024}, plain
    if name == "combine":
        types = types_of("part:*fp32 bias:*bf16 out:*bf16 total:i32 N:I32 parts:i32 scale:fp32")
        return k.combine, types, {"BIAS": True, "BLOCK": 1024}, plain
    if name.startswith("gather"):
        size, bj = (1, 4) if name == "gather-element" else (16, 4)
        types = types_of("dw:*fp32 order:*i64 first:*i32 total:*fp32 slots:i32")
        return k.bank_gather, types, {"SIZE": size, "BS": 256 // size, "BJ": bj, "BE": size}, plain
    what, granule, dtype, rows = name.split("-")
    if granule == "dense":
        from . import twins

        c = room.config(what, int(rows), 4096, 4096, 32, 32, SIZES[dtype], target)
        x, y = ("x", "y") if what == "fwd" else ("dy", "dx")
        types = types_of(f"{x}:*{dtype} w:*{dtype} {y}:*{dtype} M:i32 N:I32 K:I32 stride:I32")
        return getattr(twins, f"dense_{what}"), types, {"BM": c.bm, "BN": c.bn, "BK": c.bk}, c
    go, gi = GRANULES[granule]
    c = room.config(what, int(rows), 4096, 4096, go, gi, SIZES[dtype], target)
    constants = {"GO": go, "GI": gi, "BM": c.bm, "BN": c.bn, "BK": c.bk, "WIDEN": False}
    p, partial = f"*{dtype}", c.split > 1
    out = "*fp32" if partial else p
    if what == "fwd":
        types = f"x:{p} bank:{p} bias:{p} y:{out} M:i32 N:I32 K:I32 span:I32 stride:I32 slots:i32 seed:i32 scale:fp32"
        return k.fwd, types_of(types), {**constants, "BIAS": True, "HASHED_BIAS": False, "PARTIAL": partial}, c
    if what == "bwd_x":
        types = f"dy:{p} bank:{p} dx:{out} M:i32 N:I32 K:I32 span:I32 stride:I32 slots:i32 seed:i32 scale:fp32"
        return k.bwd_x, types_of(types), {**constants, "PARTIAL": partial}, c
    if room.owned(go, gi):
        types = f"dyt:{p} x:{p} order:*i64 first:*i32 part:*fp32 M:i32 N:I32 K:I32 across:I32 stride_dy:I32 stride:I32"
        constants = {"GO": go, "GI": gi, "BM": c.bm, "BR": c.bn, "BC": c.bk, "WIDEN": False}
        return k.bank_owner, types_of(types + " slots:i32 seed:i32 pieces:i32"), constants, c
    types = (
        f"dy:{p} x:{p} dw:*fp32 keys:*i32 o0:I32 i0:I32 rows:I32 across:I32 wide:I32 M:i32 N:I32 K:I32 stride_dy:I32"
    )
    return k.bank_panel, types_of(types + " stride_x:I32 slots:i32 seed:i32"), {**constants, "HASHED_BIAS": False}, c


def types_of(text: str) -> dict[str, str]:
    return dict(pair.split(":") for pair in text.split())


def build(kernel: Any, types: dict[str, str], constants: dict[str, Any], target: str, warps: int, stages: int) -> Any:
    """Compile `kernel` for `target`; every pointer and every int named in upper case "I32" is a multiple of 16."""
    aligned = {n: t for n, t in types.items() if t.startswith("*") or t == "I32"}
    source = ASTSource(
        fn=kernel,
        signature={**{n: t.lower() for n, t in types.items()}, **dict.fromkeys(constants, "constexpr")},
        constexprs=constants,
        attrs={(kernel.arg_names.index(n),): [["tt.divisibility", 16]] for n in aligned},
    )
    stages = min(stages, 2) if target.startswith("gfx") else stages
    return triton.compile(source, target=TARGETS[target], options={"num_warps": warps, "num_stages": stages})


def code(built: Any) -> cubin.Kernel:
    """The compiled kernel of an NVIDIA target."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        (kernel,) = cubin.read(file.name)
    return kernel


def inspect(*what: Any) -> dict[str, Any]:
    """Registers, spills, shared memory and instructions of what `build` compiles."""
    built = build(*what)
    shared = {"shared": built.metadata.shared}
    if "amdgcn" in built.asm:
        return {**_amd(built.asm["amdgcn"]), **shared}
    kernel = code(built)
    return {
        "registers": kernel.registers,
        "spills": kernel.spills,
        "instructions": sum(i.op != "NOP" for i in kernel.code),
        "mma": sum(i.pipe == "tensor" for i in kernel.code),
        "atomics": kernel.atomics,
        **shared,
    }


def _amd(text: str) -> dict[str, Any]:
    found = re.findall(r"^\s+([a-z]+_[a-z0-9_]+)", text, re.M)
    ops = [op for op in found if op.split("_")[0] in ("v", "s", "ds", "global", "buffer", "flat", "scratch")]

    def number(key: str) -> int:
        return int(re.search(rf"\.{key}:\s+(\d+)", text)[1])

    return {
        "registers": number("vgpr_count"),
        "spills": number("vgpr_spill_count"),
        "instructions": len(ops),
        "mma": sum(op.startswith("v_mfma") for op in ops),
        "atomics": sum(op.startswith(("global_atomic", "buffer_atomic", "flat_atomic")) for op in ops),
    }


def measure() -> dict[str, Any]:
    """`{kernel: {target: numbers}}` of every problem, compiled in this process."""
    table: dict[str, dict] = {}
    for name in NAMES:
        for target in TARGETS:
            kernel, types, constants, c = launch(name, target)
            table.setdefault(name, {})[target] = inspect(kernel, types, constants, target, c.warps, c.stages)
    return {"triton": importlib.metadata.version("triton"), "kernels": table}


if __name__ == "__main__":
    text = json.dumps(measure(), indent=1)
    if "--write" in sys.argv:
        BUDGET.write_text(text + "\n")
    else:
        print(text)
