"""The streaming covariance of a layer's inputs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import rdkernels as rd
from rdkernels.fits import InputCovariance, calibrate
from rdkernels.fits.covariance import roots


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def vectors(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.integers(1, 5), st.integers(1, 6))
def test_stream_of_maps(batches: list[int], c: int, side: int) -> None:
    """However the data come in batches: the uncentred covariance of all positions."""
    x = normal(sum(batches), c, side, side + 1) + 3
    covariance = InputCovariance(c)
    for part in x.split(batches):
        covariance.update(part.contiguous(memory_format=torch.channels_last) if len(part) else part)
    rows = vectors(x)
    assert covariance.count == len(rows)
    if not len(rows):
        with pytest.raises(ValueError, match="has seen no input"):
            covariance.covariance()
        return
    truth = rows.T @ rows / len(rows)
    torch.testing.assert_close(
        covariance.covariance(), truth + 1e-6 * truth.diagonal().mean() * torch.eye(c, dtype=torch.float64)
    )


@pytest.mark.parametrize("lead", [(), (7,), (2, 3)])
def test_rows(lead: tuple[int, ...]) -> None:
    x = normal(*lead, 5)
    covariance = InputCovariance(5, channel_dim=-1)
    covariance.update(x)
    rows = x.reshape(-1, 5)
    assert covariance.count == len(rows)
    torch.testing.assert_close(covariance.sums, rows.T @ rows)


def test_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch larger than a block: the same sums."""
    x = normal(7, 3, 4, 5)
    whole = InputCovariance(3)
    whole.update(x)
    monkeypatch.setattr("rdkernels.fits.covariance._BLOCK", 2 * 3 * 4 * 5)
    parts = InputCovariance(3)
    parts.update(x)
    assert parts.count == whole.count == 140
    torch.testing.assert_close(parts.sums, whole.sums)


def test_sums_are_float64_for_half_inputs() -> None:
    """A hundred thousand ones in float16, whose own sum would stop at 2048."""
    covariance = InputCovariance(1, channel_dim=-1)
    covariance.update(torch.ones(100_000, 1, dtype=torch.float16))
    assert covariance.sums.item() == 100_000 and covariance.sums.dtype == torch.float64


def model() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(96, 2))


def test_calibrate() -> None:
    """The layers' inputs are counted inside the context, nothing else changes, and the hooks are gone after it."""
    net, x = model(), normal(2, 3, 8, 8).float()
    plain = net(x)
    with calibrate(net, ["0", net[4]]) as found:
        assert torch.equal(net(x), plain)
        net(x)
    net(x)
    assert set(found) == {"0", "4"}
    assert found["0"].count == 2 * 2 * 64 and found["4"].count == 2 * 2
    rows = vectors(x.double())
    torch.testing.assert_close(found["0"].sums, 2 * rows.T @ rows)
    assert all(not m._forward_pre_hooks for m in net)
    assert not found["0"].sums.requires_grad


def test_calibrate_everything_it_can() -> None:
    net = model()
    with calibrate(net) as found:
        pass
    assert set(found) == {"0", "4"}  # not the grouped convolution
    with calibrate(net, "0", ridge=0.5) as one:
        net(normal(1, 3, 8, 8).float())
    assert set(one) == {"0"} and one["0"].ridge == 0.5


def test_hooks_go_with_an_error() -> None:
    net = model()
    with pytest.raises(RuntimeError, match="stop"), calibrate(net):
        raise RuntimeError("stop")
    assert all(not m._forward_pre_hooks for m in net)


def test_keyword_input() -> None:
    layer = nn.Linear(4, 2)
    covariance = InputCovariance.of(layer)
    with covariance.attached(layer):
        layer(input=torch.ones(3, 4))
    assert covariance.count == 3


def test_roots() -> None:
    x = normal(50, 6)
    covariance = x.T @ x
    root, inverse = roots(covariance, 6)
    torch.testing.assert_close(root @ root, covariance)
    torch.testing.assert_close(root @ inverse, torch.eye(6, dtype=torch.float64))
    assert roots(None, 6) is None


def test_dead_channels_do_not_matter() -> None:
    """A channel that is always 0 makes the plain covariance singular; the ridge keeps the fit finite and exact."""
    x = normal(4, 6, 9, 9)
    x[:, 2] = 0
    conv = nn.Conv2d(6, 8, 3, dtype=torch.float64)
    with calibrate(conv, [conv]) as found:
        conv(x)
    layer = rd.nn.TuckerConv2d.from_dense(conv, rank=(6, 8), metric="input_cov", calibrator=found[""])
    assert layer.relative_error(conv) < 1e-9
    fitted = rd.nn.TuckerConv2d.from_dense(conv, rank=(5, 8), metric="input_cov", calibrator=found[""])
    with torch.no_grad():
        assert float((fitted(x) - conv(x)).norm() / conv(x).norm()) < 1e-5  # the dead channel is the one that is left


ERRORS = {
    "size": (lambda: InputCovariance(0), ValueError, "size must be an int >= 1"),
    "dim": (lambda: InputCovariance(3, channel_dim=0), ValueError, "channel_dim must be 1 or -1"),
    "ridge": (lambda: InputCovariance(3, ridge=0.0), ValueError, "ridge must be > 0"),
    "module": (lambda: InputCovariance.of(nn.ReLU()), TypeError, "module must be an nn.Conv2d or nn.Linear, got ReLU"),
    "kind": (lambda: InputCovariance(3).update(torch.ones(1, 3, 2, 2).int()), TypeError, "x must be a floating Tensor"),
    "channels": (lambda: InputCovariance(3).update(torch.ones(1, 4, 2, 2)), ValueError, "with 3 channels, got"),
    "nan": (lambda: updated(float("nan")), ValueError, "not finite"),
    "zeros": (lambda: updated(0.0), ValueError, "only zeros"),
    "name": (lambda: calibrate(model(), ["7"]).__enter__(), ValueError, "modules must be names or modules"),
    "stranger": (lambda: calibrate(model(), [nn.Linear(2, 2)]).__enter__(), ValueError, "of the model, got Linear"),
    "shape": (lambda: roots(torch.eye(3), 4), ValueError, r"covariance must have shape \[4, 4\], got \[3, 3\]"),
    "definite": (lambda: roots(-torch.eye(3), 3), ValueError, "covariance must be positive definite"),
}


def updated(value: float) -> torch.Tensor:
    covariance = InputCovariance(2)
    covariance.update(torch.full((1, 2, 3, 3), value))
    return covariance.covariance()


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case: str) -> None:
    make, error, match = ERRORS[case]
    with pytest.raises(error, match=match):
        make()
