"""Faults put into copies of the CUDA sources, each with the rung of the ladder that must see it.

A rung is a host build of the kernels (`values`, `asan`, `trace`) or the trace's budget of sectors and bank conflicts
(`budget`). What a mutant does not name it may or may not show there.
"""

from __future__ import annotations

import pathlib
from dataclasses import dataclass

ROOT = pathlib.Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Mutant:
    """In `file`, the one place that reads `old` becomes `new`."""

    name: str
    file: str
    old: str
    new: str
    caught_by: tuple[str, ...]
    program: str = "cuda"  # the program that it is put into


MANY, FEW, BANK = (f"csrc/hashed_linear/{name}.cuh" for name in ("many_rows", "few_rows", "bank_grad"))
BLOCK, WEIGHTS = "csrc/common/block_product.cuh", "csrc/hashed_linear/weights.cuh"
MEMBERS = "csrc/hashed_linear/members.cuh"
CHAIN, DEPTHWISE = "csrc/common/chain.cuh", "csrc/cp_conv2d/depthwise.cuh"

MUTANTS = (
    Mutant(
        "wait one group short",
        MANY,
        "    cp_async_wait<kStages - 2>();\n",
        "    cp_async_wait<kStages - 1>();\n",
        ("values",),
    ),
    Mutant(
        "no barrier after the wait",
        MANY,
        "    cp_async_wait<kStages - 2>();\n    __syncthreads();\n",
        "    cp_async_wait<kStages - 2>();\n",
        ("values", "trace"),
    ),
    Mutant("decoded over the block being read", MANY, "    buffer ^= 1;\n", "", ("trace",)),
    Mutant(
        "no barrier before the next turn of a warp",
        FEW,
        "      });\n    }\n    __syncthreads();\n",
        "      });\n    }\n",
        ("trace",),
    ),
    Mutant(
        "no mask on load",
        BLOCK,
        "if constexpr (!kWhole) bytes = min(max((from.cols - col0 - c * kValues) * int(sizeof(T)), 0), 16);",
        "",
        ("asan",),
    ),
    Mutant(
        "no mask on store", MANY, "    if (r >= rows || c >= cols) return;\n", "    if (c >= cols) return;\n", ("asan",)
    ),
    Mutant(
        "what sticks out of V not cleared",
        MANY,
        "    if (last + kK > depth) {",
        "    if (last + kK > 2 * depth) {",
        ("values",),
    ),
    Mutant(
        "accumulated between blocks without atomics",
        BANK,
        "(int64_t(piece) << (map.go_shift + map.gi_shift)) * map.slots",
        "0 * int64_t(piece)",
        ("trace",),
    ),
    Mutant("another swizzle for reads than for writes", BLOCK, "(at_b ^ k) + 16", "(at_b + k) + 16", ("values",)),
    Mutant(
        "no swizzle",
        BLOCK,
        "    return kChunks >= 8 ? row & 7 : row / (8 / kChunks) & (kChunks - 1);\n",
        "    return 0 * row;\n",
        ("budget",),
    ),
    Mutant(
        "members' list off by one",
        MEMBERS,
        "for (int slot = before + 1; slot <= key; ++slot) first[slot] = n;",
        "for (int slot = before + 1; slot <= key; ++slot) first[slot] = n + (n > 0 && n < granules);",
        ("values",),
    ),
    Mutant(
        "signs of the wrong lanes", WEIGHTS, "(aux << (15 - n)) & 0x80008000u", "(aux << n) & 0x80008000u", ("values",)
    ),
    Mutant(
        "a stage overwritten while it is read",
        CHAIN,
        "  cp_async_wait<0>();\n  __syncthreads();\n}\n",
        "  cp_async_wait<0>();\n}\n",
        ("trace",),
        "lowrank_cuda",
    ),
    Mutant(
        "no barrier between the depthwise lines",
        DEPTHWISE,
        "      down();\n      __syncthreads();\n",
        "      down();\n",
        ("trace",),
        "lowrank_cuda",
    ),
    Mutant(
        "no zeros outside the map",
        CHAIN,
        "const bool inside = r < rows && unsigned(x) < unsigned(args.x.in);",
        "const bool inside = r < rows;",
        ("values", "asan"),
        "lowrank_cuda",
    ),
    Mutant("taps without dilation", CHAIN, "tap * args.y.dilation * args.y.step", "tap", ("values",), "lowrank_cuda"),
    Mutant(
        "one segment of the ranks for all",
        CHAIN,
        "if (col0 == first || args.segment < args.ranks) room.fill",
        "if (rank0 == 0) room.fill",
        ("values",),
        "lowrank_cuda",
    ),
    Mutant(
        "stored past the map",
        CHAIN,
        "if (r >= pixels || row >= args.y.out || pixel >= args.x.out || left <= 0) continue;",
        "if (r >= pixels || left <= 0) continue;",
        ("asan",),
        "lowrank_cuda",
    ),
)


def builds(mutant: Mutant) -> tuple[str, ...]:
    """The host builds that its rungs need: the budget reads the trace."""
    return tuple(dict.fromkeys("trace" if rung == "budget" else rung for rung in mutant.caught_by))


def write(mutant: Mutant, folder: pathlib.Path) -> None:
    """The mutated header under `folder`, as an include path that goes before csrc; written only where it changed."""
    text = (ROOT / mutant.file).read_text()
    assert text.count(mutant.old) == 1, f"{mutant.name}: {text.count(mutant.old)} places in {mutant.file}"
    to = folder / pathlib.Path(mutant.file).relative_to("csrc")
    to.parent.mkdir(parents=True, exist_ok=True)
    made = text.replace(mutant.old, mutant.new)
    if not to.exists() or to.read_text() != made:
        to.write_text(made)
