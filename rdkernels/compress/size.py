"""How many bytes a model trains, stores, and would store after entropy coding."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class LayerSize:
    """The bytes of one module's own tensors, its children's left out; see `rdkernels.size`.

    Attributes:
        name: in the model, the first where it has several; "" for the model itself.
        kind: its class.
        trained, stored, entropy: as in `Size`; what an earlier layer holds too is counted there.
    """

    name: str
    kind: str
    trained: int
    stored: int
    entropy: int


@dataclass(frozen=True)
class Size:
    """Bytes of a model: of what is trained, of what is stored, of that entropy-coded. `str()` is a table.

    Attributes:
        trained, stored, entropy: the sums over `layers`; `rdkernels.size` defines them.
        layers: the modules that hold tensors of their own, in the model's order.
    """

    trained: int
    stored: int
    entropy: int
    layers: tuple[LayerSize, ...] = field(repr=False)

    def __getitem__(self, name: str) -> LayerSize:
        """The row of a layer."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(f"no layer {name!r} with tensors of its own; the layers are {[la.name for la in self.layers]}")

    def __str__(self) -> str:
        rows = [(la.name or "(model)", la.kind, la.trained, la.stored, la.entropy) for la in self.layers]
        rows.append(("total", "", self.trained, self.stored, self.entropy))
        head = ("layer", "kind", "trained", "stored", "entropy-coded")
        cells = [head, *((name, kind, *(f"{n:,}" for n in bytes_)) for name, kind, *bytes_ in rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            [c.ljust(w) if n < 2 else c.rjust(w) for n, (c, w) in enumerate(zip(r, widths, strict=True))] for r in cells
        ]
        return "\n".join("  ".join(line).rstrip() for line in lines)


@torch.no_grad()
def size(model: nn.Module) -> Size:
    """The bytes of `model`'s weights, layer by layer.

    * `trained`: the parameters that require gradients, in their own dtypes. What an optimiser has to keep is a multiple
      of it.
    * `stored`: the tensors of the state dict: parameters, persistent buffers, and what layers add to find their
      function again (the 72 bytes of a `HashedLinear`'s map). What is built anew at load is not in it. Keys and
      headers of a file are not counted, nor extra state that is not a tensor.
    * `entropy`: the same after entropy coding, each tensor on its own, in whole bytes, by the entropy of its symbols:
      what an arithmetic coder comes to but for a few bytes, and a Huffman code from above. Code tables are not counted.
      A palette's indices count `coded_bits()`. A floating tensor of n values of which z are exactly 0 (a pruned one)
      counts `n H(z / n)` bits for where they are and the values that are not 0 in full, or all its bytes if these are
      fewer. Everything else counts its bytes.

    A tensor that several layers hold (tied weights, a module used twice, a shared `WeightBank`) counts once, at the
    first. Of a weight under `torch.nn.utils.prune` both the unpruned weight and the mask are counted, as both are
    stored: call `prune.remove` first.

    Raises:
        TypeError: `model` is not an nn.Module, or a tensor is sparse.
        ValueError: a parameter is uninitialised (lazy), or a tensor is on the meta device: it has no values to count.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"size: model must be an nn.Module, got {type(model).__name__}")
    seen: set[Hashable] = set()
    alive, layers = [], []  # no entry is freed while its address may stand for it
    for name, module in model.named_modules():
        entries: dict[str, Tensor] = {}
        module._save_to_state_dict(entries, "", keep_vars=True)  # its own alone, what a layer adds to them included
        own = {key: t for key, t in entries.items() if isinstance(t, Tensor)}
        alive.append(own)
        trained = stored = entropy = 0
        for key, t in own.items():
            _check(f"{name}.{key}" if name else key, t)
            if (identity := _identity(t)) in seen:
                continue
            seen.add(identity)
            dense = t.numel() * t.element_size()
            coded = key == getattr(module, "coded", None)
            trained += dense if t.requires_grad else 0
            stored += dense
            entropy += math.ceil(module.coded_bits() / 8) if coded else min(dense, _sparse_bytes(t))  # type: ignore
        if own:
            layers.append(LayerSize(name, type(module).__name__, trained, stored, entropy))
    trained, stored, entropy = (sum(getattr(la, key) for la in layers) for key in ("trained", "stored", "entropy"))
    return Size(trained, stored, entropy, tuple(layers))


def _check(name: str, t: Tensor) -> None:
    if isinstance(t, (nn.UninitializedParameter, nn.UninitializedBuffer)):
        raise ValueError(f"size: model must be initialised, got the lazy {name!r}; run it once")
    if t.is_meta:
        raise ValueError(f"size: model must have values, got {name!r} on the meta device")
    if t.layout != torch.strided:
        raise TypeError(f"size: model's tensors must be dense, got {name!r} of layout {t.layout}")


def _identity(t: Tensor) -> Hashable:
    """The same for tensors that are the same memory, seen the same way."""
    if not t.numel():
        return id(t)
    return t.device, t.data_ptr(), t.dtype, t.shape, t.stride()


def _sparse_bytes(t: Tensor) -> int:
    """The zero mask at its entropy, and the values that are not 0."""
    dense = t.numel() * t.element_size()
    if not t.is_floating_point() or not t.numel():
        return dense
    n, kept = t.numel(), int((t != 0).sum())
    mask = -sum(k * math.log2(k / n) for k in (kept, n - kept) if k)
    return math.ceil(mask / 8) + kept * t.element_size()
