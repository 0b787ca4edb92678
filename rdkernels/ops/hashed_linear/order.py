"""Which backend goes first on which GPU: the one table.

It follows the static bounds of the compiled kernels (docs/static.md): estimates, not run on a GPU. Triton's `wgmma` and
`tcgen05` code overtakes the CUDA kernels' `mma.sync` where decoding does not bind; a bank's gradient by tiles is bound
lower in Triton's larger steps of the batch on every GPU.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ...registry import ORDER, order

TRITON_FIRST = ("triton", *(name for name in ORDER if name != "triton"))

#: (pass, rows, granule) -> the least compute capability from which Triton's kernel goes before the native one; 16-bit
#: dtypes only. Rows: "few" (up to 16), "many", or "any".
FROM: dict[tuple[str, str, str], tuple[int, int]] = {
    ("fwd", "many", "chunk"): (10, 0),
    ("fwd", "many", "tile"): (10, 0),
    ("bwd_x", "many", "chunk"): (10, 0),
    ("bwd_x", "many", "tile"): (10, 0),
    ("bwd_bank", "any", "tile"): (8, 0),
}


def choose(name: str, rows: int, go: int, gi: int, itemsize: int, capability: tuple[int, int]) -> tuple[str, ...]:
    """The order in which the backends of pass `name` are asked for a problem on a GPU of `capability`."""
    granule = "element" if gi == 1 else "tile" if go >= 32 and gi >= 32 else "chunk"
    size = "any" if name == "bwd_bank" else "few" if rows <= 16 else "many"
    least = FROM.get((name, size, granule))
    return TRITON_FIRST if itemsize == 2 and least is not None and capability >= least else ORDER


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _rule(name: str, go_at: int):
    def rule(x: Tensor, *args) -> tuple[str, ...]:
        go, gi = args[go_at - 1 : go_at + 1]
        return choose(name, x.shape[0], go, gi, x.element_size(), _capability(x.device))

    return rule


for _name, _go_at in (("fwd", 4), ("bwd_x", 3), ("bwd_bank", 3)):
    order(f"hashed_linear_{_name}", _rule(_name, _go_at))
