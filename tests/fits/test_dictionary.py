"""Dictionaries: kernel ridge regression by its definition, index sets, subnormals, the covariance they learn from."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rdkernels.fits import Dictionary, WeightInputCovariance
from rdkernels.fits.dictionary import KINDS, clean, cosines, gaussian, grid, index_sets, ridge_predictor

SE = dict(topology=(7, 9), sigma=1.3, ridge=0.2, columns=3, seed=4)


def kernel(sigma: float, height: int, width: int) -> torch.Tensor:
    """The squared exponential of a grid, entry by entry."""
    points = [(i, j) for i in range(height) for j in range(width)]
    values = [[math.exp(-((a - c) ** 2 + (b - d) ** 2) / (2 * sigma**2)) for c, d in points] for a, b in points]
    return torch.tensor(values, dtype=torch.float64)


def test_squared_exponential_is_kernel_ridge_regression() -> None:
    made = Dictionary.of(63, 9, "se", 0.25, **SE)
    k = kernel(1.3, 7, 9)
    for u, alpha in zip(made.build().mT, made.index_sets(), strict=True):
        exact = k[:, alpha] @ torch.linalg.inv(k[alpha][:, alpha] + 0.2 * torch.eye(len(alpha), dtype=torch.float64))
        torch.testing.assert_close(u, exact, rtol=1e-10, atol=1e-12)


def test_raw_atoms_are_the_kernels_columns() -> None:
    made = Dictionary.of(63, 9, "se", 0.25, **SE, whiten=False)
    k = kernel(1.3, 7, 9)
    assert torch.allclose(made.build(), torch.stack([k[alpha] for alpha in made.index_sets()]), rtol=1e-13, atol=0)


def test_smooth_weights_are_predicted() -> None:
    """What the paper is about: a smooth filter from a quarter of its values, noise not."""
    made = Dictionary.of(400, 1, "se", 0.25, topology=(20, 20), sigma=2.0, ridge=1e-3, seed=1)
    x, y = grid((20, 20)).T
    smooth, noise = torch.sin(x / 4) * torch.cos(y / 5), torch.randn(400, dtype=torch.float64)
    (alpha,), (u,) = made.index_sets(), made.build().mT
    errors = [float((w - u @ w[alpha]).norm() / w.norm()) for w in (smooth, noise)]
    assert errors[0] < 0.15 and errors[1] > 0.7


@pytest.mark.parametrize("kind", ["emp", "emp2"])
def test_empirical_ridge_is_relative_to_the_mean_variance(kind: str) -> None:
    data = torch.randn(500, 12, dtype=torch.float64) @ torch.randn(12, 12, dtype=torch.float64)
    made = Dictionary.of(12, 4, kind, 0.5, columns=2, ridge=0.01, seed=3)
    cov = data.T.cov()
    for u, alpha in zip(made.build(cov).mT, made.index_sets(), strict=True):
        level = 0.01 * cov.diagonal().mean() * torch.eye(6, dtype=torch.float64)
        torch.testing.assert_close(u, cov[:, alpha] @ torch.linalg.inv(cov[alpha][:, alpha] + level))
    torch.testing.assert_close(made.build(cov), made.build(1e6 * cov))  # the data's scale does not matter


def test_singular_kernel_names_ridge() -> None:
    rows = torch.ones(2, 5, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"ridge must be larger.*got 0"):
        ridge_predictor(rows, torch.tensor([1, 3]), 0)
    assert ridge_predictor(rows, torch.tensor([1, 3]), 0.1).isfinite().all()


#: Of seed 2026: two index sets of 6 from 25, and three rows of two normal values.
GOLDEN = [[0, 1, 3, 8, 16, 21], [1, 2, 3, 10, 12, 13]]
GOLDEN_GAUSS = [
    [0.5939471174964072, -0.16452703161177165],
    [1.0590760044042542, -0.019694918551287202],
    [0.9031607128672041, -0.23089237916255262],
]


@given(st.integers(1, 60), st.integers(1, 6), st.integers(0, 2**32 - 1), st.data())
def test_index_sets_are_sets(size: int, columns: int, seed: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, size))
    found = index_sets(size, count, columns, seed)
    assert found.shape == (columns, count) and found.dtype == torch.int64
    assert (found.diff(dim=1) > 0).all() and int(found.min()) >= 0 and int(found.max()) < size
    assert torch.equal(found, index_sets(size, count, columns, seed))
    assert torch.equal(found, index_sets(size, count, columns + 1, seed)[:columns])  # a stream of its own each


def test_index_sets_are_uniform_and_differ() -> None:
    found = index_sets(20, 5, 4000, 7)
    hits = torch.bincount(found.flatten(), minlength=20).double()
    assert (hits - 1000).abs().max() < 5 * (4000 * 0.25 * 0.75) ** 0.5
    assert len({tuple(row) for row in found.tolist()}) > 3000
    assert not torch.equal(found, index_sets(20, 5, 4000, 8))


def test_index_sets_are_a_file_format() -> None:
    """These values are in every state dict that holds a recipe: they may never change."""
    assert index_sets(25, 6, 2, 2026).tolist() == GOLDEN
    torch.testing.assert_close(gaussian(3, 2, 1, 2026)[0], torch.tensor(GOLDEN_GAUSS, dtype=torch.float64))


def test_gaussian() -> None:
    values = gaussian(200, 100, 5, 1)
    assert values.shape == (5, 200, 100)
    assert abs(float(values.mean())) < 1e-3 and abs(float(values.var()) * 200 - 1) < 0.02
    assert abs(float((values * 200**0.5).pow(4).mean()) - 3) < 0.1  # normal, not uniform
    flat = values.transpose(0, 1).reshape(200, 500)
    worst = (flat.T @ flat - torch.eye(500)).abs().max()
    assert worst < 0.6  # atoms of all columns are independent: 5 sigma of 1/sqrt(200) is 0.35, unit lengths vary


def test_cosines_are_the_lowest_and_orthonormal() -> None:
    u = cosines((6, 4), 24)
    torch.testing.assert_close(u.T @ u, torch.eye(24, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.allclose(u[:, 0], torch.full((24,), 24**-0.5, dtype=torch.float64))
    i = torch.arange(6, dtype=torch.float64).repeat_interleave(4)
    second = torch.cos(math.pi * (i + 0.5) / 6) * (2 / 6 / 4) ** 0.5
    assert torch.allclose(u[:, 1], second)
    assert torch.equal(cosines((6, 4), 5), u[:, :5])


def test_channels_are_blocks() -> None:
    """Zero between channels: one block for each, of index sets tied across them."""
    made = Dictionary.of(75, 8, "se", 0.25, topology=(3, 5, 5), columns=2)
    assert (made.channels, made.positions, made.atoms, made.per_unit) == (3, (5, 5), 6, 18)
    assert torch.equal(made.build(), Dictionary.of(25, 8, "se", 0.25, topology=(5, 5), columns=2).build())
    assert (
        Dictionary.of(75, 8, "emp", 0.25, topology=(3, 5, 5)).per_unit == 19
    )  # not tied: the covariance has no blocks


def test_a_tensor_gives_its_atoms() -> None:
    atoms = torch.randn(10, 7, dtype=torch.float64)
    made = Dictionary.of(10, 4, atoms, 0.3, columns=2, seed=1)
    for u, chosen in zip(made.build(atoms).mT, made.index_sets(7), strict=True):
        assert torch.equal(u, atoms[:, chosen])
    assert torch.equal(Dictionary.of(10, 4, atoms, 0.7).build(atoms)[0].T, atoms)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_no_subnormals(dtype: torch.dtype) -> None:
    made = Dictionary.of(784, 500, "se", 0.05, topology=(28, 28), columns=10, whiten=False).build()
    cleaned = clean(made, dtype)
    size = cleaned.double().abs()
    assert cleaned.dtype == dtype and size[size > 0].min() >= torch.finfo(dtype).tiny
    gone = (cleaned == 0) & (made != 0)
    assert gone.any() and made[gone].abs().max() <= max(1e-20, torch.finfo(dtype).tiny)
    if dtype == torch.float32:  # negative control: there were some
        raw = made.float().abs()
        assert ((raw > 0) & (raw < torch.finfo(dtype).tiny)).any()


def test_random_state_and_default_device_are_left_alone() -> None:
    before = torch.get_rng_state()
    with torch.device("meta"):
        made = [Dictionary.of(16, 4, kind, 0.5, topology=(4, 4)).build(torch.eye(16, device="cpu")) for kind in KINDS]
    assert {t.device.type for t in made} == {"cpu"} and torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (dict(fraction=0), r"fraction must be in \(0, 1\], got 0"),
        (dict(fraction=1.5), r"fraction must be in \(0, 1\], got 1.5"),
        (dict(fraction=0.01), r"fraction must be at least half of one of the 16 positions, got 0.01"),
        (dict(fraction="a"), r"fraction must be a real number, got str"),
        (dict(columns=0), r"columns must be >= 1, got 0"),
        (dict(columns=9), r"columns must be at most the outputs, 8, got 9"),
        (dict(dictionary="dct", columns=2), r"columns must be 1 with dictionary \"dct\""),
        (dict(dictionary="fourier"), r"dictionary must be one of \['se', .*got 'fourier'"),
        (dict(dictionary=torch.ones(5, 5)), r"dictionary must have shape \[16, atoms\], got \[5, 5\]"),
        (dict(dictionary=torch.ones(16, 2)), r"dictionary must have at least 4 atoms for fraction 0.25, got 2"),
        (dict(dictionary=torch.ones(16, 16).int()), r"dictionary must be a floating Tensor, got torch.int32"),
        (dict(topology=None), r"topology must say how the 16 inputs lie for dictionary \"se\".*got None"),
        (dict(topology=(4, 5)), r"topology must be .* of 16 inputs, got \(4, 5\)"),
        (dict(topology=(2, 2, 2, 2)), r"topology must be .* of 16 inputs, got \(2, 2, 2, 2\)"),
        (dict(topology=16), r"topology must be None or a tuple of sizes, got 16"),
        (dict(topology=(4, 4.0)), r"topology\[1\] must be an int, got 4.0"),
        (dict(dictionary="gauss", topology=(4, 5)), r"topology must be"),
        (dict(ridge=-1), r"ridge must be a finite number >= 0, got -1"),
        (dict(sigma=0), r"sigma must be a finite number > 0, got 0"),
        (dict(whiten=1), r"whiten must be True or False, got 1"),
        (dict(seed=-1), r"seed must be an int in 0"),
    ],
)
def test_errors(change: dict, text: str) -> None:
    arguments = dict(dictionary="se", fraction=0.25, topology=(4, 4)) | change
    with pytest.raises((TypeError, ValueError), match=text):
        Dictionary.of(16, 8, **arguments)


# -- the covariance ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("squared", [False, True])
def test_covariance_of_rows(squared: bool) -> None:
    x = torch.randn(50, 3, 6) + 100
    observer = WeightInputCovariance(nn.Linear(6, 2), squared=squared)
    with observer.attached(layer := nn.Linear(6, 2)):
        layer(x[:20])
        layer(input=x[20:])
    rows = x.reshape(-1, 6).double()
    exact = (rows**2 if squared else rows).T.cov(correction=0)
    assert observer.count == 150
    torch.testing.assert_close(observer.covariance(), exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize("padding", ["same", (2, 1)])
def test_covariance_of_patches(mode: str, padding) -> None:
    """What a filter's weights meet: by a convolution with every one-hot filter."""
    stride = 1 if padding == "same" else 2
    conv = nn.Conv2d(2, 3, (3, 2), stride, padding, padding_mode=mode, dilation=(1, 2), dtype=torch.float64)
    x = torch.randn(5, 2, 9, 8, dtype=torch.float64)
    observer = WeightInputCovariance(conv)
    observer.update(x)
    hot = nn.Conv2d(2, 12, (3, 2), stride, padding, (1, 2), bias=False, padding_mode=mode, dtype=torch.float64)
    with torch.no_grad():
        hot.weight.copy_(torch.eye(12).view(12, 2, 3, 2))
        patches = hot(x).transpose(0, 1).flatten(1)
    torch.testing.assert_close(observer.covariance(), patches.cov(correction=0))
    one = WeightInputCovariance(conv)
    one.update(x[0])
    assert one.count * 5 == observer.count


def test_covariance_in_blocks(monkeypatch) -> None:
    x = torch.randn(40, 6)
    whole, parts = (WeightInputCovariance(nn.Linear(6, 1)) for _ in range(2))
    whole.update(x)
    monkeypatch.setattr("rdkernels.fits.covariance._BLOCK", 50)
    parts.update(x)
    torch.testing.assert_close(parts.covariance(), whole.covariance(), rtol=1e-12, atol=1e-12)


def test_covariance_errors() -> None:
    with pytest.raises(TypeError, match=r"module must be an nn.Conv2d or nn.Linear, got ReLU"):
        WeightInputCovariance(nn.ReLU())
    with pytest.raises(ValueError, match=r"module must have groups 1, got 2"):
        WeightInputCovariance(nn.Conv2d(2, 2, 1, groups=2))
    observer = WeightInputCovariance(nn.Linear(3, 1))
    with pytest.raises(ValueError, match=r"has seen no input"):
        observer.covariance()
    with pytest.raises(ValueError, match=r"x must be \[..., in\] with 3 channels, got \[2, 4\]"):
        observer.update(torch.ones(2, 4))
    with pytest.raises(TypeError, match=r"x must be a floating Tensor, got torch.int64"):
        observer.update(torch.ones(2, 3).long())
    observer.update(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"only one value of every input"):
        observer.covariance()
    observer.update(torch.full((1, 3), math.inf))
    with pytest.raises(ValueError, match=r"not finite"):
        observer.covariance()
