"""What the runs of `hashednets.py` compute: sets, training, and the errors of nets whose rates they are given."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import rdkernels as rd

from .hashednets_nets import DARK, build, dark_loss, dark_targets, inflated, parameters
from .training import error_rate, outputs, train

SETS: dict[str, tuple[Callable[[], rd.datasets.Dataset], int]] = {  # what makes it, epochs of the nets of 3 layers
    "Fashion-MNIST": (rd.datasets.fashion_mnist, 8),
    "MNIST-10k": (rd.datasets.mnist_10k, 30),
    "ROT": (rd.datasets.mnist_rotated, 30),
    "BG-RAND": (rd.datasets.mnist_random_background, 30),
    "RECT": (rd.datasets.rectangles, 150),
    "CONVEX": (rd.datasets.convex, 30),
}
HIDDEN, TESTED = 1000, 10_000
STORAGE = {8: 125, 64: 16}  # units of the dense nets that are inflated
RECIPE: dict[str, Any] = {"batch": 100, "temperature": 4.0, "share": 0.7}


def sizes_of(layers: int, classes: int) -> list[int]:
    return [784, *[HIDDEN] * (layers - 2), classes]


@functools.lru_cache(maxsize=1)
def load(data: str, first: int | None, held_out: bool = False) -> rd.datasets.Dataset:
    """The set, standardised, images as rows; the first images of both parts with `first`.

    With `held_out` the last fifth of the training images takes the place of the test images.
    """
    made = SETS[data][0]().first(first or 10**9, first or TESTED)
    if held_out:
        x, y, cut = made.train_x, made.train_y, len(made.train_y) * 4 // 5
        made = dataclasses.replace(made, train_x=x[:cut], train_y=y[:cut], test_x=x[cut:], test_y=y[cut:])
    return made.standardised().flat()


def fit(
    net: nn.Module,
    data: rd.datasets.Dataset,
    rate: float,
    epochs: int,
    seed: int,
    recipe: Mapping[str, Any],
    logits: Tensor | None = None,
) -> None:
    """Train by the recipe; on the teacher's `logits` too where they are given."""
    trained = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, rate)
    common: dict[str, Any] = {"optimizer": optimizer, "epochs": epochs, "batch": recipe["batch"], "seed": seed}
    common["schedule"] = lambda done: 1 - done
    if logits is None:
        train(net, data.train_x, data.train_y, **common)
    else:
        loss = dark_loss(recipe["temperature"], recipe["share"])
        train(net, data.train_x, dark_targets(data.train_y, logits), loss=loss, **common)


def validate(
    data: str,
    layers: int,
    method: str,
    compression: int,
    rate: float,
    epochs: int,
    recipe: Mapping[str, Any],
    first: int | None = None,
) -> dict[str, Any]:
    """Error in per cent on the last fifth of the training images, of a net trained on the others."""
    images = load(data, first, held_out=True)
    net = build(method, sizes_of(layers, images.classes), compression, 0)
    fit(net, images, rate, epochs, 0, recipe)
    return {"error": error_rate(net, images.test_x, images.test_y)}


def compare(
    data: str,
    layers: int,
    nets: Sequence[tuple[str, int, float]],
    seed: int,
    epochs: int,
    recipe: Mapping[str, Any],
    teacher: float | None = None,
    granule: str = "element",
    first: int | None = None,
) -> dict[str, Any]:
    """Test error in per cent, and parameters, of each net: (method, compression, rate).

    Args:
        teacher: the rate of the dense net that -DK learns from; None: no net does.
    """
    images = load(data, first)
    sizes = sizes_of(layers, images.classes)
    found: dict[str, Any] = {"parameters": {}}

    def judge(name: str, net: nn.Module) -> None:
        found[name] = error_rate(net, images.test_x, images.test_y)
        found["parameters"][name] = parameters(net)

    logits = None
    if teacher is not None:
        dense = build("dense", sizes, 1, seed)
        fit(dense, images, teacher, epochs, seed, recipe)
        judge("dense", dense)
        logits = outputs(dense, images.train_x)
    for method, compression, rate in nets:
        if method.endswith(DARK) and logits is None:
            raise ValueError(f"nets: {method} learns from a teacher, got teacher=None; allowed is a rate")
        net = build(method, sizes, compression, seed, granule)
        fit(net, images, rate, epochs, seed, recipe, logits if method.endswith(DARK) else None)
        judge(f"{method} 1/{compression}", net)
    return found


def inflate(
    data: str,
    compression: int,
    factor: int,
    rate: float,
    seed: int,
    epochs: int,
    recipe: Mapping[str, Any],
    first: int | None = None,
) -> dict[str, Any]:
    """Test error of the dense net of `STORAGE[compression]` units, or of one `factor` times as wide in its storage."""
    images, storage = load(data, first), STORAGE[compression]
    net = inflated(storage, storage * factor, sizes_of(3, images.classes), seed)
    fit(net, images, rate, epochs, seed, recipe)
    return {"error": error_rate(net, images.test_x, images.test_y), "parameters": parameters(net)}
