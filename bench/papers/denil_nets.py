"""The nets of Denil et al.: hidden layers with a fixed dictionary each, and how each is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rdkernels as rd

from .denil_features import picture, predictability, smooth_predictability
from .training import error_rate, train

HIDDEN, COLUMNS, CONV_COLUMNS = 500, 10, 5
#: Dictionaries of the two hidden layers. LowRank learns both factors, of as many values; the dense net is `nokernel`.
PAIRS = {
    "SE-Emp": ("se", "emp"),
    "SE-Emp2": ("se", "emp2"),
    "Emp-Emp": ("emp", "emp"),
    "RandFixU": ("gauss", "gauss"),
    "RandCon": ("identity", "identity"),
}
DENSE, LOW_RANK = "nokernel", "LowRank"
RIDGE = {"se": 0.1, "emp": 1e-3, "emp2": 1e-3}  # of the mean of the kernel's diagonal
RATE, MOMENTUM, BATCH, DROP_AT, DROP_BY = 0.1, 0.9, 100, 0.75, 0.2
PRETRAIN_EPOCHS, PRETRAIN_RATE = 2, 0.01
CONV_RATE, CONV_EPOCHS, CONV_IMAGES = 0.05, 4, 20_000


def spec(dictionary: str, fraction: float, seed: int, **more: Any) -> rd.Predicted:
    """With the paper's ridge; layers of one seed draw different index sets, by their names."""
    if dictionary in RIDGE:
        more["ridge"] = RIDGE[dictionary]
    return rd.Predicted(fraction, dictionary, seed=seed, **more)


def mlp(sizes: tuple[int, int], classes: int = 10) -> nn.Sequential:
    """inputs-hidden-hidden-classes with sigmoids; weights by Glorot, biases 0."""
    inputs, hidden = sizes
    layers = [nn.Linear(inputs, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, classes)]
    for layer in layers:
        glorot(layer)
    return nn.Sequential(layers[0], nn.Sigmoid(), layers[1], nn.Sigmoid(), layers[2])


@torch.no_grad()
def glorot(layer: Any) -> None:
    """Bring the composed weight to Glorot's standard deviation, every factor by the same; the bias to 0."""
    factors = [p for name, p in layer.named_parameters() if name != "bias"]
    if isinstance(layer, nn.Linear):
        nn.init.normal_(layer.weight)
    weight = layer.weight if isinstance(layer, nn.Linear) else layer.materialize()
    wanted = (2 / (layer.in_features + layer.out_features)) ** 0.5
    for factor in factors:
        factor.mul_(float(wanted / weight.std()) ** (1 / len(factors)))
    nn.init.zeros_(layer.bias)


def equal_rank(inputs: int, outputs: int, fraction: float) -> int:
    """The rank at which two learned factors hold `fraction` of the weights."""
    return max(1, round(fraction * inputs * outputs / (inputs + outputs)))


def build(name: str, fraction: float, x: Tensor, seed: int, *, pretrain: bool, whiten: bool = True) -> nn.Sequential:
    """The sigmoid net with the two hidden layers of `name`; where `pretrain`, the first one learns to encode `x` first.

    The second layer's covariance is that of the first layer's outputs, so pretraining comes between the two. `whiten`
    False takes SE's kernel itself as the first dictionary, as the authors' later code does.
    """
    torch.manual_seed(seed)
    net = mlp((x.shape[1], HIDDEN))
    side = round(x.shape[1] ** 0.5)
    specs: list[Any] = [None, None]
    if name == LOW_RANK:
        specs = [rd.LowRank(rank=equal_rank(n, HIDDEN, fraction)) for n in (x.shape[1], HIDDEN)]
    elif name != DENSE:
        first, second = PAIRS[name]
        pixels: dict[str, Any] = {"topology": (side, side), "whiten": whiten} if first == "se" else {}
        specs = [spec(first, fraction, seed, columns=COLUMNS, **pixels), spec(second, fraction, seed, columns=COLUMNS)]
    for position, one in zip("02", specs, strict=True):
        if one is not None:
            rd.convert(net, {position: one}, init="fresh", data=x.split(2000))
            glorot(net.get_submodule(position))
        if position == "0" and pretrain:
            encode(net[0], x, seed)
    return net


def encode(layer: nn.Module, x: Tensor, seed: int) -> None:
    """Train `layer` as the encoder of a sigmoid autoencoder with a dense decoder, which is thrown away."""
    decoder = nn.Linear(HIDDEN, x.shape[1])
    glorot(decoder)
    net = nn.Sequential(layer, nn.Sigmoid(), decoder)
    settings: dict[str, Any] = {"epochs": PRETRAIN_EPOCHS, "batch": BATCH, "seed": seed}
    train(net, x, x, optimizer=sgd(net, PRETRAIN_RATE), loss=cross_entropy_of_pixels, **settings)


def cross_entropy_of_pixels(logits: Tensor, pixels: Tensor) -> Tensor:
    """Summed over an image's pixels, the mean over the batch."""
    return F.binary_cross_entropy_with_logits(logits, pixels, reduction="sum") / len(pixels)


def sgd(net: nn.Module, rate: float, by_atoms: bool = False) -> torch.optim.SGD:
    """One rate for all; or, `by_atoms`, for coefficients the one by which W moves as far as the dense layer's would.

    A step along the gradient G of W moves W by `U U^T G`, on average `||U||_F^2 / n_v` of the dense step: the rate is
    divided by that. With atoms of unit length a random dictionary moves W by `n_a / n_v` of it.
    """
    groups = []
    for layer in net:  # type: ignore[attr-defined]
        gain = layer.dictionary.inputs / energy(layer) if by_atoms and hasattr(layer, "coefficients") else 1.0
        for name, parameter in layer.named_parameters():
            groups.append({"params": [parameter], "lr": rate * (gain if name == "coefficients" else 1.0)})
    return torch.optim.SGD(groups, rate, momentum=MOMENTUM, fused=True)


def energy(layer: Any) -> float:
    """`||U||_F^2` of a column, the mean over columns."""
    if layer.dictionary.kind == "identity":
        return float(layer.dictionary.per_unit)
    return float(layer.atoms.square().sum((1, 2)).mean()) * layer.dictionary.channels


def schedule(done: float) -> float:
    return 1.0 if done < DROP_AT else DROP_BY


def counts(net: nn.Module) -> dict[str, int]:
    """Trained and stored values; stored ones include dictionaries that no seed makes again, bytes over 4."""
    size = rd.size(net)
    return {"trained": size.trained // 4, "stored": -(-size.stored // 4)}


def train_mlp(
    name: str,
    fraction: float,
    seed: int,
    epochs: int,
    *,
    pretrain: bool = False,
    whiten: bool = True,
    images: Sequence[int] | None = None,
    by_atoms: bool = False,
    draws: int = 0,
) -> dict[str, Any]:
    """One net of figure 4: its test error in per cent, its size; with `draws`, its first layer's features."""
    data = rd.datasets.fashion_mnist().flat()
    data = data.first(*images) if images else data
    net = build(name, fraction, data.train_x, seed, pretrain=pretrain, whiten=whiten)
    settings: dict[str, Any] = {"epochs": epochs, "batch": BATCH, "seed": seed, "schedule": schedule}
    optimizer = sgd(net, RATE, by_atoms)
    used = train(net, data.train_x, data.train_y, optimizer=optimizer, **settings)
    found: dict[str, Any] = {"error": error_rate(net, data.test_x, data.test_y), **counts(net), **used}
    if draws:
        layer: Any = net[0]
        filters = layer.weight.detach()
        side = round(filters.shape[1] ** 0.5)
        scores = {**predictability(filters, draws), **smooth_predictability(filters, (side, side))}
        found["features"] = {"shape": list(filters.shape), **scores, "picture": picture(filters, (side, side))}
    return found


def convnet(side: int = 28, channels: tuple[int, int] = (16, 32), hidden: int = 200) -> nn.Sequential:
    """Two 5x5 convolutions with pooling, one hidden linear layer."""
    one, two = channels
    features = [nn.Conv2d(1, one, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    features += [nn.Conv2d(one, two, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*features, nn.Linear(two * (side // 4) ** 2, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def build_convnet(fraction: float, seed: int) -> nn.Sequential:
    """The convnet with SE in every hidden layer, block diagonal over channels; fraction 1 is the dense net."""
    torch.manual_seed(seed)
    net = convnet()
    if fraction < 1:
        specs = {
            "0": spec("se", fraction, seed),
            "3": spec("se", fraction, seed),
            "7": spec("se", fraction, seed, columns=CONV_COLUMNS, topology=(32, 7, 7)),
        }
        rd.convert(net, specs, init="fresh")
    return net


def train_convnet(fraction: float, seed: int, epochs: int, images: Sequence[int]) -> dict[str, Any]:
    """One net of figure 5: its test error in per cent and its size."""
    data = rd.datasets.fashion_mnist().standardised().first(*images)
    net = build_convnet(fraction, seed)
    settings: dict[str, Any] = {"epochs": epochs, "batch": BATCH, "seed": seed, "schedule": schedule}
    used = train(net, data.train_x, data.train_y, optimizer=sgd(net, CONV_RATE), **settings)
    return {"error": error_rate(net, data.test_x, data.test_y), **counts(net), **used}
