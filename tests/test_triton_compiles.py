"""Every Triton kernel compiled without a GPU for four targets and held to `budget.json`.

    python tests/test_triton_compiles.py --write       rewrite the budget: a rise is a diff to defend

The numbers belong to the Triton version named in the budget; another version is compiled, and held to what must be true
of any (tensor-core instructions, no atomics, no spills), but not to the numbers.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).resolve()
BUDGET = HERE.with_name("budget.json")
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
HELD = ("registers", "spills", "shared", "instructions")
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


def launch(name: str, target: str) -> tuple:
    """A problem's kernel, the types of its arguments, its constants and its blocks, as the room launches it."""
    from rdkernels.ops.hashed_linear import triton as room
    from rdkernels.ops.hashed_linear import triton_kernels as k

    plain = room.Config(0, 0, 0, 1, 4, 3)
    if name == "keys":
        return k.bank_keys, _types("keys:*i32 granules:i32 across:I32 slots:i32 seed:i32"), {"BLOCK": 1024}, plain
    if name == "combine":
        types = _types("part:*fp32 bias:*bf16 out:*bf16 total:i32 N:I32 parts:i32 scale:fp32")
        return k.combine, types, {"BIAS": True, "BLOCK": 1024}, plain
    if name.startswith("gather"):
        size, bj = (1, 4) if name == "gather-element" else (16, 4)
        types = _types("dw:*fp32 order:*i64 first:*i32 total:*fp32 slots:i32")
        return k.bank_gather, types, {"SIZE": size, "BS": 256 // size, "BJ": bj, "BE": size}, plain
    what, granule, dtype, rows = name.split("-")
    go, gi = GRANULES[granule]
    c = room.config(what, int(rows), 4096, 4096, go, gi, SIZES[dtype], target)
    constants = {"GO": go, "GI": gi, "BM": c.bm, "BN": c.bn, "BK": c.bk, "WIDEN": False}
    p, partial = f"*{dtype}", c.split > 1
    out = "*fp32" if partial else p
    if what == "fwd":
        types = f"x:{p} bank:{p} bias:{p} y:{out} M:i32 N:I32 K:I32 span:I32 stride:I32 slots:i32 seed:i32 scale:fp32"
        return k.fwd, _types(types), {**constants, "BIAS": True, "HASHED_BIAS": False, "PARTIAL": partial}, c
    if what == "bwd_x":
        types = f"dy:{p} bank:{p} dx:{out} M:i32 N:I32 K:I32 span:I32 stride:I32 slots:i32 seed:i32 scale:fp32"
        return k.bwd_x, _types(types), {**constants, "PARTIAL": partial}, c
    if room.owned(go, gi):
        types = f"dyt:{p} x:{p} order:*i64 first:*i32 part:*fp32 M:i32 N:I32 K:I32 across:I32 stride_dy:I32 stride:I32"
        constants = {"GO": go, "GI": gi, "BM": c.bm, "BR": c.bn, "BC": c.bk, "WIDEN": False}
        return k.bank_owner, _types(types + " slots:i32 seed:i32 pieces:i32"), constants, c
    types = (
        f"dy:{p} x:{p} dw:*fp32 keys:*i32 o0:I32 i0:I32 rows:I32 across:I32 wide:I32 M:i32 N:I32 K:I32 stride_dy:I32"
    )
    return k.bank_panel, _types(types + " stride_x:I32 slots:i32 seed:i32"), {**constants, "HASHED_BIAS": False}, c


def _types(text: str) -> dict[str, str]:
    return dict(pair.split(":") for pair in text.split())


def measure() -> dict[str, dict]:
    """`{kernel: {target: numbers}}` of every problem, compiled in this process."""
    sys.path.insert(0, str(HERE.parent))
    import sass

    table: dict[str, dict] = {}
    for name in NAMES:
        for target in TARGETS:
            kernel, types, constants, c = launch(name, target)
            found = sass.inspect(kernel, types, constants, target, c.warps, c.stages)
            del found["opcodes"]
            table.setdefault(name, {})[target] = found
    return {"triton": importlib.metadata.version("triton"), "kernels": table}


def over(measured: dict, budget: dict) -> list[str]:
    """What stands above its budget, each with kernel and target."""
    return [
        f"{name} on {target}: {key} {found[key]}, budget {allowed}"
        for name, targets in measured["kernels"].items()
        for target, found in targets.items()
        for key in HELD
        if (allowed := budget["kernels"].get(name, {}).get(target, {}).get(key, -1)) < found[key]
    ]


@pytest.fixture(scope="session")
def measured(need) -> dict:
    need("triton", importlib.util.find_spec("triton") is not None, "not installed")
    kept = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, str(HERE)], env=kept, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def test_compiles_within_the_budget(measured):
    budget = json.loads(BUDGET.read_text())
    if measured["triton"] != budget["triton"]:
        pytest.skip(f"the budget is for Triton {budget['triton']}, this is {measured['triton']}")
    assert not (risen := over(measured, budget)), "\n".join(risen)
    assert measured["kernels"].keys() == budget["kernels"].keys(), "run: python tests/test_triton_compiles.py --write"


def test_compiles_to_tensor_cores_where_it_can(measured):
    for name, targets in measured["kernels"].items():
        for target, found in targets.items():
            tensor = ("bf16" in name or "fp16" in name) and not name.endswith("-1")
            assert (found["mma"] > 0) == tensor or (target == "gfx942" and found["mma"] > 0), (name, target, found)


def test_compiles_without_atomics_or_spills(measured):
    for name, targets in measured["kernels"].items():
        for target, found in targets.items():
            assert found["atomics"] == 0 and found["spills"] == 0, (name, target, found)


def test_compiles_control_a_budget_below_the_truth_fails(measured):
    low = json.loads(json.dumps(measured))
    low["kernels"]["fwd-chunk-bf16-512"]["sm_90"]["registers"] -= 1
    (line,) = over(measured, low)
    assert line.startswith("fwd-chunk-bf16-512 on sm_90: registers")


def test_compiles_control_atomics_are_seen(tmp_path):
    code = """
import sys
sys.path.insert(0, {here!r})
import sass, triton, triton.language as tl
@triton.jit
def add(p, BLOCK: tl.constexpr):
    tl.atomic_add(p + tl.arange(0, BLOCK) % 7, 1.0)
for target in {targets!r}:
    assert sass.inspect(add, {{"p": "*fp32"}}, {{"BLOCK": 128}}, target, 4, 1)["atomics"] > 0, target
"""
    file = tmp_path / "atomic.py"
    file.write_text(code.format(here=str(HERE.parent), targets=TARGETS))
    kept = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, str(file)], env=kept, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


if __name__ == "__main__":
    text = json.dumps(measure(), indent=1)
    if "--write" in sys.argv:
        BUDGET.write_text(text + "\n")
    else:
        print(text)
