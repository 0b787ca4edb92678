"""The Triton kernels of the low-rank operations, as the rooms launch them for layers of their benches."""

from __future__ import annotations

import importlib
from typing import Any

SIZES = {"bf16": 2, "fp16": 2, "fp32": 4}
CONVOLUTIONS = {"cp_conv2d": "r288", "separable_conv2d": "r96", "tucker_conv2d": "r96x96"}  # at their VGG conv3

NAMES = [f"{op}-{dtype}" for op in CONVOLUTIONS for dtype in ("bf16", "fp32")]
NAMES += [f"lowrank_linear-{what}-{dtype}" for what in ("fused", "inner", "outer") for dtype in ("bf16", "fp32")]


def launch(name: str, target: str) -> tuple:
    """A problem's kernel, the types of its arguments, its constants and its blocks."""
    op, *rest, dtype = name.split("-")
    if rest:
        return _linear(rest[0], dtype, target)
    cases = importlib.import_module(f"rdkernels.ops.{op}.cases")
    (case,) = (c for c in cases.BENCH_CASES if c.name == f"VGG-conv3-{CONVOLUTIONS[op]}-n8")
    return convolution(case, dtype, target)


def convolution(case: Any, dtype: str, target: str) -> tuple:
    """A convolution of a channels_last map with a bias."""
    from rdkernels.ops.triton_common import Problem

    room = importlib.import_module(f"rdkernels.ops.{case.op}.triton")
    kernels = importlib.import_module(f"rdkernels.ops.{case.op}.triton_kernels")
    p = Problem(case.n, case.c, case.ranks, case.out, case.size, case.kernel, case.geometry, SIZES[dtype], target)
    c = room.config(p)
    constants = {"KH": case.kernel[0], "KW": case.kernel[1], "BO": c.bo, "BR": c.br, "BC": c.bc}
    constants |= {"IH": c.tile.ih, "IW": c.tile.iw, "TH": c.tile.grid_h, "TW": c.tile.grid_w}
    constants |= {"x_c": 1, "y_c": 1, "res_c": 1, "BIAS": True, "RESIDUAL": False, "ACT": 0, "WIDEN": False}
    constants |= room.blocks(p, c) if hasattr(room, "blocks") else {}
    pointers = {"x", "y", "bias", "residual", *case.shapes()}
    kernel = kernels.fwd
    types = {
        n: f"*{dtype}" if n in pointers else "i32" if n in kernels.FREE else "I32"
        for n in kernel.arg_names
        if n not in constants
    }
    return kernel, types, constants, c


def _linear(what: str, dtype: str, target: str) -> tuple:
    from rdkernels.ops.lowrank_linear import triton as room
    from rdkernels.ops.lowrank_linear import triton_kernels as kernels

    rows = 1 << 15 if what == "fused" else 512
    c = room.config(rows, 4096, 256, 4096, SIZES[dtype], target)
    kernel = getattr(kernels, what)
    every = {"BM": c.bm, "BN": c.bn, "BR": c.br, "BK": c.bk, "BIAS": True, "RESIDUAL": False, "ACT": 0, "WIDEN": False}
    every |= {"x_k": 1, "res_n": 1}
    constants = {n: v for n, v in every.items() if n in kernel.arg_names}
    pointers = {"x": dtype, "down": dtype, "up": dtype, "bias": dtype, "residual": dtype, "y": dtype, "part": "fp32"}
    types = {
        n: f"*{pointers[n]}" if n in pointers else "i32" if n in ("M", "parts") else "I32"
        for n in kernel.arg_names
        if n not in constants
    }
    return kernel, types, constants, c
