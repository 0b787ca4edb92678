"""Why a call is computed as it is: the candidates beside each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import planner
from ..ops.convolution import memory_format
from . import candidates, device
from .candidates import Layer


@dataclass(frozen=True)
class Candidate:
    """One way to compute the call.

    `macs` multiply-adds; `moved` bytes at least read and written; `intermediate` bytes of maps written to memory only
    to be read again; `roofline` seconds at the machine's limits; `seconds` the median measured, None if it was not;
    `error` what it raised, None if nothing.
    """

    name: str
    macs: int
    moved: int
    intermediate: int
    roofline: float
    seconds: float | None
    error: str | None


@dataclass(frozen=True)
class Explanation:
    """What `explain` found; `str()` of it is the table. `flops` and `bandwidth` are the machine's limits, a second."""

    call: str
    device: str
    threads: int
    flops: float
    bandwidth: float
    candidates: tuple[Candidate, ...]
    taken: str
    why: str

    def __str__(self) -> str:
        head = ("candidate", "MMAC", "MB moved", "MB between", "roofline us", "measured us", "")
        rows: list[tuple[str, ...]] = [head]
        for c in self.candidates:
            numbers = (c.macs / 1e6, c.moved / 1e6, c.intermediate / 1e6, c.roofline * 1e6)
            measured = "-" if c.seconds is None else f"{c.seconds * 1e6:,.1f}"
            note = "taken" if c.name == self.taken else c.error or ""
            rows.append((c.name, *(f"{n:,.3f}" for n in numbers[:3]), f"{numbers[3]:,.1f}", measured, note))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = (
            "  ".join((row[0].ljust(widths[0]), *(v.rjust(w) for v, w in zip(row[1:-1], widths[1:-1], strict=True))))
            + f"  {row[-1]}"
            for row in rows
        )
        return "\n".join(
            (
                self.call,
                f"{self.device}, threads {self.threads}: "
                f"{self.flops / 1e9:,.1f} GFLOP/s (matrix product), {self.bandwidth / 1e9:,.1f} GB/s (copy)",
                *(line.rstrip() for line in table),
                f"{self.taken}: {self.why}",
            )
        )


@torch.no_grad()
def explain(layer: Layer, x: Tensor, residual: Tensor | None = None) -> Explanation:
    """Print, and return, what `layer` does with x when no gradients are needed.

    The times are those that the plan was made of; they are measured now if there are none. The roofline is the larger
    of multiply-adds at the speed of a matrix product and bytes at the speed of a copy, both timed once a process.

    Raises:
        TypeError, ValueError: as the layer's forward.
    """
    layer._check_input(x)
    if not (isinstance(x, Tensor) and (x.is_cpu or x.is_cuda) and candidates.regular(layer, x, residual)):
        layer._fused(x, residual)  # says what is wrong
        raise ValueError(f"explain: x must be on the CPU or a CUDA GPU, got {x.device}")
    times, errors = planner._times(layer, x, residual, again=False) if x.numel() else ({}, {})
    taken, why = _reason(times, x)
    dtype, threads = candidates.computing_dtype(x), torch.get_num_threads()
    flops, bandwidth = device.limits(x.device, dtype, threads)
    found = tuple(
        Candidate(name, *cost, max(2 * cost.macs / flops, cost.moved / bandwidth), times.get(name), errors.get(name))
        for name, cost in candidates.costs(layer, x, residual).items()
    )
    form = "" if candidates.where_of(layer) is None else f", {str(memory_format(x)).removeprefix('torch.')}"
    call = f"{type(layer).__name__}: x {list(x.shape)} {str(dtype).removeprefix('torch.')}{form}"
    told = Explanation(call, device.device_name(x.device), threads, flops, bandwidth, found, taken, why)
    print(told)
    return told


def _reason(times: dict[str, float], x: Tensor) -> tuple[str, str]:
    force = planner._forced()
    if isinstance(force, str):
        return force, "forced, by RDKERNELS_PLAN or planner.plan"
    if force is None and planner._fixed():
        return "fused", "a backend is forced, or deterministic algorithms are on: nothing is chosen by time"
    if not times:
        return "fused", "x is empty" if x.numel() == 0 else "no candidate ran"
    taken, best = planner.decide(times), min(times, key=times.__getitem__)
    if taken == best:
        return taken, "the fastest"
    return taken, f"within {planner.TOLERANCE - 1:.0%} of the fastest, {best}"
