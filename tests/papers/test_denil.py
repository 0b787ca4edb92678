"""The experiment on Denil et al.: its nets have the sizes it claims, its scores find structure and nothing else."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from papers import denil, denil_features, denil_nets
from papers.experiment import Claim
from torch import nn

import rdkernels as rd
from rdkernels.datasets import Dataset, MissingData


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """Random images in the place of Fashion-MNIST."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(120, 1, 28, 28, generator=generator), torch.randint(10, (120,), generator=generator)
    found = Dataset("random", x[:100], y[:100], x[100:], y[100:])
    monkeypatch.setattr(rd.datasets, "fashion_mnist", lambda: found)
    return found


@pytest.mark.parametrize("name", denil_nets.PAIRS)
@pytest.mark.parametrize("fraction", [0.025, 0.25])
def test_dictionary_nets_train_what_the_paper_counts(name: str, fraction: float, images: Dataset) -> None:
    net = denil_nets.build(name, fraction, images.flat().train_x, 0, pretrain=False)
    first, second = round(fraction * 784), round(fraction * 500)
    sizes = denil_nets.counts(net)
    assert sizes["trained"] == 500 * (first + second) + 1000 + 5010
    recipes = 2 * 2 * 11  # two layers' recipes, 11 int64 values
    kinds = denil_nets.PAIRS[name]
    atoms = sum(10 * n * a for d, n, a in zip(kinds, (784, 500), (first, second), strict=True) if d.startswith("emp"))
    assert sizes["stored"] == sizes["trained"] + atoms + recipes


def test_low_rank_nets_train_as_many_values(images: Dataset) -> None:
    x = images.flat().train_x
    for fraction in (0.05, 0.25):
        low, se = (
            denil_nets.counts(denil_nets.build(n, fraction, x, 0, pretrain=False)) for n in ("LowRank", "SE-Emp")
        )
        assert low["trained"] == pytest.approx(se["trained"], rel=0.03)
    dense = denil_nets.counts(denil_nets.build("nokernel", 1.0, x, 0, pretrain=False))
    assert dense == {"trained": 648_010, "stored": 648_010}


@pytest.mark.parametrize("name", ["nokernel", "LowRank", "SE-Emp", "RandCon"])
def test_weights_start_with_glorots_deviation(name: str, images: Dataset) -> None:
    net: Any = denil_nets.build(name, 0.1, images.flat().train_x, 0, pretrain=False)
    for layer in (net[0], net[2]):
        weight = layer.weight if isinstance(layer, nn.Linear) else layer.materialize()
        wanted = (2 / (layer.in_features + layer.out_features)) ** 0.5
        assert float(weight.detach().std()) == pytest.approx(wanted, rel=0.01)
        assert not layer.bias.any()


def test_seeds_draw_other_columns_and_whiten_other_atoms(images: Dataset) -> None:
    x = images.flat().train_x
    one, two = (denil_nets.build("SE-Emp", 0.1, x, seed, pretrain=False) for seed in (0, 1))
    raw = denil_nets.build("SE-Emp", 0.1, x, 0, pretrain=False, whiten=False)
    again = denil_nets.build("SE-Emp", 0.1, x, 0, pretrain=False)
    atoms = [net[0].atoms for net in (one, two, raw, again)]
    assert torch.equal(atoms[0], atoms[3])
    assert not torch.equal(atoms[0], atoms[1]) and not torch.equal(atoms[0], atoms[2])


def test_pretraining_moves_the_first_layer_and_with_it_the_second_dictionary(images: Dataset) -> None:
    x = images.flat().train_x
    plain, encoder = (denil_nets.build("SE-Emp", 0.1, x, 0, pretrain=p) for p in (False, True))
    assert torch.equal(plain[0].atoms, encoder[0].atoms)
    assert not torch.allclose(plain[0].coefficients, encoder[0].coefficients)
    assert not torch.allclose(plain[2].atoms, encoder[2].atoms)


def test_convnet_trains_a_quarter(images: Dataset) -> None:
    dense, quarter = (denil_nets.counts(denil_nets.build_convnet(f, 0)) for f in (1.0, 0.25))
    assert dense["trained"] == 16 * 26 + 32 * (16 * 25 + 1) + 200 * (1568 + 1) + 2010
    assert quarter["trained"] == 16 * 7 + 32 * (16 * 6 + 1) + 200 * (32 * 12 + 1) + 2010


def test_runs_of_the_script(images: Dataset) -> None:
    found = denil_nets.train_mlp("nokernel", 1.0, 0, 1, pretrain=True, images=(60, 20), draws=1)
    assert found["steps"] == 1 and 0 <= found["error"] <= 100 and {"r2", "null"} < set(found["features"])
    assert denil_nets.train_mlp("SE-Emp2", 0.05, 0, 1, pretrain=True)["trained"] == 38_010
    assert denil_nets.train_convnet(0.25, 0, 1, (40, 20))["steps"] == 1


def test_score_finds_a_plane_and_no_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(200, 60, generator=generator)
    plane = torch.randn(200, 3, generator=generator) @ torch.randn(3, 60, generator=generator)
    scores = denil_features.predictability(plane, 2)
    assert scores["r2"] > 0.95 and abs(scores["null"]) < 0.05
    assert denil_features.score(plane.T, 2)[0] > 0.95
    assert abs(denil_features.score(noise, 2)[0]) < 0.05


def test_smooth_score_finds_smooth_filters_and_no_noise() -> None:
    t = torch.linspace(0, 3, 28)
    smooth = torch.stack([torch.sin(a * t)[:, None] * torch.cos(b * t) for a in (1, 2, 3) for b in (1, 2, 3)])
    scores = denil_features.smooth_predictability(smooth, (28, 28))
    assert scores["smooth_r2"] > 0.95 and scores["smooth_null"] < 0.1
    rows = denil_features.picture(smooth, (28, 28))["rows"]
    whole, seen, found = (denil_features.unpacked(text) for text in rows)
    assert whole.abs().max() == 1 and seen.sum(1).tolist() == [196] * 3
    assert (whole - found).abs().mean() < 0.05


def test_a_net_that_is_not_here_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise MissingData("fetch it by hand")

    monkeypatch.setattr(type(denil_features.CREPE), "read", missing)
    assert denil_features.score_pretrained("crepe", 1) == {"missing": "fetch it by hand"}


ERRORS = {
    "nokernel 100 %": 10.9,
    "nokernel, pretrained 100 %": 10.5,
    "SE-Emp 2.5 %": 12.5,
    "SE-Emp 5 %": 11.6,
    "SE-Emp 25 %": 10.0,
    "RandFixU 2.5 %": 13.4,
    "RandFixU 5 %": 11.8,
    "RandCon 2.5 %": 15.0,
    "RandCon 5 %": 13.7,
    "convnet 100 %": 9.0,
    "convnet 50 %": 9.1,
    "convnet 25 %": 9.3,
}
SCORES = {"shape": [4, 4], "r2": 0.6, "spread": 0.0, "null": 0.0}


def _results(**changed: float) -> dict[str, dict[str, Any]]:
    sizes = {"trained": 4, "stored": 4, "features": SCORES}
    errors = {**ERRORS, **changed}
    found = {f"{name} seed {s}": {"error": e + s - 1, **sizes} for name, e in errors.items() for s in (0, 1, 2)}
    scores = {
        "crepe": {"classifier": SCORES, "conv1": SCORES},
        "CRAFT": {},
        "english_g2": {"missing": "where to fetch it"},
    }
    return found | {f"features of {net}": dict(layers) for net, layers in scores.items()}


def _holds(claims: list[Claim]) -> list[bool]:
    return [claim.holds for claim in claims]


def test_claims_are_judged_by_the_means() -> None:
    assert _holds(denil.judge(_results())) == [True] * 6


@pytest.mark.parametrize(
    ("number", "changed"),
    [
        (0, {"SE-Emp 25 %": 10.91}),
        (1, {"nokernel 100 %": 10.39}),
        (2, {"RandFixU 2.5 %": 12.4}),
        (2, {"RandCon 2.5 %": 13.0}),
        (3, {"SE-Emp 5 %": 11.9}),
        (4, {"convnet 25 %": 9.51}),
    ],
)
def test_bad_numbers_do_not_hold(number: int, changed: dict[str, float]) -> None:
    assert _holds(denil.judge(_results(**changed))) == [n != number for n in range(6)]


def test_features_without_structure_do_not_hold() -> None:
    results = copy.deepcopy(_results())
    results["features of crepe"]["conv1"] = {**SCORES, "r2": 0.1}
    assert _holds(denil.judge(results))[5] is False
    results["features of crepe"]["conv1"] = {**SCORES, "null": 0.2}
    assert _holds(denil.judge(results))[5] is False


def test_tables_show_every_net_and_notes_what_is_missing() -> None:
    figure4, figure5, scores = denil.tables(_results())
    assert len(figure4.rows) == 9 and len(figure5.rows) == 3 and len(scores.rows) == 4
    assert any("where to fetch it" in note for note in denil.notes(_results()))


def test_rates_by_atoms_make_steps_as_long_as_the_dense_layers(images: Dataset) -> None:
    x = images.flat().train_x
    for name in ("RandFixU", "RandCon"):
        net = denil_nets.build(name, 0.05, x, 0, pretrain=False)
        rates = {len(g["params"][0]): g["lr"] for g in denil_nets.sgd(net, 0.1, True).param_groups[:1]}
        atoms = net[0]._dense_atoms()  # type: ignore[operator, union-attr]
        moved = rates[500] * float(torch.einsum("jap,jap->j", atoms, atoms).mean()) / 784
        assert moved == pytest.approx(0.1, rel=1e-4)
        assert {g["lr"] for g in denil_nets.sgd(net, 0.1).param_groups} == {0.1}


def test_quick_and_full_run_the_same_nets() -> None:
    full, quick = (denil.all_runs(q) for q in (False, True))
    assert {r.key for r in quick} == {r.key for r in full if r.key.endswith("seed 0") or r.key.startswith("features")}
    first_of_figure = next(n for n, r in enumerate(full) if r.key == denil.key("SE-Emp", 0.1, 0))
    assert set(_results()) == {r.key for r in full[:first_of_figure]}
