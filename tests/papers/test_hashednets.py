"""The experiment on HashedNets: nets store what they claim, every path runs, and the judge can say no."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from papers import hashednets as script
from papers import hashednets_choice as choice
from papers import hashednets_nets as nets
from papers import hashednets_runs as runs

import rdkernels as rd
from rdkernels.datasets import Dataset


@pytest.mark.parametrize("layers", [3, 5])
@pytest.mark.parametrize("compression", [8, 64])
def test_every_net_stores_the_budget_and_no_baseline_less(layers: int, compression: int) -> None:
    sizes = runs.sizes_of(layers, 10)
    wanted = nets.budget(sizes, compression)
    for method in script.METHODS:
        count = nets.parameters(nets.build(method, sizes, compression, 0))
        exact = method.removesuffix(nets.DARK) in ("RER", "HashedNet")
        assert count == wanted if exact else wanted <= count < 1.07 * wanted, (method, count, wanted)


def test_a_tile_is_off_by_at_most_half_a_slot() -> None:
    sizes = runs.sizes_of(3, 10)
    for granule, slot in (("chunk", 16), ("tile", 1024)):
        count = nets.parameters(nets.build("HashedNet", sizes, 64, 0, granule))
        assert abs(count - nets.budget(sizes, 64)) <= slot / 2


@pytest.mark.parametrize("compression", runs.STORAGE)
def test_inflation_keeps_the_storage(compression: int) -> None:
    storage = runs.STORAGE[compression]
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
    net: Any = nets.build("HashedNet", runs.sizes_of(5, 10), 64, 3)
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
    monkeypatch.setitem(runs.SETS, "random", (lambda: images, 1))
    monkeypatch.setattr(runs, "HIDDEN", 64)
    runs.load.cache_clear()
    every = [(method, 8, 4e-3) for method in script.METHODS]
    found = runs.compare("random", 3, every, 0, 1, runs.RECIPE, teacher=2e-3)
    assert {"dense", *(f"{m} 1/8" for m in script.METHODS)} == set(found["parameters"])
    assert all(0 <= found[name] <= 100 for name in found["parameters"])
    again = runs.compare("random", 3, [("HashedNet", 8, 4e-3)], 0, 1, runs.RECIPE)
    assert again["HashedNet 1/8"] == found["HashedNet 1/8"] and "dense" not in again
    with pytest.raises(ValueError, match="nets: NN-DK learns from a teacher, got teacher=None"):
        runs.compare("random", 3, [("NN-DK", 8, 4e-3)], 0, 1, runs.RECIPE)
    assert 0 <= runs.inflate("random", 64, 2, 4e-3, 0, 1, runs.RECIPE)["error"] <= 100
    assert 0 <= runs.validate("random", 5, "LRD", 8, 4e-3, 1, runs.RECIPE)["error"] <= 100
    runs.load.cache_clear()


def test_held_out_images_are_the_last_fifth_of_the_training_images(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(60, 1, 28, 28)
    images = Dataset("random", x[:40], torch.arange(40), x[40:], torch.full((20,), 99))
    monkeypatch.setitem(runs.SETS, "random", (lambda: images, 1))
    runs.load.cache_clear()
    held = runs.load("random", None, held_out=True)
    assert held.train_y.tolist() == list(range(32)) and held.test_y.tolist() == list(range(32, 40))
    torch.testing.assert_close(held.test_x, (x[32:40].flatten(1) - x[:32].mean()) / x[:32].std())
    runs.load.cache_clear()


def validated(error: dict[tuple[choice.Net, float], float]) -> dict[str, dict[str, float]]:
    """Results of the whole choice: 50 % but where `error` says otherwise."""
    tried = [(net, rate) for net, rates in choice.candidates(quick=False).items() for rate in rates]
    assert set(error) <= set(tried)
    return {choice.key(net, rate): {"error": error.get((net, rate), 50.0)} for net, rate in tried}


def test_the_choice_is_the_rate_of_the_least_validation_error() -> None:
    deep, other = (5, "NN", 64), (3, "NN", 64)
    found = choice.Choice(validated({(deep, 4e-3): 5.0, (deep, 8e-3): 5.1, (other, 2e-3): 7.0}))
    assert found.rate(5, "NN", 64) == found.rate(5, "NN-DK", 64) == 4e-3
    assert found.rate(3, "NN", 64) == 2e-3
    # negative control: the same but one number, and another rate is taken
    found = choice.Choice(validated({(deep, 4e-3): 5.0, (deep, 8e-3): 4.9, (other, 2e-3): 7.0}))
    assert found.rate(5, "NN", 64) == 8e-3 and found.rate(3, "NN", 64) == 2e-3


def test_a_tie_is_the_smaller_rate_in_whatever_order() -> None:
    assert choice.best({8e-3: 5.0, 4e-3: 5.0, 2e-3: 5.5}) == choice.best({2e-3: 5.5, 4e-3: 5.0, 8e-3: 5.0}) == 4e-3
    assert choice.best({8e-3: 4.99, 4e-3: 5.0}) == 8e-3


def test_a_best_rate_at_an_end_is_said() -> None:
    every = choice.candidates(quick=False)
    inner: dict[tuple[choice.Net, float], float] = {(net, rates[1]): 5.0 for net, rates in every.items()}
    assert choice.Choice(validated(inner)).at_an_end() == []
    beyond = inner | {((3, "LRD", 64), 1.28e-1): 4.0, ((5, "NN", 8), 1e-3): 4.0}
    assert choice.Choice(validated(beyond)).at_an_end() == [
        "rate 0.128: LRD 1/64, 3 layers",
        "rate 0.001: NN 1/8, 5 layers",
    ]


def test_every_net_has_its_rates() -> None:
    wanted = {(n, m.removesuffix(nets.DARK), c) for n in (3, 5) for m in script.METHODS for c in choice.COMPRESSIONS}
    full, quick = choice.candidates(quick=False), choice.candidates(quick=True)
    assert set(full) == set(quick) == wanted | {(3, "dense", 1), (5, "dense", 1)}
    assert all(b == 2 * a for rates in full.values() for a, b in itertools.pairwise(rates))
    assert sum(len(rates) == 2 for rates in quick.values()) == 2 and len(choice.plan(quick=True)) == 4


def test_only_restricts_what_follows_the_choice() -> None:
    seen: list[str] = []

    class Experiment:
        quick, only = False, "ROT"

        def run(self, runs: list[Any]) -> dict[str, Any]:
            seen.append(self.only)
            return validated({})

    experiment: Any = Experiment()
    choice.choose(experiment)
    assert seen == [""] and experiment.only == "ROT"
    experiment.only = "rate 0.004: NN"
    choice.choose(experiment)
    assert seen == ["", "rate 0.004: NN"]


def planned(error: dict[tuple[choice.Net, float], float]) -> list[Any]:
    return script.plan(choice.Choice(validated(error)), quick=False)


def test_the_plan_has_each_run_once_the_claims_first_and_5_layers_last() -> None:
    plan = planned({})
    assert len({r.digest for r in plan}) == len({r.key for r in plan}) == len(plan)
    claimed = {(method, 64) for method in script.CLAIMED}
    assert all({n[:2] for n in r.arguments["nets"]} == claimed for r in plan[:18])
    assert all("granule" in r.key for r in plan[18:27])
    assert [r.arguments.get("layers", 3) for r in plan] == [3] * (len(plan) - 6) + [5] * 6
    assert {r.arguments["data"]: r.arguments["epochs"] for r in plan[-6:]}["RECT"] == 50
    made = [
        (*(r.arguments[name] for name in ("data", "layers", "seed", "granule")), *net[:2])
        for r in plan
        if r.function is runs.compare
        for net in r.arguments["nets"]
    ]
    assert len(set(made)) == len(made)
    seeded = [(d, 3, s, "element", m, 64) for d in runs.SETS for s in script.SEEDS for m in script.METHODS]
    once = [(d, n, 0, "element", m, c) for d in runs.SETS for n in (3, 5) for m in script.METHODS for c in (64, 8)]
    assert {*seeded, *once} <= set(made)


def test_a_rate_is_part_of_the_runs_that_it_is_for_and_of_no_other() -> None:
    before, after = planned({}), planned({((3, "LRD", 64), 1.6e-2): 5.0})
    changed = {b.key for b, a in zip(before, after, strict=True) if b.digest != a.digest}
    assert changed == {script.claim_key(d, s) for d in runs.SETS for s in script.SEEDS}
    after = planned({((5, "dense", 1), 4e-3): 5.0})
    changed = {b.key for b, a in zip(before, after, strict=True) if b.digest != a.digest}
    assert changed == {script.rest_key(d, 5, 0) for d in runs.SETS}
    after = planned({((3, "HashedNet", 8), 4e-3): 5.0})
    changed = {b.key for b, a in zip(before, after, strict=True) if b.digest != a.digest}
    assert {script.inflation_key(8, f) for f in (2, 4, 8, 16)} < changed and script.inflation_key(8, 1) not in changed


def made_up(hashed: float, chunk: float, tile: float) -> script.Findings:
    results: dict[str, Any] = {}
    for seed in script.SEEDS:
        for data in script.SETS:
            errors = {f"{m} 1/{c}": 20.0 for m in script.METHODS for c in choice.COMPRESSIONS}
            element = {f"HashedNet 1/{c}": 15.0 for c in choice.COMPRESSIONS}
            results[script.claim_key(data, seed)] = errors | element
        results[script.claim_key("ROT", seed)]["HashedNet 1/64"] = hashed
        for granule, error in (("chunk", chunk), ("tile", tile)):
            key = script.granule_key(granule, seed)
            results[key] = {f"HashedNet 1/{c}": error for c in choice.COMPRESSIONS}
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
