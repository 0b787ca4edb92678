"""Indices of `bits` bits as the kernels read them: sixteen outputs beside one another in every load.

Outputs are cut into strips of sixteen, the last filled with index 0. An index is split into fields of 4, 2 and 1 bits
(8 bits: one of 8), the low bits first; a strip holds field after field. A field of f bits is bytes `[groups][16]`, byte
l of a group for output l, holding that field of `8 / f` consecutive inputs, the first lowest.
"""

from __future__ import annotations

import torch
from torch import Tensor

STRIP = 16
_FIELDS = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}


def packed_shape(out_features: int, in_features: int, bits: int) -> tuple[int, int]:
    """Of the packed indices: strips, and bytes of a strip."""
    return -(-out_features // STRIP), sum(STRIP * -(-in_features * f // 8) for f in _FIELDS[bits])


def pack(indices: Tensor, bits: int) -> Tensor:
    """uint8 indices `[out, in]` below `2**bits` -> uint8 `packed_shape(out, in, bits)`."""
    out, in_ = indices.shape
    strips = torch.nn.functional.pad(indices, (0, 0, 0, -out % STRIP)).reshape(-1, STRIP, in_).transpose(1, 2)
    parts, shift = [], 0
    for field in _FIELDS[bits]:
        each = 8 // field
        own = torch.nn.functional.pad((strips >> shift) & (2**field - 1), (0, 0, 0, -in_ % each))
        own = own.reshape(len(strips), -1, each, STRIP)
        group = own[:, :, 0]
        for n in range(1, each):
            group = group | own[:, :, n] << (n * field)
        parts.append(group.flatten(1))
        shift += field
    return torch.cat(parts, 1)


def unpack(packed: Tensor, bits: int, in_features: int) -> Tensor:
    """The uint8 indices `[16 * strips, in]`, those of the last strip's filling among them."""
    strips, start, shift = packed.shape[0], 0, 0
    found = packed.new_zeros(strips, in_features, STRIP)
    for field in _FIELDS[bits]:
        each = 8 // field
        groups = -(-in_features // each)
        own = packed[:, start : start + groups * STRIP].reshape(strips, groups, 1, STRIP)
        shifts = torch.arange(0, 8, field, dtype=torch.uint8, device=packed.device)[:, None]
        values = ((own >> shifts) & (2**field - 1)).reshape(strips, -1, STRIP)
        found = found | values[:, :in_features] << shift
        start, shift = start + groups * STRIP, shift + field
    return found.transpose(1, 2).reshape(-1, in_features)
