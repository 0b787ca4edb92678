"""Digits made harder: turned, or before a noisy background."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from .dataset import Dataset
from .packaged import mnist_10k


def mnist_rotated(seed: int = 0) -> Dataset:
    """`mnist_10k`, every image turned about its centre by an angle uniform in [0, 2 pi), drawn from `seed`.

    Pixels between the original ones are interpolated bilinearly; outside is black.

    Source: "mnist-rot" of Larochelle, Erhan, Courville, Bergstra, Bengio, "An Empirical Evaluation of Deep
    Architectures on Problems with Many Factors of Variation", ICML 2007, which does not say how it interpolates. That
    set has 12,000 + 50,000 images, made from all of MNIST.

    Raises:
        MissingData, ValueError: as `mnist_10k`.
    """
    generator = torch.Generator().manual_seed(seed)

    def turned(x: Tensor) -> Tensor:
        angles = torch.rand(len(x), generator=generator, dtype=torch.float32, device="cpu")
        return rotated(x, 2 * math.pi * angles)

    digits = mnist_10k()
    return replace(digits, name="MNIST-10k, rotated", train_x=turned(digits.train_x), test_x=turned(digits.test_x))


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Images `[n, c, h, w]`, each turned about its centre by its angle `[n]`, in radians, anticlockwise as seen."""
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    rows = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)  # [n, 2, 3]
    grid = nn.functional.affine_grid(rows, list(x.shape), align_corners=False)
    return nn.functional.grid_sample(x, grid, align_corners=False).clamp(0, 1)


def mnist_random_background(seed: int = 0) -> Dataset:
    """`mnist_10k` before noise: every pixel is the brighter of the digit's and one of 0 to 255, uniform, from `seed`.

    Source: "mnist-back-rand" of the paper that `mnist_rotated` names. It says that the background is uniform in 0 to
    255; that the brighter of the two is seen is ours, as it does not say how digit and background are joined.

    Raises:
        MissingData, ValueError: as `mnist_10k`.
    """
    generator = torch.Generator().manual_seed(seed)

    def noisy(x: Tensor) -> Tensor:
        return x.maximum(torch.randint(256, x.shape, generator=generator, device="cpu").float() / 255)

    digits = mnist_10k()
    name = "MNIST-10k, random background"
    return replace(digits, name=name, train_x=noisy(digits.train_x), test_x=noisy(digits.test_x))
