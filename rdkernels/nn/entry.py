"""The entry of a state dict that says what a layer's other tensors mean."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn


class Described(nn.Module):
    """A layer whose state dict holds, under `_entry`, the int64 values that the attribute of that name gives.

    Loading one that differs raises RuntimeError that names both values, and leaves the layer as it was. It is no
    buffer: none may cast, broadcast or leave it uninitialised.
    """

    _entry: ClassVar[str]
    _fields: ClassVar[tuple[str, ...]]

    @classmethod
    def _shown(cls, values: Sequence[int]) -> dict[str, object]:
        """The values by the name of their field, as a reader wants to see them."""
        return dict(zip(cls._fields, values, strict=True))

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + self._entry] = getattr(self, self._entry)

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing_keys, unexpected_keys, error_msgs):
        key = prefix + self._entry
        faults = self._disagreements(state_dict[key]) if key in state_dict else []
        if faults:  # what it says of the other tensors is not so here: none is loaded
            error_msgs.extend(prefix + text for text in faults)
            return
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing_keys, unexpected_keys, error_msgs)
        if key in unexpected_keys:
            unexpected_keys.remove(key)
        if key not in state_dict:
            missing_keys.append(key)

    def _disagreements(self, loaded: Tensor) -> list[str]:
        """One line for each field in which a loaded entry differs from the layer's own."""
        own: Tensor = getattr(self, self._entry)
        if loaded.is_meta:
            return []
        if loaded.dtype != torch.int64 or loaded.shape != own.shape:
            came = f"{loaded.dtype} {list(loaded.shape)}"
            return [f"{self._entry}: must be int64 {list(own.shape)}, the state dict has {came}"]
        mine, theirs = self._shown(own.tolist()), self._shown(loaded.tolist())
        return [f"{n}: the layer has {mine[n]}, the state dict {theirs[n]}" for n in mine if mine[n] != theirs[n]]


def int_of(value: float) -> int:
    """The bits of a float64, which a checkpoint cast to 16 bits does not touch in an int64."""
    (bits,) = struct.unpack("<q", struct.pack("<d", value))
    return bits


def float_of(bits: int) -> float:
    (value,) = struct.unpack("<d", struct.pack("<q", bits))
    return value
