"""Timing on a GPU: what a call costs there, without the host's time and with a cold cache.

Three things go wrong in a naive measurement. A kernel of a few microseconds is shorter than the host needs to hand it
in, so two events around it time the host: before every timed call the GPU gets a backlog of work that lasts longer
than the host needs, and a call that the GPU reached too early is taken again or counted as `starved`. A second call
finds its operands in the L2 cache: the backlog is a write of a buffer larger than that cache. And clocks drift: ours
and the rival take turns in one process, and the order within a pair alternates.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch

from ..testing import Problem
from . import machine
from .timing import Call, Timing, alternating, backend_of, calls, fastest, row, summary

KINDS = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "fp32": torch.float32}
WRITES = 256  # the longest backlog; with a call's own launches it stays below the driver's queue of about 1000
MARGIN = 2.0  # the backlog lasts this many times as long as the host needs
LIMIT_SIZE = 8192  # of the product that shows what the GPU reaches


class Event(Protocol):
    """A mark in the GPU's queue."""

    def record(self) -> None: ...
    def query(self) -> bool: ...
    def synchronize(self) -> None: ...
    def elapsed_time(self, end: Any) -> float: ...  # milliseconds


class Gpu(Protocol):
    """What timing needs of a GPU; tests put a simulated one in its place."""

    device: str
    size: int  # LIMIT_SIZE

    def event(self) -> Event: ...
    def flush(self) -> None: ...  # enqueue one write of a buffer of at least twice the L2 cache
    def synchronize(self) -> None: ...
    def clock(self) -> float: ...  # the host's seconds
    def stamp(self) -> dict[str, object]: ...


class Cuda:
    """The current CUDA device (or ROCm, which torch also calls cuda)."""

    device = "cuda"
    size = LIMIT_SIZE

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise RuntimeError(f"no GPU that torch {torch.__version__} (CUDA {torch.version.cuda}) can use")
        self.properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        # A short write would need thousands for one backlog. An MI300's cache behind its L2 holds 256 MiB.
        least = 512 << 20 if torch.version.hip else 64 << 20
        self.buffer = torch.empty(max(2 * self.properties.L2_cache_size, least), dtype=torch.int8, device=self.device)

    def event(self) -> Event:
        return torch.cuda.Event(enable_timing=True)

    def flush(self) -> None:
        self.buffer.zero_()

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def clock(self) -> float:
        return time.perf_counter()

    def stamp(self) -> dict[str, object]:
        p = self.properties
        return {
            "gpu": p.name,
            "gpu_count": torch.cuda.device_count(),
            "capability": f"{p.major}.{p.minor}",
            "multiprocessors": p.multi_processor_count,
            "gpu_memory": p.total_memory,
            "l2_bytes": p.L2_cache_size,
            "flush_bytes": self.buffer.nbytes,
            "driver": machine.driver(),
            "cuda": torch.version.cuda or f"ROCm {torch.version.hip}",
        }


@contextlib.contextmanager
def precision(kind: str) -> Iterator[torch.dtype]:
    """The dtype of `kind`; inside, torch's float32 products use TF32 for "tf32" and do not for any other."""
    if kind not in KINDS:
        raise ValueError(f"dtype must be one of {list(KINDS)}, got {kind!r}")
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = kind == "tf32"
    try:
        yield KINDS[kind]
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@dataclass(frozen=True)
class GpuTiming(Timing):
    """Seconds on the GPU; quartiles of each side; seconds the host needs to hand in one call (median).

    `starved` counts timed calls that the GPU reached before the host had handed them in whole: they hold host time.
    """

    ours_low: float
    ours_high: float
    rival_low: float
    rival_high: float
    ours_host: float
    rival_host: float
    starved: int


@dataclass
class _Side:
    """One of the two rivals: its call, its backlog in writes, what was seen."""

    call: Call
    writes: int = 1
    host: list[float] | None = None
    starved: int = 0


def seconds_of(gpu: Gpu, call: Call, writes: int = 1) -> tuple[float, float, bool]:
    """One call behind a backlog of `writes`: seconds on the GPU, the host's seconds, whether the GPU ran dry."""
    start, end = gpu.event(), gpu.event()
    for _ in range(writes):
        gpu.flush()
    start.record()
    before = gpu.clock()
    call()
    host = gpu.clock() - before
    end.record()
    dry = start.query()  # the GPU has already passed the start: it waited for the host during the call
    end.synchronize()
    return start.elapsed_time(end) / 1e3, host, dry


def write_seconds(gpu: Gpu) -> float:
    """Seconds of one write of the flush."""
    for _ in range(3):
        gpu.flush()
    return statistics.median(seconds_of(gpu, gpu.flush, 4)[0] for _ in range(9))


def backlog(host: float, unit: float) -> int:
    """How many writes of `unit` seconds cover `host` seconds with the margin: at least one, at most `WRITES`."""
    return max(1, min(WRITES, math.ceil(MARGIN * host / unit)))


def _timed(gpu: Gpu, side: _Side) -> float:
    while True:
        took, host, dry = seconds_of(gpu, side.call, side.writes)
        if not dry or side.writes == WRITES:
            break
        side.writes = min(WRITES, 2 * side.writes)  # take it again behind a longer backlog
    side.starved += dry
    side.host = [*(side.host or ()), host]
    return took


def interleaved(gpu: Gpu, ours: Call, rival: Call, seconds: float, least: int = 7, most: int = 500) -> GpuTiming:
    """Warm both up, choose the backlogs, then time both in turn for about `seconds`, `least` to `most` pairs."""
    sides = _Side(ours), _Side(rival)
    for _ in range(3):
        for side in sides:
            side.call()
    gpu.synchronize()
    unit = write_seconds(gpu)
    for side in sides:
        side.writes = backlog(max(seconds_of(gpu, side.call)[1] for _ in range(3)), unit)

    def take(ours_first: bool) -> tuple[float, float]:
        first, second = (_timed(gpu, side) for side in (sides if ours_first else sides[::-1]))
        return (first, second) if ours_first else (second, first)

    pairs = alternating(take, gpu.clock, seconds, least, most)
    spread = [statistics.quantiles(side, n=4, method="inclusive") for side in zip(*pairs, strict=True)]
    return GpuTiming(
        **vars(summary(pairs)),
        ours_low=spread[0][0],
        ours_high=spread[0][2],
        rival_low=spread[1][0],
        rival_high=spread[1][2],
        ours_host=statistics.median(sides[0].host or ()),
        rival_host=statistics.median(sides[1].host or ()),
        starved=sum(side.starved for side in sides),
    )


def measure(gpu: Gpu, problem: Problem, kind: str, seconds: float) -> dict:
    """The row of one problem in one dtype; its panel's name ends with the dtype."""
    with precision(kind) as dtype:
        ours, rivals, weights = calls(problem, dtype, gpu.device)
        backend = backend_of(ours)
        variant = fastest(rivals, seconds / 4, lambda call: seconds_of(gpu, call, 4)[0], gpu.clock)
        timing = interleaved(gpu, ours, rivals[variant], seconds)
    setting: dict[str, object] = {"dtype": kind, "backend": backend, "variant": variant}
    made = row(problem, timing, setting, weights, dtype.itemsize)
    return {**made, "panel": f"{problem.panel}, {kind}"}


def _best(gpu: Gpu, call: Call, seconds: float) -> float:
    call()
    gpu.synchronize()
    times: list[float] = []
    end = gpu.clock() + seconds
    while len(times) < 3 or gpu.clock() < end:
        times.append(seconds_of(gpu, call, 4)[0])
    return min(times)


def limits(gpu: Gpu, kinds: tuple[str, ...], seconds: float) -> dict[str, dict[str, float]]:
    """Per dtype, what plain torch reaches at best here: FLOP/s of a square matmul, bytes/s read from memory.

    The second is a sum over a buffer of eight L2 caches or more. Neither is a bound on what can be done. `floor` is the
    time between two events with nothing between them: what any time below a few microseconds has to be seen against.
    """
    bytes_ = max(gpu.size * gpu.size * 4, 8 * int(str(gpu.stamp()["l2_bytes"])))
    big = torch.ones(bytes_ // 4, device=gpu.device)
    read = big.nbytes / _best(gpu, big.sum, seconds)
    del big
    found = {}
    for kind in kinds:
        with precision(kind) as dtype:
            a, b = (torch.randn(gpu.size, gpu.size, device=gpu.device, dtype=dtype) for _ in range(2))
            flops = 2 * gpu.size**3 / _best(gpu, partial(torch.mm, a, b), seconds)
            found[kind] = {"flops": flops, "bytes": read, "floor": _best(gpu, lambda: None, 0.0)}
    return found
