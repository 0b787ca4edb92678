"""The host-run CUDA layer (simt/): each fault put into a kernel is found, by which build, and right kernels pass."""

import re
import subprocess

import numpy as np
import pytest
from native import make

KERNELS = ("sgemm", "half", "half_trans", "bf16", "bf16_trans", "tf32")
RAGGED = {"sgemm": (72, 68, 72), "tf32": (72, 68, 72)}  # M, N, K: partial tiles on every side
BUILDS = ("values", "asan", "trace")
OK = r"\A(\d \d ok\n){9}\Z"  # three orders of the threads, times three landings of cp.async
WRONG = r"^\d \d wrong"

# (bug of simt/controls.cu, kernel) -> what the builds for values, for the sanitizers, with the trace must say.
CONTROLS = {
    (1, "sgemm"): (WRONG, WRONG, "race: read of what a cp.async may still write"),
    (1, "half"): (WRONG, WRONG, "race: read of what a cp.async may still write"),
    (2, "sgemm"): (WRONG, WRONG, "race: read after write"),
    (2, "bf16"): (WRONG, WRONG, "race: read after write"),
    (3, "sgemm"): (WRONG, WRONG, "race: write after read"),
    (3, "half"): (OK, OK, "race: write after read"),
    (3, "tf32"): (OK, OK, "race: write after read"),
    (4, "sgemm"): (WRONG, "heap-buffer-overflow", "race: write after write of C"),
    (4, "bf16_trans"): (WRONG, "heap-buffer-overflow", "race: access past the end of C"),
    (5, "sgemm"): ("deadlock: 128 threads in a warp collective", "deadlock", "deadlock"),
    (6, "sgemm"): (OK, OK, "race: write after write of row sums"),
    (7, "sgemm"): (OK, "heap-buffer-overflow", "race: access past the end of B"),
    (7, "half_trans"): (None, "heap-buffer-overflow", "race: access past the end of B"),
    (8, "half"): (WRONG, WRONG, WRONG),
    (8, "bf16_trans"): (WRONG, WRONG, WRONG),
    (8, "tf32"): (WRONG, WRONG, WRONG),
    (9, "sgemm"): (OK, OK, "race: uninitialised read"),
    (9, "half"): (WRONG, WRONG, "race: uninitialised read"),
    (10, "sgemm"): ("cp.async, destination: misaligned", "misaligned", "misaligned"),
    (10, "half_trans"): ("cp.async, destination: misaligned", "misaligned", "misaligned"),
}

FAULTS = [  # of the module's kernel `fault`
    (1, "divergent barrier: thread 0 waits at controls_module.cpp:"),
    (2, "a warp collective with mask 00000001, which lacks the lane 1 that calls it"),
    (3, "overlaps the mask"),
    (4, "meet another warp collective, at controls_module.cpp:"),
    (5, "a shuffle from lane 8, which mask 000000ff lacks"),
    (6, "ldmatrix: misaligned address, 4 past a multiple of 16"),
    (7, "ldmatrix: not in the block's shared memory"),
    (8, "ldmatrix: not in the block's shared memory"),
    (9, "exits with a cp.async never waited for"),
    (10, "exits with a cp.async never waited for"),
    (11, "cp.async: 20 of 16 bytes"),
    (12, "a vector load: misaligned address, 4 past a multiple of 16"),
    (99, "__trap"),
]


@pytest.fixture(autouse=True)
def cuda_headers(need) -> None:
    need("nvcc", make.cuda_home() is not None, make.CUDA_MISSING)


@pytest.fixture(params=["values", "trace"])
def simt(request, load):
    module = load(f"simt_{request.param}")
    module.reset()
    module.configure()
    return module


@pytest.fixture
def trace(load):
    module = load("simt_trace")
    module.reset()
    module.configure()
    return module


def verdicts(done: subprocess.CompletedProcess) -> str:
    """The verdict of each run, without the trace's tables."""
    return "".join(line + "\n" for line in done.stdout.splitlines() if re.match(r"\d \d ", line))


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("shape", [(72, 72, 40), (64, 64, 128), (8, 8, 8), (65, 72, 136)])
@pytest.mark.parametrize("kernel", KERNELS)
def test_right_kernels_pass(kernel: str, shape: tuple, build: str, drive) -> None:
    done = drive(f"controls_{build}", kernel, "0", *map(str, shape))
    assert done.returncode == 0 and not done.stderr and re.fullmatch(OK, verdicts(done)), done.stdout + done.stderr
    if build == "trace":
        assert re.findall(r"^(\d+) races", done.stdout, re.MULTILINE) == ["0"] * 9, done.stdout


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("bug, kernel", CONTROLS)
def test_faults_are_found(bug: int, kernel: str, build: str, drive) -> None:
    """Also which build is blind to what: no one of them would do."""
    expected = CONTROLS[bug, kernel][BUILDS.index(build)]
    done = drive(f"controls_{build}", kernel, str(bug), *map(str, RAGGED.get(kernel, (72, 72, 136))))
    if expected == OK:
        assert done.returncode == 0 and re.fullmatch(OK, verdicts(done)), done.stdout + done.stderr
    elif expected:
        assert re.search(expected, done.stdout + done.stderr, re.MULTILINE), done.stdout + done.stderr


@pytest.mark.parametrize("build", BUILDS)
def test_layouts(build: str, drive) -> None:
    """mma and ldmatrix against the PTX ISA's formulas, tf32's bits, the integer functions."""
    done = drive(f"controls_{build}", "layouts")
    assert done.returncode == 0 and not done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("which, says", FAULTS)
def test_diagnoses(which: int, says: str, simt) -> None:
    """An exception with thread, block and line; the next launch is none the worse for it."""
    for threads in (32, 64):
        with pytest.raises(RuntimeError, match=rf"^simt: .*{says}.*\[thread \d+, block \(0, 0, 0\)"):
            simt.fault(which, threads, 1024)
        simt.fault(0, threads, 1024)


def test_launch_limits(simt) -> None:
    for threads in (0, 1025):
        with pytest.raises(RuntimeError, match=f"a block of {threads} threads"):
            simt.fault(0, threads, 0)
    with pytest.raises(RuntimeError, match="50000 bytes of dynamic shared memory, 49152 allowed"):
        simt.fault(0, 32, 50000)
    simt.configure(smem_limit=100000)
    assert simt.allow_shared(100001) != 0
    assert simt.allow_shared(100000) == 0
    simt.fault(0, 32, 100000)
    simt.configure(smem_limit=99999)
    with pytest.raises(RuntimeError, match="100000 bytes of dynamic shared memory, the limit is 99999"):
        simt.fault(0, 32, 100000)


def test_exit_before_a_barrier(simt) -> None:
    """Allowed by CUDA since Volta; `strict_exit` forbids it."""
    simt.fault(13, 64, 0)
    simt.configure(strict_exit=True, order=1)
    with pytest.raises(RuntimeError, match="exits while thread 63 waits at a barrier"):
        simt.fault(13, 64, 0)


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("distance, sync, races", [(0, 0, 0), (1, 0, 1), (1, 1, 0), (1, 2, 0), (32, 1, 1), (32, 2, 0)])
def test_what_orders_accesses(distance: int, sync: int, races: int, order: int, trace) -> None:
    """A barrier the block, a warp's sync the warp, nothing else; lanes of a warp do not run in step."""
    trace.configure(order=order)
    data = np.arange(64, dtype=np.int32)
    got = trace.exchange(data.copy(), distance, sync)
    report = trace.report()
    assert bool(report["races"]) == bool(races), report["races"]
    assert races or (got == data ^ distance).all()
    assert all("of shared + " in text for text in report["races"])


@pytest.mark.parametrize(
    "bytes_, stride, sectors, wavefronts",
    [(4, 1, 4, 1), (4, 2, 8, 2), (4, 8, 32, 8), (4, 32, 32, 32), (4, 33, 32, 1), (8, 1, 8, 2), (8, 2, 16, 4)]
    + [(16, 1, 16, 4), (16, 2, 32, 8), (16, 3, 32, 4), (16, 8, 32, 32), (16, 9, 32, 4)],
)
def test_requests(bytes_: int, stride: int, sectors: int, wavefronts: int, trace) -> None:
    """32-byte sectors and bank wavefronts, counted by hand."""
    trace.strided(bytes_, stride)
    rows = {(row["region"], row["op"]): row for row in trace.report()["rows"]}
    for row in rows.values():
        assert (row["requests"], row["lanes"], row["bytes"], row["file"]) == (1, 32, bytes_, "controls_module.cpp")
    assert rows["from", "ld"]["units"] == rows["from", "ld"]["worst"] == sectors
    assert rows["to", "st"]["units"] == bytes_ and rows["to", "st"]["ratio"] == 1
    for op in ("ld", "st"):
        row = rows["dynamic shared memory", op]
        assert row["units"] == wavefronts and row["ratio"] == wavefronts / (bytes_ // 4)


@pytest.mark.parametrize(
    "dtype, bug, ratio", [(np.float16, 0, 1), (np.float16, 11, 8), (np.uint16, 0, 1), ("f4", 0, 1)]
)
def test_trace_of_a_kernel(dtype, bug: int, ratio: int, trace) -> None:
    """Without its swizzle the kernel is right, races nowhere, and has every ldmatrix eightfold in conflict."""
    a, b = np.ones((64, 64), dtype), np.ones((64, 64), dtype)
    if dtype == np.uint16:
        a[:] = b[:] = 0x3F80  # 1 in bfloat16
    c = trace.tgemm(a, b, np.empty((64, 64), np.float32), False, bug)
    report = trace.report()
    assert (c == 64).all() and report["traced"] and not report["races"]
    rows = report["rows"]
    assert {row["file"] for row in rows} == {"controls.cu"}
    assert {row["ratio"] for row in rows if row["op"] == "ldsm"} == {ratio}
    assert {row["ratio"] for row in rows if row["op"] == "cp"} == {1}
    assert {(row["op"], row["space"]) for row in rows} == {
        ("cp", "global"),
        ("cp", "shared"),
        ("ldsm", "shared"),
        ("st", "global"),
    }


def test_values_build_has_no_trace(load) -> None:
    module = load("simt_values")
    assert module.report() == {"traced": False, "accesses": 0, "races": [], "rows": []}


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_nvcc(target: str, need, tmp_path) -> None:
    """The same sources are CUDA."""
    nvcc = make.nvcc()
    need("nvcc", nvcc is not None, f"no nvcc; {make.CUDA_MISSING}")
    command = [nvcc, "-std=c++20", f"-arch={target}", f"-I{make.ROOT / 'csrc'}", "-cubin", "-o", tmp_path / "x.cubin"]
    done = subprocess.run([*command, make.HERE / "simt" / "controls.cu"], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stdout + done.stderr, done.stdout + done.stderr


def test_device_code_is_portable() -> None:
    """What device.cuh has names for is written nowhere else: only then do these builds run what ships."""
    foreign = r"\basm\b|__asm__|<<<|\b__shared__\b|#include <cuda.*>"
    sources = [path for path in (make.ROOT / "csrc").rglob("*.cu*") if path.name != "device.cuh"]
    found = {path.name: re.findall(foreign, re.sub("//.*", "", path.read_text())) for path in sources}
    assert not {name: words for name, words in found.items() if words}
    assert re.findall(foreign, 'asm("x"); k<<<1, 1>>>(); extern __shared__ int s[];\n#include <cuda_fp16.h>') == [
        "asm",
        "<<<",
        "__shared__",
        "#include <cuda_fp16.h>",
    ]
