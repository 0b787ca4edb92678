"""What only a GPU can show: CUDA graphs, streams, devices, memory. Without one every test here is skipped, by name.

The values are the contract's business (`pytest tests -k cuda`); these compare bits with an eager call on one stream.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from contract import Tensors, noise, same_bits
from torch import Tensor

import rdkernels as rd
from rdkernels import hashing, registry
from rdkernels.ops.hashed_linear import cases
from rdkernels.ops.hashed_linear.cases import HashedLinearCase
from rdkernels.testing import assert_accurate

OP = "hashed_linear"
SMOKE = ("element-gemv", "element-few", "chunk-medium", "tile-gemv", "tile-many")
CASES = [case for case in cases.CORRECTNESS if case.name in SMOKE]
GRANULES = ("element", "chunk", "tile")

some = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
both = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


@pytest.fixture
def gpu(need) -> None:
    need("cuda", torch.cuda.is_available(), "no GPU")


@pytest.fixture(params=["native", "triton"])
def backend(request, gpu, need) -> Iterator[str]:
    """Forced inside the test, which fails if a pass ran on another."""
    name = request.param
    need(f"{name}-cuda", registry.serves(OP, name, torch.empty(1, 1, device="cuda")), f"{rd.build_info()}")
    with rd.use(name), registry.trace() as ran:
        yield name
    assert {used for _, used in ran} <= {name}


def leaves(case: HashedLinearCase, dtype: torch.dtype, device: str = "cuda", seed: int = 0) -> tuple[Tensors, Tensor]:
    """The case's inputs, which want gradients, and a gradient of its output."""
    made = {name: t.requires_grad_() for name, t in case.tensors(dtype, device, seed).items()}
    return made, noise((case.rows, case.out), dtype, seed=seed + 1).to(device)


def step(case: HashedLinearCase, inputs: Tensors, dy: Tensor) -> Tensors:
    """The output and every gradient."""
    y = case.run(inputs)
    gradients = torch.autograd.grad(y, list(inputs.values()), dy)
    return {"y": y.detach(), **{f"d {name}": t for name, t in zip(inputs, gradients, strict=True)}}


@some
@both
def test_graph(backend: str, case: HashedLinearCase, dtype: torch.dtype) -> None:
    """Forward and backward captured in one CUDA graph: each replay gives the bits of eager on the values of now."""
    live, dy = leaves(case, dtype)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # kernels compile and load outside the capture
            step(case, live, dy)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(case, live, dy)
    for seed in (5, 6):
        values, gradient = leaves(case, dtype, seed=seed)
        with torch.no_grad():
            for name, t in live.items():
                t.copy_(values[name])
            dy.copy_(gradient)
            for t in captured.values():
                t.fill_(float("nan"))  # what a replay does not write is seen
        graph.replay()
        torch.cuda.synchronize()
        same_bits(step(case, values, gradient), captured)


@some
@both
def test_same_bits_from_run_to_run_and_on_two_streams_at_once(backend, case, dtype) -> None:
    inputs, dy = leaves(case, dtype)
    first = step(case, inputs, dy)
    same_bits(first, step(case, inputs, dy))
    torch.cuda.synchronize()
    got = []
    streams = torch.cuda.Stream(), torch.cuda.Stream()
    for _ in range(20):
        for stream in streams:
            with torch.cuda.stream(stream):
                got.append(step(case, inputs, dy))
    torch.cuda.synchronize()
    for result in got:
        same_bits(first, result)


@some
def test_kernels_run_on_the_current_stream(backend: str, case: HashedLinearCase) -> None:
    """The inputs get their values late, on a busy stream: kernels of another stream would read zeros."""
    values, gradient = leaves(case, torch.float32)
    expected = step(case, values, gradient)
    late = {name: torch.zeros_like(t).requires_grad_() for name, t in values.items()}
    busy = torch.randn(4096, 4096, device="cuda")
    side, other = torch.cuda.Stream(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        for _ in range(50):
            torch.mm(busy, busy)
        with torch.no_grad():
            for name, t in late.items():
                t.copy_(values[name])
        got = step(case, late, gradient)
    with torch.cuda.stream(other):
        early = late["x"].detach().clone()
    torch.cuda.synchronize()
    same_bits(expected, got)
    assert not early.any()  # negative control: another stream does read zeros


@some
def test_another_device_than_the_current_one(backend: str, case: HashedLinearCase, need) -> None:
    need("two GPUs", torch.cuda.device_count() > 1, f"{torch.cuda.device_count()} here")
    with torch.cuda.device(0):
        first = step(case, *leaves(case, torch.float32, "cuda:0"))
        second = step(case, *leaves(case, torch.float32, "cuda:1"))
        assert torch.cuda.current_device() == 0
    assert {t.device.index for t in second.values()} == {1}
    if torch.cuda.get_device_name(0) == torch.cuda.get_device_name(1):
        same_bits(first, {name: t.to("cuda:0") for name, t in second.items()})


# -- memory ------------------------------------------------------------------------------------------------------------

SIZE = 8192
DENSE = SIZE * SIZE * 4


def peak(case: HashedLinearCase) -> int:
    """Bytes that the forward and the backward add at their peak."""
    inputs, dy = leaves(case, torch.float32)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(case, inputs, dy)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.parametrize("granule", GRANULES)
def test_memory(backend: str, granule: str, rows: int) -> None:
    """Below a quarter of the matrix that is never built."""
    extra = peak(HashedLinearCase.square(SIZE, rows, granule, 64))
    assert extra < DENSE // 4, f"{extra / 2**20:.1f} MiB, the matrix has {DENSE / 2**20:.0f}"


def test_memory_check_sees_a_dense_matrix(gpu) -> None:
    """Negative control: the reference builds V."""
    with rd.use("reference"):
        assert peak(HashedLinearCase.square(SIZE, 1, "chunk", 64)) > DENSE


@pytest.mark.parametrize("granule", GRANULES)
def test_more_than_two_to_the_31_virtual_weights(backend: str, granule: str) -> None:
    """Sampled rows of V, the last ones among them, against the map at their coordinates."""
    out, in_, slots = 50_021, 43_003, {"element": 1_000_003, "chunk": 60_013, "tile": 1_009}[granule]
    case = HashedLinearCase(f"huge-{granule}", 1, out, in_, slots, granule, seed=5)
    tensors = case.tensors(torch.float32)
    rows = torch.tensor([0, 1, 31_337, out - 33, out - 1])
    index, sign = hashing.index_and_sign_at(rows[:, None], torch.arange(in_), slots, granule, case.seed)
    dy = torch.zeros(1, out)
    dy[0, rows] = noise((len(rows),), torch.float32, seed=1)
    got = step(case, {name: t.cuda().requires_grad_() for name, t in tensors.items()}, dy.cuda())

    def sampled(dtype: torch.dtype) -> Tensors:
        x, bank, g = tensors["x"].to(dtype), tensors["bank"].to(dtype), dy[:, rows].to(dtype)
        v = bank[index] * sign
        d_bank = torch.zeros_like(bank).index_add_(0, index.flatten(), ((g.T @ x) * sign).flatten())
        return {"y": x @ v.T, "d x": g @ v, "d bank": d_bank}

    got["y"] = got["y"].cpu()[:, rows]
    exact, peer = sampled(torch.float64), sampled(torch.float32)
    for name, t in got.items():
        assert_accurate(t.cpu(), exact[name], peer[name], f"{backend} {case.name}: {name}")
