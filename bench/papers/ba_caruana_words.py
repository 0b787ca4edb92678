"""Rendered words for `ba_caruana.py`: a pretrained reader taught to a shallow net that sees a window at a time.

The teacher is `english_g2`, a convnet with two bidirectional LSTMs, as it comes, in bfloat16. The student is the
paper's own, a frame classifier: at every fourth column one hidden layer of ReLU units looks at a window of the word at
half its resolution, and says one of 97 classes. The bottleneck is below it. Labels are the letters alone, learnt by
CTC; the teacher's logits say a class for every column.
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
from .pretrained import ALPHABET, HEIGHT, english_g2, word_error, words
from .training import outputs, train

HIDDEN, WINDOW, RATE, DECAY, TEMPERATURE = 1000, 48, 2e-3, 0.01, 1.0
LONGEST = 9  # letters of a rendered word
POOL_SEED, TEST_SEED = 1, 2

Size = Mapping[str, int]  # words with labels, in the pool and of the test; epochs and rows of a batch


class Windows(nn.Module):
    """Words `[n, 1, h, w]` to windows of their half, `[n, w // 4 - 1, h // 2 * width]`, every second column."""

    def __init__(self, width: int = WINDOW) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        border, steps = self.width // 2 - 1, x.shape[3] // 4 - 1
        halved = F.pad(F.avg_pool2d(x, 2), (border, border), value=1.0)  # paper is 1
        return halved[:, 0].unfold(2, self.width, 2)[:, :, :steps].transpose(1, 2).flatten(2)


def student() -> nn.Module:
    inputs, classes = HEIGHT // 2 * WINDOW, len(ALPHABET) + 1
    net = nn.Sequential(Windows(), nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes))
    return rd.convert(net, {"1": rd.LowRank(RANK)}, init="fresh")


def codes(texts: Sequence[str]) -> Tensor:
    """CTC's targets `[n, LONGEST]`: the classes of the letters, then zeros."""
    rows = [[ALPHABET.index(letter) + 1 for letter in text] for text in texts]
    return torch.tensor([row + [0] * (LONGEST - len(row)) for row in rows])


def ctc(logits: Tensor, targets: Tensor) -> Tensor:
    """CTC's loss of logits `[n, t, classes]`, a mean over letters and words."""
    steps = torch.full((len(logits),), logits.shape[1])
    return F.ctc_loss(logits.log_softmax(2).transpose(0, 1), targets, steps, (targets > 0).sum(1))


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
        rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[: size["labelled"]]
        x, targets, loss = x[rows], codes([texts[row] for row in rows.tolist()]), ctc
        settings = {"epochs": size["labels"], "batch": size["labels_batch"]}
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
