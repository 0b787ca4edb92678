"""What the machine is and how fast it can go: the stamp on a result and the limits beside it."""

from __future__ import annotations

import contextlib
import datetime
import os
import pathlib
import platform
import subprocess
import time
from collections.abc import Callable

import torch

from ..planner.device import cpu_model


def commit() -> str | None:
    """The git commit of a source checkout ("-dirty" with local changes), None for an installed package."""
    root = pathlib.Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def driver() -> str:
    """The version of the GPU's driver, as the kernel module or `nvidia-smi` gives it."""
    for module in ("nvidia", "amdgpu"):
        with contextlib.suppress(OSError):
            return pathlib.Path(f"/sys/module/{module}/version").read_text().strip()
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    return "unknown"


def stamp() -> dict[str, object]:
    """Everything a reader of a result needs to know about where it comes from."""
    from .. import build_info

    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "date": now.isoformat(timespec="seconds"),
        "commit": commit(),
        **build_info(),
    }


def _best(call: Callable[[], object], seconds: float) -> float:
    call()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def limits(threads: tuple[int, ...], seconds: float) -> dict[int, dict[str, float]]:
    """Per thread count, what plain torch reaches at best here: fp32 FLOP/s of a matmul, bytes/s read from memory.

    The first is a 1536 x 1536 x 1536 product, a few per cent under the processor's peak. The second is the better of a
    sum over 256 MiB and a matrix-vector product over the same, which no cache holds. Neither is a bound on what can be
    done: a kernel that reads from a cache may pass the second.
    """
    a, b, c = (torch.randn(1536, 1536) for _ in range(3))
    big, vector = torch.randn(8192, 8192), torch.randn(8192)
    found = {}
    before = torch.get_num_threads()
    try:
        for count in threads:
            torch.set_num_threads(count)
            matmul = _best(lambda: torch.mm(a, b, out=c), seconds)
            read = min(_best(big.sum, seconds), _best(lambda: torch.mv(big, vector), seconds))
            found[count] = {"flops": 2 * 1536**3 / matmul, "bytes": big.nbytes / read}
    finally:
        torch.set_num_threads(before)
    return found
