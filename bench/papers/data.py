"""The data of the experiments: `rdkernels.datasets`, looking in the repository's `.data`; digits without it."""

from __future__ import annotations

import torch

from rdkernels import datasets

from . import fetch
from .fetch import CACHE

__all__ = ["CACHE", "digits", "load"]


def digits() -> datasets.Dataset:
    """scikit-learn's 1,797 digits of 8 x 8: every fifth one is a test image."""
    from sklearn.datasets import load_digits

    x, y = (torch.from_numpy(a) for a in load_digits(return_X_y=True))
    held_out, x = torch.arange(len(y)) % 5 == 0, x.float().view(-1, 1, 8, 8) / 16
    return datasets.Dataset("digits", x[~held_out], y[~held_out].long(), x[held_out], y[held_out].long())


def load() -> datasets.Dataset:
    """Fashion-MNIST from disk, else from Debian's package, else the digits; it says which where it is not the first."""
    why = fetch.fetch(fetch.FASHION)
    if why is None:
        return datasets.fashion_mnist()
    print(
        f"Debian's package {fetch.FASHION.name} cannot be fetched: {why}\n"
        f"Falling back to scikit-learn's digits (64 inputs): the figures below are not those of Fashion-MNIST.\n"
        f"With it: {fetch.FASHION.command}, or set RDKERNELS_DATA to a folder with its four .gz files."
    )
    return digits()
