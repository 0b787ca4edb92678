"""The Triton kernels of the low-rank operations: their blocks, what they refuse, what leaks; broken ones must fail.

The contract suites of the operations interpret them too, at the blocks that suit the interpreter; here they also run at
those of a GPU.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import pathlib
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import rdkernels as rd
from rdkernels import registry
from rdkernels.ops import packing
from rdkernels.ops import triton_common as common
from rdkernels.ops.convolution import Geometry
from rdkernels.ops.triton_common import Problem
from rdkernels.testing import assert_accurate

OPS = ("cp_conv2d", "separable_conv2d", "tucker_conv2d")
SERVED = {op: registry.serves(op, "triton", torch.empty(1, 1)) for op in (*OPS, "lowrank_linear")}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
runs = pytest.mark.skipif(not all(SERVED.values()), reason="triton: needs a GPU or TRITON_INTERPRET=1")
TARGETS = ("sm_80", "sm_90", "gfx942", "interpreter")


def room(op: str, part: str = "triton") -> Any:
    return importlib.import_module(f"rdkernels.ops.{op}.{part}")


def named(op: str, name: str) -> Any:
    return next(c for c in room(op, "cases").CORRECTNESS if c.name == name)


def problem(case: Any, itemsize: int, target: str) -> Problem:
    shape = case.n, case.c, case.ranks, case.out, case.size, case.kernel
    return Problem(*shape, case.geometry, itemsize, target)


def run(op: str, case: Any, tensors: dict[str, Tensor]) -> Tensor:
    """The case on Triton, with the proof that it was Triton."""
    with rd.use("triton"), registry.trace() as ran:
        got = case.run({k: t.to(DEVICE) for k, t in tensors.items()})
    assert ran == [(f"{op}_fwd", "triton")]
    return got.cpu()


def check(op: str, case: Any, dtype: torch.dtype) -> None:
    tensors = case.tensors(dtype)
    with rd.use("reference"):
        exact, peer = case.run({k: t.double() for k, t in tensors.items()}), case.run(tensors)
    assert_accurate(run(op, case, tensors), exact, peer, f"{op} {case.name}")


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("op", OPS)
def test_triton_config_is_pure_and_legal(op, itemsize):
    """Powers of two, blocks that registers hold, tiles that cover their inputs; sums ordered alike on every device."""
    for case in (*room(op, "cases").CORRECTNESS, *room(op, "cases").BENCH_CASES):
        if case.n == 0:
            continue
        found = [room(op).config(problem(case, itemsize, target)) for target in TARGETS]
        assert len({(c.br, c.bc) for c in found}) == 1, case.name
        for c in found:
            t, (kh, kw), where = c.tile, case.kernel, case.geometry
            assert all(v & (v - 1) == 0 and v >= 16 for v in (c.bo, c.br, c.bc, t.ih * t.iw, t.grid_h * t.grid_w))
            assert t.th <= t.grid_h and t.tw <= t.grid_w and c.warps in (4, 8)
            assert (t.tw - 1) * where.stride_w + where.dilation_w * (kw - 1) < t.iw
            rows = (t.th - 1) * where.stride_h + where.dilation_h * (kh - 1)
            assert t.ih == t.grid_h if op == "separable_conv2d" else rows < t.ih
            assert t.ih * t.iw <= common.HALO


@runs
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ["strided-dilated", "same-even", "valid"])
@pytest.mark.parametrize("op", OPS)
def test_triton_blocks_of_a_gpu(op, name, kind, monkeypatch):
    """Many small tiles, as a GPU of 128 multiprocessors is given them, and outputs in two blocks."""
    case = named(op, name)
    config = room(op).config
    chosen = config(problem(case, kind.itemsize, "sm_90"))
    if name == "same-even":
        chosen = dataclasses.replace(config(problem(dataclasses.replace(case, out=40), kind.itemsize, "sm_90")), bo=32)
        case = dataclasses.replace(case, out=40)
    monkeypatch.setattr(room(op), "config", lambda p: chosen)
    check(op, case, kind)


@runs
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("split", [0, 1, 3])
def test_triton_linear_in_one_launch_and_in_two(split, kind, monkeypatch):
    c = room("lowrank_linear").Config(16, 32, 64, 16, split, 4, 2)
    monkeypatch.setattr(room("lowrank_linear"), "config", lambda *_: c)
    check("lowrank_linear", dataclasses.replace(named("lowrank_linear", "medium"), residual=True), kind)


def test_triton_linear_config_takes_one_launch_where_it_pays():
    config = room("lowrank_linear").config
    assert config(1 << 15, 4096, 256, 4096, 2, "sm_90").split == 0  # rows enough for every multiprocessor
    assert config(8, 256, 64, 256, 2, "sm_90").split == 0  # the launch is what costs
    assert config(1, 4096, 256, 4096, 2, "sm_90").split == 8
    assert config(512, 4096, 256, 4096, 2, "sm_90").split == 1
    assert config(1 << 15, 4096, 300, 4096, 2, "sm_90").split == 1  # inner values that no program holds


def test_triton_refuses_what_no_program_holds(monkeypatch):
    """A halo wider than any tile, a core of more than 256 outputs: the registry then asks the next backend."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    x = torch.empty(1, 16, 8, 300)
    factors = torch.empty(8, 16), torch.empty(8, 3), torch.empty(8, 3), torch.empty(4, 8)
    for dilation, served in ((20, True), (100, False)):
        numbers = Geometry(1, 1, 1, 1, 0, 0, 1, dilation)
        assert room("cp_conv2d")._serves(x, *factors, None, None, *numbers, 0, False) == served
    for r2, served in ((256, True), (257, False)):
        factors = torch.empty(8, 16), torch.empty(r2, 8, 3, 3), torch.empty(4, r2)
        numbers = Geometry(1, 1, 1, 1, 1, 1, 1, 1)
        assert room("tucker_conv2d")._serves(x, *factors, None, None, *numbers, 0, False) == served
    far = torch.empty_strided((1, 16, 8, 300), (1, 1 << 30, 300, 1), device="meta")
    assert not common.indexed(far) and common.indexed(x)


def test_triton_packs_a_factor_once_until_it_changes():
    factor = torch.randn(4, 3, 2)
    first = common.packed(factor, 2, 0, 1)
    assert common.packed(factor, 2, 0, 1) is first and torch.equal(first, factor.permute(2, 0, 1))
    factor.mul_(2)
    assert torch.equal(common.packed(factor, 2, 0, 1), factor.permute(2, 0, 1))
    assert common.packed(factor, 0, 1, 2).data_ptr() == factor.data_ptr()
    with torch.inference_mode():
        made = torch.randn(4, 3, 2)
        common.packed(made, 2, 0, 1)
        made.zero_()
        assert not common.packed(made, 2, 0, 1).any()
    count = len(packing._derived)
    del factor
    assert len(packing._derived) == count - 1


@runs
@pytest.mark.parametrize("op", OPS)
def test_triton_infinity_does_not_reach_padded_ranks(op):
    """Ranks, channels and outputs past the edges of their blocks stand for 0, also where x is infinite."""
    case = named(op, "plain")
    for dtype in (torch.float32, torch.bfloat16):
        tensors = case.tensors(dtype)
        tensors["x"][0, 1, 2, 3], tensors["x"][1, :, 4, 4] = float("inf"), float("nan")
        with rd.use("reference"):
            exact, peer = case.run({k: t.double() for k, t in tensors.items()}), case.run(tensors)
        assert_accurate(run(op, case, tensors), exact, peer, op)


BROKEN = {
    "an infinite rank past the edge": ("cp_conv2d", "tl.where((r < R)[None, :], z, 0.0)", "z", "inf"),
    "a line shifted by one": ("cp_conv2d", "sw + j * dw, IW - 1", "sw + j * dw + 1, IW - 1", "plain"),
    "the halo's columns as rows": ("separable_conv2d", "q % IW", "q // IW", "plain"),
    "a tap too few": ("tucker_conv2d", "for i in range(KH):", "for i in range(KH - 1):", "plain"),
}


@runs
@pytest.mark.parametrize("broken", BROKEN)
def test_triton_broken_kernels_are_caught(broken, monkeypatch, tmp_path):
    """Negative controls."""
    op, old, new, name = BROKEN[broken]
    source = pathlib.Path(room(op, "triton_kernels").__file__)
    text = source.read_text().replace("from ..triton_device", "from rdkernels.ops.triton_device")
    assert old in text
    path = tmp_path / f"broken_{hashlib.sha256(broken.encode()).hexdigest()[:8]}.py"
    path.write_text(text.replace(old, new))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(importlib.import_module(f"rdkernels.ops.{op}"), "triton_kernels", module, raising=False)
    monkeypatch.setitem(sys.modules, f"rdkernels.ops.{op}.triton_kernels", module)
    case = named(op, "plain")
    with pytest.raises(AssertionError, match="elements off|got nan"):
        if name == "inf":
            test_triton_infinity_does_not_reach_padded_ranks(op)
        else:
            check(op, case, torch.float32)
