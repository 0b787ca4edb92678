"""A simulated GPU for the tests and for `gpu_check.py --dry-run`: a queue, a clock and a cache, no hardware.

Work that is handed in runs after everything before it; an idle GPU waits for the host; a call whose operands were not
evicted runs faster. The times it gives are made up.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class FakeEvent:
    gpu: FakeGpu
    at: float = float("nan")

    def record(self) -> None:
        self.at = max(self.gpu.now, self.gpu.free)
        self.gpu.free = self.at + self.gpu.mark

    def query(self) -> bool:
        return self.at <= self.gpu.now

    def synchronize(self) -> None:
        self.gpu.now = max(self.gpu.now, self.at)

    def elapsed_time(self, end: FakeEvent) -> float:
        return 1e3 * (end.at - self.at)


@dataclass
class FakeGpu:
    """`kernel(...)` is one launch; `step` is what every look at the host's clock costs."""

    write: float = 50e-6  # seconds of one flush
    step: float = 1e-6
    mark: float = 0.0  # seconds the GPU takes for an event: all that a call costs which launches nothing here
    now: float = 0.0  # the host's clock
    free: float = 0.0  # when the GPU has done all it was given
    cold: bool = False
    flushes: int = 0
    launches: list[str] = field(default_factory=list)
    device = "cpu"  # where the tensors of a simulated bench are
    size = 64

    def event(self) -> FakeEvent:
        return FakeEvent(self)

    def flush(self) -> None:
        self.flushes += 1
        self.now += 2e-6
        self.free = max(self.now, self.free) + self.write
        self.cold = True

    def kernel(self, seconds: float, host: float = 10e-6, warm: float | None = None, name: str = "") -> None:
        """The host takes `host` to hand it in; the GPU takes `seconds`, or `warm` if nothing was flushed since."""
        self.now += host
        took = seconds if self.cold or warm is None else warm
        self.free = max(self.now, self.free) + took
        self.cold = False
        self.launches.append(name)

    def synchronize(self) -> None:
        self.now = max(self.now, self.free)

    def clock(self) -> float:
        self.now += self.step
        return self.now

    def stamp(self) -> dict[str, object]:
        return {
            "gpu": "simulated GPU",
            "gpu_count": 0,
            "capability": "0.0",
            "multiprocessors": 0,
            "gpu_memory": 0,
            "l2_bytes": 1024,
            "flush_bytes": 2048,
            "driver": "none",
            "cuda": "none",
        }
