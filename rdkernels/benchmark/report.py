"""A result as a table on the terminal, as JSON and as a plot."""

from __future__ import annotations

import importlib
import json
import os
import pathlib
from collections.abc import Callable
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
_RATIO: Columns = {
    "ratio": lambda r: f"{r['ratio']:.2f}",
    "quartiles": lambda r: f"{r['low']:.2f}-{r['high']:.2f}",
}
CPU_COLUMNS: Columns = {
    "layer": lambda r: r["line"],
    "rows": lambda r: str(r["at"]),
    "threads": lambda r: str(r["threads"]),
    "ours ms": lambda r: f"{1e3 * r['ours']:.3g}",
    "torch ms": lambda r: f"{1e3 * r['rival']:.3g}",
    **_RATIO,
    "goal": lambda r: "" if r["goal"] is None else f"{r['goal']:g}",
    "GFLOP/s": lambda r: f"{r['gflops']:.1f}",
    "of limit": lambda r: f"{100 * r['share']:.0f} %",
    "backend": lambda r: r["backend"],
}
GPU_COLUMNS: Columns = {
    "layer": lambda r: r["line"],
    "rows": lambda r: str(r["at"]),
    "ours us": lambda r: f"{1e6 * r['ours']:.1f}",
    "torch us": lambda r: f"{1e6 * r['rival']:.1f}",
    **_RATIO,
    "host us": lambda r: f"{1e6 * r['ours_host']:.0f} / {1e6 * r['rival_host']:.0f}",
    "starved": lambda r: f"{r['starved']} of {2 * r['pairs']}" if r["starved"] else "",
    "TFLOP/s": lambda r: f"{r['gflops'] / 1e3:.1f}",
    "of limit": lambda r: f"{100 * r['share']:.0f} %",
    "backend": lambda r: r["backend"],
}


def columns(result: dict) -> Columns:
    """Name and text of every column of a table of this result."""
    return GPU_COLUMNS if "gpu" in result["machine"] else CPU_COLUMNS


def table(result: dict) -> Any:
    """A rich table: times, ratio beside goal, rate and share of the limit, one section per panel."""
    made = optional("rich.table").Table(title=machine_line(result), caption="\n".join(limit_lines(result)))
    shown = columns(result)
    for name in shown:
        made.add_column(name, justify="left" if name in ("layer", "backend") else "right")
    panel = None
    for row in result["results"]:
        if row["panel"] != panel:
            panel = row["panel"]
            made.add_section()
            made.add_row(f"[bold]{panel}[/bold]")
        goal = row["goal"]
        colour = "default" if goal is None else "green" if row["ratio"] >= goal else "red"
        cells = {name: text(row) for name, text in shown.items()}
        made.add_row(*{**cells, "ratio": f"[{colour}]{cells['ratio']}[/{colour}]"}.values())
    return made


def write_json(result: dict, path: str | os.PathLike) -> None:
    """Write aside, then rename: a reader never sees half a file."""
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    aside.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(aside, target)


def plot(result: dict, path: str | os.PathLike) -> None:
    """Ratio over rows: one panel per work and size, a line per layer, quartiles as bars, dense torch at 1.

    Several thread counts: full lines for the largest, dashed for the others. A made-up result says so across the plot.
    """
    matplotlib = optional("matplotlib")
    matplotlib.use("Agg")
    plt = optional("matplotlib.pyplot")
    results = result["results"]
    counts = {p: len({r["at"] for r in results if r["panel"] == p}) for p in dict.fromkeys(r["panel"] for r in results)}
    panels = [panel for panel, count in counts.items() if count > 1]
    if not panels:
        raise SystemExit("nothing to plot: no panel has more than one number of rows")
    lines = list(dict.fromkeys(r["line"] for r in results if r["panel"] in panels))
    counts_of = sorted({r.get("threads", 0) for r in results})  # a row of a GPU has none: its panel names its dtype
    most = counts_of[-1]
    columns = min(len(panels), 2)
    down = -(-len(panels) // columns)
    figure, axes = plt.subplots(down, columns, figsize=(5.5 * columns, 3.6 * down), squeeze=False, layout="constrained")
    for axis, panel in zip(axes.flat, panels, strict=False):
        for number, line in enumerate(lines):
            for threads in counts_of:
                rows = [r for r in results if (r["panel"], r["line"], r.get("threads", 0)) == (panel, line, threads)]
                ratio = [r["ratio"] for r in rows]
                spread = [[r["ratio"] - r["low"] for r in rows], [r["high"] - r["ratio"] for r in rows]]
                axis.errorbar(
                    [r["at"] for r in rows],
                    ratio,
                    spread,
                    color=f"C{number}",
                    marker="o",
                    markersize=4,
                    linestyle="-" if threads == most else "--",
                    label=line if threads == most and rows else None,
                )
        axis.axhline(1, color="black", linewidth=1)
        axis.set(title=panel, xlabel="rows of x", ylabel="torch time / ours", xscale="log", yscale="log")
        ticks = sorted({r["at"] for r in results if r["panel"] == panel})
        axis.set_xticks(ticks, [str(t) for t in ticks], minor=False)
        axis.tick_params(axis="x", rotation=45 if len(ticks) > 6 else 0)
        axis.minorticks_off()
        levels = [v for v in (0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32) if axis.get_ylim()[0] <= v <= axis.get_ylim()[1]]
        axis.set_yticks(levels, [f"{v:g}" for v in levels])
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    others = ", ".join(map(str, counts_of[:-1]))
    legend = "above 1 is faster than torch; "
    legend += f"{most} threads" if most else "time on the GPU, cold L2 cache"
    legend += f", dashed {others}" if others else ""
    figure.suptitle(f"{machine_line(result)}\n{legend}", fontsize=9)
    if result.get("fake"):
        figure.text(0.5, 0.5, FAKE, fontsize=26, color="red", alpha=0.5, ha="center", va="center", rotation=25)
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)
