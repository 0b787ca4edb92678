"""Which device this is, how fast it goes at best, and how long calls take on it."""

from __future__ import annotations

import functools
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Mapping

import torch

BUDGET = 0.1  # seconds of timed rounds of one plan, unless `ROUNDS` take longer
ROUNDS = 5
_HOPELESS = 3  # after `ROUNDS`, a candidate this many times slower than the best is not timed again
_REPEATS = 8  # of what measures the machine's limits


@functools.cache
def cpu_model() -> str:
    """The processor's name as the kernel gives it, else the platform's."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


@functools.cache
def device_name(device: torch.device) -> str:
    """The processor's model and the instruction set that torch uses, or the GPU's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_model()}, {torch.backends.cpu.get_cpu_capability()}"


def synchronizer(device: torch.device) -> Callable[[], object]:
    """What waits until `device` has done its work."""
    return functools.partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None


def _seconds(call: Callable[[], object], wait: Callable[[], object]) -> float:
    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def measure(
    calls: Mapping[str, Callable[[], object]], wait: Callable[[], object] = lambda: None
) -> tuple[dict[str, float], dict[str, str]]:
    """Median seconds of every call, timed in turn after one untimed call each; and the errors of those that raise."""
    times: dict[str, list[float]] = {}
    errors: dict[str, str] = {}
    for name, call in calls.items():
        try:
            call()
            wait()
            times[name] = []
        except Exception as error:
            errors[name] = f"{type(error).__name__}: {error}"
    running = list(times)
    end, done = time.perf_counter() + BUDGET, 0
    while running and (done < ROUNDS or time.perf_counter() < end):
        for name in running:
            times[name].append(_seconds(calls[name], wait))
        done += 1
        if done == ROUNDS:
            limit = _HOPELESS * min(min(times[name]) for name in running)
            running = [name for name in running if min(times[name]) <= limit]
        running = running[1:] + running[:1]  # each is first, and follows each other, as often
    return {name: statistics.median(seconds) for name, seconds in times.items()}, errors


@functools.cache
def limits(device: torch.device, dtype: torch.dtype, threads: int) -> tuple[float, float]:
    """Quick limits of the machine as torch reaches them: FLOP/s of a matrix product, bytes/s of a copy.

    `threads` is torch's thread count now, for the sake of the cache.
    """
    size, megabytes = (4096, 512) if device.type == "cuda" else (768, 64)
    wait = synchronizer(device)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        a = torch.ones(size, size, dtype=dtype, device=device)
        out = torch.empty_like(a)
        source = torch.zeros(megabytes * 2**20, dtype=torch.uint8, device=device)
        target = torch.zeros_like(source)
        product = min(_seconds(lambda: torch.mm(a, a, out=out), wait) for _ in range(_REPEATS))
        copy = min(_seconds(lambda: target.copy_(source), wait) for _ in range(_REPEATS))
    return 2 * size**3 / product, 2 * source.nbytes / copy
