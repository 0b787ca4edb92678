"""The figure of `denil.py`: its three results and two pictures of what is predicted."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .denil_features import unpacked


def draw(
    path: pathlib.Path,
    *,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    lines: Mapping[str, float],
    features: Mapping[str, Mapping[str, Any]],
    conv: Sequence[tuple[float, float, float]],
    pictures: Sequence[tuple[str, Mapping[str, Any]]],
) -> None:
    """Write `path`.

    Args:
        curves: dictionaries -> (fraction trained, error); lines: dense nets -> error.
        features: layer -> its scores; conv: (fraction trained, error, deviation over seeds).
        pictures: (layer, what `denil_features.picture` returned).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 8), layout="constrained")
    grid = figure.add_gridspec(2, 3)
    _errors(figure.add_subplot(grid[0, 0]), curves, lines)
    _scores(figure.add_subplot(grid[0, 1]), features)
    _conv(figure.add_subplot(grid[0, 2]), conv)
    places = (grid[1, 0], grid[1, 1:])
    for place, (layer, picture) in zip(places, pictures, strict=False):
        _picture(figure.add_subplot(place), layer, picture)
    figure.savefig(path, dpi=110)


def _errors(axes: Any, curves: Mapping[str, Sequence[tuple[float, float]]], lines: Mapping[str, float]) -> None:
    for name, points in curves.items():
        if points:
            axes.plot([100 * f for f, _ in points], [e for _, e in points], marker="o", markersize=4, label=name)
    for (name, error), style in zip(lines.items(), ("-", "--"), strict=True):
        axes.axhline(error, color="black", linewidth=1, linestyle=style, label=name)
    axes.set(
        xscale="log", xlabel="hidden weights trained, %", ylabel="test error, %", title="Fashion-MNIST, sigmoid net"
    )
    ticks = sorted({100 * f for points in curves.values() for f, _ in points})
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.legend(fontsize=8)


def _scores(axes: Any, features: Mapping[str, Mapping[str, Any]]) -> None:
    layers = sorted(features, key=lambda layer: features[layer]["r2"])
    height = torch.arange(len(layers)).numpy()
    kinds = {"r2": "from other units", "smooth_r2": "from its own taps, by SE", "null": "values shuffled"}
    for n, (kind, label) in enumerate(kinds.items()):
        values = [features[layer].get(kind, 0.0) for layer in layers]
        axes.barh(height + 0.27 * (1 - n), values, 0.27, label=label)
    axes.set_yticks(height, layers, fontsize=8)
    axes.axvline(0, color="black", linewidth=0.5)
    axes.set(xlabel="R2 of the values not seen", title="predicted from 25 % of the values")
    axes.legend(fontsize=8, loc="lower right")


def _conv(axes: Any, conv: Sequence[tuple[float, float, float]]) -> None:
    parts, errors, deviations = zip(*conv, strict=True)
    axes.errorbar([100 * p for p in parts], errors, deviations, marker="o", capsize=4)
    axes.set(xlabel="hidden weights trained, %", ylabel="test error, %", title="Fashion-MNIST, 5x5 convnet, SE")
    axes.set_ylim(bottom=0)


def _picture(axes: Any, layer: str, picture: Mapping[str, Any]) -> None:
    whole, seen, found = (unpacked(text) for text in picture["rows"])
    title = f"{layer}: whole, seen, predicted"
    if len(picture["positions"]) == 2:
        height, width = picture["positions"]
        masked = torch.where(seen > 0, whole, float("nan"))
        axes.imshow(_tiled([whole, masked, found], height, width).numpy(), cmap="RdBu")
        axes.set_axis_off()
    else:
        for row, (one, at, guess) in enumerate(zip(whole, seen, found, strict=True)):
            taps = torch.arange(len(one)).numpy()
            axes.plot(taps, (one - 2 * row).numpy(), color="0.6", linewidth=2)
            axes.plot(taps, (guess - 2 * row).numpy(), color="C0", linewidth=1)
            axes.plot(taps[(at > 0).numpy()], (one - 2 * row)[at > 0].numpy(), ".", color="C3", markersize=3)
        axes.set(xlabel="tap", yticks=[])
        title = f"{layer}: whole (grey), seen (red), predicted (blue)"
    axes.set_title(title)


def _tiled(parts: Sequence[Tensor], height: int, width: int) -> Tensor:
    """Filters side by side, a gap of NaN between them; one part below the other."""
    gap = torch.nn.functional.pad
    rows = [
        torch.cat([gap(f.view(height, width), (1, 1, 1, 1), value=float("nan")) for f in part], 1) for part in parts
    ]
    return torch.cat(rows, 0)
