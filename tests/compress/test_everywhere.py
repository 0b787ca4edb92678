"""Every spec, fitted and fresh: training, torch.compile, two processes, files, copies."""

import copy
import os
import pathlib
from typing import Any, NamedTuple

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import rdkernels as rd
from rdkernels.compress import Spec


class Way(NamedTuple):
    spec: Spec
    dense: type[nn.Module]


LINEAR: dict[str, Spec] = {
    "LowRank": rd.LowRank(8),
    "LowRank input_cov": rd.LowRank(8, metric="input_cov"),
    "Hashed element": rd.Hashed(4, seed=1),
    "Hashed bias": rd.Hashed(4, seed=1, hashed_bias=True),
    "Hashed chunk": rd.Hashed(4, "chunk", seed=1),
    "Predicted emp": rd.Predicted(0.5, "emp", 2, seed=1),
    "Predicted se": rd.Predicted(0.5, "se", topology=(4, 8), seed=1),
    "Palette": rd.Palette(3),
    "Palette zero": rd.Palette(3, zero=True),
}
CONV: dict[str, Spec] = {
    "LowRank": rd.LowRank(4),
    "Separable": rd.Separable(4),
    "CP": rd.CP(5),
    "Tucker": rd.Tucker((3, 4)),
    "Tucker input_cov": rd.Tucker((3, 4), metric="input_cov"),
    "Monochromatic": rd.Monochromatic(4),
    "Bicluster": rd.Bicluster(2),
    "Predicted": rd.Predicted(0.5, "se", seed=1),
    "Palette": rd.Palette(3),
}
WAYS = {f"linear {k}": Way(v, nn.Linear) for k, v in LINEAR.items()} | {
    f"conv {k}": Way(v, nn.Conv2d) for k, v in CONV.items()
}
INITS: tuple[Any, ...] = ("fit", "fresh")


def dense(way: Way) -> nn.Module:
    torch.manual_seed(3)
    if way.dense is nn.Linear:
        return nn.Sequential(nn.Linear(32, 24), nn.Tanh(), nn.Linear(24, 6))
    return nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 25, 6))


def inputs(way: Way, rows: int = 8) -> torch.Tensor:
    shape = (32,) if way.dense is nn.Linear else (4, 5, 5)
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(5))


def built(way: Way, init: Any) -> nn.Module:
    return rd.convert(dense(way), {"0": way.spec}, init, data=inputs(way, 64))


def targets(rows: int = 8) -> torch.Tensor:
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(6))


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int = 4) -> list[float]:
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=1e-2), []
    for _ in range(steps):
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


everywhere = pytest.mark.parametrize("init", INITS)
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def test_all_specs_are_here() -> None:
    """A new spec must be added to the table."""
    public = {getattr(rd, name) for name in rd.__all__}
    specs = {s for s in public if isinstance(s, type) and issubclass(s, Spec)}
    assert {type(way.spec) for way in WAYS.values()} == specs
    for way in WAYS.values():
        assert way.dense in way.spec.types


@everywhere
@every_way
def test_forward_and_training(way: Way, init: Any) -> None:
    """The layer computes what its dense weight would, gradients too, and training lowers the loss."""
    model, x = built(way, init), inputs(way)
    layer: Any = model[0]  # type: ignore[index]
    twin: Any = dense(way)[0]  # type: ignore[index]
    weight = layer.materialize()
    bias = layer.materialize_bias() if hasattr(layer, "materialize_bias") else layer.bias
    y = torch.func.functional_call(twin, {"weight": weight, "bias": bias}, (x,))
    torch.testing.assert_close(layer(x), y, rtol=1e-4, atol=1e-5)
    own = [p for p in layer.parameters() if p.requires_grad]
    grads = [torch.autograd.grad(out.square().sum(), own) for out in (layer(x), y)]
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    losses = train(model, x, targets())
    assert losses[-1] < losses[0]


@every_way
def test_compiles_whole(way: Way) -> None:
    torch._dynamo.reset()
    model, x = built(way, "fit"), inputs(way)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))
    twin = copy.deepcopy(model)
    assert train(compiled, x, targets(), 2) == pytest.approx(train(twin, x, targets(), 2), rel=1e-4)


@everywhere
@every_way
def test_files_and_copies(way: Way, init: Any, tmp_path: pathlib.Path) -> None:
    """safetensors and deepcopy give the same function; so does a state dict in a model converted alike."""
    model, x = built(way, init), inputs(way)
    train(model, x, targets(), 2)
    want = model(x)
    copied = copy.deepcopy(model)
    assert torch.equal(copied(x), want)
    safetensors.torch.save_model(model, str(tmp_path / "model.safetensors"))
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    other = built(way, init)
    assert not torch.equal(other(x), want)
    other.load_state_dict(state)
    assert torch.equal(other(x), want)


@everywhere
@pytest.mark.parametrize("way", WAYS.values())
def test_torchs_default_device_and_dtype_change_nothing(way: Way, init: Any) -> None:
    """With a default device as `torch.set_default_device("cuda")`, and 16 bits as the default dtype."""
    model, x = dense(way), inputs(way)
    torch.manual_seed(1)
    want = rd.convert(copy.deepcopy(model), {"0": way.spec}, init, [x])(x)
    torch.manual_seed(1)
    with torch.device("meta"):
        torch.set_default_dtype(torch.bfloat16)
        try:
            found = rd.convert(model, {"0": way.spec}, init, [x])(x)
        finally:
            torch.set_default_dtype(torch.float32)
    assert torch.equal(found, want)


class All(nn.Module):
    """Every spec and init side by side, sharing nothing: one DistributedDataParallel for all."""

    def __init__(self) -> None:
        super().__init__()
        self.models = nn.ModuleDict(
            {f"{name} {init}": built(way, init) for name, way in WAYS.items() for init in INITS}
        )

    def forward(self, rows: slice) -> torch.Tensor:
        outs = [model(inputs(WAYS[key.rpartition(" ")[0]])[rows]) for key, model in self.models.items()]
        return torch.stack(outs)

    def train_on(self, model: nn.Module, rows: slice) -> dict[str, list[torch.Tensor]]:
        """Two steps of `model`, self or what wraps it, on these rows; the parameters after it."""
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(2):
            optimizer.zero_grad()
            (model(rows) - targets()[rows]).square().mean((1, 2)).sum().backward()
            optimizer.step()
        return {key: [p.detach().clone() for p in m.parameters()] for key, m in self.models.items()}


def worker(rank: int, folder: pathlib.Path) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = All()
    wrapped = DistributedDataParallel(model)
    torch.save(model.train_on(wrapped, slice(4 * rank, 4 * rank + 4)), folder / f"{rank}.pt")
    with pytest.raises(ValueError, match="convert: model must be converted before it is wrapped"):
        rd.convert(wrapped, rd.Hashed(4))
    dist.destroy_process_group()


def test_two_processes_train_as_one(tmp_path: pathlib.Path) -> None:
    """Same seeds, halves of the batch: the parameters of both, and of one process with the whole, are one."""
    torch.multiprocessing.spawn(worker, (tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    model = All()
    before = {key: [p.detach().clone() for p in m.parameters()] for key, m in model.models.items()}
    alone = model.train_on(model, slice(0, 8))
    assert len(alone) == 2 * len(WAYS)
    for key in alone:
        for start, mine, theirs, one in zip(before[key], first[key], second[key], alone[key], strict=True):
            assert torch.equal(mine, theirs) and not torch.equal(start, mine), key
            torch.testing.assert_close(mine, one, rtol=1e-3, atol=1e-3, msg=lambda m, k=key: f"{k}: {m}")


@every_way
def test_a_map_or_index_of_its_own_is_checked(way: Way) -> None:
    """Negative control: what is not in the parameters is in the state dict, or regenerated and checked."""
    model, x = built(way, "fit"), inputs(way)
    state = model.state_dict()
    partial = {k: v for k, v in state.items() if k in dict(model.named_parameters())}
    rest = sorted(set(state) - set(partial))
    if rest:
        with pytest.raises(RuntimeError, match="Missing key"):
            built(way, "fresh").load_state_dict(partial)
    else:
        other = built(way, "fresh")
        other.load_state_dict(partial)
        assert torch.equal(other(x), model(x))
