"""Indices of `bits` bits as the kernels read them: sixteen outputs beside one another in every load.

A block is 16 outputs by 8 inputs, `16 * bits` bytes; a row of blocks, the inputs of 16 outputs, is a strip, filled up
with index 0. In a block the indices are split into fields of 4, 2 and 1 bits (8 bits: one of 8), the low bits first. A
field of f bits is f groups of 16 bytes: byte l of a group holds that field of `8 / f` consecutive inputs of output l,
the first input lowest.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

OUTPUTS, INPUTS = 16, 8  # of a block


def _fields(bits: int) -> list[int]:
    return [field for field in (8, 4, 2, 1) if bits & field]


def packed_shape(out_features: int, in_features: int, bits: int) -> tuple[int, int]:
    """Of the packed indices: strips, and bytes of a strip."""
    return -(-out_features // OUTPUTS), -(-in_features // INPUTS) * OUTPUTS * bits


def pack(indices: Tensor, bits: int) -> Tensor:
    """uint8 indices `[out, in]` below `2**bits` -> uint8 `packed_shape(out, in, bits)`."""
    out, in_ = indices.shape
    filled = pad(indices, (0, -in_ % INPUTS, 0, -out % OUTPUTS))
    blocks = filled.reshape(-1, OUTPUTS, filled.shape[1] // INPUTS, INPUTS).permute(0, 2, 3, 1)  # [strip, block, 8, 16]
    parts, shift = [], 0
    for field in _fields(bits):
        own = ((blocks >> shift) & (2**field - 1)).unflatten(2, (field, 8 // field))
        group = own[:, :, :, 0]
        for n in range(1, 8 // field):
            group = group | own[:, :, :, n] << (n * field)
        parts.append(group)
        shift += field
    return torch.cat(parts, 2).flatten(1)


def unpack(packed: Tensor, bits: int, in_features: int) -> Tensor:
    """The uint8 indices `[16 * strips, in]`, those of the last strip's filling among them."""
    groups = packed.reshape(packed.shape[0], -1, bits, OUTPUTS)
    found, start, shift = packed.new_zeros(()), 0, 0
    for field in _fields(bits):
        shifts = torch.arange(0, 8, field, dtype=torch.uint8, device=packed.device)[:, None]
        own = ((groups[:, :, start : start + field, None] >> shifts) & (2**field - 1)).flatten(2, 3) << shift
        found = found | own
        start, shift = start + field, shift + field
    return found.permute(0, 3, 1, 2).reshape(-1, groups.shape[1] * INPUTS)[:, :in_features]
