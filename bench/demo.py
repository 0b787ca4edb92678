"""`make demo`: hashed layers trained on real data beside dense ones, then timed beside `nn.Linear`.

The protocol, fixed in advance and the same for every net: a net of one hidden layer of 1000 ReLU units, 4 epochs of
batches of 256, AdamW without weight decay, learning rate 2e-3 falling linearly to 0, one seed, the error of the last
weights on the test set. A hashed net hashes its first layer with the granule in its name and its last layer by element,
both at the compression in its name. "dense, same size" has as many hidden units as fit the hashed net's parameters.
"""

from __future__ import annotations

import argparse
import pathlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import matplotlib
import torch
from papers import data
from rich.console import Console
from rich.table import Table
from torch import nn
from tqdm import tqdm

import rdkernels as rd
from rdkernels.benchmark import interleaved
from rdkernels.benchmark.machine import cores, cpu_model
from rdkernels.datasets import Dataset

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HIDDEN, CLASSES, EPOCHS, BATCH, RATE = 1000, 10, 4, 256, 2e-3
GRANULES, COMPRESSIONS = ("element", "chunk", "tile"), (8, 64)
BATCHES = (1, 8, 64, 512)
OUTPUT = pathlib.Path(__file__).resolve().parents[1] / "demo-output"


@dataclass(frozen=True)
class Trained:
    """A row of the accuracy table."""

    name: str
    family: str  # the colour in the plot
    accuracy: float  # on the test set, per cent
    parameters: int
    seconds: float


def dense(features: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES))


def hashed(features: int, granule: str, compression: int) -> nn.Sequential:
    return nn.Sequential(
        rd.nn.HashedLinear(features, HIDDEN, compression=compression, granule=granule, seed=1),
        nn.ReLU(),
        rd.nn.HashedLinear(HIDDEN, CLASSES, compression=compression, granule="element", seed=2),
    )


def size(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def same_size(features: int, parameters: int) -> int:
    """Hidden units of the dense net with about as many parameters."""
    return max(1, round((parameters - CLASSES) / (features + 1 + CLASSES)))


def train(name: str, family: str, net: nn.Module, task: Dataset, epochs: int) -> Trained:
    """Train by the protocol; the seconds are those of the training loop alone."""
    generator = torch.Generator().manual_seed(0)
    steps = epochs * -(-len(task.train_y) // BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    start = time.perf_counter()
    with tqdm(total=steps, desc=f"{name:<24}", unit="step") as bar:
        for _ in range(epochs):
            for rows in torch.randperm(len(task.train_y), generator=generator).split(BATCH):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(task.train_x[rows]), task.train_y[rows]).backward()
                optimizer.step()
                schedule.step()
                bar.update()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        accuracy = 100 * (net(task.test_x).argmax(1) == task.test_y).double().mean().item()
    return Trained(name, family, accuracy, size(net), seconds)


def train_all(task: Dataset, epochs: int) -> list[Trained]:
    """Dense; then per compression a dense net of the hashed size and a hashed net per granule."""
    features = task.features
    plans: list[tuple[str, str, Callable[[], nn.Module]]] = [("dense", "dense", partial(dense, features, HIDDEN))]
    for c in COMPRESSIONS:
        hidden = same_size(features, size(hashed(features, "element", c)))
        plans.append((f"dense, same size as 1/{c}", "dense, same size", partial(dense, features, hidden)))
        plans += [(f"{g} 1/{c}", g, partial(hashed, features, g, c)) for g in GRANULES]
    rows = []
    for name, family, build in plans:
        torch.manual_seed(0)
        rows.append(train(name, family, build(), task, epochs))
    return rows


def latency(shapes: list[tuple[int, int]], seconds: float) -> dict[tuple[str, str], list[float]]:
    """Per shape and layer, `nn.Linear`'s forward time over ours for each batch size: medians of interleaved pairs."""
    ratios: dict[tuple[str, str], list[float]] = {}
    plans = [(shape, g, c) for shape in shapes for g in GRANULES for c in COMPRESSIONS]
    with (
        torch.inference_mode(),
        tqdm(total=len(plans) * len(BATCHES), desc="layers beside nn.Linear", unit="case") as bar,
    ):
        for (features, outputs), granule, compression in plans:
            layer = rd.nn.HashedLinear(features, outputs, compression=compression, granule=granule, seed=1)
            linear, key = nn.Linear(features, outputs), (f"{features} x {outputs}", f"{granule} 1/{compression}")
            for batch in BATCHES:
                x = torch.randn(batch, features)
                ratios.setdefault(key, []).append(interleaved(partial(layer, x), partial(linear, x), seconds).ratio)
                bar.update()
    return ratios


def accuracy_table(rows: list[Trained], title: str) -> Table:
    table = Table(title=title)
    table.add_column("net")
    for name in ("test accuracy %", "parameters", "bytes", "training s"):
        table.add_column(name, justify="right")
    for r in rows:
        table.add_row(r.name, f"{r.accuracy:.2f}", f"{r.parameters:,}", f"{4 * r.parameters:,}", f"{r.seconds:.1f}")
    return table


def latency_table(ratios: dict[tuple[str, str], list[float]], title: str) -> Table:
    table = Table(title=title, caption="nn.Linear's time / ours: above 1 the hashed layer is faster")
    table.add_column("layer")
    table.add_column("granule, size")
    for batch in BATCHES:
        table.add_column(f"batch {batch}", justify="right")
    for (shape, layer), row in ratios.items():
        table.add_row(shape, layer, *(f"[{'green' if r >= 1 else 'default'}]{r:.2f}[/]" for r in row))
    return table


def accuracy_plot(rows: list[Trained], title: str, path: pathlib.Path) -> None:
    figure, axis = plt.subplots(figsize=(6.5, 4), layout="constrained")
    for number, family in enumerate(dict.fromkeys(r.family for r in rows)):
        mine = [r for r in rows if r.family == family]
        style = "--" if family == "dense, same size" else "-"
        points = [r.parameters for r in mine], [r.accuracy for r in mine]
        axis.plot(*points, f"o{style}", color=f"C{number}", label=family, alpha=0.8)
    axis.set(xscale="log", xlabel="parameters", ylabel="test accuracy, %")
    ticks = [r.parameters for r in rows if r.family in ("dense", "element")]
    axis.set_xticks(ticks, [f"{t:,}" for t in ticks])
    axis.minorticks_off()
    axis.set_title(title, fontsize=9)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def latency_plot(ratios: dict[tuple[str, str], list[float]], title: str, path: pathlib.Path) -> None:
    shapes = list(dict.fromkeys(shape for shape, _ in ratios))
    figure, axes = plt.subplots(1, len(shapes), figsize=(5 * len(shapes), 4), squeeze=False, layout="constrained")
    for axis, shape in zip(axes.flat, shapes, strict=True):
        for layer, row in ((layer, row) for (own, layer), row in ratios.items() if own == shape):
            granule, _, part = layer.partition(" ")
            style = "o-" if part == f"1/{COMPRESSIONS[-1]}" else "o--"
            axis.plot(BATCHES, row, style, color=f"C{GRANULES.index(granule)}", label=layer)
        axis.axhline(1, color="black", linewidth=1)
        axis.set(title=f"layer {shape}", xlabel="batch", ylabel="nn.Linear time / ours", xscale="log", yscale="log")
        axis.set_xticks(BATCHES, [str(b) for b in BATCHES])
        axis.minorticks_off()
        low, high = axis.get_ylim()
        levels = [v for v in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if low <= v <= high]
        axis.set_yticks(levels, [f"{v:g}" for v in levels])
        axis.grid(alpha=0.3)
    axes.flat[0].legend(fontsize=8)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one epoch of 2,560 images, short timings: a smoke run")
    quick = parser.parse_args().quick
    torch.set_num_threads(cores())
    task = data.load().standardised().flat()
    if quick:
        task = task.first(2560, len(task.test_y))
    epochs = 1 if quick else EPOCHS if len(task.train_y) > 10000 else 30
    where = f"{cpu_model()}, {cores()} cores, kernels: {', '.join(rd.backends('hashed_linear'))}"
    print(f"{task.name}: {len(task.train_y)} training and {len(task.test_y)} test images. {where}", flush=True)
    rows = train_all(task, epochs)
    ratios = latency([(task.features, HIDDEN)] + [(4096, 4096)] * (not quick), 0.02 if quick else 0.3)
    net = f"{task.features}-{HIDDEN}-{CLASSES}"
    titles = f"{task.name}, {net}, {epochs} epoch{'s' if epochs > 1 else ''}, one seed", f"forward, fp32. {where}"
    console = Console(width=None if Console().is_terminal else 100)
    console.print(accuracy_table(rows, titles[0]), latency_table(ratios, titles[1]))
    OUTPUT.mkdir(exist_ok=True)
    accuracy_plot(rows, titles[0], OUTPUT / "accuracy.png")
    latency_plot(ratios, titles[1], OUTPUT / "latency.png")
    console.print(f"plots: {OUTPUT.name}/accuracy.png, {OUTPUT.name}/latency.png")


if __name__ == "__main__":
    main()
