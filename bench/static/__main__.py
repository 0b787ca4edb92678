"""Bounds of every kernel on every GPU, from compiled code alone: a table, a plot and JSON.

python -m bench.static              compile, print the table
python -m bench.static --write      also docs/measured/static.json, .md and .png, and static_chains.json and .md
python -m bench.static --chains     only static_chains.*: the low-rank chains next to dense and unfused
python -m bench.static --render     .md and .png again from the committed .json: needs no compiler
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from typing import Any

from . import bounds, chains, chains_report, cubin, cuda, report

MAIN = "Block<bf16, tensor, 128, 128>"
WAYS = {"fwd": "Forward", "bwd_x": "InputGrad"}
GRANULES = ("tile", "chunk", "element")


def cuda_names() -> dict[tuple[str, str], tuple[str, int]]:
    """(problem, line) -> kernel and the rows that share a weight."""
    names = {}
    for way, cls in WAYS.items():
        names[f"{way}, 1024 rows", "dense"] = f"dense_rows<{MAIN}, {cls}>", 128
        for granule in GRANULES:
            names[f"{way}, 1024 rows", granule] = f"many_rows<{MAIN}, {cls}, {granule}>", 128
            few = "few_rows" if way == "fwd" else "few_rows_grad"
            names[f"{way}, few rows", granule] = f"{few}<bf16, {granule}, false>", 16
    names["bwd_bank, 1024 rows", "dense"] = "bank_panel<PanelBlock<bf16, tensor, 128, 128>>", 0
    names["bwd_bank, 1024 rows", "tile"] = "bank_owner<bf16, tensor>", 0
    return names


def triton_names() -> dict[tuple[str, str], tuple[str, int]]:
    names = {}
    for way in WAYS:
        names[f"{way}, 1024 rows", "dense"] = f"{way}-dense-bf16-1024", 128
        for granule in GRANULES:
            names[f"{way}, 1024 rows", granule] = f"{way}-{granule}-bf16-1024", 128
            names[f"{way}, few rows", granule] = f"{way}-{granule}-bf16-1", 1
    names["bwd_bank, 1024 rows", "dense"] = "bwd_bank-chunk-bf16-1024", 0
    names["bwd_bank, 1024 rows", "tile"] = "bwd_bank-tile-bf16-1024", 0
    return names


def entry(gpu: bounds.Gpu, kernel: cubin.Kernel, shared: int, rows: int, unnamed: int = 0) -> dict[str, Any]:
    """What the report shows of a kernel on a GPU."""
    warps = kernel.threads // 32
    found = bounds.bound(gpu, kernel, warps, shared, unnamed=unnamed)
    full = bounds.bound(gpu, kernel, warps, shared, unnamed=unnamed, full_rate=True)
    kept = {key: found[key] for key in ("low", "high", "by", "blocks", "limit", "latency", "cycles")}
    kept |= {
        "registers": kernel.registers,
        "loop": len(kernel.body),
        "full_low": full["low"],
        "full_high": full["high"],
    }
    if rows:  # weights that a pass of the loop multiplies; instructions of all lanes for each
        weights = found["flops"] / (2 * rows)
        kept |= {"rows": rows, "instructions": round(len(kernel.body) * kernel.threads / weights, 2)}
    return kept


def measure() -> dict[str, Any]:
    """`{"versions": ..., "bounds": [{"code", "problem", "line", "gpu", ...}]}`."""
    from . import room

    compiled, found = cuda.kernels(), []
    for gpu in bounds.GPUS:
        for (problem, line), (name, rows) in cuda_names().items():
            kernel, shared = compiled[name][gpu.arch]
            found.append({"code": "CUDA", "problem": problem, "line": line, "gpu": gpu.name, "kernel": name})
            found[-1] |= entry(gpu, kernel, shared, rows)
        for (problem, line), (name, rows) in triton_names().items():
            kernel, types, constants, c = room.launch(name, gpu.arch)
            built = room.build(kernel, types, constants, gpu.arch, c.warps, c.stages)
            side = {"fwd": c.bm * c.bn, "bwd_x": c.bm * c.bk, "bwd_bank": c.bn * c.bk}[name.split("-")[0]]
            found.append({"code": "Triton", "problem": problem, "line": line, "gpu": gpu.name, "kernel": name})
            # a tcgen05 instruction works on the whole block, 16 deep
            found[-1] |= entry(gpu, room.code(built), built.metadata.shared, rows, unnamed=2 * side * 16)
    versions = {"nvcc": cuda.nvcc(), "triton": importlib.metadata.version("triton")}
    return {"versions": versions, "bounds": found}


def main() -> None:
    if "--chains" in sys.argv:
        chains_report.write(chains.measure())
        return
    if "--render" not in sys.argv:
        result = measure()
        if "--write" in sys.argv:
            report.JSON.write_text(json.dumps(result, indent=1) + "\n")
            chains_report.write(chains.measure())
    else:
        result = json.loads(report.JSON.read_text())
    if {"--write", "--render"} & set(sys.argv):
        report.render(result)
        chains_report.render()
    print(report.page(result))


if __name__ == "__main__":
    main()
