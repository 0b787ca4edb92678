"""All problems of all operations, timed: the result that report.py shows and writes."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable

from .. import registry
from ..testing import Problem
from . import machine, timing

QUICK_FLOPS = 2.5e9  # --quick leaves out what is larger
SECONDS, QUICK_SECONDS = 1.5, 0.1  # per problem and thread count


def problems(ops: Iterable[str] | None = None, *, quick: bool = False, only: str | None = None) -> list[Problem]:
    """The problems that the rooms of `ops` (default: of every operation) list in `cases.BENCH`.

    Args:
        ops: names of operations.
        quick: only those below 2.5 GFLOP.
        only: a regular expression that a problem's name must match somewhere.

    Raises:
        ValueError: an unknown operation.
    """
    found: list[Problem] = []
    for op in registry.operations() if ops is None else ops:
        registry.backends(op)  # raises for an unknown one
        found += importlib.import_module(f"rdkernels.ops.{op}.cases").BENCH
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
    """Measure the machine's limits, then every problem: `{"machine": ..., "limits": ..., "results": [...]}`.

    A result's `share` is the time that the nearer limit alone would take (FLOPs or least bytes), over our time.
    """
    seconds = QUICK_SECONDS if quick else SECONDS
    limits = machine.limits(threads, seconds / 2)
    results = [row for problem in progress(chosen) for row in timing.measure(problem, threads, seconds)]
    for count, again in machine.limits(threads, seconds / 2).items():  # a busy minute must not make a limit small
        limits[count] = {name: max(value, again[name]) for name, value in limits[count].items()}
    for row in results:
        limit = limits[row["threads"]]
        row["gflops"] = row["flops"] / row["ours"] / 1e9
        row["share"] = max(row["flops"] / limit["flops"], row["bytes"] / limit["bytes"]) / row["ours"]
    return {"machine": machine.stamp(), "limits": {str(n): limit for n, limit in limits.items()}, "results": results}
