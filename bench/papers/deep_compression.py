"""Deep Compression: LeNet-300-100 pruned, its weights shared, the shared values trained: size against error.

Protocol, fixed in advance with its rates, which nothing was tuned for. LeNet-300-100 (ReLU) on
Fashion-MNIST: 12 epochs dense; then three times: every layer keeps its largest weights, down to the paper's densities
(8, 9 and 26 %) in a geometric series, and the kept ones are trained for 6 epochs. Then, for 6 to 2 bits, a palette a
layer with an entry for the pruned weights (`rd.Palette(bits, zero=True)`), three ways: shared, that is fitted and left;
tuned, that is fitted and then trained for 2 epochs, a palette's value by the sum of its weights' gradients; alternated,
that is trained for an epoch and refitted, four times (`rd.alternate`), then tuned. Adam in batches of 128,
a rate that falls linearly to 0; the error is that of the last weights on the 10,000 test images. 6 bits are the
paper's for this net; no net was chosen by its test error.

What is counted, biases and palettes always among it, as float32. Entropy: `rd.size`, every index of a layer, pruned
ones too, at the entropy of the layer's indices. Fixed and Huffman: the paper's format, kept weights alone, each as the
distance from the one before in 5 bits (a longer one in several, over filler zeros) and its palette index; Huffman codes
both streams of every layer and counts a byte for each code's length. The net to compare with: all weights in float32.

Source: Han, Mao, Dally, "Deep Compression", ICLR 2016, sections 2 to 4 and tables 1 and 2.
"""

from __future__ import annotations

import copy
import heapq
import pathlib
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import rdkernels as rd

from .experiment import Claim, Experiment, Grid, Run, mean, spread
from .training import error_rate, train

DENSITY = {"fc1": 0.08, "fc2": 0.09, "fc3": 0.26}
STAGES, BITS, PAPERS_BITS, INDEX_BITS, BATCH = 3, (6, 5, 4, 3, 2), 6, 5, 128
WAYS = ("shared", "tuned", "alternated")
SEEDS = (0, 1, 2)
FULL = {"train": 60000, "test": 10000, "dense": 12, "retrain": 6, "rounds": 4, "tune": 2}
QUICK = {"train": 512, "test": 256, "dense": 1, "retrain": 1, "rounds": 1, "tune": 1}
RATES = {"dense": 1e-3, "retrain": 1e-3, "rounds": 3e-4, "tune": 3e-4}


def lenet() -> nn.Sequential:
    layers = [("fc1", nn.Linear(784, 300)), ("relu1", nn.ReLU()), ("fc2", nn.Linear(300, 100)), ("relu2", nn.ReLU())]
    return nn.Sequential(OrderedDict([("flat", nn.Flatten()), *layers, ("fc3", nn.Linear(100, 10))]))


def kept(weights: int, density: float, stage: int) -> int:
    """Weights that a layer of this final density keeps after the stage, counted from 1."""
    return round(weights * density ** (stage / STAGES))


@torch.no_grad()
def prune(net: nn.Module, stage: int) -> int:
    """Set the smallest weights of every layer to 0; how many are left in all."""
    left = 0
    for name, density in DENSITY.items():
        flat = net.get_submodule(name).weight.view(-1)
        keep = kept(len(flat), density, stage)
        flat[flat.abs().argsort()[: len(flat) - keep]] = 0
        left += keep
    return left


@contextmanager
def pruned_stay(net: nn.Module) -> Iterator[None]:
    """Weights that are 0 get no gradient; an optimiser made inside does not move them."""
    masks = [(net.get_submodule(name).weight, net.get_submodule(name).weight != 0) for name in DENSITY]
    hooks = [weight.register_hook(mask.mul) for weight, mask in masks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def huffman(counts: Sequence[int]) -> int:
    """Bits of a text with these numbers of its symbols in their Huffman code; one symbol alone takes a bit each time.

    The inner nodes of the code's tree weigh together what the text is long.
    """
    heap = [count for count in counts if count]
    if len(heap) == 1:
        return heap[0]
    heapq.heapify(heap)
    bits = 0
    while len(heap) > 1:
        node = heapq.heappop(heap) + heapq.heappop(heap)
        bits += node
        heapq.heappush(heap, node)
    return bits


def distances(weight: Tensor) -> list[int]:
    """Of each kept weight from the one before, less 1, in `INDEX_BITS`; one too far comes after filler zeros."""
    places = weight.flatten().nonzero().flatten()
    largest = 2**INDEX_BITS
    found = []
    for gap in places.diff(prepend=places.new_tensor([-1])).tolist():
        fillers, rest = divmod(gap - 1, largest)
        found += [largest - 1] * fillers + [rest]
    return found


def paper_bytes(weights: Sequence[Tensor], bits: int, others: int) -> tuple[float, float]:
    """Of these layers in the paper's format, with fixed lengths and with Huffman codes; `others`: bytes beside them."""
    fixed = coded = 8.0 * others
    for weight in weights:
        steps = distances(weight)
        values = Counter(weight[weight != 0].tolist())
        values[0.0] = len(steps) - int((weight != 0).sum())  # the fillers
        fixed += len(steps) * (INDEX_BITS + bits)
        for code in (Counter(steps), values):
            coded += huffman(list(code.values())) + 8 * sum(count > 0 for count in code.values())
    return fixed / 8, coded / 8


def retrain(net: nn.Module, data: rd.datasets.Dataset, phase: str, epochs: int, seed: int) -> float:
    """Train by the protocol; the CPU seconds."""
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], RATES[phase])
    common: dict[str, Any] = {"epochs": epochs, "batch": BATCH, "seed": seed, "schedule": lambda done: 1 - done}
    return train(net, data.train_x, data.train_y, optimizer=optimizer, **common)["cpu_seconds"]


def sizes(net: nn.Module, bits: int) -> dict[str, float]:
    """Bytes of a net whose layers are palettes."""
    weights = [net.get_submodule(name).materialize().detach() for name in DENSITY]
    others = sum(p.numel() * p.element_size() for p in net.parameters())  # biases and palettes
    fixed, coded = paper_bytes(weights, bits, others)
    return {
        "entropy": rd.size(net).entropy,
        "fixed": fixed,
        "huffman": coded,
        "kept": sum(int((w != 0).sum()) for w in weights),
    }


def compress(seed: int, size: Mapping[str, int], bits: Sequence[int] = BITS) -> dict[str, Any]:
    """One net, dense, pruned and shared: rows by name, each with its error."""
    data = rd.datasets.fashion_mnist().first(size["train"], size["test"]).standardised()
    rows: dict[str, dict[str, float]] = {}

    def note(name: str, net: nn.Module, **more: float) -> None:
        rows[name] = {"error": error_rate(net, data.test_x, data.test_y), **more}

    torch.manual_seed(seed)
    net = lenet()
    retrain(net, data, "dense", size["dense"], seed)
    note("dense", net, bytes=rd.size(net).stored)
    for stage in range(1, STAGES + 1):
        left = prune(net, stage)
        note(f"pruned {stage}, before", net, kept=left)
        with pruned_stay(net):
            retrain(net, data, "retrain", size["retrain"], seed + stage)
        note(f"pruned {stage}", net, kept=left)
    for width in bits:
        specs = {"fc*": rd.Palette(width, zero=True)}
        shared = rd.convert(copy.deepcopy(net), specs)
        note(f"shared {width}", shared, **sizes(shared, width))
        retrain(shared, data, "tune", size["tune"], seed)
        note(f"tuned {width}", shared, **sizes(shared, width))
        other = copy.deepcopy(net)
        for phase in rd.alternate(other, specs, size["rounds"]):
            other = phase.model
            if phase.kind == "convert":
                retrain(other, data, "tune", size["tune"], seed)
            else:
                with pruned_stay(other):
                    retrain(other, data, "rounds", 1, seed + phase.step)
        note(f"alternated {width}", other, **sizes(other, width))
    return rows


Results = Mapping[str, Sequence[Mapping[str, float]]]  # row -> what each seed has of it


def times_smaller(results: Results, row: str, count: str) -> float:
    return mean(results["dense"], "bytes") / mean(results[row], count)


def judge(results: Results, row: str = f"tuned {PAPERS_BITS}") -> list[Claim]:
    smaller = times_smaller(results, row, "entropy")
    dense, error = mean(results["dense"], "error"), mean(results[row], "error")
    return [
        Claim(
            f"LeNet-300-100 >= 30x smaller at <= 1 point ({row} bits)",
            holds=smaller >= 30 and error - dense <= 1,
            numbers={
                "times smaller, entropy": smaller,
                "Huffman": times_smaller(results, row, "huffman"),
                "fixed length": times_smaller(results, row, "fixed"),
                "dense %": dense,
                "compressed %": error,
                "points worse": error - dense,
            },
        )
    ]


def tables(results: Results) -> list[Grid]:
    def shown(row: str) -> str:
        return f"{mean(results[row], 'error'):.2f} ± {spread(results[row], 'error'):.2f}"

    stages = [
        [f"stage {n}", int(results[f"pruned {n}"][0]["kept"]), shown(f"pruned {n}, before"), shown(f"pruned {n}")]
        for n in range(1, STAGES + 1)
    ]
    widths = [bits for bits in BITS if f"tuned {bits}" in results]
    rows = [
        [f"{bits} bits", *(shown(f"{way} {bits}") for way in WAYS)]
        + [times_smaller(results, f"tuned {bits}", count) for count in ("entropy", "huffman", "fixed")]
        for bits in widths
    ]
    return [
        Grid(
            f"Pruned: test error, %, mean and deviation over seeds (dense {shown('dense')})",
            ["after", "weights kept", "before retraining", "after it"],
            stages,
        ),
        Grid(
            "Shared: test error, %, and how many times smaller (tuned) than dense float32",
            ["palettes", *WAYS, "x, entropy", "x, Huffman", "x, fixed length"],
            rows,
        ),
        Grid(
            "The paper's own: LeNet-300-100 on MNIST (from memory of its table 1, not checked)",
            ["net", "error, %", "times smaller"],
            [["dense", 1.64, 1.0], ["compressed, 6 bits", 1.58, 40.0]],
        ),
    ]


def draw(results: Results, path: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (plane, recovery) = plt.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True, sharey=False)
    dense = mean(results["dense"], "error")
    widths = [bits for bits in BITS if f"tuned {bits}" in results]
    for n, way in enumerate(WAYS):
        errors = [mean(results[f"{way} {bits}"], "error") for bits in widths]
        spreads = [spread(results[f"{way} {bits}"], "error") for bits in widths]
        smaller = [times_smaller(results, f"{way} {bits}", "entropy") for bits in widths]
        plane.errorbar(smaller, errors, spreads, marker="o", color=f"C{n}", label=way, capsize=2)
        if way == "tuned":
            for bits, at in zip(widths, zip(smaller, errors, strict=True), strict=True):
                plane.annotate(f"{bits} bits", at, xytext=(-8, 10), textcoords="offset points", fontsize=8)
    plane.axhline(dense, color="0.3", linestyle="--", label="dense")
    plane.axvline(30, color="0.7", linestyle=":", label="30 times")
    plane.set_xlabel("times smaller than dense float32, entropy-coded")
    plane.set_ylabel("test error, %")
    plane.legend()
    kept = [mean(results[f"pruned {n}"], "kept") / 1000 for n in range(1, STAGES + 1)]
    for label in (", before", ""):
        errors = [mean(results[f"pruned {n}{label}"], "error") for n in range(1, STAGES + 1)]
        recovery.plot(kept, errors, marker="o", label=f"{'before' if label else 'after'} retraining")
    recovery.axhline(dense, color="0.3", linestyle="--", label="dense")
    recovery.set_xscale("log")
    recovery.set_xticks(kept, [f"{count:.0f}" for count in kept])
    recovery.minorticks_off()
    recovery.invert_xaxis()
    recovery.set_xlabel("thousands of weights kept")
    recovery.set_ylabel("test error, %")
    recovery.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    experiment = Experiment.from_command_line("deep_compression", __doc__)
    size, seeds, bits = (QUICK, SEEDS[:1], BITS[::4]) if experiment.quick else (FULL, SEEDS, BITS)
    runs = [Run(f"seed {seed}", compress, {"seed": seed, "size": size, "bits": bits}) for seed in seeds]
    found = experiment.run(runs).values()
    names = [name for name, row in next(iter(found)).items() if isinstance(row, dict)]
    results = {name: [rows[name] for rows in found] for name in names}
    experiment.finish(
        settings={
            "net": "784-300-100-10, ReLU",
            "data": "Fashion-MNIST",
            "densities": DENSITY,
            "stages": STAGES,
            "bits": bits,
            "epochs": size,
            "batch": BATCH,
            "optimiser": "Adam",
            "rates": RATES,
            "seeds": seeds,
        },
        grids=tables(results),
        claims=judge(results),
        plot=partial(draw, results),
    )


if __name__ == "__main__":
    main()
