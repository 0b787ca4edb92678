"""A result as tables on the terminal and as JSON."""

from __future__ import annotations

import importlib
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

FAKE = "NOT MEASURED, made-up times of a dry run"


def optional(module: str) -> ModuleType:
    """An optional dependency; ends the program with the command that installs it where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise SystemExit(
            f"{module.partition('.')[0]} is not installed; the bench needs it: pip install 'rdkernels[bench]'"
        ) from None


def machine_line(result: dict) -> str:
    """The GPU with its driver or the processor with its instruction set, versions, commit and date in one line."""
    m = result["machine"]
    made = f"commit {m['commit']}, " if m.get("commit") else ""
    fake = f"{FAKE}: " if result.get("fake") else ""
    if "gpu" in m:
        where = f"{m['gpu']}, driver {m['driver']}, CUDA {m['cuda']}"
    else:
        where = f"{m['cpu']}, {m['cores']} cores, {m['cpu_capability']}"
    return f"{fake}{where}, torch {m['torch']}, {made}{m['date'][:10]}"


def limit_lines(result: dict) -> list[str]:
    """The measured limits, one line per thread count, or per dtype on a GPU."""
    if "gpu" in result["machine"]:
        return [
            f"{kind}: {limit['flops'] / 1e12:.1f} TFLOP/s (torch matmul), {limit['bytes'] / 1e9:.0f} GB/s (reading "
            f"memory), {1e6 * limit['floor']:.1f} us between two events with nothing between"
            for kind, limit in result["limits"].items()
        ]
    return [
        f"{n} thread{'s' if n != '1' else ''}: {limit['flops'] / 1e9:.0f} GFLOP/s (torch matmul, fp32), "
        f"{limit['bytes'] / 1e9:.1f} GB/s (reading memory)"
        for n, limit in result["limits"].items()
    ]


Columns = dict[str, Callable[[dict], str]]
TEXT_COLUMNS = ("layer", "torch", "panel", "figure", "whose", "backend")  # columns of words: to the left


_RATIO: Columns = {
    "ratio": lambda r: f"{r['ratio']:.2f}",
    "quartiles": lambda r: f"{r['low']:.2f}-{r['high']:.2f}",
}
CPU_COLUMNS: Columns = {
    "layer": lambda r: r["line"],
    "batch": lambda r: str(r["at"]),
    "threads": lambda r: str(r["threads"]),
    "ours ms": lambda r: f"{1e3 * r['ours']:.3g}",
    "torch ms": lambda r: f"{1e3 * r['rival']:.3g}",
    "torch": lambda r: r.get("variant", ""),
    **_RATIO,
    "captured": lambda r: "" if r.get("captured") is None else f"{r['captured']:.2f}",
    "goal": lambda r: "" if r["goal"] is None else f"{r['goal']:g}",  # of what stands before it
    "GFLOP/s": lambda r: f"{r['gflops']:.1f}",
    "of limit": lambda r: f"{100 * r['share']:.0f} %",
    "backend": lambda r: r["backend"],
}
GPU_COLUMNS: Columns = {
    "layer": lambda r: r["line"],
    "batch": lambda r: str(r["at"]),
    "ours us": lambda r: f"{1e6 * r['ours']:.1f}",
    "torch us": lambda r: f"{1e6 * r['rival']:.1f}",
    "torch": lambda r: r.get("variant", ""),
    **_RATIO,
    "captured": CPU_COLUMNS["captured"],
    "host us": lambda r: f"{1e6 * r['ours_host']:.0f} / {1e6 * r['rival_host']:.0f}",
    "starved": lambda r: f"{r['starved']} of {2 * r['pairs']}" if r["starved"] else "",
    "TFLOP/s": lambda r: f"{r['gflops'] / 1e3:.1f}",
    "of limit": lambda r: f"{100 * r['share']:.0f} %",
    "backend": lambda r: r["backend"],
}
SUMMARY_COLUMNS: Columns = {
    "panel": lambda s: s["panel"],
    "threads": lambda s: str(s.get("threads", "")),
    "figure": lambda s: s["figure"],
    "mean": lambda s: f"{s['mean']:.2f}",
    "mean goal": lambda s: "" if s["mean_goal"] is None else f"{s['mean_goal']:g}",
    "worst": lambda s: f"{s['worst']:.2f}",
    "worst goal": lambda s: "" if s["worst_goal"] is None else f"{s['worst_goal']:g}",
    "whose": lambda s: s["worst_name"],
    "below goal": lambda s: f"{s['missed']} of {s['judged']}" if s["judged"] else "",
}


def columns(result: dict, rows: Sequence[dict]) -> Columns:
    """Name and text of every column of a table of these rows of a result; without those that are empty in all."""
    every = GPU_COLUMNS if "gpu" in result["machine"] else CPU_COLUMNS
    return {name: text for name, text in every.items() if any(text(row) for row in rows)}


def _coloured(text: str, value: float, goal: float | None) -> str:
    colour = "default" if goal is None else "green" if value >= goal else "red"
    return f"[{colour}]{text}[/{colour}]"


def tables(result: dict) -> Any:
    """A rich table per panel: times, figure beside goal, rate and share of the limit."""
    table = optional("rich.table").Table
    made = []
    for panel in dict.fromkeys(row["panel"] for row in result["results"]):
        rows = [row for row in result["results"] if row["panel"] == panel]
        shown = columns(result, rows)
        made.append(table(title=panel, title_justify="left"))
        for name in shown:
            made[-1].add_column(name, justify="left" if name in TEXT_COLUMNS else "right")
        for row in rows:
            cells = {name: text(row) for name, text in shown.items()}
            judged = "ratio" if row["captured"] is None else "captured"
            cells[judged] = _coloured(cells[judged], row[judged], row["goal"])
            made[-1].add_row(*cells.values())
    return optional("rich.console").Group(machine_line(result), *made, *limit_lines(result))


def summary_table(result: dict) -> Any:
    """A rich table of the summaries: geometric mean and worst figure of every panel, beside what is asked of them."""
    made = optional("rich.table").Table(title="geometric means over a panel", title_justify="left")
    for name in SUMMARY_COLUMNS:
        made.add_column(name, justify="left" if name in TEXT_COLUMNS else "right")
    for summary in result["summaries"]:
        cells = {name: text(summary) for name, text in SUMMARY_COLUMNS.items()}
        for name in ("mean", "worst"):
            cells[name] = _coloured(cells[name], summary[name], summary[f"{name}_goal"])
        made.add_row(*cells.values())
    return made


def write_json(result: dict, path: str | os.PathLike) -> None:
    """Write aside, then rename: a reader never sees half a file."""
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    aside.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(aside, target)
