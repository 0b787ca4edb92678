"""The nets of the experiment on Denton et al., each with inputs, the loss of its fine-tuning and its error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rdkernels as rd

from . import pretrained
from .training import Loss, outputs, train

TUNE_SEED, TEST_SEED, HELD_SEED, CALIBRATION_SEED = 1, 2, 3, 4  # of made inputs
CONVNET_RECIPE = {"epochs": 2, "batch": 128, "rate": 1e-3}


@dataclass(frozen=True, eq=False)
class Task:
    """A trained net that can be cut anywhere, its inputs, and what it is judged by."""

    net: nn.Sequential
    calibration_x: Tensor  # what the covariances are of
    train_x: Tensor  # to tune on
    held_x: Tensor  # to choose on
    test_x: Tensor
    goal: Callable[[Tensor], Tensor]  # of the trained net's outputs: what `loss` compares the outputs with
    loss: Loss
    error: Callable[[Tensor], float]  # of the outputs for `test_x`, per cent
    measure: str  # what the error is of
    batch: int  # rows at a time


def soft_cross_entropy(found: Tensor, targets: Tensor) -> Tensor:
    """Against probabilities, over the last dimension."""
    return -(targets * found.log_softmax(-1)).sum(-1).mean()


def change(found: Tensor, wanted: Tensor) -> float:
    """The squared distance of `found` from `wanted` as a part of the squares of `wanted`."""
    return float((found - wanted).square().sum(dtype=torch.float64) / wanted.square().sum(dtype=torch.float64))


def _made(calibrate: int, tune: int, held: int) -> tuple[tuple[int, int], ...]:
    """Counts and seeds."""
    return (calibrate, CALIBRATION_SEED), (tune, TUNE_SEED), (held, HELD_SEED)


def _softmax(found: Tensor) -> Tensor:
    return found.softmax(-1)


def english_g2(calibrate: int, tune: int, held: int, test: int) -> Task:
    parts = [pretrained.words(*of)[0] for of in _made(calibrate, tune, held)]
    x, texts = pretrained.words(test, TEST_SEED)
    judge = lambda found: pretrained.word_error(found, texts)  # noqa: E731
    return Task(pretrained.english_g2(), *parts, x, _softmax, soft_cross_entropy, judge, "words misread", 16)


def crepe(calibrate: int, tune: int, held: int, test: int, size: str = "full") -> Task:
    parts = [pretrained.tones(*of)[0] for of in _made(calibrate, tune, held)]
    x, pitch = pretrained.tones(test, TEST_SEED)
    judge = lambda found: pretrained.pitch_error(found, pitch)  # noqa: E731
    loss = F.binary_cross_entropy_with_logits
    return Task(pretrained.crepe(size), *parts, x, torch.sigmoid, loss, judge, "pitches missed", 16)


def craft(calibrate: int, tune: int, held: int, test: int) -> Task:
    """No labels: the error is the part of its outputs' squares that changes."""
    net, x = pretrained.craft_block(), pretrained.coloured_words(test, TEST_SEED)
    parts = [pretrained.coloured_words(*of) for of in _made(calibrate, tune, held)]
    wanted = outputs(net, x, 4)
    judge = lambda found: 100 * change(found, wanted)  # noqa: E731
    return Task(net, *parts, x, lambda found: found, F.mse_loss, judge, "outputs' squares changed", 4)


def convnet(images: int, tune: int, held: int, test: int) -> Task:
    """Two 5 x 5 convolutions and two linear layers, trained here on Fashion-MNIST by `CONVNET_RECIPE`, seed 0.

    The last `held` of the images are kept from its training too; the first `tune` are also what it is calibrated on.
    """
    data = rd.datasets.fashion_mnist().standardised().first(images, test)
    own = images - held
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * 7 * 7, 256), nn.ReLU(), nn.Linear(256, data.classes)),
    )
    adam = torch.optim.Adam(net.parameters(), lr=CONVNET_RECIPE["rate"], fused=True)
    common = {"epochs": int(CONVNET_RECIPE["epochs"]), "batch": int(CONVNET_RECIPE["batch"])}
    train(net, data.train_x[:own], data.train_y[:own], optimizer=adam, seed=0, schedule=lambda done: 1 - done, **common)
    judge = lambda found: 100 * float((found.argmax(1) != data.test_y).double().mean())  # noqa: E731
    parts = data.train_x[:tune], data.train_x[:tune], data.train_x[own:], data.test_x
    return Task(net.eval(), *parts, _softmax, soft_cross_entropy, judge, "images misjudged", 128)


NETS: Mapping[str, Callable[[int, int, int, int], Task]] = {
    "english_g2": english_g2,
    "crepe": crepe,
    "crepe tiny": partial(crepe, size="tiny"),
    "CRAFT": craft,
    "convnet": convnet,
}
