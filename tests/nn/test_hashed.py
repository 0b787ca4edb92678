"""`HashedLinear` and `WeightBank`: state, sharing, fitting, training."""

import copy
import io
import pickle

import pytest
import safetensors.torch
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.nn.functional import cross_entropy, linear

import rdkernels as rd
from rdkernels.nn import HashedLinear, WeightBank

LAYERS = {
    "element": dict(granule="element", compression=8),
    "element hashed bias": dict(granule="element", compression=8, bias="hashed", scale=0.5),
    "chunk": dict(granule="chunk", compression=8, scale=-2.0),
    "chunk no bias": dict(granule="chunk", compression=64, bias=False),
    "tile": dict(granule="tile", compression=4),
    "tile pair": dict(granule=(4, 32), compression=4),
}


@pytest.fixture(params=LAYERS)
def layer(request) -> HashedLinear:
    return HashedLinear(75, 52, seed=9, **LAYERS[request.param])


X = torch.randn(5, 75, generator=torch.Generator().manual_seed(0))


def same_function(left: nn.Module, right: nn.Module) -> bool:
    return torch.equal(left(X), right(X))


# -- what it computes --------------------------------------------------------------------------------------------------


def test_materialize(layer: HashedLinear) -> None:
    """The layer is `F.linear` with its materialised weight and bias, gradients included."""
    torch.testing.assert_close(layer(X), linear(X, layer.materialize(), layer.materialize_bias()))
    direct = torch.autograd.grad(layer(X).square().sum(), list(layer.parameters()))
    dense = linear(X, layer.materialize(), layer.materialize_bias()).square().sum()
    for mine, truth in zip(direct, torch.autograd.grad(dense, list(layer.parameters())), strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-4, atol=1e-4)


def test_hashed_bias_is_the_next_column() -> None:
    layer = HashedLinear(75, 52, "hashed", granule="element", seed=1, scale=0.5)
    wide = rd.hashing.virtual_weight(layer.bank.weight, 52, 76, "element", 1)
    assert torch.equal(layer.materialize_bias(), 0.5 * wide[:, 75])
    assert torch.equal(layer.materialize(), 0.5 * wide[:, :75])


@pytest.mark.parametrize("granule", ["element", "chunk", "tile", (16, 16)])
@pytest.mark.parametrize("compression", [0.5, 8, 64, 1e9])
def test_slots_and_compression(granule, compression: float) -> None:
    layer = HashedLinear(100, 300, compression=compression, granule=granule)
    go, gi = rd.hashing.resolve_granule(granule)
    assert layer.slots == max(1, round(30_000 / (compression * go * gi)))
    assert layer.bank.weight.shape == (layer.slots * go * gi,)
    assert layer.compression == 30_000 / layer.bank.weight.numel()


def test_initial_values_are_those_of_linear() -> None:
    layer = HashedLinear(400, 500, compression=8)
    for t in layer.parameters():
        assert 0.045 < t.abs().max() <= 0.05
        assert abs(float(t.detach().std()) - 0.05 / 3**0.5) < 0.003
    before = copy.deepcopy(layer.state_dict())
    layer.reset_parameters()
    assert not torch.equal(before["bank.weight"], layer.bank.weight)
    assert not torch.equal(before["bias"], layer.bias)


def test_seed_is_drawn_from_torch() -> None:
    seeds = []
    for start in (0, 0, 1):
        torch.manual_seed(start)
        seeds.append(HashedLinear(8, 8).seed)
    assert seeds[0] == seeds[1] != seeds[2]
    assert len({HashedLinear(8, 8).seed for _ in range(50)}) == 50
    assert all(0 <= seed < 2**32 for seed in seeds)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_dtype(dtype: torch.dtype) -> None:
    layer = HashedLinear(75, 52, compression=8, dtype=dtype, device="cpu")
    assert {p.dtype for p in layer.parameters()} == {dtype}
    assert layer(X.to(dtype)).dtype == dtype
    moved = HashedLinear(75, 52, compression=8, seed=layer.seed).to(dtype)
    assert moved(X.to(dtype)).dtype == dtype
    assert torch.equal(moved.map, layer.map)  # no cast reaches it


def test_default_dtype_is_torchs() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert HashedLinear(8, 8).bank.weight.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_extra_repr() -> None:
    text = repr(HashedLinear(784, 1000, seed=5, compression=64))
    for part in ("in_features=784", "out_features=1000", "bias=True", "granule=chunk", "seed=5", "compression=63.97"):
        assert part in text
    assert f"bytes={4 * (766 * 16 + 1000)} (dense {4 * 784_000})" in text
    assert "bias=hashed" in repr(HashedLinear(8, 8, "hashed", granule="element"))


# -- state -------------------------------------------------------------------------------------------------------------


def through_torch_save(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def through_safetensors(state: dict) -> dict:
    return safetensors.torch.load(safetensors.torch.save(state))


@pytest.mark.parametrize("through", [dict, through_torch_save, through_safetensors])
@pytest.mark.parametrize("assign", [False, True])
def test_state_dict_round_trip(layer: HashedLinear, through, assign: bool) -> None:
    other = copy.deepcopy(layer)
    other.reset_parameters()
    assert not same_function(layer, other)
    result = other.load_state_dict(through(layer.state_dict()), assign=assign)
    assert not result.missing_keys and not result.unexpected_keys
    assert same_function(layer, other)


def test_state_dict_says_what_rebuilds_the_function() -> None:
    layer = HashedLinear(75, 52, seed=2**32 - 1, granule="tile", compression=2, scale=0.1)
    state = layer.state_dict()
    assert list(state) == ["bias", "map", "bank.weight"]
    fields = dict(zip(rd.nn.hashed.MAP_FIELDS, state["map"].tolist(), strict=True))
    assert fields.pop("scale") == int(torch.tensor(0.1, dtype=torch.float64).view(torch.int64))
    assert fields == {
        "map_version": 1,
        "seed": 2**32 - 1,
        "slots": 2,
        "go": 32,
        "gi": 32,
        "out_features": 52,
        "in_features": 75,
        "hashed_bias": 0,
    }


BASE = dict(in_features=64, out_features=64, compression=4, granule="element", seed=7)
MISMATCHES = {
    "seed": (dict(seed=8), "seed: the layer has 8, the state dict 7"),
    "granule": (dict(granule="chunk"), "gi: the layer has 16, the state dict 1"),
    "slots": (dict(compression=8), "slots: the layer has 512, the state dict 1024"),
    "scale": (dict(scale=0.5), "scale: the layer has 0.5, the state dict 1.0"),
    "in": (dict(in_features=32, compression=2), "in_features: the layer has 32, the state dict 64"),
    "out": (dict(out_features=32, compression=2, bias=False), "out_features: the layer has 32, the state dict 64"),
    "hashed bias": (dict(bias="hashed"), "hashed_bias: the layer has 1, the state dict 0"),
}


@pytest.mark.parametrize("field", MISMATCHES)
def test_loading_what_disagrees_raises_with_both_values(field: str) -> None:
    change, text = MISMATCHES[field]
    state = nn.Sequential(HashedLinear(**BASE)).state_dict()
    with pytest.raises(RuntimeError, match=f"0.{text}"):
        nn.Sequential(HashedLinear(**(BASE | change))).load_state_dict(state)


def test_loading_another_map_version_or_none_raises() -> None:
    layer = HashedLinear(**BASE)
    state = layer.state_dict()
    state["map"][0] = 2
    with pytest.raises(RuntimeError, match="map_version: the layer has 1, the state dict 2"):
        layer.load_state_dict(state)
    with pytest.raises(RuntimeError, match="must be int64"):
        layer.load_state_dict({**state, "map": state["map"].float()})
    del state["map"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"map"'):
        layer.load_state_dict(state)
    assert layer.load_state_dict(state, strict=False).missing_keys == ["map"]


def test_deepcopy_and_pickle(layer: HashedLinear) -> None:
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert same_function(layer, other)
        assert other.bank.weight.data_ptr() != layer.bank.weight.data_ptr()


def test_whole_module_through_torch_save(layer: HashedLinear) -> None:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    assert same_function(layer, torch.load(file, weights_only=False))


def test_distributed_checkpoint_state(layer: HashedLinear) -> None:
    model, other = nn.Sequential(layer), nn.Sequential(copy.deepcopy(layer))
    other[0].reset_parameters()
    set_model_state_dict(other, get_model_state_dict(model))
    assert same_function(model, other)


@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
def test_meta_device(options: dict) -> None:
    """Built without memory, then filled: by `assign`, or by `to_empty` and `reset_parameters`."""
    with torch.device("meta"):
        empty = HashedLinear(75, 52, seed=9, **options)
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    assert empty(X.to("meta")).shape == (5, 52)
    real, filled = HashedLinear(75, 52, seed=9, **options), copy.deepcopy(empty)
    filled.load_state_dict(real.state_dict(), assign=True)
    assert same_function(real, filled)
    empty.to_empty(device="cpu")
    for module in empty.modules():
        module.reset_parameters()
    assert empty(X).isfinite().all()
    filled.load_state_dict(empty.state_dict())
    assert same_function(empty, filled)


def shape_of(layer: HashedLinear) -> dict:
    return dict(granule=layer.granule, compression=layer.compression, scale=layer.scale)


# -- sharing -----------------------------------------------------------------------------------------------------------


def test_layers_share_a_bank() -> None:
    """Each with its own seed, granule and scale; one parameter, whose gradient is the sum."""
    bank = WeightBank(4 * 1024, bound=0.1)
    model = nn.Sequential(
        HashedLinear(75, 60, seed=1, bank=bank),
        HashedLinear(60, 60, seed=2, bank=bank, granule="tile", scale=0.5),
        HashedLinear(60, 10, seed=3, bank=bank, granule="element", bias=False),
    )
    assert [layer.slots for layer in model] == [256, 4, 4096]
    assert sum(p is bank.weight for p in model.parameters()) == 1
    assert bank.weight.abs().max() <= 0.1
    dense = X
    for layer in model:
        dense = linear(dense, layer.materialize(), layer.bias)
    (truth,) = torch.autograd.grad(dense.square().sum(), [bank.weight])
    model(X).square().sum().backward()
    torch.testing.assert_close(bank.weight.grad, truth, rtol=1e-4, atol=1e-5)


def test_a_shared_bank_survives_copies_and_is_left_alone_by_reset() -> None:
    bank = WeightBank(256)
    model = nn.Sequential(HashedLinear(75, 75, bank=bank), HashedLinear(75, 75, bank=bank))
    before = bank.weight.clone()
    model[0].reset_parameters()
    assert torch.equal(before, bank.weight)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other[0].bank is other[1].bank is not bank
        assert same_function(model, other)
    other = nn.Sequential(*(HashedLinear(75, 75, bank=(b := WeightBank(256)), seed=m.seed) for m in model))
    assert b.weight.numel() == 256
    other.load_state_dict(model.state_dict())
    assert same_function(model, other)


# -- fitting a dense layer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("granule", ["element", "chunk", "tile", (4, 32)])
@pytest.mark.parametrize("scale", [1.0, -0.3])
def test_from_linear_is_the_least_squares_fit(granule, scale: float) -> None:
    """The gradient of the squared distance is zero and every perturbation is worse."""
    dense = nn.Linear(75, 130, dtype=torch.float64)
    layer = HashedLinear.from_linear(dense, compression=3, granule=granule, seed=4, scale=scale)

    def distance() -> torch.Tensor:
        return (layer.materialize() - dense.weight.detach()).square().sum()

    (slope,) = torch.autograd.grad(distance(), [layer.bank.weight])
    assert slope.abs().max() < 1e-12
    best, fitted = distance().item(), layer.bank.weight.detach().clone()
    for _ in range(5):
        with torch.no_grad():
            layer.bank.weight.copy_(fitted + 1e-3 * torch.randn_like(fitted))
        assert distance().item() > best
    assert torch.equal(layer.bias, dense.bias)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_from_linear_refuses_what_is_not_finite(value: float) -> None:
    dense = nn.Linear(9, 4)
    with torch.no_grad():
        dense.weight[2, 3] = value
    with pytest.raises(ValueError, match="HashedLinear.from_linear: weight must be finite"):
        HashedLinear.from_linear(dense, compression=3)


def test_from_linear_in_blocks_equals_whole(monkeypatch) -> None:
    dense = nn.Linear(75, 130)
    whole = HashedLinear.from_linear(dense, compression=8, seed=4)
    monkeypatch.setattr(rd.nn.hashed, "_FIT_BLOCK", 1000)
    assert torch.equal(whole.bank.weight, HashedLinear.from_linear(dense, compression=8, seed=4).bank.weight)


def test_from_linear_recovers_a_hashed_layer(layer: HashedLinear) -> None:
    dense = nn.Linear(75, 52, bias=layer.bias is not None)
    with torch.no_grad():
        dense.weight.copy_(layer.materialize())
        if layer.bias is not None:
            dense.bias.copy_(layer.bias)
    fitted = HashedLinear.from_linear(dense.eval(), seed=9, **shape_of(layer))
    torch.testing.assert_close(fitted.materialize(), layer.materialize(), rtol=1e-5, atol=1e-6)
    assert not fitted.training and fitted.bank.weight.requires_grad


def test_from_linear_leaves_unused_entries_zero_and_keeps_dtype() -> None:
    dense = nn.Linear(4, 3, bias=False, dtype=torch.bfloat16)
    layer = HashedLinear.from_linear(dense, compression=0.01, granule="element", seed=1)
    assert layer.bias is None and layer.bank.weight.dtype == torch.bfloat16
    assert int((layer.bank.weight != 0).sum()) <= 12 < layer.bank.size
    assert torch.equal(layer.materialize(), dense.weight)  # nothing collides at seed 1: the fit is exact
    with torch.device("meta"):
        assert HashedLinear.from_linear(nn.Linear(75, 52)).bank.weight.is_meta


# -- training and compiling --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("granule", ["element", "chunk", "tile"])
def test_training_lowers_the_loss_on_digits(granule: str) -> None:
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    hidden = HashedLinear(64, 256, compression=8, granule=granule, seed=1)
    model = nn.Sequential(hidden, nn.ReLU(), HashedLinear(256, 10, compression=2, seed=2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(40):
        loss = cross_entropy(model(x), y)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    accuracy = (model(x).argmax(1) == y).float().mean()
    assert losses[-1] < 0.5 * losses[0] and accuracy > 0.85, (losses[0], losses[-1], accuracy)


def test_compile(layer: HashedLinear) -> None:
    """One graph for a model, whatever the seeds; the bits of eager."""
    torch._dynamo.reset()
    model = nn.Sequential(layer, nn.ReLU(), HashedLinear(52, 30, seed=4))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(X), model(X))
    compiled(X).sum().backward()
    got = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(X).sum().backward()
    for mine, p in zip(got, model.parameters(), strict=True):
        assert torch.equal(mine, p.grad)


def test_autocast(layer: HashedLinear) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(X)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert {p.grad.dtype for p in layer.parameters()} == {torch.float32}


# -- errors ------------------------------------------------------------------------------------------------------------

ERRORS = {
    "compression 0": (dict(compression=0), ValueError, "compression must be a finite number > 0, got 0"),
    "compression negative": (dict(compression=-1), ValueError, "compression must be .* > 0, got -1"),
    "compression nan": (dict(compression=float("nan")), ValueError, "compression must be .* got nan"),
    "granule": (dict(granule="row"), ValueError, "granule must be one of .* got 'row'"),
    "seed": (dict(seed=2**32), ValueError, "seed must be an int in 0..4294967295 .* got 4294967296"),
    "seed negative": (dict(seed=-1), ValueError, "seed must be .* got -1"),
    "bias": (dict(bias="hash"), ValueError, "bias must be True, False or \"hashed\", got 'hash'"),
    "bias number": (dict(bias=1), ValueError, "bias must be .* got 1"),
    "hashed bias": (dict(bias="hashed"), ValueError, 'bias="hashed" needs granule "element", got \'chunk\''),
    "bank type": (dict(bank=torch.ones(16)), TypeError, "bank must be a WeightBank, got Tensor"),
    "bank ragged": (dict(bank=WeightBank(40)), ValueError, "whole number of slots of 16 values, got 40 values"),
    "bank dtype": (
        dict(bank=WeightBank(32), dtype=torch.half),
        ValueError,
        "dtype must be None or .*float32, got .*16",
    ),
    "bank device": (dict(bank=WeightBank(32), device="meta"), ValueError, "device must be None or .* cpu, got meta"),
    "dtype": (dict(dtype=torch.int32), TypeError, "dtype must be None or one of .*float32.*, got torch.int32"),
    "scale": (dict(scale="1"), TypeError, "scale must be a real number, got str"),
    "in_features": (dict(in_features=0), ValueError, "in_features must be an int >= 1, got 0"),
    "out_features": (dict(out_features=2.5), ValueError, "out_features must be an int >= 1, got 2.5"),
}


@pytest.mark.parametrize("wrong", ERRORS)
def test_constructor_errors(wrong: str) -> None:
    change, kind, text = ERRORS[wrong]
    with pytest.raises(kind, match=text):
        HashedLinear(**(dict(in_features=64, out_features=64) | change))


def test_forward_and_fit_errors(layer: HashedLinear) -> None:
    with pytest.raises(ValueError, match=r"x must have in_features = 75 as its last dimension, got \[5, 74\]"):
        layer(X[:, 1:])
    with pytest.raises(ValueError, match="0-d"):
        layer(X[0, 0])
    with pytest.raises(TypeError, match=r"linear must be an nn\.Linear, got ReLU"):
        HashedLinear.from_linear(nn.ReLU())
    with pytest.raises(ValueError, match="scale must not be 0"):
        HashedLinear.from_linear(nn.Linear(4, 4), scale=0)
    with pytest.raises(ValueError, match="size must be an int >= 1, got 0"):
        WeightBank(0)
    with pytest.raises(TypeError, match="WeightBank: dtype must be"):
        WeightBank(4, dtype=torch.int64)
