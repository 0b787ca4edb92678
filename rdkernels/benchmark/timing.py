"""One problem, ours and the rival timed in turn."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .. import registry
from ..testing import Layer, Problem

Call = Callable[[], object]
FLOP_FACTOR = {"forward": 1, "forward+backward": 3, "training step": 3}


@dataclass(frozen=True)
class Timing:
    """Median seconds of ours and of the rival; median and quartiles of the pairwise ratios; how many pairs."""

    ours: float
    rival: float
    ratio: float
    low: float
    high: float
    pairs: int


def workload(work: str, layer: Layer, x: Tensor, dy: Tensor) -> Call:
    """`work` on `layer` as a call without arguments: the forward; with both gradients; with those and fused AdamW.

    x and dy are in the layer's memory format before the first call. A forward records no graph.
    """
    x, dy = (t.detach().to(memory_format=layer.memory_format) for t in (x, dy))
    if work == "forward":
        return torch.no_grad()(lambda: layer(x))
    if work not in FLOP_FACTOR:
        raise ValueError(f"work must be one of {list(FLOP_FACTOR)}, got {work!r}")
    inputs = [t.requires_grad_() for t in (x, *layer.weights)]

    def backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(layer(x), inputs, dy)

    if work == "forward+backward":
        return backward
    optimizer = torch.optim.AdamW(layer.weights, lr=1e-4, fused=True)

    def step() -> None:
        for weight, gradient in zip(layer.weights, backward()[1:], strict=True):
            weight.grad = gradient
        optimizer.step()
        optimizer.zero_grad()

    return step


def flops(problem: Problem) -> int:
    """Floating-point operations of the problem's work; an optimiser's few per weight are not counted."""
    return FLOP_FACTOR[problem.work] * problem.case.flops()


def moved(problem: Problem, weights: int, itemsize: int = 4) -> int:
    """Bytes the work must move at least; a backward moves as many again as the forward, AdamW seven values a weight."""
    once = problem.case.bytes(itemsize)
    updates = 7 * itemsize * weights if problem.work == "training step" else 0
    return (1 if problem.work == "forward" else 2) * once + updates


def pair(ours: Call, rival: Call, ours_first: bool) -> tuple[float, float]:
    """Seconds of one call of each, in the order asked for."""
    clock = time.perf_counter
    first, second = (ours, rival) if ours_first else (rival, ours)
    start = clock()
    first()
    middle = clock()
    second()
    end = clock()
    return (middle - start, end - middle) if ours_first else (end - middle, middle - start)


def summary(pairs: list[tuple[float, float]]) -> Timing:
    """Medians and quartiles of `(ours, rival)` seconds."""
    ratios = [rival / ours for ours, rival in pairs]
    low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    ours, rival = (statistics.median(side) for side in zip(*pairs, strict=True))
    return Timing(ours, rival, ratio, low, high, len(pairs))


def alternating(
    take: Callable[[bool], tuple[float, float]], clock: Callable[[], float], seconds: float, least: int, most: int
) -> list[tuple[float, float]]:
    """Pairs `take(ours_first)`, each the other way round, for about `seconds` of `clock`; no garbage collection."""
    pairs: list[tuple[float, float]] = []
    collecting = gc.isenabled()
    gc.disable()
    try:
        end = clock() + seconds
        while len(pairs) < least or (len(pairs) < most and clock() < end):
            pairs.append(take(len(pairs) % 2 == 0))
    finally:
        if collecting:
            gc.enable()
    return pairs


def interleaved(ours: Call, rival: Call, seconds: float, least: int = 5, most: int = 1000) -> Timing:
    """Warm both up, then time them in turn for about `seconds`, at least `least` and at most `most` pairs."""
    for call in (ours, rival, ours, rival):
        call()
    return summary(alternating(partial(pair, ours, rival), time.perf_counter, seconds, least, most))


def calls(
    problem: Problem, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[Call, dict[str, Call], int]:
    """Ours and every variant of the rival as calls without arguments, and the number of our weights.

    A rival that has one variant only has it under "".
    """
    tensors = problem.case.tensors(dtype, device)
    layer, rival = problem.case.layer(tensors), getattr(problem.case, problem.rival)(tensors)
    x = tensors["x"]
    with torch.no_grad():
        dy = torch.randn_like(layer(x))
    rivals = {"": rival} if isinstance(rival, Layer) else rival
    count = sum(w.numel() for w in layer.weights)
    others = {name: workload(problem.work, other, x, dy) for name, other in rivals.items()}
    return workload(problem.work, layer, x, dy), others, count


def wall(call: Call) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def fastest(
    rivals: dict[str, Call],
    seconds: float,
    time_of: Callable[[Call], float] = wall,
    clock: Callable[[], float] = time.perf_counter,
) -> str:
    """The name of the call with the least time seen; they take turns for about `seconds`, thrice at least.

    A single one is not called.
    """
    if len(rivals) == 1:
        return next(iter(rivals))
    for call in rivals.values():
        call()
    best = dict.fromkeys(rivals, float("inf"))
    end, rounds = clock() + seconds, 0
    while rounds < 3 or clock() < end:
        for name, call in rivals.items():
            best[name] = min(best[name], time_of(call))
        rounds += 1
    return min(best, key=best.__getitem__)


def backend_of(call: Call) -> str:
    """The backends that one call ran on, joined by "+"."""
    with registry.trace() as ran:
        call()
    return "+".join(sorted({backend for _, backend in ran}))


def row(problem: Problem, timing: Timing, setting: dict[str, object], weights: int, itemsize: int = 4) -> dict:
    """A row of the result: the problem, the setting it ran in, its timing, its FLOPs and bytes.

    The setting holds the `variant` of the rival that ran, "" where there is one only.
    """
    return {
        "name": str(problem),
        "op": problem.case.op,
        "case": problem.case.name,
        "panel": problem.panel,
        "line": problem.line,
        "at": problem.at,
        "work": problem.work,
        "against": problem.rival,
        "goal": problem.goal,
        "mean_goal": problem.mean_goal,
        "reduction": problem.reduction,
        **setting,
        **vars(timing),
        "captured": None if problem.reduction is None else timing.ratio / problem.reduction,
        "flops": flops(problem),
        "bytes": moved(problem, weights, itemsize),
    }


def measure(problem: Problem, threads: tuple[int, ...], seconds: float) -> list[dict]:
    """One row per thread count: the problem, its timing, its floating-point rate, and which backends ran ours."""
    ours, rivals, weights = calls(problem)
    backend = backend_of(ours)
    before = torch.get_num_threads()
    rows = []
    try:
        for count in threads:
            torch.set_num_threads(count)
            variant = fastest(rivals, seconds / 4)
            timing = interleaved(ours, rivals[variant], seconds)
            rows.append(row(problem, timing, {"threads": count, "backend": backend, "variant": variant}, weights))
    finally:
        torch.set_num_threads(before)
    return rows
