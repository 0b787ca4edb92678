"""The virtual weight map, version 1: which bank entry, with which sign, stands at (o, i) of the virtual matrix.

For outputs `o`, inputs `i`, granule `(go, gi)`, `p = o div go`, `q = i div gi`, `r = o mod go`, `c = i mod gi`, all on
unsigned 32-bit words::

    h    = XXH32(le32(p) || le32(q), seed)
    slot = (h * slots) >> 32                                             # mul-high: any slot count, no division
    element:    V[o, i] = (-1)^(h & 1) * bank[slot]
    otherwise:  aux  = (h ^ (h >> 15)) * 2246822519
                sign = (aux >> (lane div 2 + 16 * (lane mod 2))) & 1,  lane = c mod 16
                r'   = r ^ ((aux >> 24) & (go - 1))
                c'   = c ^ (((aux >> 8) & (gi / 16 - 1)) * 16)
                V[o, i] = (-1)^sign * bank[slot * go * gi + r' * gi + c']

The map depends on nothing else: not on a kernel's blocks, the batch, the device, the dtype or the thread count.
Source: Chen et al. 2015 (HashedNets), equations 3 and 8, for `element`; chunks and tiles are this project's.
"""

from __future__ import annotations

import numbers

import torch
from torch import Tensor

MAP_VERSION = 1
PRIME2, PRIME3, PRIME4, PRIME5 = 2246822519, 3266489917, 668265263, 374761393
GRANULES = {"element": (1, 1), "chunk": (1, 16), "tile": (32, 32)}
MAX_GO, MAX_GI = 128, 4096
MAX_SLOTS = 2**31 - 1
_MASK = 0xFFFFFFFF

Granule = str | tuple[int, int]


def resolve_granule(granule: Granule) -> tuple[int, int]:
    """`(go, gi)` of a granule given by name or as a pair.

    Raises:
        ValueError: not a name of `GRANULES` and not a pair of powers of two with `go <= 128` and `gi` a multiple of 16
            up to 4096 (or the pair (1, 1)).
    """
    if isinstance(granule, str):
        if granule in GRANULES:
            return GRANULES[granule]
    elif isinstance(granule, (tuple, list)) and [type(g) for g in granule] == [int, int]:
        go, gi = granule
        if (go, gi) == (1, 1) or (_power_of_two(go, MAX_GO) and _power_of_two(gi, MAX_GI) and gi % 16 == 0):
            return go, gi
    raise ValueError(
        f"granule must be one of {list(GRANULES)} or a pair (go, gi) of powers of two with go <= {MAX_GO} "
        f"and gi in 16..{MAX_GI}, got {granule!r}"
    )


def _power_of_two(n: int, most: int) -> bool:
    return 0 < n <= most and n & (n - 1) == 0


def granule_name(granule: Granule) -> str:
    """The short name of a granule where it has one, else `"(go, gi)"`."""
    pair = resolve_granule(granule)
    return next((name for name, value in GRANULES.items() if value == pair), str(pair))


def check_seed(seed: int) -> int:
    """`seed` itself; raises ValueError where it is not an int in 0 .. 2**32 - 1."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= _MASK:
        raise ValueError(f"seed must be an int in 0..{_MASK} (uint32), got {seed!r}")
    return seed


def slot_count(out_features: int, in_features: int, compression: float, granule: Granule) -> int:
    """`max(1, round(out * in / (compression * go * gi)))`: the slots of a bank at `compression`.

    Raises:
        ValueError: compression is not a finite number > 0, or the bank would have more than 2**31 - 1 slots.
    """
    go, gi = resolve_granule(granule)
    number = isinstance(compression, numbers.Real) and not isinstance(compression, bool)
    if not number or not 0 < compression < float("inf"):
        raise ValueError(f"compression must be a finite number > 0, got {compression!r}")
    slots = max(1, round(out_features * in_features / (compression * go * gi)))
    if slots > MAX_SLOTS:
        raise ValueError(f"compression {compression} gives {slots} slots, more than {MAX_SLOTS}")
    return slots


def xxh32_pair(p: Tensor, q: Tensor, seed: int) -> Tensor:
    """XXH32 of the 8 bytes `le32(p) || le32(q)`, elementwise with broadcasting; int64 in, int64 in 0 .. 2**32-1 out."""

    def rotate(h: Tensor) -> Tensor:
        return ((h << 17) | (h >> 15)) & _MASK

    h = (seed + PRIME5 + 8 + p * PRIME3) & _MASK
    h = (rotate(h) * PRIME4) & _MASK
    h = (h + q * PRIME3) & _MASK
    h = (rotate(h) * PRIME4) & _MASK
    h = ((h ^ (h >> 15)) * PRIME2) & _MASK
    h = ((h ^ (h >> 13)) * PRIME3) & _MASK
    return h ^ (h >> 16)


def index_and_sign_at(o: Tensor, i: Tensor, slots: int, granule: Granule, seed: int) -> tuple[Tensor, Tensor]:
    """Bank index (int64) and sign (int8, +1 or -1) at the coordinates `o`, `i` (int64, broadcast together)."""
    go, gi = resolve_granule(granule)
    if not 0 < slots <= MAX_SLOTS:
        raise ValueError(f"slots must be in 1..{MAX_SLOTS}, got {slots}")
    h = xxh32_pair(o // go, i // gi, check_seed(seed))
    slot = (h * slots) >> 32
    if (go, gi) == (1, 1):
        return slot, (1 - 2 * (h & 1)).to(torch.int8)
    aux = ((h ^ (h >> 15)) * PRIME2) & _MASK
    c = i % gi
    lane = c % 16
    sign = (aux >> (lane // 2 + 16 * (lane % 2))) & 1
    row = (o % go) ^ ((aux >> 24) & (go - 1))
    column = c ^ (((aux >> 8) & (gi // 16 - 1)) * 16)
    return slot * (go * gi) + row * gi + column, (1 - 2 * sign).to(torch.int8)


def index_and_sign(
    out: int, in_: int, slots: int, granule: Granule, seed: int, *, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor]:
    """The whole map: bank index (int64) and sign (int8, +1 or -1), both `[out, in_]`.

    Args:
        out, in_: shape of the virtual matrix.
        slots: slots of the bank, which holds `slots * go * gi` values.
        granule: "element", "chunk", "tile" or a pair `(go, gi)`.
        seed: uint32.
        device: where to build the two matrices.

    Raises:
        ValueError: granule, slots or seed out of range.
    """
    o = torch.arange(out, dtype=torch.int64, device=device)[:, None]
    i = torch.arange(in_, dtype=torch.int64, device=device)[None, :]
    return index_and_sign_at(o, i, slots, granule, seed)


def virtual_weight(bank: Tensor, out: int, in_: int, granule: Granule, seed: int) -> Tensor:
    """The virtual matrix `V` `[out, in_]` in the bank's dtype, differentiable with respect to the bank.

    It allocates `out * in_` values and indices: for inspection and tests, never on a layer's path.
    """
    go, gi = resolve_granule(granule)
    if bank.dim() != 1 or bank.numel() == 0 or bank.numel() % (go * gi):
        raise ValueError(f"bank must be 1-D with a whole number of slots of {go * gi}, got shape {list(bank.shape)}")
    index, sign = index_and_sign(out, in_, bank.numel() // (go * gi), (go, gi), seed, device=bank.device)
    return bank[index] * sign.to(bank.dtype)
