"""The figure of the experiment on Denton et al."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from .denton_layers import FORMS, METRICS, lost, nets_of


def plot(table: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
    """Points lost against the measured speed-up, a panel a net, hollow before tuning; and the metrics' changes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    nets = nets_of(table)
    columns = min(3, len(nets) + 1)
    rows = -(-(len(nets) + 1) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.6 * columns, 4 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(nets) + 1 :]:
        axis.remove()
    for axis, net in zip(axes.flat, nets, strict=False):
        for r in (r for r in table if r["net"] == net):
            colour = f"C{list(FORMS).index(r['form'])}"
            before, after = r[r["tuned"]["metric"]]["error"] - r["error"], lost(r)
            axis.plot([r["speed-up"]] * 2, [before, after], color=colour, linewidth=0.8, alpha=0.6)
            axis.plot(r["speed-up"], before, "o", color=colour, fillstyle="none")
            axis.plot(r["speed-up"], after, "o", color=colour)
            axis.annotate(r["layer"], (r["speed-up"], after), fontsize=6, xytext=(3, 3), textcoords="offset points")
        axis.axhline(1, color="black", linewidth=0.6, linestyle=":")
        axis.axvline(2, color="black", linewidth=0.6, linestyle=":")
        axis.set_yscale("symlog", linthresh=1)
        axis.set(title=net, xlabel="torch's dense layer's time / ours")
        axis.grid(alpha=0.3)
    for row in axes:
        row[0].set_ylabel("points lost (hollow: before tuning)")
    _plot_metrics(axes.flat[len(nets)], [r for r in table if "input_cov" in r])
    used = [form for form in FORMS if any(r["form"] == form for r in table)]
    marks = [plt.Line2D([], [], marker="o", linestyle="", color=f"C{list(FORMS).index(form)}") for form in used]
    figure.legend(marks, used, loc="outside lower center", ncols=len(used), fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _plot_metrics(axis: Any, pairs: Sequence[Mapping[str, Any]]) -> None:
    nets = nets_of(pairs)
    for r in pairs:
        marker, colour = "osD^v"[nets.index(r["net"])], f"C{list(FORMS).index(r['form'])}"
        axis.plot(r["weight"]["net"], r["input_cov"]["net"], marker, color=colour, markersize=4)
    ends = [f(r[m]["net"] for r in pairs for m in METRICS) for f in (min, max)] if pairs else [0.1, 1]
    axis.plot(ends, ends, color="black", linewidth=0.6, linestyle=":")
    axis.set(xscale="log", yscale="log", xlabel="weight", ylabel="input_cov")
    shapes = zip(("circle", "square", "diamond", "up", "down"), nets, strict=False)
    axis.set_title("outputs' change before tuning\n" + ", ".join(f"{s} {n}" for s, n in shapes), fontsize=8)
    axis.grid(alpha=0.3)
