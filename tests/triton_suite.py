"""Checks that run the Triton kernels. `test_triton.py` starts them in a process of the right mode; by hand:

TRITON_INTERPRET=1 python -m pytest tests/triton_suite.py      the interpreter
python -m ttsem.sanitize pytest tests/triton_suite.py          real Triton IR; also finds out-of-bounds and races
python -m pytest tests/triton_suite.py                         a machine with a GPU
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import pathlib
import sys

import pytest
import torch
import triton
import triton.language as tl

import rdkernels as rd
from rdkernels import hashing, registry
from rdkernels.ops.hashed_linear import reference
from rdkernels.ops.hashed_linear import triton as room
from rdkernels.ops.hashed_linear import triton_kernels as kernels
from rdkernels.ops.hashed_linear.cases import CORRECTNESS, HashedLinearCase
from rdkernels.ops.hashed_linear.triton_kernels import decode, hash_pair, hash_row, place
from rdkernels.testing import assert_accurate

TTSEM = "ttsem.sanitize" in sys.modules or "ttsem" in sys.modules
DEVICE = "cuda" if TTSEM or torch.cuda.is_available() else "cpu"
PASSES = ("fwd", "bwd_x", "bwd_bank")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CASES = {case.name: case for case in CORRECTNESS}
EDGES = [  # granules that stick out of V: much of their bank is no value of V
    HashedLinearCase("edge-chunk", 3, 5, 21, 12, "chunk", seed=4),
    HashedLinearCase("edge-tile", 3, 20, 20, 1, "tile"),
    HashedLinearCase("edge-tile4x64", 5, 30, 150, 3, (4, 64), bias="tensor"),
]
CASES |= {case.name: case for case in EDGES}
SMOKE = ("element-few", "chunk-few", "tile-few", "tile2x16-few")
GOLDEN = json.loads(pathlib.Path(__file__).with_name("golden.json").read_text())["cases"]


def arguments(case, dtype: torch.dtype, integers: bool = False) -> dict[str, tuple]:
    """The arguments of each pass; `integers` makes every sum exact in float32, whatever its order."""
    t = case.tensors(dtype)
    dy = torch.randn(case.rows, case.out, generator=torch.Generator().manual_seed(1)).to(dtype)
    if integers:
        t = {name: (v.double() * 3).round().clamp(-4, 4).to(dtype) for name, v in t.items()}
        dy = dy.round().clamp(-3, 3)
        t["bank"] = torch.arange(t["bank"].numel()).remainder(13).sub(6).to(dtype)
    go, gi = hashing.resolve_granule(case.granule)
    map_ = (go, gi, case.seed, 2.0 if integers else case.scale)
    hashed = case.bias == "hashed"
    return {
        "fwd": (t["x"], t["bank"], t.get("bias"), case.out, *map_, hashed),
        "bwd_x": (dy, t["bank"], case.in_, *map_),
        "bwd_bank": (dy, t["x"], case.slots, *map_, hashed),
    }


def to(args: tuple, **kinds) -> tuple:
    return tuple(a.to(**kinds) if isinstance(a, torch.Tensor) else a for a in args)


def run(name: str, args: tuple) -> torch.Tensor:
    """The operator itself, on Triton, with the proof that it was Triton."""
    with rd.use("triton"), registry.trace() as ran:
        got = getattr(torch.ops.rdkernels, f"hashed_linear_{name}")(*to(args, device=DEVICE))
    assert ran == [(f"hashed_linear_{name}", "triton")]
    return got.cpu()


def check(name: str, args: tuple, what: str) -> None:
    plain = getattr(reference, name)
    assert_accurate(run(name, args), plain(*to(args, dtype=torch.float64)), plain(*args), what)


@pytest.mark.parametrize("kind", ["fp32", "bf16"] if TTSEM or DEVICE == "cpu" else DTYPES)
@pytest.mark.parametrize("name", SMOKE if DEVICE == "cpu" else CASES)  # the contract suite interprets the others
def test_accuracy(name, kind):
    for what, args in arguments(CASES[name], DTYPES[kind]).items():
        check(what, args, f"{name} {kind} {what}")


@pytest.mark.parametrize("name", SMOKE)
def test_fp16(name):
    for what, args in arguments(CASES[name], torch.float16).items():
        check(what, args, f"{name} {what}")


# -- the map -----------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["slots", "seed"])
def read(bank, v, N, K, slots, seed, GO: tl.constexpr, GI: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    o = tl.program_id(0) * BN + tl.arange(0, BN)  # [BN]
    i0 = tl.program_id(1) * BK
    i = i0 + tl.arange(0, BK)[None, :]  # [1, BK]
    block = decode(bank, o, i0, slots, seed, GO, GI, BN, BK).to(tl.float32)  # [BN, BK]
    tl.store(v + o[:, None].to(tl.int64) * K + i, block, mask=(o < N)[:, None] & (i < K))


def read_map(out: int, in_: int, slots: int, go: int, gi: int, seed: int, dtype: torch.dtype) -> tuple:
    """Index and sign as the kernels' own `decode` reads them, from banks that hold their own indices."""
    index = torch.arange(slots * go * gi, dtype=torch.int64)
    digits = ([index + 1], 0) if dtype == torch.float32 else ([index % 1024 + 1, index // 1024 + 1], 10)
    total, sign = 0, None
    for place_of, digit in enumerate(digits[0]):
        v = torch.empty(out, in_, device=DEVICE)
        bank = digit.to(dtype).to(DEVICE)
        read[(triton.cdiv(out, 64), triton.cdiv(in_, 256))](
            bank, v, out, in_, slots, room._int32(seed), GO=go, GI=gi, BN=64, BK=256
        )
        v = v.cpu()
        sign = v.sign().to(torch.int8)
        total = total + ((v.abs().long() - 1) << (place_of * digits[1]))
    return total, sign


@pytest.mark.parametrize("kind", ["fp32", "fp16"])
@pytest.mark.parametrize("golden", GOLDEN, ids=lambda g: f"{g['granule']}-{g['out']}x{g['in']}")
def test_golden_vectors(golden, kind):
    out, in_, slots, seed = (golden[key] for key in ("out", "in", "slots", "seed"))
    index, sign = read_map(out, in_, slots, *golden["granule"], seed, DTYPES[kind])
    assert index.flatten()[:8].tolist() == golden["first_index"]
    assert hashlib.sha256(index.numpy().astype("<i8").tobytes()).hexdigest() == golden["index_sha256"]
    assert hashlib.sha256(sign.numpy().tobytes()).hexdigest() == golden["sign_sha256"]


@triton.jit(do_not_specialize=["slots", "seed"])
def locate(o, vector, at, slots, seed, n, GO: tl.constexpr, GI: tl.constexpr, BLOCK: tl.constexpr):
    j = tl.arange(0, BLOCK)  # [BLOCK]
    row = tl.load(o + j, mask=j < n, other=0).to(tl.uint32)
    v = tl.load(vector + j, mask=j < n, other=0).to(tl.uint32)
    offset, _ = place(hash_pair(hash_row(row // GO, seed), v // (GI // 16)), row, v, slots, GO, GI)
    tl.store(at + j, offset, mask=j < n)


@pytest.mark.parametrize("granule", [(1, 16), (32, 32), (4, 64)])
def test_offsets_past_32_bits(granule):
    """Rows and columns up to 2^31 and a bank of more than 2^31 values: the largest slot counts, far coordinates."""
    go, gi = granule
    draw = torch.Generator().manual_seed(3)
    o = torch.randint(0, 2**31 - 1, (256,), generator=draw)
    vector = torch.randint(0, (2**31 - 1) // 16, (256,), generator=draw)
    slots, seed = 2**31 - 1, 2**32 - 5
    at = torch.empty(256, dtype=torch.int64, device=DEVICE)
    locate[(1,)](o.int().to(DEVICE), vector.int().to(DEVICE), at, slots, room._int32(seed), 256, go, gi, BLOCK=256)
    index, _ = hashing.index_and_sign_at(o, vector * 16, slots, granule, seed)
    assert torch.equal(at.cpu(), index) and int(index.max()) > 2**31


# -- independence of blocks, determinism -------------------------------------------------------------------------------

Config = room.Config
BLOCKS = {
    "fwd": [Config(1, 16, 32, 2, 4, 2), Config(16, 64, 16, 1, 4, 2), Config(64, 32, 64, 3, 4, 2)],
    "bwd_x": [Config(1, 32, 16, 2, 4, 2), Config(16, 16, 64, 1, 4, 2), Config(64, 64, 32, 3, 4, 2)],
    "bwd_bank": [Config(16, 16, 16, 1, 4, 2), Config(64, 16, 16, 64, 4, 2)],
}
MIXED = ("element-few", "chunk-few", "tile-few", "tile2x16-few", "edge-tile4x64")


@pytest.mark.parametrize("what", PASSES)
@pytest.mark.parametrize("name", MIXED)
def test_blocks_do_not_matter(name, what, monkeypatch):
    args = arguments(CASES[name], torch.float32, integers=True)[what]
    exact = getattr(reference, what)(*to(args, dtype=torch.float64))
    assert exact.abs().max() < 2**24
    choices = BLOCKS[what]
    if what == "bwd_bank" and not room.owned(args[3], args[4]):
        choices = [Config(64, 32, 16, 1, 4, 2)]
    for blocks in (None, *choices):
        if blocks is not None:
            monkeypatch.setattr(room, "config", lambda *_, chosen=blocks: chosen)
            monkeypatch.setattr(room, "panel", lambda N, columns, go, gi: (max(1, 64 // go), 4 if gi > 1 else 50))
        assert torch.equal(run(what, args).double(), exact), blocks


@pytest.mark.parametrize("what", PASSES)
@pytest.mark.parametrize("name", ["element-few", "chunk-few", "tile-few"])
def test_same_bits_twice(name, what):
    args = arguments(CASES[name], torch.float32)[what]
    assert torch.equal(run(what, args), run(what, args))


# -- NaN, infinity, layouts, edges -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["edge-chunk", "edge-tile"])
def test_unused_entries_of_the_bank_do_not_leak(name, kind):
    case = CASES[name]
    every = arguments(case, DTYPES[kind])
    index, _ = hashing.index_and_sign(case.out, case.in_, case.slots, case.granule, case.seed)
    unused = torch.ones(every["fwd"][1].numel(), dtype=torch.bool)
    unused[index.unique()] = False
    assert unused.any()
    for what in ("fwd", "bwd_x"):
        bank = every[what][1].clone()
        bank[unused] = float("nan")
        check(what, (every[what][0], bank, *every[what][2:]), f"{name} {what}")


@pytest.mark.parametrize("what", PASSES)
@pytest.mark.parametrize("name", SMOKE)
def test_nan_and_infinity_stay_where_torch_has_them(name, what):
    first, *rest = arguments(CASES[name], torch.float32)[what]
    first = first.clone()
    first[0, 0], first[1, -1], first[2, 1] = float("nan"), float("inf"), float("-inf")
    check(what, (first, *rest), f"{name} {what}")
    if what == "bwd_bank":
        x = rest[0].clone()
        x[0, -1], x[1, 0] = float("nan"), float("inf")
        check(what, (first.nan_to_num(0, 1, -1), x, *rest[1:]), f"{name} {what}")


@pytest.mark.parametrize("what", PASSES)
@pytest.mark.parametrize("name", ["element-few", "chunk-few", "tile-few"])
def test_strides(name, what):
    args = arguments(CASES[name], torch.bfloat16)[what]
    expected = run(what, args)
    layouts = {
        "transposed": lambda t: t.mT.contiguous().mT if t.dim() > 1 else t,
        "every second": lambda t: t.repeat_interleave(2, -1)[..., ::2],
        "unaligned": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
        "wide rows": lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]],
    }
    for layout, change in layouts.items():
        other = tuple(change(a) if isinstance(a, torch.Tensor) else a for a in args)
        assert torch.equal(run(what, other), expected), layout


def test_no_rows_and_no_inputs():
    x, bank, dy = torch.empty(0, 33), torch.randn(7 * 16), torch.empty(0, 40)
    assert run("fwd", (x, bank, None, 40, 1, 16, 0, 1.0, False)).shape == (0, 40)
    assert run("bwd_x", (dy, bank, 33, 1, 16, 0, 1.0)).shape == (0, 33)
    assert run("bwd_bank", (dy, x, 7, 1, 16, 0, 1.0, False)).tolist() == [0.0] * 112
    y = run("fwd", (torch.empty(2, 0), bank, torch.ones(5), 5, 1, 16, 0, 1.0, False))
    assert y.tolist() == [[1.0] * 5] * 2


# -- negative controls: a broken kernel must fail ----------------------------------------------------------------------

BROKEN = {
    "sign bit of the wrong lane": ("(31 - lane // 2 - 16", "(31 - lane // 2 - 15", "chunk-few"),
    "sign of an element from bit 1": ("h << 31", "h << 30", "element-few"),
    "modulo for mul-high": ("tl.umulhi(h, slots.to(tl.uint32))", "(h % slots.to(tl.uint32))", "tile-few"),
    "one 13 for a 15 in the hash": ("h = (h ^ (h >> 13)) * P3", "h = (h ^ (h >> 15)) * P3", "chunk-few"),
    "the row's xor left out": ("    r ^= (aux >> 24) & (GO - 1)\n", "", "tile-few"),
    "a last block dropped": ("if even < end:", "if even < start:", "chunk-few"),
}
BROKEN_MEMORY = {  # values may pass: only ttsem sees these
    "store without its mask": (
        "tl.store(y + at, acc.to(y.dtype.element_ty), mask=mask)", "tl.store(y + at, acc.to(y.dtype.element_ty))",
        "element-few", "fwd", "past the end",
    ),
    "two owners add to one slot, no atomics": (
        "slot = tl.program_id(0) * BS + tl.arange(0, BS)", "slot = tl.program_id(0) * (BS // 2) + tl.arange(0, BS)",
        "element-few", "bwd_bank", "touch element|both touch",
    ),
}  # fmt: skip


def break_kernels(monkeypatch, tmp_path: pathlib.Path, old: str, new: str) -> None:
    source = pathlib.Path(kernels.__file__).read_text()
    assert old in source
    path = tmp_path / f"broken_{hashlib.sha256((old + new).encode()).hexdigest()[:8]}.py"
    path.write_text(source.replace(old, new))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(room, "_kernels", lambda: module)


@pytest.mark.parametrize("broken", BROKEN)
def test_broken_values_are_caught(broken, monkeypatch, tmp_path):
    old, new, name = BROKEN[broken]
    break_kernels(monkeypatch, tmp_path, old, new)
    with pytest.raises(AssertionError, match="elements off"):
        check("fwd", arguments(CASES[name], torch.float32)["fwd"], broken)


@pytest.mark.parametrize("what", ["fwd", "bwd_x"])
def test_an_unmasked_edge_is_caught(what, monkeypatch, tmp_path):
    edge = {"fwd": "tl.where((i < K)[None, :], v, 0.0)", "bwd_x": "tl.where((o < N)[:, None], v, 0.0)"}[what]
    break_kernels(monkeypatch, tmp_path, edge, "v")
    with pytest.raises(AssertionError, match="got nan"):
        test_unused_entries_of_the_bank_do_not_leak("edge-tile", "fp32")


@pytest.mark.skipif(not TTSEM, reason="out-of-bounds and races: only ttsem sees them")
@pytest.mark.parametrize("broken", BROKEN_MEMORY)
def test_broken_memory_is_caught(broken, monkeypatch, tmp_path):
    old, new, name, what, message = BROKEN_MEMORY[broken]
    break_kernels(monkeypatch, tmp_path, old, new)
    with pytest.raises(Exception, match=message):
        run(what, arguments(CASES[name], torch.float32)[what])


@pytest.mark.skipif(DEVICE == "cpu", reason="the interpreter has no compiled variants")
@pytest.mark.parametrize("name", ["fwd", "bwd_x", "bank_keys", "bank_owner", "bank_panel", "bank_gather"])
def test_no_layer_compiles_its_own_kernel(name):
    """Seed, slots, rows and scale neither are constants nor select a variant by their value or their width."""
    free = {p.name for p in getattr(kernels, name).params if p.do_not_specialize and not p.is_constexpr}
    takes = {p.name for p in getattr(kernels, name).params}
    assert takes & {"seed", "slots", "M", "scale"} <= free
    assert all(-(2**31) <= room._int32(seed) < 2**31 for seed in (0, 2**31 - 1, 2**31, 2**32 - 1))


def test_the_mode_is_the_one_asked_for():
    asked = os.environ.get("RDK_TRITON_MODE")
    assert asked in (None, "ttsem" if TTSEM else "interpreter" if DEVICE == "cpu" else "gpu")
