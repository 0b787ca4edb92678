"""Timers for `pytest bench`: one round is one call of torch, then one of ours, on a room's `cases.BENCH`."""

import statistics
import time

import pytest
import torch

import rdkernels as rd
from rdkernels.benchmark import machine, timing


@pytest.fixture(scope="session")
def panels_run():
    return set()


@pytest.fixture
def interleave(benchmark, panels_run):
    """Time a problem: pytest-benchmark times ours, the set-up of every round times the rival; the ratio is an extra."""

    def measure(problem, threads):
        panel = (problem.panel, threads)
        if benchmark.disabled and panel in panels_run:
            pytest.skip("smoke run: the first problem of each panel only")
        panels_run.add(panel)
        if threads > machine.cores():
            pytest.skip(f"needs {threads} cores")
        ours, rivals, _ = timing.calls(problem)
        rounds = max(5, min(200, int(4e9 / timing.flops(problem))))
        seconds = []

        def call_rival():
            start = time.perf_counter()
            rival()
            seconds.append(time.perf_counter() - start)

        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            variant = timing.fastest(rivals, 0 if benchmark.disabled else 0.1)
            rival = rivals[variant]
            benchmark.group = f"{problem.panel}, {threads} threads"
            benchmark.pedantic(ours, setup=call_rival, rounds=rounds, warmup_rounds=2)
        finally:
            torch.set_num_threads(before)
        if benchmark.disabled:
            return
        own = benchmark.stats.stats.data
        ratios = [theirs / mine for theirs, mine in zip(seconds[-len(own) :], own, strict=True)]
        ratio = statistics.median(ratios)
        benchmark.extra_info.update(
            ratio=ratio,
            captured=problem.reduction and ratio / problem.reduction,
            goal=problem.goal,
            rival=f"{problem.rival} {variant}".rstrip(),
            flops=timing.flops(problem),
        )
        benchmark.extra_info.update(rd.build_info())

    return measure
