"""What a predicted layer's state dict says of its dictionary: the recipe, as int64 values."""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from ..fits import Dictionary
from ..fits.dictionary import GIVEN, KINDS, STORED

#: What the state dict's int64 entry `recipe` holds, in this order; ridge and sigma as the bits of a float64. The
#: settings after `width` are 0 where the atoms are stored.
RECIPE_FIELDS = (
    "recipe_version",
    "dictionary",
    "columns",
    "atoms",
    "channels",
    "height",
    "width",
    "seed",
    "whiten",
    "ridge",
    "sigma",
)
_VERSION = 1
_NAMES = (*KINDS, GIVEN)


def encode(d: Dictionary) -> Tensor:
    """The int64 values of `RECIPE_FIELDS`, on the CPU."""
    height, width = (*d.positions, 0)[:2]
    settings = (0,) * 4 if d.kind in STORED else (d.seed, d.whiten, _bits(d.ridge), _bits(d.sigma))
    fields = (_VERSION, _NAMES.index(d.kind), d.columns, d.atoms, d.channels, height, width, *settings)
    return torch.tensor(fields, dtype=torch.int64, device="cpu")


def disagreements(own: Tensor, loaded: Tensor) -> list[str]:
    """One line for each field of `RECIPE_FIELDS` in which a loaded recipe differs from the layer's own."""
    if loaded.is_meta:
        return []
    if loaded.dtype != torch.int64 or loaded.shape != own.shape:
        return [f"recipe: must be int64 {list(own.shape)}, the state dict has {loaded.dtype} {list(loaded.shape)}"]

    def shown(field: str, value: int) -> object:
        if field == "dictionary":
            return _NAMES[value] if 0 <= value < len(_NAMES) else value
        return struct.unpack("<d", struct.pack("<q", value))[0] if field in ("ridge", "sigma") else value

    return [
        f"{field}: the layer has {shown(field, mine)}, the state dict {shown(field, theirs)}"
        for field, mine, theirs in zip(RECIPE_FIELDS, own.tolist(), loaded.tolist(), strict=True)
        if mine != theirs
    ]


def _bits(value: float) -> int:
    (bits,) = struct.unpack("<q", struct.pack("<d", value))
    return bits
