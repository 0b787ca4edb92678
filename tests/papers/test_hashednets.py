"""The experiment on HashedNets: nets store what they claim, every path runs, and the judge can say no."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from papers import hashednets as script
from papers import hashednets_nets as nets

import rdkernels as rd
from rdkernels.datasets import Dataset


@pytest.mark.parametrize("layers", [3, 5])
@pytest.mark.parametrize("compression", [8, 64])
def test_every_net_stores_the_budget_and_no_baseline_less(layers: int, compression: int) -> None:
    sizes = script.sizes_of(layers, 10)
    wanted = nets.budget(sizes, compression)
    for method in script.METHODS:
        count = nets.parameters(nets.build(method, sizes, compression, 0))
        exact = method.removesuffix(nets.DARK) in ("RER", "HashedNet")
        assert count == wanted if exact else wanted <= count < 1.07 * wanted, (method, count, wanted)


def test_a_tile_is_off_by_at_most_half_a_slot() -> None:
    sizes = script.sizes_of(3, 10)
    for granule, slot in (("chunk", 16), ("tile", 1024)):
        count = nets.parameters(nets.build("HashedNet", sizes, 64, 0, granule))
        assert abs(count - nets.budget(sizes, 64)) <= slot / 2


@pytest.mark.parametrize("compression", script.STORAGE)
def test_inflation_keeps_the_storage(compression: int) -> None:
    storage = script.STORAGE[compression]
    counts = {nets.parameters(nets.inflated(storage, storage * f, [784, 10], 0)) for f in script.FACTORS}
    assert counts == {785 * storage + 10 * (storage + 1)}


def test_random_edges_have_gradients_on_their_edges_alone() -> None:
    layer = nets.RandomEdges(20, 12, 30)
    weight = layer.materialize()
    assert int(weight.count_nonzero()) == 30
    x = torch.randn(5, 20)
    torch.testing.assert_close(layer(x), x @ weight.T + layer.bias)
    layer(x).square().sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.shape == (30,)


@pytest.mark.parametrize(("side", "shape"), [("out", (40, 30)), ("small", (30, 40)), ("small", (40, 30))])
def test_low_rank_trains_one_factor(side: str, shape: tuple[int, int]) -> None:
    layer: Any = nets.low_rank(*shape, kept=200, side=side)
    trained = layer.up if side == "out" or shape[1] < shape[0] else layer.down
    assert [p.requires_grad for p in (layer.down, layer.up)] == [trained is layer.down, trained is layer.up]
    layer(torch.randn(3, shape[0])).sum().backward()
    assert trained.grad is not None and trained.grad.any()


def test_the_hashed_nets_layers_have_maps_of_their_own() -> None:
    net: Any = nets.build("HashedNet", script.sizes_of(5, 10), 64, 3)
    assert all(type(layer) is rd.nn.HashedLinear for layer in net[::2])
    assert len({layer.seed for layer in net[::2]}) == 4


def test_dark_loss_without_a_teachers_share_is_cross_entropy() -> None:
    logits, labels = torch.randn(6, 10), torch.randint(10, (6,))
    targets = nets.dark_targets(labels, torch.randn(6, 10))
    wanted = torch.nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(nets.dark_loss(4.0, 0.0)(logits, targets), wanted)
    own = nets.dark_targets(labels, logits)
    torch.testing.assert_close(nets.dark_loss(4.0, 1.0)(logits, own), torch.tensor(0.0), atol=1e-5, rtol=0)
    assert nets.dark_loss(4.0, 1.0)(logits, targets) > 0.1


def test_the_runs_functions_run(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.rand(60, 1, 28, 28), torch.arange(60) % 10
    images = Dataset("random", x[:40], y[:40], x[40:], y[40:])
    monkeypatch.setitem(script.SETS, "random", (lambda: images, 1))
    monkeypatch.setattr(script, "HIDDEN", 64)
    script.load.cache_clear()
    found = script.compare("random", 3, [8], 0, script.METHODS, 1, script.RECIPE)
    assert {"dense", *(f"{m} 1/8" for m in script.METHODS)} == set(found["parameters"])
    assert all(0 <= found[name] <= 100 for name in found["parameters"])
    again = script.compare("random", 3, [8], 0, ["HashedNet"], 1, script.RECIPE)
    assert again["HashedNet 1/8"] == found["HashedNet 1/8"] and "dense" not in again
    assert 0 <= script.inflate("random", 64, 2, 0, 1, script.RECIPE)["error"] <= 100
    script.load.cache_clear()


def test_the_plan_has_each_run_once_and_the_claims_first() -> None:
    runs = script.plan(quick=False)
    assert len({r.digest for r in runs}) == len({r.key for r in runs}) == len(runs)
    assert all("3 layers" in r.key for r in runs[:18]) and runs[17].arguments["compressions"] == (64,)


def made_up(hashed: float, chunk: float, tile: float) -> script.Findings:
    results: dict[str, Any] = {}
    for seed in script.SEEDS:
        for data in script.SETS:
            errors = {f"{m} 1/{c}": 20.0 for m in script.METHODS for c in script.COMPRESSIONS}
            element = {f"HashedNet 1/{c}": 15.0 for c in script.COMPRESSIONS}
            results[script.main_key(data, 3, seed)] = errors | element
        results[script.main_key("ROT", 3, seed)]["HashedNet 1/64"] = hashed
        for granule, error in (("chunk", chunk), ("tile", tile)):
            key = script.granule_key(granule, seed)
            results[key] = {f"HashedNet 1/{c}": error for c in script.COMPRESSIONS}
    return script.Findings(results)


@pytest.mark.parametrize(
    ("numbers", "verdicts"),
    [
        ((15.0, 15.2, 15.6), [True, True, True]),
        ((20.1, 15.2, 15.6), [False, True, True]),  # one set lost is the claim lost
        ((15.0, 15.4, 15.6), [True, False, True]),
        ((15.0, 15.2, 15.8), [True, True, False]),
    ],
)
def test_the_judge_says_no(numbers: tuple[float, float, float], verdicts: list[bool]) -> None:
    assert [claim.holds for claim in script.claims(made_up(*numbers))] == verdicts
