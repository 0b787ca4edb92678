"""The bounds of the low-rank chains as Markdown tables."""

from __future__ import annotations

import json
import math
from typing import Any

from . import bounds
from .report import LABEL, OUT

JSON, PAGE = OUT / "static_chains.json", OUT / "static_chains.md"


def ratios(row: dict, rival: str) -> tuple[float, float]:
    """The rival's cycles / ours, both at the high and both at the low end of the bracket of rates."""
    return row[rival][0] / row["ours"][0], row[rival][1] / row["ours"][1]


def thousands(bound: list) -> str:
    low, high = (f"{n / 1e3:.0f}" if n >= 1e4 else f"{n / 1e3:.1f}" for n in bound[:2])
    return low if low == high else f"{low}-{high}"


def span(pair: tuple[float, float]) -> str:
    low, high = (f"{n:.2f}" for n in sorted(pair))
    return low if low == high else f"{low}-{high}"


def table(rows: list[dict]) -> str:
    lines = [
        "| operation | layer | N | ours | bound by | unfused, loops | dense, loops | unfused, ideal | dense, ideal "
        "| dense / ours, loops | captured | unfused / ours, loops |",
        "| --- | --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in rows:
        dense = ratios(r, "dense")
        cells = [r["op"], r["layer"], str(r["n"]), thousands(r["ours"]), r["ours"][2]]
        cells += [thousands(r[name]) for name in ("unfused", "dense", "unfused_ideal", "dense_ideal")]
        cells += [span(dense), span((dense[0] / r["reduction"], dense[1] / r["reduction"]))]
        lines.append("| " + " | ".join([*cells, span(ratios(r, "unfused"))]) + " |")
    return "\n".join(lines)


def mean(rows: list[dict], rival: str) -> str:
    """Geometric means of the ratios at both ends."""
    low, high = zip(*(ratios(r, rival) for r in rows), strict=True)
    return span((math.exp(sum(map(math.log, low)) / len(rows)), math.exp(sum(map(math.log, high)) / len(rows))))


def summary(result: dict) -> str:
    lines = ["| operation | " + " | ".join(f"{g.name}: dense / ours | unfused / ours" for g in bounds.GPUS) + " |"]
    lines.append("| --- |" + " ---: | ---: |" * len(bounds.GPUS))
    for op in dict.fromkeys(r["op"] for r in result["chains"]):
        cells = [op]
        for gpu in bounds.GPUS:
            rows = [r for r in result["chains"] if r["op"] == op and r["gpu"] == gpu.name]
            cells += [mean(rows, "dense"), mean(rows, "unfused")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page(result: dict) -> str:
    parts = [
        f"Every figure here is a **{LABEL}** (nvcc {result['nvcc']}); cycles are no times.",
        f"### CUDA chains, geometric means over the layers ({LABEL})",
        summary(result),
    ]
    for gpu in bounds.GPUS:
        rows = [r for r in result["chains"] if r["gpu"] == gpu.name]
        parts += [f"### CUDA chains on {gpu.name}, 10^3 cycles ({LABEL})", table(rows)]
    return "\n\n".join(parts) + "\n"


def write(result: dict[str, Any]) -> None:
    """One line of JSON per layer, and the page."""
    rows = ",\n  ".join(json.dumps(row) for row in result["chains"])
    JSON.write_text(f'{{\n "nvcc": {json.dumps(result["nvcc"])},\n "chains": [\n  {rows}\n ]\n}}\n')
    render()


def render() -> None:
    PAGE.write_text(page(json.loads(JSON.read_text())))
