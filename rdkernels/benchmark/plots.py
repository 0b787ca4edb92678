"""A result as a plot: panels of captured fractions and panels of ratios."""

from __future__ import annotations

import os
import pathlib
from typing import Any

from .report import FAKE, machine_line, optional

MARKS = {"o": "circle", "s": "square", "D": "diamond", "^": "triangle"}  # of the batches


def plot(result: dict, path: str | os.PathLike) -> None:
    """One panel per operation that has captured fractions; of the others, every panel that has several batches.

    A made-up result says so across the plot.
    """
    matplotlib = optional("matplotlib")
    matplotlib.use("Agg")
    plt = optional("matplotlib.pyplot")
    results = result["results"]
    captured = list(dict.fromkeys(r["op"] for r in results if r.get("captured") is not None))
    ratios = [r for r in results if r.get("op") not in captured]
    counts = {p: len({r["at"] for r in ratios if r["panel"] == p}) for p in dict.fromkeys(r["panel"] for r in ratios)}
    panels = [panel for panel, count in counts.items() if count > 1]
    if not panels and not captured:
        raise SystemExit("nothing to plot: no panel has more than one number of rows")
    lines = list(dict.fromkeys(r["line"] for r in ratios if r["panel"] in panels))
    across = min(len(panels) + len(captured), 2)
    down = -(-(len(panels) + len(captured)) // across)
    figure, axes = plt.subplots(
        down, across, figsize=(max(8, 5.5 * across), 3.6 * down), squeeze=False, layout="constrained"
    )
    for axis, op in zip(axes.flat, captured, strict=False):
        _captured(axis, op, [r for r in results if r["op"] == op and r["work"] == "forward"])
    for axis, panel in zip(axes.flat[len(captured) :], panels, strict=False):
        _ratios(axis, panel, [r for r in ratios if r["panel"] == panel], lines)
    for axis in axes.flat[len(panels) + len(captured) :]:
        axis.remove()
    figure.suptitle(f"{machine_line(result)}\n{_legend(results, bool(captured), bool(panels))}", fontsize=9)
    if result.get("fake"):
        figure.text(0.5, 0.5, FAKE, fontsize=26, color="red", alpha=0.5, ha="center", va="center", rotation=25)
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)


def _legend(results: list[dict], captured: bool, ratios: bool) -> str:
    *others, most = sorted({r.get("threads", 0) for r in results})  # a row of a GPU has none: its panel names its dtype
    parts = []
    if captured:
        parts.append(
            "captured: (dense time / ours) / (dense multiply-adds / ours)\nlines: 1, the mean asked for (--), each (..)"
        )
    if ratios:
        lines = f"{most} threads" if most else "time on the GPU, cold L2 cache"
        lines += f", dashed {', '.join(map(str, others))}" if others else ""
        parts.append(f"above 1 is faster than torch; {lines}")
    return "\n".join(parts)


def _ratios(axis: Any, panel: str, rows: list[dict], lines: list[str]) -> None:
    """Ratio over batch: a line per layer, quartiles as bars, torch at 1; dashed below the most threads."""
    threads = sorted({r.get("threads", 0) for r in rows})
    for line in dict.fromkeys(r["line"] for r in rows):
        for count in threads:
            own = [r for r in rows if (r["line"], r.get("threads", 0)) == (line, count)]
            spread = [[r["ratio"] - r["low"] for r in own], [r["high"] - r["ratio"] for r in own]]
            axis.errorbar(
                [r["at"] for r in own],
                [r["ratio"] for r in own],
                spread,
                color=f"C{lines.index(line)}",
                marker="o",
                markersize=4,
                linestyle="-" if count == threads[-1] else "--",
                label=line if count == threads[-1] else None,
            )
    axis.axhline(1, color="black", linewidth=1)
    axis.set(title=panel, xlabel="rows of x", ylabel="torch time / ours", xscale="log", yscale="log")
    ticks = sorted({r["at"] for r in rows})
    axis.set_xticks(ticks, [str(t) for t in ticks], minor=False)
    axis.tick_params(axis="x", rotation=45 if len(ticks) > 6 else 0)
    axis.minorticks_off()
    levels = [v for v in (0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32) if axis.get_ylim()[0] <= v <= axis.get_ylim()[1]]
    axis.set_yticks(levels, [f"{v:g}" for v in levels])
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def unfused_captured(rows: list[dict]) -> dict[tuple, float]:
    """What the unfused chain captures, per case and thread count: from ours against dense and ours against it."""

    def key(row: dict) -> tuple:
        return row["case"], row.get("threads", 0), row.get("dtype")

    against = {key(r): r["ratio"] for r in rows if r["against"] == "unfused"}
    dense = [r for r in rows if r["captured"] is not None]
    return {key(r): r["captured"] / against[key(r)] for r in dense if key(r) in against}


def _captured(axis: Any, op: str, rows: list[dict]) -> None:
    """Per layer and batch a dot for ours and a ring for the unfused chain, a colour per thread count."""
    dense = [r for r in rows if r["captured"] is not None]
    theirs = unfused_captured(rows)
    layers = list(dict.fromkeys(r["line"] for r in dense))
    batches = sorted({r["at"] for r in dense})
    settings = list(dict.fromkeys((r.get("threads", 0), r.get("dtype")) for r in dense))
    width = 0.8 / (len(batches) * len(settings))
    shown: set[str] = set()
    for r in dense:
        setting = r.get("threads", 0), r.get("dtype")
        number = settings.index(setting)
        x = layers.index(r["line"]) + width * (batches.index(r["at"]) * len(settings) + number + 0.5) - 0.4
        name = setting[1] or f"{setting[0]} thread{'s' if setting[0] > 1 else ''}"
        other = theirs.get((r["case"], *setting))
        for value, fill, label in (
            (r["captured"], f"C{number}", f"ours, {name}"),
            (other, "none", f"unfused torch, {name}"),
        ):
            if value is None:
                continue
            marks = {
                "marker": list(MARKS)[batches.index(r["at"]) % len(MARKS)],
                "facecolors": fill,
                "edgecolors": f"C{number}",
            }
            axis.scatter([x], [value], s=24, zorder=3, label=None if label in shown else label, **marks)
            shown.add(label)
        if other is not None:
            axis.plot([x, x], [other, r["captured"]], color=f"C{number}", linewidth=0.8, alpha=0.5)
    for goal, style in ((dense[0]["mean_goal"], "--"), (dense[0]["goal"], ":")):
        if goal is not None:
            axis.axhline(goal, color="grey", linewidth=1, linestyle=style)
    axis.axhline(1, color="black", linewidth=1)
    slanted = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if len(layers) > 2 else {}
    axis.set_xticks(range(len(layers)), layers, fontsize=7, **slanted)
    for edge in range(1, len(layers)):
        axis.axvline(edge - 0.5, color="grey", linewidth=0.5, alpha=0.4)
    signs = ", ".join(f"{mark} {at}" for mark, at in zip(MARKS.values(), batches, strict=False))
    axis.set(title=f"{op}, batch: {signs}", ylabel="captured fraction", ylim=(0, None))
    axis.title.set_fontsize(9)
    axis.grid(alpha=0.3, axis="y")
    axis.legend(fontsize=6, ncols=2)
