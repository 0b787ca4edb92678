"""The figure of `hashednets.py`: its methods, granules and inflated nets."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

Point = tuple[float, float]  # mean, deviation over seeds


def draw(
    path: pathlib.Path,
    *,
    sets: Sequence[str],
    methods: Mapping[str, Sequence[Point]],
    granules: Mapping[str, Mapping[str, Point]],
    inflation: Mapping[str, Mapping[int, float]],
) -> None:
    """Write `path`.

    Args:
        methods: method -> its error on each of `sets`; granules: compression -> granule -> error.
        inflation: storage -> factor of the width -> error.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), layout="constrained")
    axes = figure.subplot_mosaic("AA;BC")
    _methods(axes["A"], sets, methods)
    for label, points in granules.items():
        errors, deviations = zip(*points.values(), strict=True)
        axes["B"].errorbar(list(points), errors, deviations, marker="o", capsize=3, label=label)
    axes["B"].set(ylabel="test error, %", title="Granule (Fashion-MNIST)")
    for label, line in inflation.items():
        axes["C"].plot(list(line), list(line.values()), marker="o", label=label)
        axes["C"].set_xscale("log", base=2)
        axes["C"].set_xticks(list(line), [f"x{factor}" for factor in line])
    axes["C"].set(xlabel="virtual width", title="Fixed storage, growing width (Fashion-MNIST)")
    for name in "BC":
        axes[name].legend()
    for panel in axes.values():
        panel.set_ylim(0, 1.1 * panel.get_ylim()[1])
    figure.savefig(path, dpi=130)


def _methods(axes: Any, sets: Sequence[str], methods: Mapping[str, Sequence[Point]]) -> None:
    width = 0.8 / len(methods)
    for n, (method, points) in enumerate(methods.items()):
        errors, deviations = zip(*points, strict=True)
        at = [x + (n - (len(methods) - 1) / 2) * width for x in range(len(points))]
        axes.bar(at, errors, width, label=method, yerr=deviations, error_kw={"linewidth": 0.8})
    axes.set_xticks(range(len(sets)), sets)
    axes.set(ylabel="test error, %", title="3 layers of 1000 units in 1/64 of the parameters")
    axes.legend(ncols=len(methods), fontsize=8)
