"""The spec of palette layers."""

import pytest
import torch
from torch import nn

import rdkernels as rd


@pytest.mark.parametrize("dense", [nn.Linear(30, 20), nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False).eval()])
def test_fit_fresh_refit(dense: nn.Module) -> None:
    before = dense.weight.detach().clone()
    spec = rd.Palette(3, zero=True)
    fitted, fresh = spec.fit(dense), spec.fresh(dense)
    assert type(fitted) is type(fresh) is (rd.nn.PaletteLinear if isinstance(dense, nn.Linear) else rd.nn.PaletteConv2d)
    assert fitted.training == fresh.training == dense.training and (fitted.bias is None) == (dense.bias is None)
    near = (fitted.materialize() - before).norm() / before.norm()
    assert near < 0.2 < (fresh.materialize() - before).norm() / before.norm()
    assert torch.equal(dense.weight, before)
    assert spec.refit(dense) == pytest.approx(float(near.detach()), rel=1e-3)
    assert torch.equal(dense.weight, fitted.materialize())
    assert spec.refit(dense) == 0


def test_convert() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 5))
    x = torch.randn(2, 1, 4, 4)
    want = model(x)
    rd.convert(model, {"0": rd.Palette(8), "2": rd.Palette(8)})
    assert isinstance(model[0], rd.nn.PaletteConv2d) and isinstance(model[2], rd.nn.PaletteLinear)
    torch.testing.assert_close(model(x), want, rtol=0.05, atol=0.02)


def test_values() -> None:
    assert rd.Palette(4) == rd.Palette(bits=4, zero=False, init="optimal") != rd.Palette(5)
    with pytest.raises(ValueError, match="Palette: bits must be from 1 to 8, got 0"):
        rd.Palette(0)
