"""Small problems of the Triton kernels as PTX with a fixed launch, and sentryward's verdict on them.

    python tests/races.py FOLDER       writes <kernel>-<granule>-<target>.ptx and .json

sentryward (a prover of PTX: barriers, asynchronous copies, races between all threads of a launch) follows numbers, not
memory, and knows no funnel shift. So two things are rewritten before it reads the PTX, and nothing else:
 * a rotation `shf.l.wrap a, a, n` into two shifts and an OR, which is what it means;
 * loads of the member lists of the bank gradient, into the values that these lists would hold were slot s to own the
   granules 2 s and 2 s + 1: order[j] = j, first[s] = 2 s, and the largest count of a warp is that of each of its lanes.
"""

from __future__ import annotations

import importlib
import itertools
import json
import pathlib
import re
import subprocess
import sys
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
TARGETS = ("sm_80", "sm_100")
CASES = ["fwd-tile", "fwd-chunk", "bwd_x-tile", "bwd_x-chunk", "bank_owner-tile", "bank_panel-tile", "bank_panel-chunk"]
CASES += ["bank_gather-chunk", "combine-any", "lowrank-fused", "lowrank-inner", "lowrank-outer"]
CASES += ["cp_conv2d-convolution"]  # sentryward does not get through the other two in any useful time
WARPS, STAGES = 4, 2
LONG, SHORT, SLOTS = 112, 64, 2  # a summed axis has three whole steps and a ragged one, so that buffers are used again


def problem(name: str) -> tuple[Any, str, dict[str, Any], dict[str, float], list[int]]:
    """Kernel, types, constants, values of the scalars and grid."""
    from rdkernels.ops.hashed_linear import triton_kernels as k

    what, granule = name.split("-")
    if what == "lowrank":
        return lowrank(granule)
    if granule == "convolution":
        return convolution(what)
    go, gi = {"tile": (32, 32), "chunk": (1, 16), "any": (1, 1)}[granule]
    blocks = {"GO": go, "GI": gi, "BM": 16, "BN": 32, "BK": 32, "WIDEN": False}
    scalars = {"slots": SLOTS, "seed": 7, "scale": 1.0}
    if what == "fwd":
        types = (
            "x:*bf16 bank:*bf16 bias:*bf16 y:*bf16 M:i32 N:I32 K:I32 span:I32 stride:I32 slots:i32 seed:i32 scale:fp32"
        )
        scalars |= {"M": 16, "N": SHORT, "K": LONG, "span": 128, "stride": LONG}
        return k.fwd, types, {**blocks, "BIAS": True, "HASHED_BIAS": False, "PARTIAL": False}, scalars, [2, 1, 1]
    if what == "bwd_x":
        types = "dy:*bf16 bank:*bf16 dx:*bf16 M:i32 N:I32 K:I32 span:I32 stride:I32 slots:i32 seed:i32 scale:fp32"
        scalars |= {"M": 16, "N": LONG, "K": SHORT, "span": 128, "stride": LONG}
        return k.bwd_x, types, {**blocks, "PARTIAL": False}, scalars, [2, 1, 1]
    if what == "bank_owner":
        types = (
            "dyt:*bf16 x:*bf16 order:*i64 first:*i32 part:*fp32 M:i32 N:I32 K:I32 across:I32 stride_dy:I32 stride:I32"
        )
        constants = {"GO": go, "GI": gi, "BM": 16, "BR": 32, "BC": 32, "WIDEN": False}
        scalars |= {"M": 56, "N": SHORT, "K": SHORT, "across": 2, "stride_dy": 64, "stride": SHORT, "pieces": 2}
        return k.bank_owner, types + " slots:i32 seed:i32 pieces:i32", constants, scalars, [SLOTS, 2, 1]
    if what == "bank_panel":
        types = "dy:*bf16 x:*bf16 dw:*fp32 keys:*i32 o0:I32 i0:I32 rows:I32 across:I32 wide:I32 M:i32 N:I32 K:I32"
        scalars |= {"o0": 0, "i0": 0, "rows": SHORT, "across": SHORT // gi, "wide": 2, "M": 56, "N": SHORT, "K": SHORT}
        scalars |= {"stride_dy": SHORT, "stride_x": SHORT}
        types += " stride_dy:I32 stride_x:I32 slots:i32 seed:i32"
        return k.bank_panel, types, {**blocks, "HASHED_BIAS": False}, scalars, [4, 1, 1]
    if what == "bank_gather":
        types = "dw:*fp32 order:*i64 first:*i32 total:*fp32 slots:i32"
        return k.bank_gather, types, {"SIZE": 16, "BS": 4, "BJ": 4, "BE": 16}, {"slots": 8}, [2, 1, 1]
    types = "part:*fp32 bias:*bf16 out:*bf16 total:i32 N:I32 parts:i32 scale:fp32"
    return k.combine, types, {"BIAS": True, "BLOCK": 256}, {"total": 500, "N": 64, "parts": 3, "scale": 1.0}, [2, 1, 1]


def lowrank(what: str) -> tuple[Any, str, dict[str, Any], dict[str, float], list[int]]:
    """The same of a kernel of the low-rank linear layer; its blocks leave no two warps with copies of a value."""
    from rdkernels.ops.lowrank_linear import triton_kernels as k

    blocks = {"BM": 16, "BR": 64, "WIDEN": False}
    end = {"BN": 64, "BIAS": True, "RESIDUAL": False, "ACT": 1, "res_n": 1}
    scalars = {"M": 20, "R": 40 if what == "fused" else 80, "K": 72, "N": 80, "x_m": 72, "res_m": 80}
    scalars |= {"span": 48, "parts": 2}
    if what == "fused":
        types = (
            "x:*bf16 down:*bf16 up:*bf16 bias:*bf16 residual:*bf16 y:*bf16 M:i32 R:i32 K:i32 N:i32 x_m:i32 res_m:i32"
        )
        return k.fused, types, {**blocks, **end, "BK": 16, "x_k": 1}, scalars, [2, 1, 1]
    if what == "inner":
        types = "x:*bf16 down:*bf16 part:*fp32 M:i32 R:i32 K:i32 span:i32 x_m:i32"
        return k.inner, types, {**blocks, "BK": 16, "x_k": 1}, scalars, [4, 2, 1]
    types = "part:*fp32 up:*bf16 bias:*bf16 residual:*bf16 y:*bf16 M:i32 R:i32 N:i32 parts:i32 res_m:i32"
    return k.outer, types, {**blocks, **end}, scalars, [4, 1, 1]


def convolution(op: str) -> tuple[Any, str, dict[str, Any], dict[str, float], list[int]]:
    """The same of a low-rank convolution: 3 x 3 on two tiles of 2 x 8 pixels, ragged channels and ranks, which take
    two steps each; channels_last. More of anything takes sentryward longer than the time it is given."""
    k = importlib.import_module(f"rdkernels.ops.{op}.triton_kernels")
    c, r, out, h, w = 24, 24, 16, 4, 8
    constants = {"KH": 3, "KW": 3, "IH": 4, "IW": 16, "TH": 2, "TW": 8, "BO": 16, "BR": 16, "BC": 16}
    constants |= {"x_c": 1, "y_c": 1, "res_c": 1, "BIAS": True, "RESIDUAL": False, "ACT": 1, "WIDEN": False}
    scalars = {"C": c, "R": r, "OUT": out, "H": h, "W": w, "HO": h, "WO": w}
    scalars |= {"tiles_h": 2, "tiles_w": 1, "th": 2, "tw": 8, "top": 1, "left": 1, "sh": 1, "sw": 1, "dh": 1, "dw": 1}
    scalars |= {"x_n": c * h * w, "x_h": c * w, "x_w": c}
    scalars |= {
        f"{m}_{axis}": n for m in ("y", "res") for axis, n in {"n": out * h * w, "h": out * w, "w": out}.items()
    }
    types = [
        f"{n}:{'i32' if n in k.FREE else 'I32' if scalars[n] % 16 == 0 else 'i32'}" if n in scalars else f"{n}:*bf16"
        for n in k.fwd.arg_names
        if n not in constants
    ]
    return k.fwd, " ".join(types), constants, scalars, [2, 1, 1]


def plain(ptx: str, entry: str, names: list[str]) -> str:
    """`ptx` with the two rewritings of this module's docstring."""
    number = itertools.count()

    def rotation(found: re.Match) -> str:
        to, of, left = found.groups()
        a, b = f"%rot{next(number)}", f"%rot{next(number)}"
        parts = f"shl.b32 {a}, {of}, {left}; shr.u32 {b}, {of}, {32 - int(left)}; or.b32 {to}, {a}, {b};"
        return f".reg .b32 {a}, {b}; {parts}"

    def entry_of_a_list(found: re.Match) -> str:
        when, bits, to, address = found.groups()
        a, b = f"%at{next(number)}", f"%at{next(number)}"
        base, shift = (names.index("first"), 1) if bits == "32" else (names.index("order"), 3)
        last = "cvt.u32.u64" if bits == "32" else "mov.b64"
        subtract = f"ld.param.b64 {a}, [{entry}_param_{base}]; sub.s64 {a}, {address}, {a};"
        return f".reg .b64 {a}, {b}; {subtract} shr.u64 {b}, {a}, {shift}; {when or ''}{last} {to}, {b};"

    ptx = re.sub(r"shf\.l\.wrap\.b32\s+(%r\d+), (%r\d+), \2, (\d+);", rotation, ptx)
    if {"first", "order"} <= set(names):
        load = r"(@!?%p\d+ )?ld\.global\.b(32|64) \{ (%rd?\d+) \}, \[ (%rd\d+) \+ 0 \];"
        ptx = re.sub(load, entry_of_a_list, ptx)
        ptx = re.sub(r"redux\.sync\.max\.s32\s+(%r\d+), (%r\d+), %r\d+;", r"mov.b32 \1, \2;", ptx)
    return ptx


def emit(folder: pathlib.Path) -> None:
    """Compile every case for every target."""
    sys.path.insert(0, str(ROOT))
    from bench.static import room

    for name in CASES:
        for target in TARGETS:
            kernel, text, constants, scalars, grid = problem(name)
            types = room.types_of(text)
            built = room.build(kernel, types, constants, target, WARPS, STAGES)
            entry = kernel.fn.__name__
            arguments = [
                {
                    "parameter": f"{entry}_param_{place}",
                    "offset": 0,
                    "type": "f32" if kind == "fp32" else "u32",
                    "value": scalars[argument],
                }
                for place, (argument, kind) in enumerate(types.items())
                if not kind.startswith("*")
            ]
            shape = {"grid_dim": grid, "block_dim": [32 * WARPS, 1, 1], "cluster_dim": [1, 1, 1]}
            shape["dynamic_shared_bytes"] = built.metadata.shared
            given = {"schema": "spverify.kernel-input/v1", "entry": entry, "launch": shape, "arguments": arguments}
            path = folder / f"{name}-{target}.ptx"
            path.write_text(plain(built.asm["ptx"], entry, list(types)))
            path.with_suffix(".json").write_text(json.dumps(given))


def verdict(ptx: pathlib.Path, given: pathlib.Path, seconds: int = 40) -> tuple[str, str]:
    """The `result` field ("race_free", "potential_race", "unsupported", ...) and what sentryward says to it."""
    command = [sys.executable, "-m", "sentryward", str(ptx), "--input", str(given), "--timeout", str(seconds)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=2 * seconds)
        found = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return "timeout", f"no answer in {2 * seconds} s"
    except json.JSONDecodeError:
        return "no answer", (done.stdout + done.stderr)[-300:]
    said = "; ".join(str(d.get("message", d.get("code", d))) for d in found.get("diagnostics", []))
    if races := found.get("races"):
        if all(copies(race) for race in races) and not found.get("race_samples_truncated"):
            return "copies", "lanes of a warp that hold the same value store it to the same shared word"
        said += f": {races[0]['first'].get('location')} and {races[0]['second'].get('location')}"
    return found.get("result", "no result"), said


def copies(race: dict[str, Any]) -> bool:
    """Whether two lanes of one warp store to one shared word by the same instruction: Triton does so with copies of a
    value, and sentryward does not compare values."""
    one, two = race["first"], race["second"]
    same = one["location"] == two["location"] and one["actor"] // 32 == two["actor"] // 32
    return same and (one["mode"], two["mode"]) == ("write", "write") and race["region"]["address_space"] == "shared"


if __name__ == "__main__":
    emit(pathlib.Path(sys.argv[1]))
