"""A result as a table on the terminal, as JSON and as a plot."""

from __future__ import annotations

import importlib
import json
import os
import pathlib
from types import ModuleType
from typing import Any


def optional(module: str) -> ModuleType:
    """An optional dependency; ends the program with the command that installs it where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise SystemExit(
            f"{module.partition('.')[0]} is not installed; the bench needs it: pip install 'rdkernels[bench]'"
        ) from None


def machine_line(result: dict) -> str:
    """Processor, cores, instruction set, versions, commit and date in one line."""
    m = result["machine"]
    made = f"commit {m['commit']}, " if m.get("commit") else ""
    return f"{m['cpu']}, {m['cores']} cores, {m['cpu_capability']}, torch {m['torch']}, {made}{m['date'][:10]}"


def limit_lines(result: dict) -> list[str]:
    """The measured limits, one line per thread count."""
    return [
        f"{n} thread{'s' if n != '1' else ''}: {limit['flops'] / 1e9:.0f} GFLOP/s (torch matmul, fp32), "
        f"{limit['bytes'] / 1e9:.1f} GB/s (reading memory)"
        for n, limit in result["limits"].items()
    ]


def table(result: dict) -> Any:
    """A rich table: times, ratio beside goal, rate and share of the limit, one section per panel."""
    made = optional("rich.table").Table(title=machine_line(result), caption="\n".join(limit_lines(result)))
    made.add_column("layer")
    for name in ("rows", "threads", "ours ms", "torch ms", "ratio", "quartiles", "goal", "GFLOP/s", "of limit"):
        made.add_column(name, justify="right")
    made.add_column("backend")
    panel = None
    for row in result["results"]:
        if row["panel"] != panel:
            panel = row["panel"]
            made.add_section()
            made.add_row(f"[bold]{panel}[/bold]")
        goal = row["goal"]
        colour = "default" if goal is None else "green" if row["ratio"] >= goal else "red"
        made.add_row(
            row["line"],
            str(row["at"]),
            str(row["threads"]),
            f"{1e3 * row['ours']:.3g}",
            f"{1e3 * row['rival']:.3g}",
            f"[{colour}]{row['ratio']:.2f}[/{colour}]",
            f"{row['low']:.2f}-{row['high']:.2f}",
            "" if goal is None else f"{goal:g}",
            f"{row['gflops']:.1f}",
            f"{100 * row['share']:.0f} %",
            row["backend"],
        )
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

    Several thread counts: full lines for the largest, dashed for the others.
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
    most = max(r["threads"] for r in results)
    columns = min(len(panels), 2)
    down = -(-len(panels) // columns)
    figure, axes = plt.subplots(down, columns, figsize=(5.5 * columns, 3.6 * down), squeeze=False, layout="constrained")
    for axis, panel in zip(axes.flat, panels, strict=False):
        for number, line in enumerate(lines):
            for threads in sorted({r["threads"] for r in results}):
                rows = [r for r in results if (r["panel"], r["line"], r["threads"]) == (panel, line, threads)]
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
        axis.minorticks_off()
        levels = [v for v in (0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32) if axis.get_ylim()[0] <= v <= axis.get_ylim()[1]]
        axis.set_yticks(levels, [f"{v:g}" for v in levels])
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    others = ", ".join(str(t) for t in sorted({r["threads"] for r in results}) if t != most)
    legend = f"above 1 is faster than torch; {most} threads" + (f", dashed {others}" if others else "")
    figure.suptitle(f"{machine_line(result)}\n{legend}", fontsize=9)
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)
