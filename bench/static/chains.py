"""Bounds of the low-rank CUDA chains next to dense and to the unfused chain, in cycles. Formulas: docs/static.md.

Ours and the rivals "by the same code" come from compiled loops, each as often as the launch that the host plans runs
it; the "ideal" rivals from multiply-adds and bytes alone. bf16, channels_last. Nothing here ran on a GPU.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from rdkernels.ops.triton_common import cdiv

from . import bounds, cubin, cuda

SIZE = 2  # bytes of a value
DEPTH, RANKS, PIXELS, OUT = 64, 64, 64, 128  # of a pass of a product: csrc/common/chain.cuh
CHAIN = "chain<Chain<bf16, tensor>, {room}<Chain<bf16, tensor>>>"
DENSE = "dense_conv<Chain<bf16, tensor>>"
ROOMS = {"separable_conv2d": "Lines", "lowrank_linear": "Lines", "cp_conv2d": "Depthwise", "tucker_conv2d": "Core"}
BATCHES = 8, 64
CACHE = {"A100": 40e6, "H100": 50e6, "B200": 126e6}  # bytes of L2, from memory: not looked up


@dataclass(frozen=True)
class Stage:
    """A convolution of its own: `pixels` of `out` values, each a sum of `depth` products; values of x, y and weight."""

    pixels: int
    out: int
    depth: int
    x: int
    y: int
    weight: int
    depthwise: bool = False

    @property
    def macs(self) -> int:
        return self.pixels * self.out * self.depth


@dataclass(frozen=True)
class Layer:
    """A layer of a bench: what the plan is made from, the unfused chain and the dense layer."""

    op: str
    name: str
    n: int
    c: int
    h: int
    w: int
    ranks: tuple[int, int]  # of the first and of the last product
    out: int
    kernel: tuple[int, int]
    size: tuple[int, int]
    stride: int
    padding: int
    stages: tuple[Stage, ...]
    dense: Stage
    macs: int

    @property
    def reduction(self) -> float:
        return self.dense.macs / self.macs


def layers() -> Iterator[Layer]:
    """The bench's layers of the rooms with CUDA kernels: convolutions at BATCHES, linear layers at the bench's rows."""
    for op in ("separable_conv2d", "cp_conv2d", "tucker_conv2d"):
        cases = importlib.import_module(f"rdkernels.ops.{op}.cases").BENCH_CASES
        for case in (c for c in cases if c.n == min(c.n for c in cases)):
            for n in BATCHES:
                yield convolution(replace(case, n=n))
    for case in importlib.import_module("rdkernels.ops.lowrank_linear.cases").BENCH_CASES:
        yield linear(case)


def convolution(case: Any) -> Layer:
    import torch

    factors = [torch.empty(shape, device="meta") for shape in case.shapes().values()]
    channels, h, w, chain = case.c, case.h, case.w, []
    for conv in type(case).chain(factors, case.geometry):
        out, depth, *kernel = conv.weight.shape
        x = case.n * channels * h * w
        h, w = (
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, p, d, k, s in zip((h, w), conv.padding, conv.dilation, kernel, conv.stride, strict=True)
        )
        pixels, channels = case.n * h * w, out
        chain.append(
            Stage(pixels, out, depth * math.prod(kernel), x, pixels * out, conv.weight.numel(), conv.groups > 1)
        )
    pixels, depth = case.n * math.prod(case.size), case.c * math.prod(case.kernel)
    x = case.n * case.c * case.h * case.w
    dense = Stage(pixels, case.out, depth, x, pixels * case.out, case.out * depth)
    ranks = case.ranks[0], case.ranks[-1]
    where = case.stride, case.padding
    maps = case.n, case.c, case.h, case.w
    name = case.name.removesuffix(f"-n{case.n}") if f"-n{case.n}" in case.name else case.name.rpartition("-n")[0]
    return Layer(
        case.op, name, *maps, ranks, case.out, case.kernel, case.size, *where, tuple(chain), dense, case.macs()
    )


def linear(case: Any) -> Layer:
    """As the kernel sees it: 1 x 1 windows on a map one pixel wide."""
    m, k, r, n = case.rows, case.in_, case.rank, case.out
    chain = Stage(m, r, k, m * k, m * r, r * k), Stage(m, n, r, m * r, m * n, n * r)
    dense, name = Stage(m, n, k, m * k, m * n, n * k), f"{k}-{r}-{n}"
    return Layer(case.op, name, 1, k, m, 1, (r, r), n, (1, 1), (m, 1), 1, 0, chain, dense, case.macs())


class Plan(NamedTuple):
    """What the host chose: a tile in pixels and in slots of x, rows of T, ranks and blocks of y of one pass, CTAs."""

    tile_h: int
    tile_w: int
    slots_h: int
    slots_w: int
    rows: int
    segment: int
    columns: int
    ctas: int
    shared: int


def plans(problems: Sequence[tuple[Layer, bounds.Gpu]]) -> list[Plan]:
    """The launches of these, by the kernels' own host code (`plan.cu`); needs nvcc, no GPU."""
    source = cuda.ROOT / "bench" / "static" / "plan.cu"
    flags = [flag for flag in cuda.shipped_flags() if flag.startswith(("-std", "--expt", "-diag"))]
    text = b"".join(path.read_bytes() for path in cuda.included(source))
    program = cuda.BUILD / f"plan-{hashlib.sha256(text + repr((cuda.nvcc(), flags)).encode()).hexdigest()[:16]}"
    if not program.exists():
        cuda.BUILD.mkdir(parents=True, exist_ok=True)
        command = [
            str(cuda.compiler()),
            *flags,
            "-arch=sm_80",
            f"-I{cuda.ROOT / 'csrc'}",
            "-o",
            str(program),
            str(source),
        ]
        subprocess.run(command, check=True, capture_output=True, text=True)
    lines = [
        f"{ROOMS[a.op]} {a.n} {a.c} {a.h} {a.w} {a.ranks[0]} {a.ranks[1]} {a.out} {a.kernel[0]} {a.kernel[1]} "
        f"{a.size[0]} {a.size[1]} {a.stride} {a.padding} {gpu.shared - cubin.ROOM}\n"
        for a, gpu in problems
    ]
    done = subprocess.run([str(program)], input="".join(lines), check=True, capture_output=True, text=True)
    found = [Plan(*map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(found) == len(lines)
    return found


class Loops(NamedTuple):
    """The innermost loops of a chain, one pass each."""

    first: tuple[cubin.Instruction, ...]  # 64 pixels x 64 ranks x 64 channels
    middle: tuple[cubin.Instruction, ...]  # Core: 64 pixels x 64 ranks x 64 ranks
    last: tuple[cubin.Instruction, ...]  # 64 pixels x 128 outputs x 64 ranks
    down: tuple[cubin.Instruction, ...]  # Depthwise: some taps of four ranks in every thread
    over: tuple[cubin.Instruction, ...]


def loops(kernel: cubin.Kernel) -> Loops:
    """What the loops of a compiled chain are, told by their instructions."""

    def within(inner: tuple[int, ...], outer: tuple[int, ...]) -> bool:
        return inner is not outer and outer[0] <= inner[0] and inner[-1] <= outer[-1]

    def around(loop: tuple[int, ...]) -> tuple[int, ...]:
        return min((other for other in kernel.loops if within(loop, other)), key=lambda a: a[-1] - a[0])

    def count(loop: tuple[int, ...], what: str) -> int:
        return sum(kernel.code[i].op.startswith(what) for i in loop)

    inner = [loop for loop in kernel.loops if not any(within(other, loop) for other in kernel.loops)]
    products = sorted((a for a in inner if count(a, "HMMA")), key=lambda a: (count(a, "HMMA"), -count(a, "LDGSTS")))
    first, *middle, last = products
    assert len(middle) == ("Core" in kernel.name) and count(last, "HMMA") == 2 * count(first, "HMMA"), kernel.name
    lines = {}
    if "Depthwise" in kernel.name:  # the widest unrolled loop of each line; only `down` stores 16 bytes
        for loop in sorted((a for a in inner if count(a, "FFMA") and count(a, "LDS")), key=lambda a: count(a, "FFMA")):
            if not count(loop, "LDG"):
                parent = around(loop)
                stores = any(kernel.code[i].op == "STS.128" for i in range(parent[0], parent[-1] + 1))
                lines["down" if stores else "over"] = tuple(kernel.code[i] for i in loop)
        assert lines.keys() == {"down", "over"}, kernel.name
    bodies = [tuple(kernel.code[i] for i in loop) for loop in (first, middle[0] if middle else (), last)]
    return Loops(bodies[0], bodies[1], bodies[2], lines.get("down", ()), lines.get("over", ()))


Phase = tuple[float, tuple[cubin.Instruction, ...]]  # how often a CTA runs a stretch of code


def phases(layer: Layer, p: Plan, code: Loops) -> list[Phase]:
    """The loops that a CTA runs; what stands around them is outside the model, as it is for the rivals."""
    (kh, kw), (first, last) = layer.kernel, layer.ranks
    segments = [min(p.segment, last - r) for r in range(0, last, p.segment)]
    blocks = sum(cdiv(ranks, RANKS) for ranks in segments)  # of ranks
    fills = blocks * (p.columns if len(segments) > 1 else 1)
    deep, columns = cdiv(layer.c, DEPTH), p.columns
    room = ROOMS[layer.op]
    down_taps, last_taps = (kh, kw) if room == "Lines" else (1, 1)
    halo = p.rows if room == "Lines" else p.slots_h * p.slots_w
    passes = (cdiv(first, RANKS) if room == "Core" else fills) * cdiv(halo, PIXELS)  # Core's halo is multiplied once
    found: list[Phase] = [(passes * down_taps * deep, code.first)]
    if room == "Core":
        found.append((fills * kh * kw * cdiv(first, DEPTH), code.middle))
    if room == "Depthwise":  # eight positions at once
        for rounds, body in (
            (cdiv(p.slots_w, 8) * p.tile_h * kh, code.down),
            (cdiv(p.rows, 8) * kw, code.over),
        ):
            taps = sum(i.op == "LDS.128" for i in body) / 2  # a value and a weight
            found.append((fills * rounds / taps, body))
    return [*found, (columns * last_taps * sum(cdiv(ranks, DEPTH) for ranks in segments), code.last)]


class Bound(NamedTuple):
    """Cycles at the high and the low end of the bracket of rates, and what sets the first."""

    least: float
    most: float
    by: str

    def plus(self, other: Bound) -> Bound:
        return Bound(
            self.least + other.least, self.most + other.most, self.by if self.least > other.least else other.by
        )


def crossing(gpu: bounds.Gpu, dram: float, cached: float = 0.0) -> tuple[float, str]:
    """Cycles that bytes need between DRAM, L2 and the SMs."""
    return max((dram * gpu.ghz * 1e9 / gpu.dram, "DRAM"), ((dram + cached) / (gpu.l2 * gpu.sms), "l2"))


def launch(
    gpu: bounds.Gpu, work: Sequence[Phase], ctas: int, resident: int, least: tuple[float, str], share: float = 1.0
) -> Bound:
    """Of CTAs that each do `work`: the busiest SM's, and never fewer cycles than its bytes need."""
    waves = cdiv(ctas, gpu.sms)
    resident = max(1, min(resident, waves))
    total: dict[str, float] = {}
    most = 0.0
    for times, body in work:
        busy = bounds.cycles(gpu, body, 4) | {"latency": sum(i.stall for i in body) / resident}
        for pipe, cycles in busy.items():
            total[pipe] = total.get(pipe, 0.0) + times * cycles
        slow = max(busy[pipe] for pipe in ("issue", "integer", "multiply", "memory", "l2"))
        most += times * max(*busy.values(), busy["tensor" if busy["tensor"] else "fp32"] + slow)
    by = max(total, key=total.__getitem__)
    high = max((waves * share * total[by], by), least)
    return Bound(high[0], max(waves * share * most, least[0]), high[1])


def maps(stages: Sequence[Stage], gpu: bounds.Gpu) -> Iterator[tuple[Stage, tuple[float, str]]]:
    """Each stage with the cycles of its bytes: a map between two stages crosses the DRAM only if L2 cannot hold it."""
    for at, stage in enumerate(stages):
        kept = [n * SIZE < CACHE[gpu.name] for n in (stage.x, stage.y)]
        inner = [kept[0] and at > 0, kept[1] and at + 1 < len(stages)]
        cached = SIZE * sum(n for n, inside in zip((stage.x, stage.y), inner, strict=True) if inside)
        yield stage, crossing(gpu, SIZE * (stage.x + stage.y + stage.weight) - cached, cached)


def ideal(stages: Sequence[Stage], gpu: bounds.Gpu) -> Bound:
    """No code is faster: each stage at the tensor cores' peak or at its bytes' rate; launches are free."""
    found = Bound(0.0, 0.0, "")
    for stage, least in maps(stages, gpu):
        rate, pipe = (gpu.fp32, "fp32") if stage.depthwise else (gpu.tensor / 2, "tensor")
        cycles, by = max((stage.macs / (rate * gpu.sms), pipe), least)
        found = found.plus(Bound(cycles, cycles, by))
    return found


def same_code(stages: Sequence[Stage], gpu: bounds.Gpu, kernel: cubin.Kernel, shared: int) -> Bound:
    """Each stage by the dense twin of our chains; a last block of few outputs costs its share, depthwise its bytes."""
    resident, _ = bounds.occupancy(gpu, kernel.registers, kernel.shared + shared, 4)
    found = Bound(0.0, 0.0, "")
    for stage, least in maps(stages, gpu):
        if stage.depthwise:
            cycles, by = max((stage.macs / (gpu.fp32 * gpu.sms), "fp32"), least)
            found = found.plus(Bound(cycles, cycles, by))
            continue
        blocks = cdiv(stage.out, OUT)
        share = cdiv(stage.out, 16) * 16 / OUT / blocks
        work = [(cdiv(stage.depth, DEPTH), kernel.body)]
        found = found.plus(launch(gpu, work, cdiv(stage.pixels, PIXELS) * blocks, resident, least, share))
    return found


def measure(compiled: dict[str, dict[str, cubin.Kernel]] | None = None) -> dict[str, Any]:
    """`{"nvcc": ..., "chains": [{"op", "layer", "n", "gpu", "reduction", "ours": [least, most, by], ...}]}`."""
    compiled, rows = compiled or chain_kernels(), []
    problems = [(layer, gpu) for gpu in bounds.GPUS for layer in layers()]
    for (layer, gpu), p in zip(problems, plans(problems), strict=True):
        kernel = compiled[CHAIN.format(room=ROOMS[layer.op])][gpu.arch]
        twin = compiled[DENSE][gpu.arch]
        blocks, _ = bounds.occupancy(gpu, kernel.registers, kernel.shared + p.shared, 4)
        weights = sum(s.weight for s in layer.stages)
        own = crossing(gpu, SIZE * (layer.dense.x + layer.dense.y + weights))
        ours = launch(gpu, phases(layer, p, loops(kernel)), p.ctas, blocks, own)
        shared = 2 * (PIXELS + OUT) * DEPTH * SIZE
        rivals = {
            "unfused": same_code(layer.stages, gpu, twin, shared),
            "dense": same_code([layer.dense], gpu, twin, shared),
            "unfused_ideal": ideal(layer.stages, gpu),
            "dense_ideal": ideal([layer.dense], gpu),
        }
        n = layer.n if layer.op != "lowrank_linear" else layer.h
        row = {"op": layer.op, "layer": layer.name, "n": n, "gpu": gpu.name, "reduction": round(layer.reduction, 3)}
        row |= {"plan": p._asdict()}
        row |= {name: [round(b.least), round(b.most), b.by] for name, b in ({"ours": ours} | rivals).items()}
        rows.append(row)
    return {"nvcc": cuda.nvcc(), "chains": rows}


def chain_kernels() -> dict[str, dict[str, cubin.Kernel]]:
    """`{short name: {target: kernel}}` of the bf16 chains and their dense twin."""
    wanted = {CHAIN.format(room=room) for room in ROOMS.values()} | {DENSE}
    names = ("cuda_lines.cu", "dense_conv.cu")
    sources = [s for s in cuda.sources() if s.name in names or s.parent.name in ("cp_conv2d", "tucker_conv2d")]
    jobs = [(source, gpu.arch) for source in sources for gpu in bounds.GPUS]
    table: dict[str, dict[str, cubin.Kernel]] = {}
    for (_, target), made in zip(jobs, cuda.compile_(jobs), strict=True):
        for kernel in cubin.read(made):
            if (name := cuda.short(kernel.name)) in wanted:
                table.setdefault(name, {})[target] = kernel
    return table
