"""What a fused forward takes besides y and the packed factors: at most 2 MiB a thread, however large the map."""

import pathlib
import subprocess
import sys

import pytest

import rdkernels as rd

PROGRAM = """
import pathlib, sys, torch
import rdkernels as rd
op, kind, way = sys.argv[1:]
dtype = getattr(torch, kind)
torch.set_num_threads(2)
factors = {
    "separable_conv2d": [(32, 64, 3), (64, 32, 3)],
    "cp_conv2d": [(64, 64), (64, 3), (64, 3), (64, 64)],
    "tucker_conv2d": [(32, 64), (32, 32, 3, 3), (64, 32)],
    "monochromatic_conv2d": [(6, 64), (64, 3, 3)],
}[op]
weights = [torch.randn(shape, dtype=dtype) for shape in factors]
weights += [torch.arange(64) % 6] if op.startswith("mono") else []
small, large = (torch.randn(1, 64, 32, w, dtype=dtype).contiguous(memory_format=torch.channels_last) for w in (8, 8192))

def status(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024

def call(x):
    from rdkernels.ops.chain import unfused
    from rdkernels.ops.convolution import Geometry
    with torch.no_grad():
        if way == "unfused":
            return unfused(op, x, weights, None, None, Geometry(1, 1, 1, 1, 1, 1, 1, 1), 0)
        with rd.use("native"):
            return getattr(rd, op)(x, *weights, padding=1)

call(small)
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
before = status("VmRSS")
y = call(large)
print(status("VmHWM") - before - y.nbytes)
"""

OPS = ("separable_conv2d", "cp_conv2d", "tucker_conv2d", "monochromatic_conv2d")
LIMIT = 2 * (2 << 20) + (1 << 20)  # two threads, and what malloc and page tables take


def extra(op: str, kind: str, way: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, op, kind, way], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.fixture(autouse=True)
def here(need) -> None:
    need("native", "native" in rd.backends("cp_conv2d"), "no CPU library")
    if not pathlib.Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory: no /proc/self/clear_refs here")


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("op", OPS)
def test_native_extra_memory(op: str, kind: str) -> None:
    assert extra(op, kind, "native") <= LIMIT


def test_native_extra_memory_is_seen() -> None:
    """Negative control: the unfused chain holds a rank map of 64 MiB."""
    assert extra("cp_conv2d", "float32", "unfused") > 10 * LIMIT
