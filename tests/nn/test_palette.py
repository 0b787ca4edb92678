"""Palette layers: against their dense twins, state, counting, training."""

import copy
import io

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F

from rdkernels import registry
from rdkernels.nn import PaletteConv2d, PaletteLinear


def linear(**options) -> PaletteLinear:
    torch.manual_seed(0)
    return PaletteLinear.from_dense(nn.Linear(37, 21), **{"bits": 3, **options})


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_linear_is_its_dense_twin(bits: int, zero: bool) -> None:
    layer, x = linear(bits=bits, zero=zero), torch.randn(5, 37, requires_grad=True)
    with registry.trace() as ran:
        y = layer(x)
    assert [name for name, _ in ran] == ["palette_linear_fwd"]
    assert len(layer.materialize().unique()) <= 2**bits
    weight = layer.materialize()
    torch.testing.assert_close(y, F.linear(x, weight, layer.bias), rtol=1e-5, atol=1e-5)
    own = torch.autograd.grad(y.square().sum(), (x, layer.codebook, layer.bias))
    dense = torch.autograd.grad(F.linear(x, weight, layer.bias).square().sum(), (x, layer.codebook, layer.bias))
    torch.testing.assert_close(own, dense, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1, "stride": 2},
        {"padding": "same", "dilation": 2},
        {"groups": 4, "padding": 1, "padding_mode": "circular"},
        {"padding": (2, 1), "padding_mode": "reflect", "bias": False},
    ],
)
def test_conv_is_its_dense_twin(options: dict) -> None:
    conv = nn.Conv2d(8, 12, 3, **options)
    layer = PaletteConv2d.from_dense(conv, 8)
    x = torch.randn(2, 8, 11, 10)
    assert layer.materialize().shape == conv.weight.shape
    with torch.no_grad():
        conv.weight.copy_(layer.materialize())
    torch.testing.assert_close(layer(x), conv(x))
    layer(x).sum().backward()
    assert float(layer.codebook.grad.abs().max()) > 0


def test_pruned_weights_stay_zero_through_training() -> None:
    dense = nn.Linear(40, 30)
    with torch.no_grad():
        dense.weight[torch.rand(30, 40) < 0.7] = 0
    gone = dense.weight == 0
    layer = PaletteLinear.from_dense(dense, 4, zero=True)
    assert layer.codebook.shape == (15,)
    indices, before = layer.indices.clone(), layer.codebook.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)
    losses = []
    for _ in range(20):
        loss = (layer(torch.ones(4, 40)) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0] / 2
    assert torch.equal(layer.materialize() == 0, gone)
    assert torch.equal(layer.indices, indices) and not torch.equal(layer.codebook, before)


def test_coded_bits_are_the_entropy() -> None:
    dense = nn.Linear(64, 16, bias=False)
    with torch.no_grad():
        dense.weight.copy_(torch.tensor([0.0, 0, 0, 0, 1, 1, 2, 3]).repeat(128).view(16, 64))
    layer = PaletteLinear.from_dense(dense, 2)
    assert layer.coded_bits() == pytest.approx(1024 * 1.75)  # dyadic shares: Huffman's code reaches the bound
    assert layer.huffman_bits() == 1024 * 7 // 4
    one = PaletteLinear.from_dense(nn.Linear(3, 3, bias=False), 1)
    one.indices.zero_()
    assert (one.coded_bits(), one.huffman_bits()) == (0, 9)


def through_torch_save(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def through_safetensors(state: dict) -> dict:
    return safetensors.torch.load(safetensors.torch.save(state))


@pytest.mark.parametrize("through", [dict, through_torch_save, through_safetensors])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_state_dict_round_trip(through, kind: str) -> None:
    made = {"linear": lambda: PaletteLinear(19, 23, bits=5), "conv": lambda: PaletteConv2d(3, 5, 3, bits=5)}[kind]
    layer, other = made(), made()
    assert not torch.equal(layer.materialize(), other.materialize())
    other.load_state_dict(through(layer.state_dict()))
    assert torch.equal(layer.materialize(), other.materialize())


def test_loading_another_layers_state_says_what_differs() -> None:
    state = PaletteLinear(19, 23, bits=4).state_dict()
    with pytest.raises(RuntimeError, match="zero: the layer has 1, the state dict 0"):
        PaletteLinear(19, 23, bits=4, zero=True).load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"shape: the layer has \[23, 20\], the state dict \[23, 19\]"):
        PaletteLinear(20, 23, bits=4).load_state_dict(state)  # packed, both have the same shape
    with pytest.raises(RuntimeError, match="Missing key.*palette"):
        PaletteLinear(19, 23, bits=4).load_state_dict({k: v for k, v in state.items() if k != "palette"})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype(dtype: torch.dtype) -> None:
    layer = linear().to(dtype)
    assert layer.indices.dtype == torch.uint8 and layer.codebook.dtype == dtype
    y = layer(torch.randn(2, 37, dtype=dtype))
    y.sum().backward()
    assert y.dtype == layer.codebook.grad.dtype == dtype


def test_meta_and_deepcopy() -> None:
    empty = PaletteLinear(37, 21, bits=3, device="meta")
    assert empty.indices.is_meta and empty.codebook.is_meta
    layer = linear()
    empty.to_empty(device="cpu").load_state_dict(layer.state_dict())
    assert torch.equal(empty.materialize(), layer.materialize())
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        twin.codebook.add_(1)
    assert not torch.equal(twin.materialize(), layer.materialize())


def test_compiled() -> None:
    layer, x = linear(zero=True), torch.randn(3, 37)
    run = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(run(x), layer(x))
    run(x).sum().backward()
    assert layer.codebook.grad.shape == (7,)


def test_initial_weights_are_those_of_linear() -> None:
    layer = PaletteLinear(400, 50, bits=8)
    weight = layer.materialize().detach()
    assert 0.045 < float(weight.abs().max()) <= 0.05 and abs(float(weight.std()) - 0.05 / 3**0.5) < 0.001
    assert "bits=8, zero=False" in repr(layer) and f"bytes={4 * 306 + 64 * 400}" in repr(layer)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: PaletteLinear(0, 3, bits=2), ValueError, "PaletteLinear: in_features must be >= 1"),
        (lambda: PaletteLinear(3, 3, bits=9), ValueError, "PaletteLinear: bits must be from 1 to 8"),
        (lambda: PaletteLinear(3, 3, bias=0, bits=2), TypeError, "PaletteLinear: bias must be True or False"),
        (lambda: PaletteLinear(3, 3, bits=2, dtype=torch.int8), TypeError, "PaletteLinear: dtype must be"),
        (lambda: PaletteConv2d(3, 4, 3, groups=2, bits=2), ValueError, "PaletteConv2d: in_channels must be divisible"),
        (lambda: PaletteLinear.from_dense(nn.Conv2d(1, 1, 1), 2), TypeError, "must be an initialised nn.Linear"),
        (lambda: linear()(torch.zeros(2, 36)), ValueError, "in_features = 37"),
    ],
)
def test_bad_input(make, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_convolutions_entries_sum_many_gradients_exactly() -> None:
    layer = PaletteConv2d(256, 256, 3, bits=2, bias=False)
    grad = torch.rand(256, 256, 3, 3, generator=torch.Generator().manual_seed(0))
    layer.materialize().backward(grad)
    want = torch.zeros(4, dtype=torch.float64).index_add_(0, layer.index().flatten().int(), grad.double().flatten())
    assert layer.codebook.grad is not None
    torch.testing.assert_close(layer.codebook.grad.double(), want, rtol=1e-7, atol=0)
    single = torch.zeros(4).index_add_(0, layer.index().flatten().int(), grad.flatten())  # the control: it is worse
    assert float(((single - want) / want).abs().max()) > 1e-7


def test_a_state_dict_of_another_palette_leaves_the_layer_as_it_was() -> None:
    layer, other = PaletteLinear(16, 8, bits=3), PaletteLinear(16, 8, bits=3)
    state = other.state_dict()
    state["palette"] = state["palette"].clone()
    state["palette"][0] += 1
    before = layer.codebook.detach().clone()
    with pytest.raises(RuntimeError, match="version"):
        layer.load_state_dict(state)
    assert torch.equal(layer.codebook, before) and not torch.equal(other.codebook, before)
