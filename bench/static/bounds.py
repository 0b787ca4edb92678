"""From the hot loop of a kernel to a bracket of rates on a GPU, pipe by pipe. Formulas and sources: docs/static.md.

Uncalibrated: the rates are the vendor's tables and one published microbenchmark, nothing here ran on a GPU.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from . import cubin

LANES = 32


@dataclass(frozen=True)
class Gpu:
    """Rates per SM and clock."""

    name: str
    arch: str
    sms: int
    ghz: float
    tensor: int  # bf16 operations of the widest tensor-core instruction: mma.sync, wgmma, tcgen05
    mma_sync: int  # bf16 operations of mma.sync
    fp32: int  # lanes
    integer: int  # lanes of add, logic, shift and compare
    multiply: int  # lanes of integer multiply-add, which share the fp32 lanes
    special: int
    memory: int  # bytes between registers and shared memory or L1
    l2: int  # bytes between L2 and an SM
    dram: float  # bytes per second of the whole GPU
    shared: int  # bytes of shared memory per SM


# SMs, clocks, tensor peaks, DRAM: the vendor's data sheets (SXM modules, boost clock, dense). Lanes: CUDA programming
# guide, "Throughput of native arithmetic instructions". mma.sync on H100: 62.9 % of the wgmma peak, the average that
# Luo et al. measured, "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture", arXiv:2402.13499. For B200 no
# figure was found: H100's is assumed.
GPUS = [
    Gpu("A100", "sm_80", 108, 1.410, 2048, 2048, 64, 64, 64, 16, 128, 64, 2.04e12, 167936),
    Gpu("H100", "sm_90", 132, 1.830, 4096, 2576, 128, 64, 64, 16, 128, 64, 3.35e12, 233472),
    Gpu("B200", "sm_100", 148, 1.850, 8192, 2576, 128, 64, 64, 16, 128, 64, 8.0e12, 233472),
]


def occupancy(gpu: Gpu, registers: int, shared: int, warps: int) -> tuple[int, str]:
    """Resident blocks of an SM and what limits them."""
    per_warp = -(-max(registers, 1) * LANES // 256) * 256
    reserved = -(-(shared + cubin.ROOM) // 128) * 128
    limits = {
        "warps": 64 // warps,
        "registers": 65536 // 4 // per_warp * 4 // warps,
        "shared memory": gpu.shared // reserved,
        "blocks": 32,
    }
    limit = min(limits, key=limits.__getitem__)
    return limits[limit], limit


def cycles(
    gpu: Gpu, body: tuple[cubin.Instruction, ...], warps: int, *, unnamed: int = 0, full_rate: bool = False
) -> dict[str, float]:
    """Cycles of an SM that one pass of a block through `body` keeps each pipe busy.

    unnamed: operations of a tensor-core instruction that does not name its shape; full_rate: mma.sync at the peak.
    """
    count = cubin.mix(body)
    lanes = warps * LANES
    sync = sum(i.cost for i in body if i.warps == 1) * warps
    wide = sum((i.cost * warps / 4 if i.warps == 4 else 0 if i.cost else unnamed) for i in body if i.pipe == "tensor")
    operands = 0.0
    for i in body:
        if i.warps == 4:  # A (unless in registers) and B of a wgmma come from shared memory
            m, n, k = map(int, i.op.split(".")[1].split("x"))
            operands += 2 * k * (n + (m if re.match(r"R\w+, gdesc", i.operands) else 0)) * warps / 4
    return {
        "issue": len(body) * warps / 4,
        "tensor": sync / (gpu.tensor if full_rate else gpu.mma_sync) + wide / gpu.tensor,
        "fp32": (count.get("fma", 0) + count.get("imad", 0)) * lanes / gpu.fp32,
        "multiply": count.get("imad", 0) * lanes / gpu.multiply,
        "integer": count.get("alu", 0) * lanes / gpu.integer,
        "special": count.get("special", 0) * lanes / gpu.special,
        "memory": sum(moved(i) for i in body) * warps / gpu.memory + operands / gpu.memory,
        "l2": traffic(body, warps) / gpu.l2,
    }


def moved(i: cubin.Instruction) -> int:
    """Bytes of a warp that pass the load and store unit; a shuffle counts as four bytes a lane."""
    return i.width * LANES if i.pipe == "memory" else 0


def traffic(body: tuple[cubin.Instruction, ...], warps: int) -> int:
    """Bytes of a block between L2 and the SM: every lane's own, none from L1."""
    return sum(i.width for i in body if i.global_) * LANES * warps


def bound(
    gpu: Gpu,
    kernel: cubin.Kernel,
    warps: int,
    dynamic: int = 0,
    *,
    unnamed: int = 0,
    full_rate: bool = False,
) -> dict:
    """The bracket of a kernel: operations per SM and clock, and TFLOP/s of the whole GPU.

    high: every pipe overlaps every other, and resident blocks hide each other's latency. low: the tensor cores (or,
    without them, the fp32 pipe) overlap nothing. `by` names the pipe that sets the high end.
    """
    busy = cycles(gpu, kernel.body, warps, unnamed=unnamed, full_rate=full_rate)
    blocks, limit = occupancy(gpu, kernel.registers, kernel.shared + dynamic, warps)
    stalls = sum(i.stall for i in kernel.body)
    latency = stalls / max(blocks, 1)
    work = operations(kernel.body, warps, unnamed)
    unit = "tensor" if busy["tensor"] else "fp32"
    fastest, by = max([(time, pipe) for pipe, time in busy.items()] + [(latency, "latency")])
    slowest = busy[unit] + max(busy[pipe] for pipe in ("issue", "integer", "multiply", "memory", "l2"))
    whole = gpu.sms * gpu.ghz / 1e3
    return {
        "cycles": {pipe: round(time, 1) for pipe, time in busy.items()},
        "latency": round(latency, 1),
        "stalls": stalls,
        "blocks": blocks,
        "limit": limit,
        "occupancy": round(blocks * warps / 64, 3),
        "by": by,
        "flops": work,
        "high": round(work / fastest * whole, 1),
        "low": round(work / max(slowest, fastest) * whole, 1),
    }


def operations(body: tuple[cubin.Instruction, ...], warps: int, unnamed: int = 0) -> float:
    """Multiplications and additions of a pass of a block: of the tensor cores, without them of fp32 multiply-adds."""
    packed = {"FFMA": 2, "FFMA2": 4, "HFMA2": 4}
    scalar = sum(packed.get(i.op.split(".")[0], 0) for i in body) * warps * LANES
    return cubin.flops(body, warps, unnamed) or scalar


def extra(hashed: cubin.Kernel, dense: cubin.Kernel, rows: int, warps: int) -> float:
    """Instructions per virtual weight beyond the dense kernel of the same blocks.

    A pass of the loop multiplies `flops / 2 rows` weights, so loops unrolled differently compare.
    """

    def per_weight(kernel: cubin.Kernel) -> float:
        weights = operations(kernel.body, warps) / (2 * rows)
        return len(kernel.body) * warps * LANES / weights

    return per_weight(hashed) - per_weight(dense)
