"""Rendered words for `ba_caruana.py`: a pretrained reader taught to a shallow net that sees a window at a time.

The teacher is `english_g2`, a convnet with two bidirectional LSTMs, as it comes, in bfloat16. The student is like the
paper's, which classify frames of speech: at every fourth column one hidden layer of ReLU units looks at a window of the
word at half its resolution and says a class, one of 96 letters or CTC's blank. The bottleneck is below it. The paper's
labels of frames come from an aligner; here a word's letters are where the teacher, which reads them rightly, has them.
Rate, decay, window and epochs were chosen on other words than the test's: see the notes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rdkernels as rd

from .ba_caruana_runs import RANK, adam, parameters, rise_and_fall
from .pretrained import ALPHABET, HEIGHT, english_g2, read, word_error, words
from .training import outputs, train

HIDDEN, WINDOW, RATE, DECAY, TEMPERATURE = 1000, 48, 3e-3, 0.01, 1.0
POOL_SEED, TEST_SEED = 1, 3

Size = Mapping[str, int]  # words with labels, in the pool and of the test; epochs and rows of a batch


class Windows(nn.Module):
    """Words `[n, 1, h, w]` to windows of their half, `[n, w // 4 - 1, h // 2 * width]`, every second column."""

    def __init__(self, width: int = WINDOW) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        border, steps = self.width // 2 - 1, x.shape[3] // 4 - 1
        halved = F.pad(F.avg_pool2d(1 - x, 2), (border, border))  # paper is 0: from 1 all units see, mimics died
        return halved[:, 0].unfold(2, self.width, 2)[:, :, :steps].transpose(1, 2).flatten(2)


def student() -> nn.Module:
    inputs, classes = HEIGHT // 2 * WINDOW, len(ALPHABET) + 1
    net = nn.Sequential(Windows(), nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes))
    return rd.convert(net, {"1": rd.LowRank(RANK)}, init="fresh")


def steps_cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """Of logits `[n, t, classes]` and classes `[n, t]`, the mean over all steps."""
    return F.cross_entropy(logits.flatten(0, 1), classes.flatten())


def aligned(said: Tensor, texts: Sequence[str], count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows of `count` words drawn by `seed` that the teacher reads rightly, and the classes of their steps."""
    right = torch.tensor([found == text for found, text in zip(read(said), texts, strict=True)]).nonzero().flatten()
    rows = right[torch.randperm(len(right), generator=torch.Generator().manual_seed(seed))[:count]]
    return rows, said[rows].argmax(2)


@functools.lru_cache(maxsize=2)
def taught(count: int, seed: int) -> tuple[Tensor, list[str], Tensor]:
    """Rendered words, their letters, and what the teacher says of them; kept for the process's next run."""
    x, texts = words(count, seed)
    net = english_g2().to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        said = outputs(net, x, 64).float()
    return x, texts, said


def teach(size: Size) -> dict[str, Any]:
    """The teacher's per cent of words not read letter by letter."""
    _, texts, said = taught(size["test"], TEST_SEED)
    return {"error": word_error(said, texts)}


def learn(target: str, seed: int, size: Size) -> dict[str, Any]:
    """Train a student on `target`: "labels", "mimic" or "kd"; the seed says which words of the pool have labels."""
    x, texts, said = taught(size["pool"], POOL_SEED)
    settings: dict[str, Any] = {"epochs": size["epochs"], "batch": size["batch"]}
    head: nn.Module = nn.Identity()
    if target == "labels":
        rows, targets = aligned(said, texts, size["labelled"], seed)
        x, loss, settings["epochs"] = x[rows], steps_cross_entropy, size["labels"]
    elif target == "mimic":
        stats = rd.distill.LogitStats.of(said)
        targets, loss, head = said, functools.partial(rd.distill.mimic, stats=stats), rd.distill.Unnormalize(stats)
    else:
        targets, loss = said, functools.partial(rd.distill.kd, temperature=TEMPERATURE)
    torch.manual_seed(seed)
    net = student()
    optimizer = adam(net, RATE, DECAY)
    spent = train(net, x, targets, loss=loss, optimizer=optimizer, seed=seed, schedule=rise_and_fall, **settings)
    test, letters, _ = taught(size["test"], TEST_SEED)
    error = word_error(outputs(nn.Sequential(net, head), test, 100), letters)
    return {"error": error, "parameters": parameters(net), **spent}
