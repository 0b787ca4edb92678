"""The data of the experiments: Fashion-MNIST from disk or Debian's package, scikit-learn's digits without it."""

from __future__ import annotations

import gzip
import os
import pathlib
import struct
import subprocess
from dataclasses import dataclass

import torch
from torch import Tensor

PACKAGE = "dataset-fashion-mnist"
SYSTEM = pathlib.Path("/usr/share/datasets/fashion-mnist")
CACHE = pathlib.Path(__file__).resolve().parents[2] / ".data"
FILES = {split: (f"{split}-images-idx3-ubyte.gz", f"{split}-labels-idx1-ubyte.gz") for split in ("train", "t10k")}


@dataclass(frozen=True)
class Dataset:
    """Images as rows of standardised float32 features, labels as int64."""

    name: str
    train_x: Tensor  # [n, features]
    train_y: Tensor  # [n]
    test_x: Tensor
    test_y: Tensor

    @property
    def features(self) -> int:
        return self.train_x.shape[1]


def read_idx(path: pathlib.Path) -> Tensor:
    """The uint8 array of a gzipped IDX file.

    Raises:
        ValueError: not an IDX file of unsigned bytes, or of another length than its header says.
    """
    raw = gzip.decompress(path.read_bytes())
    zero, kind, dims = struct.unpack_from(">HBB", raw) if len(raw) >= 4 else (1, 0, 0)
    header = 4 + 4 * dims
    if zero != 0 or kind != 8 or len(raw) < header:
        raise ValueError(f"{path} is not an IDX file of unsigned bytes")
    shape = struct.unpack_from(f">{dims}I", raw, 4)
    if len(raw) - header != torch.Size(shape).numel():
        raise ValueError(f"{path} holds {len(raw) - header} values, its header says {list(shape)}")
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=header).reshape(shape)


def _has_files(folder: pathlib.Path) -> bool:
    return all((folder / name).is_file() for pair in FILES.values() for name in pair)


def find() -> pathlib.Path | None:
    """The first folder with Fashion-MNIST: `$RDKERNELS_DATA` (or its `fashion-mnist`), the system's, the cache."""
    own = os.environ.get("RDKERNELS_DATA")
    folders = [pathlib.Path(own), pathlib.Path(own) / "fashion-mnist"] if own else []
    return next((f for f in (*folders, SYSTEM, CACHE / SYSTEM.relative_to("/")) if _has_files(f)), None)


def fetch() -> pathlib.Path | None:
    """Fashion-MNIST from Debian's package, unpacked into the repository's `.data`; None, saying why, where that fails.

    No root is needed: apt keeps its lists in a folder of our own where the system's do not know the package.
    """
    own = [f"-oDir::State={CACHE}/apt/state", f"-oDir::Cache={CACHE}/apt/cache", "-oDebug::NoLocking=1"]
    download = ["apt-get", "-q", "download", PACKAGE]
    why = ""
    for commands in ([download], [["apt-get", "-q", *own, "update"], ["apt-get", *own, *download[1:]]]):
        try:
            for folder in ("state/lists/partial", "cache/archives/partial"):
                (CACHE / "apt" / folder).mkdir(parents=True, exist_ok=True)
            for command in commands:
                subprocess.run(command, cwd=CACHE, check=True, capture_output=True, text=True, timeout=300)
            archive = max(CACHE.glob(f"{PACKAGE}_*.deb"), key=lambda path: path.stat().st_mtime)
            subprocess.run(["dpkg", "-x", str(archive), str(CACHE)], check=True, capture_output=True, text=True)
            archive.unlink()
            return find()
        except subprocess.CalledProcessError as error:
            why = (error.stderr or error.stdout or str(error)).strip().splitlines()[-1]
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            why = str(error)
    print(f"Debian's package {PACKAGE} cannot be fetched: {why}")
    return None


def fashion_mnist(folder: pathlib.Path) -> Dataset:
    """60,000 + 10,000 images of 28 x 28, standardised by the mean and deviation of the training set's pixels.

    Source: Xiao, Rasul, Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms",
    2017, as Debian ships it (MIT licence).
    """
    arrays = [read_idx(folder / name) for pair in (FILES["train"], FILES["t10k"]) for name in pair]
    shapes = [list(a.shape) for a in arrays]
    if shapes != [[60000, 28, 28], [60000], [10000, 28, 28], [10000]]:
        raise ValueError(f"{folder} does not hold Fashion-MNIST: shapes {shapes}")
    train, train_y, test, test_y = arrays
    return _standardised("Fashion-MNIST", train.flatten(1).float(), train_y, test.flatten(1).float(), test_y)


def digits() -> Dataset:
    """scikit-learn's 1,797 digits of 8 x 8: every fifth one is a test image."""
    from sklearn.datasets import load_digits

    x, y = (torch.from_numpy(a) for a in load_digits(return_X_y=True))
    held_out = torch.arange(len(y)) % 5 == 0
    return _standardised("digits", x[~held_out].float(), y[~held_out], x[held_out].float(), y[held_out])


def _standardised(name: str, train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor) -> Dataset:
    deviation, mean = torch.std_mean(train_x)
    return Dataset(name, (train_x - mean) / deviation, train_y.long(), (test_x - mean) / deviation, test_y.long())


def load() -> Dataset:
    """Fashion-MNIST from disk, else from Debian's package, else the digits; it says which where it is not the first."""
    folder = find()
    if folder is None:
        print(f"Fashion-MNIST is not on this machine; fetching Debian's package {PACKAGE}", flush=True)
        folder = fetch()
    if folder is not None:
        return fashion_mnist(folder)
    print(
        f"Falling back to scikit-learn's digits (64 inputs): the figures below are not those of Fashion-MNIST.\n"
        f"With it: apt-get install {PACKAGE}, or set RDKERNELS_DATA to a folder with its four .gz files."
    )
    return digits()
