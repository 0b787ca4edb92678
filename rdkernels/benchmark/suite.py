"""All problems of all operations, timed: the result that report.py shows and writes."""

from __future__ import annotations

import importlib
import re
import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .. import registry
from ..testing import Problem
from . import gpu, machine, timing

QUICK_FLOPS = 2.5e9  # --quick leaves out what is larger
SECONDS, GPU_SECONDS, QUICK_SECONDS = 0.5, 0.4, 0.1  # per problem and thread count or dtype
LIMIT_SECONDS = 0.75


def problems(
    ops: Iterable[str] | None = None, *, quick: bool = False, only: str | None = None, device: str = "cpu"
) -> list[Problem]:
    """The problems that the rooms of `ops` (default: of every operation) list in `cases.BENCH` or `cases.BENCH_GPU`.

    Args:
        ops: names of operations.
        quick: only those below 2.5 GFLOP.
        only: a regular expression that a problem's name must match somewhere.
        device: "cpu" or "cuda".

    Raises:
        ValueError: an unknown operation.
    """
    found: list[Problem] = []
    for op in registry.operations() if ops is None else ops:
        registry.backends(op)  # raises for an unknown one
        cases = importlib.import_module(f"rdkernels.ops.{op}.cases")
        found += cases.BENCH if device == "cpu" else getattr(cases, "BENCH_GPU", ())
    return [
        p
        for p in found
        if not (quick and timing.flops(p) > QUICK_FLOPS) and (only is None or re.search(only, str(p)) is not None)
    ]


def run(
    chosen: list[Problem],
    threads: tuple[int, ...],
    *,
    quick: bool = False,
    progress: Callable[[list[Problem]], Iterable[Problem]] = list,
) -> dict:
    """Measure the machine's limits, then every problem: `{"machine", "limits", "results", "summaries"}`.

    A result's `share` is the time that the nearer limit alone would take (FLOPs or least bytes), over our time.
    """
    seconds, limit_seconds = (QUICK_SECONDS, QUICK_SECONDS / 2) if quick else (SECONDS, LIMIT_SECONDS)
    limits = machine.limits(threads, limit_seconds)
    results = [row for problem in progress(chosen) for row in timing.measure(problem, threads, seconds)]
    for count, again in machine.limits(threads, limit_seconds).items():  # a busy minute must not make a limit small
        limits[count] = {name: max(value, again[name]) for name, value in limits[count].items()}
    _rate(results, limits, "threads")
    return {
        "machine": machine.stamp(),
        "limits": {str(n): limit for n, limit in limits.items()},
        "results": results,
        "summaries": summaries(results, "threads"),
    }


def run_gpu(
    chosen: list[Problem],
    kinds: tuple[str, ...],
    *,
    quick: bool = False,
    progress: Callable[[list[tuple[str, Problem]]], Iterable[tuple[str, Problem]]] = list,
    on: gpu.Gpu | None = None,
) -> dict:
    """The same on a GPU (default: the current CUDA device), per dtype of `kinds`; every row names its backend."""
    seconds = QUICK_SECONDS if quick else GPU_SECONDS
    device = on or gpu.Cuda()
    limits = gpu.limits(device, kinds, seconds)
    every = [(kind, problem) for kind in kinds for problem in chosen]
    results = [gpu.measure(device, problem, kind, seconds) for kind, problem in progress(every)]
    _rate(results, limits, "dtype")
    stamp = {**device.stamp(), **machine.stamp()}
    return {"machine": stamp, "limits": limits, "results": results, "summaries": summaries(results, "dtype")}


def figure(row: Mapping[str, Any]) -> float:
    """What a row's goal is asked of: the captured fraction where it has one, else the rival's time / ours."""
    captured = row.get("captured")
    return row["ratio"] if captured is None else captured


def summaries(results: list[dict], setting: str) -> list[dict]:
    """Per panel and setting: the geometric mean of the figures, the worst and whose it is, how many miss their goal."""
    found = []
    for key in dict.fromkeys((row["panel"], row[setting]) for row in results):
        rows = [row for row in results if (row["panel"], row[setting]) == key]
        worst = min(rows, key=figure)
        judged = [row for row in rows if row["goal"] is not None]
        found.append(
            {
                **{name: worst[name] for name in ("op", "panel", "work", "against", setting, "mean_goal")},
                "figure": "ratio" if worst["captured"] is None else "captured",
                "mean": statistics.geometric_mean(map(figure, rows)),
                "worst": figure(worst),
                "worst_name": f"{worst['line']}, {worst['at']}",
                "worst_goal": worst["goal"],
                "count": len(rows),
                "judged": len(judged),
                "missed": sum(figure(row) < row["goal"] for row in judged),
            }
        )
    return found


def _rate(results: list[dict], limits: Mapping[Any, Mapping[str, float]], setting: str) -> None:
    for row in results:
        limit = limits[row[setting]]
        row["gflops"] = row["flops"] / row["ours"] / 1e9
        row["share"] = max(row["flops"] / limit["flops"], row["bytes"] / limit["bytes"]) / row["ours"]
