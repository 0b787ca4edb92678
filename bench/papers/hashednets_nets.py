"""The nets that HashedNets compares: ReLU nets in which every layer stores `round(in * out / compression)` parameters.

A bias is stored and counts: a layer of K parameters has K - out of them for its weights. Where K cannot be met exactly,
the methods that HashedNets is compared with are rounded up, so none of them stores fewer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rdkernels as rd

Sizes = Sequence[int]
DARK = "-DK"  # what a method's name ends in that learns from a teacher


class RandomEdges(nn.Module):
    """A linear layer of `kept` edges, drawn at random and fixed; the others do not exist ("random edge removal").

    Source: Ciresan et al., "High-performance neural networks for visual object classification", 2011, as a baseline of
    Chen et al. 2015. Weights start uniform by the mean number of edges of an output.
    """

    index: Tensor

    def __init__(self, in_features: int, out_features: int, kept: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        bound = (kept / out_features) ** -0.5
        self.weight = nn.Parameter(torch.empty(kept).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out_features).uniform_(-(in_features**-0.5), in_features**-0.5))
        edges = torch.randperm(in_features * out_features)[:kept].sort().values
        self.register_buffer("index", edges)

    def materialize(self) -> Tensor:
        dense = self.weight.new_zeros(self.out_features * self.in_features).index_copy(0, self.index, self.weight)
        return dense.view(self.out_features, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.materialize(), self.bias)


def stored(in_features: int, out_features: int, compression: float) -> int:
    """Parameters of a layer, its bias among them."""
    return round(in_features * out_features / compression)


def budget(sizes: Sizes, compression: float) -> int:
    """Parameters of a net."""
    return sum(stored(i, o, compression) for i, o in itertools.pairwise(sizes))


def parameters(net: nn.Module) -> int:
    """What is trained, and stored: everything else follows from a seed."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def stack(sizes: Sizes, layer: Callable[[int, int], nn.Module]) -> nn.Sequential:
    """Layers of these sizes with ReLU between them."""
    modules: list[nn.Module] = []
    for i, o in itertools.pairwise(sizes):
        modules += [layer(i, o), nn.ReLU()]
    return nn.Sequential(*modules[:-1])


def hashed(sizes: Sizes, kept: Sequence[int], granule: str = "element") -> nn.Sequential:
    """Hashed layers of `kept` parameters, their biases among them, up to the size of a slot; the last by elements."""
    net, specs = stack(sizes, nn.Linear), {}
    for n, count in enumerate(kept):
        i, o = sizes[n : n + 2]
        specs[str(2 * n)] = rd.Hashed(i * o / (count - o), "element" if n == len(kept) - 1 else granule)
    return rd.convert(net, specs, init="fresh")  # type: ignore[return-value]


def low_rank(in_features: int, out_features: int, kept: int, side: str) -> nn.Module:
    """`W = up @ down` with one factor random and fixed, the other trained; `side` of the trained one: "out" or "small".

    "out" is Denil et al. 2013, after whom HashedNets compares: a fixed dictionary of the inputs, `down`. "small" trains
    the factor on the layer's smaller side, which gives the highest rank that `kept` parameters can.
    """
    trained = "out" if side == "out" or out_features < in_features else "in"
    rank = math.ceil((kept - out_features) / (out_features if trained == "out" else in_features))
    layer = rd.nn.LowRankLinear(in_features, out_features, rank=max(1, rank))
    (layer.down if trained == "out" else layer.up).requires_grad_(False)
    return layer


def small(sizes: Sizes, kept: int) -> nn.Sequential:
    """The dense net of as many hidden layers, all of one width: the narrowest with at least `kept` parameters."""
    count = len(sizes) - 2

    def total(width: int) -> int:
        own = [sizes[0], *[width] * count, sizes[-1]]
        return sum((i + 1) * o for i, o in itertools.pairwise(own))

    width = next(w for w in range(1, max(sizes) + 1) if total(w) >= kept)
    return stack([sizes[0], *[width] * count, sizes[-1]], nn.Linear)


def build(method: str, sizes: Sizes, compression: float, seed: int, granule: str = "element") -> nn.Sequential:
    """The net of a method, drawn by `seed`; "-DK" is the same net as without, "dense" has no compression."""
    torch.manual_seed(seed)
    layers: dict[str, Callable[[int, int, int], nn.Module]] = {
        "RER": lambda i, o, kept: RandomEdges(i, o, kept - o),
        "LRD": lambda i, o, kept: low_rank(i, o, kept, "out"),
        "LRD-small": lambda i, o, kept: low_rank(i, o, kept, "small"),
    }
    name = method.removesuffix(DARK)
    if name == "dense":
        return stack(sizes, nn.Linear)
    if name == "NN":
        return small(sizes, budget(sizes, compression))
    if name == "HashedNet":
        return hashed(sizes, [stored(i, o, compression) for i, o in itertools.pairwise(sizes)], granule)
    return stack(sizes, lambda i, o: layers[name](i, o, stored(i, o, compression)))


def inflated(storage: int, width: int, sizes: Sizes, seed: int) -> nn.Sequential:
    """A hashed net of one hidden layer of `width` with as many parameters as the dense one of `storage` units."""
    torch.manual_seed(seed)
    first, last = sizes[0], sizes[-1]
    if width == storage:
        return stack([first, width, last], nn.Linear)
    return hashed([first, width, last], [(first + 1) * storage, (storage + 1) * last])


def dark_loss(temperature: float, share: float) -> Callable[[Tensor, Tensor], Tensor]:
    """`(1 - share)` of the labels' cross-entropy and `share` of `rdkernels.distill.kd`; targets as `dark_targets`."""

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        soft = rd.distill.kd(logits, targets[:, 1:], temperature)
        return (1 - share) * F.cross_entropy(logits, targets[:, 0].long()) + share * soft

    return loss


def dark_targets(labels: Tensor, logits: Tensor) -> Tensor:
    """A teacher's logits behind each label: `[n, 1 + classes]`."""
    return torch.cat([labels[:, None].to(logits.dtype), logits], 1)
