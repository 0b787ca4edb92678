"""The virtual weight map: golden vectors, PyPI's xxhash, invariances, errors."""

import hashlib
import json
import pathlib
import struct

import pytest
import torch
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from rdkernels import hashing

GOLDEN = json.loads((pathlib.Path(__file__).parent / "golden.json").read_text())["cases"]
UINT32 = st.integers(0, 2**32 - 1)
GRANULES = ["element", "chunk", "tile", (16, 16), (128, 16), (1, 4096)]


def matches(case: dict, index: torch.Tensor, sign: torch.Tensor) -> bool:
    """Whether an index (int64) and a sign (int8) matrix are those of a golden case."""
    digests = [hashlib.sha256(t.contiguous().numpy().tobytes()).hexdigest() for t in (index, sign)]
    return digests == [case["index_sha256"], case["sign_sha256"]]


@pytest.mark.parametrize("case", GOLDEN, ids=lambda c: f"{c['granule']}-{c['out']}x{c['in']}-{c['slots']}-{c['seed']}")
def test_golden(case: dict) -> None:
    granule = tuple(case["granule"])
    index, sign = hashing.index_and_sign(case["out"], case["in"], case["slots"], granule, case["seed"])
    assert index.dtype == torch.int64 and sign.dtype == torch.int8
    assert index.flatten()[:8].tolist() == case["first_index"]
    assert sign.flatten()[:8].tolist() == case["first_sign"]
    assert matches(case, index, sign)
    sign[-1, -1] *= -1  # negative control: one sign
    assert not matches(case, index, sign)


@given(UINT32, UINT32, UINT32)
def test_hash_is_xxhash(p: int, q: int, seed: int) -> None:
    mine = hashing.xxh32_pair(torch.tensor(p), torch.tensor(q), seed)
    assert int(mine) == xxhash.xxh32(struct.pack("<II", p, q), seed).intdigest()


@given(st.sampled_from(GRANULES), st.integers(1, 2**31 - 1), UINT32, UINT32, UINT32)
def test_map_is_the_specification(granule, slots: int, seed: int, o: int, i: int) -> None:
    """Against the specification in Python integers with PyPI's hash, at any coordinates."""
    go, gi = hashing.resolve_granule(granule)
    h = xxhash.xxh32(struct.pack("<II", o // go, i // gi), seed).intdigest()
    at, bit = (h * slots) >> 32, h & 1
    if granule != "element":
        aux = ((h ^ (h >> 15)) * 2246822519) % 2**32
        r, c = o % go, i % gi
        bit = (aux >> (c % 16 // 2 + 16 * (c % 2))) & 1
        at = at * go * gi + (r ^ ((aux >> 24) & (go - 1))) * gi + (c ^ (((aux >> 8) & (gi // 16 - 1)) * 16))
    index, sign = hashing.index_and_sign_at(torch.tensor(o), torch.tensor(i), slots, granule, seed)
    assert (int(index), int(sign)) == (at, (-1) ** bit)


@given(st.sampled_from(GRANULES), st.integers(1, 50), st.integers(1, 50), st.integers(1, 30), UINT32)
def test_a_part_of_the_map_is_the_map_of_the_part(granule, out: int, in_: int, slots: int, seed: int) -> None:
    """It depends on global coordinates alone; every index is in the bank."""
    go, gi = hashing.resolve_granule(granule)
    index, sign = hashing.index_and_sign(out, in_, slots, granule, seed)
    more, signs = hashing.index_and_sign(out + 3, in_ + 5, slots, granule, seed)
    assert torch.equal(index, more[:out, :in_]) and torch.equal(sign, signs[:out, :in_])
    assert int(index.min()) >= 0 and int(index.max()) < slots * go * gi
    assert set(sign.unique().tolist()) <= {-1, 1}


@pytest.mark.parametrize("granule", GRANULES)
def test_virtual_weight(granule) -> None:
    go, gi = hashing.resolve_granule(granule)
    bank = torch.randn(3 * go * gi, requires_grad=True, dtype=torch.float64)
    index, sign = hashing.index_and_sign(40, 50, 3, granule, 7)
    v = hashing.virtual_weight(bank, 40, 50, granule, 7)
    assert torch.equal(v, bank[index] * sign)
    v.sum().backward()
    assert torch.equal(bank.grad, torch.zeros_like(bank).index_add_(0, index.flatten(), sign.flatten().double()))


@pytest.mark.parametrize("granule", ["element", "chunk", "tile"])
def test_slots_and_signs_are_even(granule: str) -> None:
    """Loads within chance of Poisson, signs within chance of fair, neighbours uncorrelated."""
    index, sign = hashing.index_and_sign(1024, 1024, 64, granule, 11)
    go, gi = hashing.resolve_granule(granule)
    slot = index // (go * gi)
    load = torch.bincount(slot.flatten(), minlength=64) / (go * gi)
    expected = 2**20 / (64 * go * gi)
    assert (load - expected).abs().max() < 5 * expected**0.5
    s = sign.double()
    assert s.mean().abs() < 5 * 2**-8
    assert (s[:, 1:] * s[:, :-1]).mean().abs() < 5 * 2**-8
    assert (s[go:] * s[:-go]).mean().abs() < 5 * 2**-8  # a tile's rows share their sixteen lane signs


def test_granule_names() -> None:
    assert [hashing.granule_name(g) for g in ((1, 1), "chunk", [32, 32], (2, 16))] == [
        "element",
        "chunk",
        "tile",
        "(2, 16)",
    ]


@pytest.mark.parametrize(
    "granule", ["row", (0, 16), (3, 16), (256, 16), (1, 8), (1, 24), (1, 8192), (2, 1), 16, None, (True, 1)]
)
def test_wrong_granules(granule) -> None:
    with pytest.raises(ValueError, match="granule must be one of .*got "):
        hashing.resolve_granule(granule)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, True, None, "1"])
def test_wrong_seeds(seed) -> None:
    with pytest.raises(ValueError, match=r"seed must be an int in 0\.\.4294967295 \(uint32\), got "):
        hashing.index_and_sign(2, 2, 1, "element", seed)


@pytest.mark.parametrize("compression", [0, -1, float("nan"), float("inf"), "8", True, None])
def test_wrong_compression(compression) -> None:
    with pytest.raises(ValueError, match="compression must be a finite number > 0, got "):
        hashing.slot_count(64, 64, compression, "chunk")


def test_other_errors() -> None:
    with pytest.raises(ValueError, match=r"slots must be in 1\.\.2147483647, got 0"):
        hashing.index_and_sign(2, 2, 0, "element", 0)
    with pytest.raises(ValueError, match="more than 2147483647"):
        hashing.slot_count(2**20, 2**20, 1, "element")
    for bank in (torch.ones(15), torch.ones(0), torch.ones(4, 16)):
        with pytest.raises(ValueError, match="bank must be 1-D with a whole number of slots of 16"):
            hashing.virtual_weight(bank, 4, 4, "chunk", 0)
