"""Ba & Caruana's nets, and the runs of `ba_caruana.py`: a member of the teacher, the teacher, a student."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pathlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rdkernels as rd

from .experiment import DATA
from .training import error_rate, outputs, train

HIDDEN, RANK, TEMPERATURE, BATCH = 2000, 64, 4.0, 128
TEACHER_RATE, TEACHER_DECAY, DECAY = 2e-3, 0.01, 0.1

Size = Mapping[str, int]  # images with labels, in the pool and of the test; epochs


class Augment(nn.Module):
    """In training, every image mirrored or not and shifted by up to `pixels` each way; its border is repeated."""

    def __init__(self, pixels: int = 2) -> None:
        super().__init__()
        self.pixels = pixels

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        mirrored = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x, x.flip(-1))
        windows = F.pad(mirrored, (self.pixels,) * 4, "replicate").unfold(2, x.shape[2], 1).unfold(3, x.shape[3], 1)
        down, right = torch.randint(2 * self.pixels + 1, (2, len(x)))
        return windows[torch.arange(len(x)), :, down, right]


class Halved(nn.Sequential):
    """Computes in bfloat16 with the channels last: a third of the time where the CPU multiplies bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return super().forward(x.to(memory_format=torch.channels_last)).float()


def teacher_net() -> nn.Sequential:
    """A member of the teacher: two pairs of 3x3 convolutions, each pair before a pooling, and a hidden layer."""
    layers: list[nn.Module] = []
    for into, out in ((1, 32), (32, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(into, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if into == out else []
    layers += [nn.Flatten(), nn.Linear(64 * 7 * 7, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10)]
    return nn.Sequential(Augment(), Halved(*layers))


def student_net(kind: str) -> nn.Module:
    net = nn.Sequential(
        OrderedDict(flat=nn.Flatten(), hidden=nn.Linear(784, HIDDEN), relu=nn.ReLU(), classes=nn.Linear(HIDDEN, 10))
    )
    return net if kind == "plain" else rd.convert(net, {"hidden": rd.LowRank(RANK)}, init="fresh")


def multiply_adds(kind: str) -> int:
    """Of a training step and an image: forward, gradients of the weights, and of the inputs but for the first."""
    area = 9 * 28**2  # of 3 x 3 weights, at every pixel
    layers = {
        "plain": (784 * HIDDEN, HIDDEN * 10),
        "bottleneck": (784 * RANK, RANK * HIDDEN, HIDDEN * 10),
        "teacher": (area * 32, area * 32**2, area // 4 * 32 * 64, area // 4 * 64**2, 64 * 7**2 * 128, 128 * 10),
    }[kind]
    return 3 * sum(layers) - layers[0]


def rise_and_fall(done: float) -> float:
    """A factor of the rate: linear up over the first tenth of the training, linear down to 0 over the rest."""
    return min(done / 0.1, (1 - done) / 0.9)


def adam(net: nn.Module, rate: float, decay: float) -> torch.optim.Optimizer:
    """Fused, so that the update costs little whatever the number of weights."""
    return torch.optim.AdamW(net.parameters(), rate, weight_decay=decay, fused=True)


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@functools.lru_cache(maxsize=1)
def load(pool: int, test: int) -> rd.datasets.Dataset:
    """The first images of both parts, standardised; kept for the process's next run."""
    return rd.datasets.fashion_mnist().first(pool, test).standardised()


def split(seed: int, size: Size) -> rd.datasets.Dataset:
    """The data, the training images in the order of `seed`: those with labels first.

    With `held_out` in `size`, the last so many training images stand in for the test images, and are in no pool.
    """
    data, held_out = load(size["pool"], size["test"]), size.get("held_out", 0)
    order = torch.randperm(len(data.train_y), generator=torch.Generator().manual_seed(seed))
    x, y, pool = data.train_x[order], data.train_y[order], len(order) - held_out
    tests = (x[pool:], y[pool:]) if held_out else (data.test_x, data.test_y)
    return rd.datasets.Dataset(data.name, x[:pool], y[:pool], *tests)


def mirrored_outputs(net: nn.Module, x: Tensor) -> Tensor:
    """The mean of the outputs for every image and for its mirror image."""
    return (outputs(net, x, 500) + outputs(net, x.flip(-1), 500)) / 2


def member(number: int, seed: int, size: Size) -> dict[str, Any]:
    """Train a convnet on the labelled images; what it says of all images is kept in a file."""
    data, labelled = split(seed, size), size["labelled"]
    torch.manual_seed(1000 * seed + number)
    net = teacher_net()
    spent = train(
        net,
        data.train_x[:labelled],
        data.train_y[:labelled],
        optimizer=adam(net, TEACHER_RATE, TEACHER_DECAY),
        epochs=size["teacher_epochs"],
        batch=BATCH,
        seed=1000 * seed + number,
        schedule=rise_and_fall,
    )
    said = {part: mirrored_outputs(net, getattr(data, f"{part}_x")) for part in ("train", "test")}
    path = _said_by(number, seed, size)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{os.getpid()}")
    torch.save(said, aside)
    aside.replace(path)
    costs = {"parameters": parameters(net), "multiply_adds": multiply_adds("teacher")}
    return {"error": _error(said["test"], data.test_y), **costs, **spent}


def _said_by(number: int, seed: int, size: Size) -> pathlib.Path:
    used = {name: size.get(name, 0) for name in ("labelled", "pool", "test", "held_out", "teacher_epochs")}
    made_by = json.dumps([number, seed, used, TEACHER_RATE, TEACHER_DECAY, BATCH, str(teacher_net())], sort_keys=True)
    return DATA / "ba_caruana" / f"{hashlib.sha256(made_by.encode()).hexdigest()[:16]}.pt"


def teacher_logits(seed: int, size: Size, part: str = "train") -> Tensor:
    """The mean of the members' logits for the images of `part`, the training images in the order of `seed`.

    A member is trained where none has been.
    """
    found = []
    for number in range(size["members"]):
        path = _said_by(number, seed, size)
        if not path.exists():
            member(number, seed, size)
        found.append(torch.load(path, weights_only=True)[part])
    return torch.stack(found).mean(0)


def teacher(seed: int, size: Size) -> dict[str, Any]:
    """The ensemble's error."""
    return {"error": _error(teacher_logits(seed, size, "test"), split(seed, size).test_y)}


def _error(logits: Tensor, labels: Tensor) -> float:
    return 100 * float((logits.argmax(1) != labels).double().mean())


def learn(kind: str, target: str, seed: int, size: Size, rate: float) -> dict[str, Any]:
    """Train a student of `kind` on `target`."""
    data = split(seed, size)
    x, y = data.train_x, data.train_y
    epochs = size[{"labels": "labels", "labels longer": "longer"}.get(target, "epochs")]
    if target.startswith("labels"):
        x, targets, loss, head = x[: size["labelled"]], y[: size["labelled"]], F.cross_entropy, None
    else:
        targets = teacher_logits(seed, size)
        loss, head = functools.partial(rd.distill.kd, temperature=TEMPERATURE), None
        if target == "hard":
            targets, loss = targets.argmax(1), F.cross_entropy
        elif target == "mimic":
            stats = rd.distill.LogitStats.of(targets)
            loss, head = functools.partial(rd.distill.mimic, stats=stats), rd.distill.Unnormalize(stats)
    torch.manual_seed(seed)
    net = student_net(kind)
    spent = train(
        net,
        x,
        targets,
        loss=loss,
        optimizer=adam(net, rate, DECAY),
        epochs=epochs,
        batch=BATCH,
        seed=seed,
        schedule=rise_and_fall,
    )
    whole = net if head is None else nn.Sequential(net, head)
    error = error_rate(whole, data.test_x, data.test_y)
    return {"error": error, "parameters": parameters(net), "multiply_adds": multiply_adds(kind), **spent}
