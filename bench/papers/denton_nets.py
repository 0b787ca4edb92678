"""The nets of the experiment on Denton et al., each with data, the loss of its fine-tuning and its error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rdkernels as rd

from . import pretrained
from .training import Loss, outputs, train

TRAIN_SEED, TEST_SEED = 1, 2
CONVNET_RECIPE = {"epochs": 2, "batch": 128, "rate": 1e-3}


@dataclass(frozen=True, eq=False)
class Task:
    """A trained net that can be cut anywhere, and what it is judged by."""

    net: nn.Sequential
    train_x: Tensor
    targets: Tensor  # what `loss` compares the outputs with
    test_x: Tensor
    error: Callable[[Tensor], float]  # of the outputs for `test_x`, per cent
    loss: Loss
    measure: str  # what the error is of
    batch: int  # rows at a time


def soft_cross_entropy(found: Tensor, targets: Tensor) -> Tensor:
    """Against probabilities, over the last dimension."""
    return -(targets * found.log_softmax(-1)).sum(-1).mean()


def english_g2(train: int, test: int) -> Task:
    net, (x, texts) = pretrained.english_g2(), pretrained.words(test, TEST_SEED)
    seen, _ = pretrained.words(train, TRAIN_SEED)
    targets = outputs(net, seen, 16).softmax(-1)
    judge = lambda found: pretrained.word_error(found, texts)  # noqa: E731
    return Task(net, seen, targets, x, judge, soft_cross_entropy, "words misread", 16)


def crepe(train: int, test: int, size: str = "full") -> Task:
    net, (x, pitch) = pretrained.crepe(size), pretrained.tones(test, TEST_SEED)
    seen, _ = pretrained.tones(train, TRAIN_SEED)
    targets = outputs(net, seen, 16).sigmoid()
    judge = lambda found: pretrained.pitch_error(found, pitch)  # noqa: E731
    return Task(net, seen, targets, x, judge, F.binary_cross_entropy_with_logits, "pitches missed", 16)


def craft(train: int, test: int) -> Task:
    """No labels: the error is the part of its outputs' squares that changes."""
    net, x, seen = pretrained.craft_block(), *(pretrained.coloured_words(*s) for s in ((test, 2), (train, 1)))
    wanted = outputs(net, x, 4)

    def change(found: Tensor) -> float:
        return 100 * float((found - wanted).square().sum() / wanted.square().sum())

    return Task(net, seen, outputs(net, seen, 4), x, change, F.mse_loss, "outputs' squares changed", 4)


def convnet(train_images: int, test: int) -> Task:
    """Two 5 x 5 convolutions and two linear layers, trained here on Fashion-MNIST by `CONVNET_RECIPE`, seed 0."""
    data = rd.datasets.fashion_mnist().standardised().first(train_images, test)
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * 7 * 7, 256), nn.ReLU(), nn.Linear(256, data.classes)),
    )
    adam = torch.optim.Adam(net.parameters(), lr=CONVNET_RECIPE["rate"], fused=True)
    common = {"epochs": int(CONVNET_RECIPE["epochs"]), "batch": int(CONVNET_RECIPE["batch"])}
    train(net, data.train_x, data.train_y, optimizer=adam, seed=0, schedule=lambda done: 1 - done, **common)
    judge = lambda found: 100 * float((found.argmax(1) != data.test_y).double().mean())  # noqa: E731
    seen = slice(0, TUNED)
    return Task(
        net.eval(), data.train_x[seen], data.train_y[seen], data.test_x, judge, F.cross_entropy, "images misjudged", 128
    )


TUNED = 12_000  # images of Fashion-MNIST that fine-tuning sees
NETS: Mapping[str, Callable[..., Task]] = {
    "english_g2": english_g2,
    "crepe": crepe,
    "CRAFT": craft,
    "convnet": convnet,
}
