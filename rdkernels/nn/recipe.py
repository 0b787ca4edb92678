"""What a predicted layer's state dict says of its dictionary: the recipe, as int64 values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..fits import Dictionary
from ..fits.dictionary import GIVEN, KINDS, STORED
from .entry import float_of, int_of

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
    settings = (0,) * 4 if d.kind in STORED else (d.seed, d.whiten, int_of(d.ridge), int_of(d.sigma))
    fields = (_VERSION, _NAMES.index(d.kind), d.columns, d.atoms, d.channels, height, width, *settings)
    return torch.tensor(fields, dtype=torch.int64, device="cpu")


def shown(values: Sequence[int]) -> dict[str, object]:
    """The values by the name of their field, as a reader wants to see them."""
    fields: dict[str, object] = dict(zip(RECIPE_FIELDS, values, strict=True))
    kind, ridge, sigma = values[1], values[-2], values[-1]
    name = _NAMES[kind] if 0 <= kind < len(_NAMES) else kind
    return {**fields, "dictionary": name, "ridge": float_of(ridge), "sigma": float_of(sigma)}
