"""What every data set is."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images of one channel with a class each, in two parts that share none."""

    name: str
    train_x: Tensor  # [n, 1, height, width], or [n, features] after `flat`; float32, in [0, 1] until `standardised`
    train_y: Tensor  # [n] int64
    test_x: Tensor
    test_y: Tensor

    @property
    def features(self) -> int:
        """Values of an image."""
        return self.train_x[0].numel()

    @property
    def classes(self) -> int:
        return 1 + int(max(self.train_y.max(), self.test_y.max()))

    def standardised(self) -> Dataset:
        """Both parts less the mean of the training pixels, over their standard deviation."""
        deviation, mean = torch.std_mean(self.train_x)
        return replace(self, train_x=(self.train_x - mean) / deviation, test_x=(self.test_x - mean) / deviation)

    def flat(self) -> Dataset:
        """Every image as one row."""
        return replace(self, train_x=self.train_x.flatten(1), test_x=self.test_x.flatten(1))

    def first(self, train: int, test: int) -> Dataset:
        """The first images of each part, or all where there are fewer."""
        return Dataset(self.name, self.train_x[:train], self.train_y[:train], self.test_x[:test], self.test_y[:test])
