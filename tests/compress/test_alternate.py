"""`alternate`: phases, in-place refits that optimisers survive, schedules, and the conversion at the end."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import rdkernels as rd
from rdkernels.compress import Phase

SPECS = {"0": rd.Tucker((3, 4)), "3": rd.Hashed(8)}


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(64, 3, 6, 6), torch.randint(5, (64,))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> float:
    for _ in range(8):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def test_training_through_the_phases() -> None:
    x, y = batch()
    model = net()
    weights, phases, losses = [model[0].weight, model[3].weight], [], []
    for phase in rd.alternate(model, SPECS, steps=3):
        if phase.kind != "refit":
            optimizer = torch.optim.SGD(phase.model.parameters(), lr=0.1, momentum=0.5)
        if phase.kind == "refit":  # the optimiser's own parameters, moved
            held = optimizer.param_groups[0]["params"]
            assert held[0] is weights[0] is model[0].weight and held[2] is weights[1]
            assert SPECS["0"].refit(model[0]) < 1e-6
        phases.append(phase)
        losses.append(train(phase.model, optimizer, x, y))
    assert [(p.kind, p.step) for p in phases] == [("train", 0), ("refit", 1), ("refit", 2), ("convert", 3)]
    assert all(p.model is model for p in phases) and losses[-1] < losses[0]
    assert [type(model[0]), type(model[3])] == [rd.nn.TuckerConv2d, rd.nn.HashedLinear]
    assert phases[0].report is None
    errors = [[row.error for row in p.report.changed] for p in phases[1:]]
    assert all(0 < e < 1 for step in errors for e in step)
    assert errors[2][1] < 0.9 * errors[0][1]  # the map is one: what training left of it is moved back less far
    assert phases[1].report["3"].after == "Linear" and phases[3].report["3"].after == "HashedLinear"


def test_refit_is_on_the_map_of_the_layer_at_the_end() -> None:
    """Without training in between, the conversion finds the weights where the refit has put them."""
    model = net()
    *_, before, last = list(rd.alternate(model, SPECS, steps=2))
    assert before.kind == "refit" and [row.error for row in last.report.changed] == pytest.approx([0, 0], abs=1e-6)
    other = net()
    phases = rd.alternate(other, [SPECS, {**SPECS, "3": rd.Hashed(8)}])  # a spec that draws a map of its own
    *_, last = list(phases)
    assert last.report["3"].error > 0.5


def test_one_step_is_convert() -> None:
    torch.manual_seed(1)
    model, twin = net(), net()
    twin.load_state_dict(model.state_dict())
    kinds = [phase.kind for phase in rd.alternate(model, {"0": rd.CP(4)}, steps=1)]
    rd.convert(twin, {"0": rd.CP(4)})
    assert kinds == ["train", "convert"]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_a_schedule_tightens() -> None:
    model = nn.Sequential(nn.Linear(20, 20))
    ranks = []
    for phase in rd.alternate(model, [{"0": rd.LowRank(r)} for r in (12, 8, 4)]):
        if phase.kind == "refit":
            ranks.append(int(torch.linalg.matrix_rank(model[0].weight)))
    assert ranks == [12, 8] and model[0].rank == 4


def test_data_is_seen_at_every_step() -> None:
    calls: list[str] = []

    def data(model: nn.Module) -> None:
        calls.append(type(model[3]).__name__)  # type: ignore[index]
        model(torch.randn(8, 3, 6, 6))

    for phase in rd.alternate(net(), {"3": rd.LowRank(2, metric="input_cov")}, steps=2, data=data):
        calls.append(phase.kind)
    assert calls == ["train", "Linear", "refit", "Linear", "convert"]


def test_a_model_that_is_one_layer() -> None:
    phases: list[Phase] = list(rd.alternate(nn.Linear(12, 12), rd.LowRank(3), steps=2))
    assert [type(p.model).__name__ for p in phases] == ["Linear", "Linear", "LowRankLinear"]


@pytest.mark.parametrize(
    ("specs", "more", "text"),
    [
        (SPECS, {}, "steps must be an int >= 1, got None"),
        (SPECS, {"steps": 0}, "steps must be an int >= 1, got 0"),
        ([SPECS, SPECS], {"steps": 3}, "specs must have one entry for each of 3 steps, got 2"),
        ([], {}, r"specs must be a spec, a mapping of names to specs or a sequence of them, got \[\]"),
        ([SPECS, {"9": rd.CP(2)}], {}, "pattern '9' matches no module"),
        ({"3": rd.LowRank(6)}, {"steps": 2}, "3: rank must be from 1 to 5, got 6"),
        ({"3": rd.LowRank(2, metric="input_cov")}, {"steps": 2}, "3: data must be given"),
        (SPECS, {"steps": 2, "data": iter([])}, "data must give its batches anew at every step"),
    ],
)
def test_refused_at_the_call(specs: Any, more: dict[str, Any], text: str) -> None:
    with pytest.raises((TypeError, ValueError), match="alternate: " + text):
        rd.alternate(net(), specs, **more)


def test_a_refit_that_fails_names_the_layer_and_moves_none() -> None:
    model = net()
    phases = rd.alternate(model, {"*": rd.LowRank(2)}, steps=2)
    next(phases)
    with torch.no_grad():
        model[3].weight.fill_(float("inf"))
    before = model[0].weight.clone()
    with pytest.raises(ValueError, match="alternate: 3: LowRankLinear.from_dense: weight must be finite"):
        next(phases)
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda m: setattr(m, "2", nn.Linear(8, 4)), "2: was replaced since alternate"),
        (lambda m: prune.l1_unstructured(m[2], "weight", 0.5), "2: its weight is computed .*prune.; make it permanent"),
    ],
)
def test_a_layer_that_changed_between_phases_is_refused(change: Any, text: str, steps: int) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    phases = rd.alternate(model, {"*": rd.Palette(2)}, steps=steps)
    next(phases)
    change(model)
    before = model[0].weight.clone()
    with pytest.raises(ValueError, match=text):
        next(phases)
    assert torch.equal(model[0].weight, before) and type(model[0]) is nn.Linear
