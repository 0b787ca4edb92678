"""The C++ map and the vector functions under it, per instruction set: bit for bit."""

import struct

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from test_hashing import GOLDEN, matches

from rdkernels import hashing

UINT32 = st.integers(0, 2**32 - 1)
SLOTS = st.integers(1, hashing.MAX_SLOTS)
SIZES = st.integers(1, 70)
GRANULES = st.one_of(
    st.just((1, 1)),
    st.tuples(st.sampled_from([2**n for n in range(8)]), st.sampled_from([2**n for n in range(4, 13)])),
)
LANES = ("rows", "columns")


def built_map(probe, out: int, in_: int, slots: int, granule: tuple[int, int], seed: int, lanes: str):
    return tuple(torch.from_numpy(a) for a in probe.index_and_sign(out, in_, slots, *granule, seed, lanes))


@pytest.mark.parametrize("lanes", LANES)
def test_golden(probe, lanes: str) -> None:
    for case in GOLDEN:
        index, sign = built_map(probe, case["out"], case["in"], case["slots"], case["granule"], case["seed"], lanes)
        assert matches(case, index, sign), case


@given(SIZES, st.integers(1, 700), SLOTS, GRANULES, UINT32, st.sampled_from(LANES))
def test_map_is_the_definition(probe, out, in_, slots, granule, seed, lanes) -> None:
    go, gi = granule
    slots = min(slots, (2**32 - 1) * 16 // (go * gi))  # what the native kernels accept
    index, sign = built_map(probe, out, in_, slots, granule, seed, lanes)
    want_index, want_sign = hashing.index_and_sign(out, in_, slots, granule, seed)
    assert torch.equal(index, want_index) and torch.equal(sign, want_sign)


@given(SIZES, SIZES, SLOTS, UINT32, st.sampled_from(LANES))
def test_element_map_is_xxhash(probe, out, in_, slots, seed, lanes) -> None:
    index, sign = built_map(probe, out, in_, slots, (1, 1), seed, lanes)
    h = xxhash.xxh32(struct.pack("<II", out - 1, in_ - 1), seed).intdigest()
    assert index[-1, -1] == h * slots >> 32 and sign[-1, -1] == 1 - 2 * (h & 1)


@given(SIZES, st.integers(1, 300), st.integers(1, 9), GRANULES, UINT32, st.sampled_from(["f4", "f2", "u2"]))
def test_panels_are_the_virtual_weight(probe, out, in_, slots, granule, seed, dtype) -> None:
    """Both passes decode V as it is defined, from a bank of each dtype."""
    numel = slots * granule[0] * granule[1]
    bank = probe.from_floats(np.random.default_rng(0).standard_normal(numel, np.float32), np.empty(0, dtype))
    wide = torch.from_numpy(probe.to_floats(bank, False))
    v = hashing.virtual_weight(wide, out, in_, granule, seed).numpy()
    assert np.array_equal(probe.forward_panels(bank, out, in_, slots, *granule, seed).T, v)
    assert np.array_equal(probe.grad_panels(bank, in_, out, slots, *granule, seed), v)


def test_transpose(probe) -> None:
    a = np.arange(256, dtype=np.float32).reshape(16, 16)
    assert np.array_equal(probe.transpose(a), a.T)


def test_keep_first(probe) -> None:
    a = np.full(16, np.nan, np.float32)
    for n in range(17):
        assert np.array_equal(np.isnan(probe.keep_first(a, n)), np.arange(16) < n)
        assert not probe.keep_first(a, n)[n:].any()


# -- conversions: every 16-bit number, and every kind of float32 -------------------------------------------------------

EVERY = np.arange(2**16, dtype=np.uint16)


def same_numbers(got: np.ndarray, want: np.ndarray) -> bool:
    """Equal bits, and a NaN where a NaN is due."""
    nan = np.isnan(want)
    return np.array_equal(np.isnan(got), nan) and np.array_equal(got[~nan].view(np.uint8), want[~nan].view(np.uint8))


@pytest.mark.parametrize("vectors", [False, True])
def test_every_half_and_bfloat16_widens(probe, vectors: bool) -> None:
    halves = EVERY.view(np.float16)
    assert same_numbers(probe.to_floats(halves, vectors), halves.astype(np.float32))
    assert same_numbers(probe.to_floats(EVERY, vectors), (EVERY.astype(np.uint32) << 16).view(np.float32))


def floats() -> np.ndarray:
    """Each 16-bit number, the ties between neighbours and the float32 beside each; random bits; the extremes."""
    near = []
    for numbers in (EVERY.view(np.float16).astype(np.float32), (EVERY.astype(np.uint32) << 16).view(np.float32)):
        finite = np.unique(numbers[np.isfinite(numbers)]).astype(np.float64)
        ties = ((finite[1:] + finite[:-1]) / 2).astype(np.float32)
        near += [finite.astype(np.float32), ties, np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, -ties)]
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, np.uint32).view(np.float32)
    extremes = np.array(
        [0.0, -0.0, 65504, 65519.996, 65520, 65536, 2**-25, 2**-24, np.inf, -np.inf, np.nan], np.float32
    )
    return np.concatenate([*near, bits, extremes, -extremes])


def test_rounding(probe) -> None:
    """float16 as numpy rounds, bfloat16 as torch does: to nearest, ties to even."""
    x = floats()
    with np.errstate(over="ignore"):
        assert same_numbers(probe.from_floats(x, EVERY.view(np.float16)), x.astype(np.float16))
    brain = probe.from_floats(x, EVERY)
    as_float = (brain.astype(np.uint32) << 16).view(np.float32)
    assert same_numbers(as_float, torch.from_numpy(x).bfloat16().float().numpy())
