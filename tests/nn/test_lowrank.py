"""The low-rank layers: what they compute, exactness of `from_dense` at full rank, state, training, errors."""

import copy
import io
import itertools
import pickle
from typing import Any, NamedTuple

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rdkernels as rd
from rdkernels import registry
from rdkernels.nn import (
    BiclusterConv2d,
    CPConv2d,
    LowRankLinear,
    MonochromaticConv2d,
    SeparableConv2d,
    TuckerConv2d,
)

C, O, KH, KW = 6, 8, 3, 2  # noqa: E741


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class Form(NamedTuple):
    """A convolution's class, ranks for a layer of it, and a rank at which `weight` is met exactly."""

    cls: type
    ranks: dict[str, Any]
    exact: dict[str, Any]
    weight: Tensor


def cp_weight(rank: int) -> Tensor:
    inner, outer, vertical, horizontal = (normal(rank, n, seed=n) for n in (C, O, KH, KW))
    return torch.einsum("rc,ro,ri,rj->ocij", inner, outer, vertical, horizontal)


def mono_weight(colours: int) -> Tensor:
    assignment = torch.arange(O)[torch.randperm(O, generator=torch.Generator().manual_seed(4))] % colours
    return normal(colours, C, seed=1)[assignment][:, :, None, None] * normal(O, 1, KH, KW, seed=2)


ANY = normal(O, C, KH, KW, seed=3)
FORMS = {
    "separable": Form(SeparableConv2d, dict(rank=3), dict(rank=min(C * KH, O * KW)), ANY),
    "cp of full rank": Form(CPConv2d, dict(rank=5), dict(rank=KH * KW * C), ANY),
    "cp of its rank": Form(CPConv2d, dict(rank=5), dict(rank=5), cp_weight(5)),
    "cp over its rank": Form(CPConv2d, dict(rank=9), dict(rank=6), cp_weight(4)),
    "tucker": Form(TuckerConv2d, dict(rank=(3, 4)), dict(rank=(C, O)), ANY),
    "monochromatic": Form(MonochromaticConv2d, dict(colours=3), dict(rank=4), mono_weight(4)),
    "monochromatic uneven": Form(MonochromaticConv2d, dict(colours=3), dict(rank=3), mono_weight(3)),
    "bicluster": Form(
        BiclusterConv2d, dict(clusters=(3, 2), rank=(2, 3)), dict(clusters=(3, 2), rank=(C // 3, O // 2)), ANY
    ),
}
LAYERS = {name: form for name, form in FORMS.items() if " " not in name} | {"cp": FORMS["cp of full rank"]}


def dense(weight: Tensor = ANY, bias: bool = True, **where: Any) -> nn.Conv2d:
    o, c, *kernel = weight.shape
    conv = nn.Conv2d(c, o, tuple(kernel), bias=bias, dtype=weight.dtype, **where)
    with torch.no_grad():
        conv.weight.copy_(weight)
        if conv.bias is not None:
            conv.bias.copy_(normal(o, seed=8))
    return conv


def built(name: str, dtype: torch.dtype = torch.float32, **more: Any) -> nn.Module:
    """A layer of the form, or the linear one, with first values of a fixed seed."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        if name == "linear":
            return LowRankLinear(24, 20, rank=5, dtype=dtype, **more)
        form = LAYERS[name]
        return form.cls(C, O, (KH, KW), **{"padding": 1, "dtype": dtype, **form.ranks, **more})


def batch(layer: nn.Module, dtype: torch.dtype = torch.float32, n: int = 2) -> Tensor:
    shape = (n, layer.in_features) if isinstance(layer, LowRankLinear) else (n, layer.in_channels, 9, 8)
    return normal(*shape, seed=6, dtype=dtype)


def twin(layer: nn.Module, x: Tensor) -> Tensor:
    """What the dense twin computes, from the materialised weight."""
    if isinstance(layer, LowRankLinear):
        return F.linear(x, layer.materialize(), layer.bias)
    return F.conv2d(x, layer.materialize(), layer.bias, layer.stride, layer.padding, layer.dilation)


@pytest.fixture(params=[*LAYERS, "linear"])
def name(request) -> str:
    return request.param


# -- what it computes --------------------------------------------------------------------------------------------------

GEOMETRIES = [
    dict(stride=stride, padding=padding, dilation=dilation)
    for stride, padding, dilation in itertools.product((1, 2, (2, 3)), (0, 1, (2, 1), "same"), (1, (1, 2)))
    if padding != "same" or stride == 1
]


@pytest.mark.parametrize("form", FORMS)
def test_from_dense_is_exact(form: str) -> None:
    """At full rank, or at the weight's own, the layer is the dense one: every stride, padding, dilation and bias."""
    x, (cls, _, exact, weight) = normal(2, C, 11, 12, seed=5), FORMS[form]
    for where, bias in itertools.product(GEOMETRIES, (False, True)):
        conv = dense(weight, bias, **where)
        layer = cls.from_dense(conv, **exact)
        tolerance = 1e-6 if "its rank" in form else 1e-12
        assert layer.relative_error(conv) < tolerance
        torch.testing.assert_close(layer(x), conv(x), rtol=0, atol=float(conv(x).detach().norm()) * tolerance)
        assert (layer.bias is None) == (not bias)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_from_dense_is_exact(bias: bool) -> None:
    linear = nn.Linear(9, 7, bias, dtype=torch.float64)
    layer, x = LowRankLinear.from_dense(linear, rank=7), normal(2, 3, 9)
    assert layer.relative_error(linear) < 1e-14
    torch.testing.assert_close(layer(x), linear(x))


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "silu"])
@pytest.mark.parametrize("added", [False, True])
def test_forward_is_one_call_of_the_operation(name: str, activation: str | None, added: bool) -> None:
    layer = built(name, torch.float64, activation=activation)
    x = batch(layer, torch.float64)
    expected = twin(layer, x)
    residual = normal(*expected.shape, seed=7) if added else None
    expected = expected if residual is None else expected + residual
    with torch.no_grad(), registry.trace() as ran:
        got = layer(x, residual)
    assert ran == [(f"{layer._op}_fwd", "reference")]  # float64: no other backend serves it
    torch.testing.assert_close(got, expected if activation is None else getattr(F, activation)(expected))


def test_float32_forward_and_gradients(name: str) -> None:
    """By whatever backend runs here: y, and the gradients of every parameter, next to those through `materialize`."""
    layer = built(name)
    x = batch(layer)
    torch.testing.assert_close(layer(x), twin(layer, x), rtol=1e-4, atol=1e-5)
    grad = normal(*layer(x).shape, seed=9, dtype=torch.float32)
    mine = torch.autograd.grad(layer(x), list(layer.parameters()), grad)
    truth = torch.autograd.grad(twin(layer, x), list(layer.parameters()), grad)
    for got, want in zip(mine, truth, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def test_factors_are_the_operations_arguments(name: str) -> None:
    layer = built(name, torch.float64)
    x, where = batch(layer, torch.float64), {}
    if not isinstance(layer, LowRankLinear):
        where = dict(stride=layer.stride, padding=layer.padding, dilation=layer.dilation)
    assert torch.equal(getattr(rd, layer._op)(x, *layer._factors(), layer.bias, **where), layer(x))
    floating = [t for t in layer._factors() if t.is_floating_point()]
    assert [id(t) for t in floating] == [id(p) for n, p in layer.named_parameters() if n != "bias"]


def test_empty_batch(name: str) -> None:
    layer = built(name)
    assert layer(batch(layer)[:0]).shape == (0, *twin(layer, batch(layer)).shape[1:])


# -- first values ------------------------------------------------------------------------------------------------------

WIDE = {
    "separable": (SeparableConv2d, dict(rank=24)),
    "cp": (CPConv2d, dict(rank=60)),
    "tucker": (TuckerConv2d, dict(rank=(16, 20))),
    "monochromatic": (MonochromaticConv2d, dict(colours=24)),
    "bicluster": (BiclusterConv2d, dict(clusters=(2, 4), rank=(8, 6))),
}


@pytest.mark.parametrize("form", WIDE)
def test_initial_weight_has_the_dense_layers_variance(form: str) -> None:
    cls, ranks = WIDE[form]
    torch.manual_seed(0)
    draws = [cls(32, 48, 3, **ranks) for _ in range(8)]
    want = float(nn.Conv2d(32, 48, 3).weight.detach().square().mean())
    composed = torch.stack([layer.materialize().detach() for layer in draws])
    assert abs(float(composed.square().mean()) / want - 1) < 0.08
    each = composed.square().mean((0, 2, 3, 4)) / want  # per output
    assert float(each.min()) > 0.5 and float(each.max()) < 2
    bias = torch.stack([layer.bias.detach() for layer in draws])
    assert 0.97 * (32 * 9) ** -0.5 < float(bias.abs().max()) <= (32 * 9) ** -0.5


def test_initial_linear_weight_has_the_dense_layers_variance() -> None:
    torch.manual_seed(0)
    layer = LowRankLinear(300, 200, rank=64)
    assert abs(float(layer.materialize().detach().square().mean()) * 3 * 300 - 1) < 0.08


def test_reset_parameters(name: str) -> None:
    layer = built(name)
    before = copy.deepcopy(layer.state_dict())
    layer.reset_parameters()
    after = layer.state_dict()
    for key, value in before.items():
        assert torch.equal(value, after[key]) == (value.dtype == torch.int64), key


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
def test_state_dict_round_trip(name: str, through, assign: bool) -> None:
    layer, other = built(name), built(name)
    x = batch(layer)
    with torch.no_grad():
        for t in layer._factors():
            t.copy_(t.flip(0))  # the indices too: a permutation stays one
    assert not torch.equal(layer(x), other(x))
    result = other.load_state_dict(through(layer.state_dict()), assign=assign)
    assert not result.missing_keys and not result.unexpected_keys
    assert torch.equal(layer(x), other(x))


def test_state_dict_holds_factors_bias_and_indices() -> None:
    keys = {name: set(built(name).state_dict()) for name in LAYERS}
    assert keys["separable"] == {"vertical", "horizontal", "bias"}
    assert keys["cp"] == {"inner", "vertical", "horizontal", "outer", "bias"}
    assert keys["tucker"] == {"inner", "core", "outer", "bias"}
    assert keys["monochromatic"] == {"colours", "filters", "assignment", "bias"}
    assert keys["bicluster"] == {"inner", "core", "outer", "inputs", "outputs", "bias"}
    assert set(built("linear", bias=False).state_dict()) == {"down", "up"}


@pytest.mark.parametrize(("form", "key"), [("monochromatic", "assignment"), ("bicluster", "outputs")])
def test_loading_refuses_wrong_indices(form: str, key: str) -> None:
    layer = built(form)
    state = layer.state_dict()
    with pytest.raises(RuntimeError, match=key):
        layer.load_state_dict({**state, key: state[key].clone().fill_(C + O)})


def test_copies(name: str) -> None:
    layer = built(name)
    x = batch(layer)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))
        with torch.no_grad():
            next(other.parameters()).zero_()
        assert not torch.equal(other(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype(name: str, dtype: torch.dtype) -> None:
    layer = built(name)
    x, before = batch(layer), built(name)
    moved = layer.to(dtype)
    assert {p.dtype for p in moved.parameters()} == {dtype} and {b.dtype for b in moved.buffers()} <= {torch.int64}
    tolerance = 2e-2 if dtype != torch.float64 else 1e-5
    got = moved(x.to(dtype))
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), before(x), rtol=tolerance, atol=tolerance)
    assert {p.dtype for p in built(name, dtype).parameters()} == {dtype}


def test_meta_then_empty(name: str) -> None:
    layer = built(name, device="meta")
    assert all(t.is_meta for t in layer.state_dict().values())
    layer.to_empty(device="cpu").load_state_dict(built(name).state_dict())
    assert torch.equal(layer(batch(layer)), built(name)(batch(layer)))


def test_extra_repr() -> None:
    text = repr(TuckerConv2d(96, 256, 5, padding=2, rank=(80, 64), activation="relu"))
    macs, stored = 96 * 80 + 80 * 64 * 25 + 64 * 256, 96 * 80 + 80 * 64 * 25 + 64 * 256 + 256
    for part in ("96, 256, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2), rank=(80, 64), bias=True",):
        assert part in text
    dense_macs = 96 * 256 * 25
    assert f"macs=dense/{dense_macs / macs:.3g}, parameters={stored} (dense {dense_macs + 256})" in text
    assert "activation=relu" in text
    assert "colours=6" in repr(MonochromaticConv2d(3, 96, 11, 4, colours=6))
    assert "clusters=(2, 4), rank=(3, 3)" in repr(BiclusterConv2d(8, 8, 3, clusters=(2, 4), rank=3))
    assert "in_features=64, out_features=64, rank=8, bias=False, macs=dense/4" in repr(
        LowRankLinear(64, 64, False, rank=8)
    )


# -- training and compilation ------------------------------------------------------------------------------------------


def test_training_reduces_the_loss(name: str) -> None:
    layer = built(name, activation="silu")
    x = batch(layer, n=8)
    target = normal(*layer(x).shape, seed=11, dtype=torch.float32)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = F.mse_loss(layer(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.97 * losses[0]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in layer.parameters())


def test_compiles_whole(name: str) -> None:
    layer = built(name, activation="relu")
    x = batch(layer)
    run = torch.compile(layer, fullgraph=True, backend="aot_eager")
    residual = normal(*layer(x).shape, seed=7, dtype=torch.float32)
    torch.testing.assert_close(run(x, residual), layer(x, residual))
    mine = torch.autograd.grad(run(x, residual).sum(), list(layer.parameters()))
    for got, want in zip(mine, torch.autograd.grad(layer(x, residual).sum(), list(layer.parameters())), strict=True):
        torch.testing.assert_close(got, want)


# -- from_dense --------------------------------------------------------------------------------------------------------


def fits() -> dict[str, Any]:
    return {name: form.cls for name, form in LAYERS.items()}


@pytest.mark.parametrize("form", fits())
def test_from_dense_keeps_the_rest(form: str) -> None:
    """Geometry, dtype, training mode and bias are the dense layer's; the global random state is nobody's."""
    conv = dense(ANY.float(), stride=(2, 1), padding=(0, 1), dilation=(1, 2)).eval()
    before = torch.get_rng_state()
    kinds = dict(clusters=(2, 2)) if form == "bicluster" else {}
    layer = fits()[form].from_dense(conv, rank=2, activation="gelu", **kinds)
    again = fits()[form].from_dense(conv, rank=2, **kinds)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(layer._factors(), again._factors(), strict=True))
    assert not layer.training and again.activation is None and layer.activation == "gelu"
    assert (layer.stride, layer.padding, layer.dilation) == (conv.stride, conv.padding, conv.dilation)
    assert {p.dtype for p in layer.parameters()} == {torch.float32}
    assert torch.equal(layer.bias, conv.bias) and layer.bias is not conv.bias
    assert all(p.requires_grad and p.is_leaf for p in layer.parameters())
    x = normal(1, C, 9, 9, dtype=torch.float32)
    assert layer(x).shape == conv(x).shape


@pytest.mark.parametrize("form", fits())
def test_error_falls_with_the_rank(form: str) -> None:
    conv = dense(normal(16, 12, 3, 3))
    kinds = dict(clusters=(2, 2)) if form == "bicluster" else {}
    errors = [fits()[form].from_dense(conv, rank=rank, **kinds).relative_error(conv) for rank in (1, 2, 4, 6)]
    assert all(second < first for first, second in itertools.pairwise(errors))
    assert 0 < errors[-1] < 1


def test_relative_error_is_the_ratio_of_norms() -> None:
    conv = dense()
    layer = SeparableConv2d.from_dense(conv, rank=3)
    gap = conv.weight - layer.materialize()
    assert layer.relative_error(conv) == pytest.approx(float((gap.norm() / conv.weight.norm()).detach()), rel=1e-12)
    with pytest.raises(ValueError, match=r"relative_error: dense must have a weight of shape \[8, 6, 3, 2\]"):
        layer.relative_error(nn.Conv2d(6, 9, 3))


@pytest.mark.parametrize("form", sorted(set(fits()) - {"bicluster"}))
def test_from_dense_in_the_inputs_metric(form: str) -> None:
    """Pixels uncorrelated, channels far from it: the fit by the inputs' covariance has the smaller squared error."""
    mix = normal(12, 12, seed=1) * torch.logspace(0, -2, 12, dtype=torch.float64)
    x = torch.einsum("nchw,cd->ndhw", normal(4, 12, 20, 20, seed=2), mix)
    conv, cls = dense(normal(16, 12, 3, 3)), fits()[form]
    with rd.compress.calibrate(nn.Sequential(conv), ["0"]) as found:
        conv(x)
    plain = cls.from_dense(conv, rank=5)
    fitted = cls.from_dense(conv, rank=5, metric="input_cov", calibrator=found["0"])
    with torch.no_grad():
        wrong, rival = (float((conv(x) - layer(x)).square().mean()) for layer in (fitted, plain))
    assert wrong < 0.8 * rival
    assert fitted.relative_error(conv) > plain.relative_error(conv)


@pytest.mark.parametrize("grad", [False, True])
def test_linear_takes_a_vector(grad: bool) -> None:
    layer = LowRankLinear(9, 7, rank=2)
    x = torch.randn(9)
    with torch.set_grad_enabled(grad):
        y = layer(x)
    torch.testing.assert_close(y, layer(x[None])[0])


def test_linear_in_the_inputs_metric_is_the_best_of_its_rank() -> None:
    """The Eckart-Young bound of the whitened weight is met on the calibration data themselves."""
    x = normal(500, 30, seed=1) @ (normal(30, 30, seed=2) * torch.logspace(0, -2, 30, dtype=torch.float64))
    linear = nn.Linear(30, 25, dtype=torch.float64)
    with rd.compress.calibrate(linear, [linear]) as found:
        linear(x)
    fitted = LowRankLinear.from_dense(linear, rank=6, metric="input_cov", calibrator=found[""])
    plain = LowRankLinear.from_dense(linear, rank=6)
    with torch.no_grad():
        got, rival = (float((linear(x) - layer(x)).square().sum()) for layer in (fitted, plain))
    best = float(torch.linalg.svdvals((x @ linear.weight.T).detach())[6:].square().sum())
    assert best <= got < best * 1.001 and got < 0.5 * rival


# -- errors ------------------------------------------------------------------------------------------------------------

CALIBRATOR = rd.compress.InputCovariance(C)

MADE = {
    "groups": (lambda: SeparableConv2d(6, 8, 3, groups=2, rank=3), ValueError, "SeparableConv2d: groups must be 1"),
    "mode": (lambda: CPConv2d(6, 8, 3, padding_mode="reflect", rank=3), ValueError, "padding_mode must be"),
    "rank 0": (lambda: TuckerConv2d(6, 8, 3, rank=(3, 0)), ValueError, r"TuckerConv2d: rank\[1\] must be >= 1, got 0"),
    "rank kind": (lambda: CPConv2d(6, 8, 3, rank=2.0), TypeError, "CPConv2d: rank must be an int"),
    "no rank": (lambda: SeparableConv2d(6, 8, 3), TypeError, "SeparableConv2d: rank must be an int, got None"),
    "no ranks": (lambda: TuckerConv2d(6, 8, 3), TypeError, r"TuckerConv2d: rank\[0\] must be an int, got None"),
    "no clusters": (lambda: BiclusterConv2d(6, 8, 3, rank=2), TypeError, r"clusters\[0\] must be an int, got None"),
    "other rank": (lambda: CPConv2d(6, 8, 3, colours=2), TypeError, "unexpected keyword argument 'colours'"),
    "three ranks": (lambda: TuckerConv2d(6, 8, 3, rank=(1, 2, 3)), ValueError, "rank must be an int or a pair"),
    "kernel": (lambda: CPConv2d(6, 8, (3, 0), rank=2), ValueError, r"kernel_size\[1\] must be >= 1"),
    "channels": (lambda: CPConv2d(0, 8, 3, rank=2), ValueError, "in_channels must be >= 1"),
    "stride": (lambda: CPConv2d(6, 8, 3, stride=0, rank=2), ValueError, "CPConv2d: stride must be"),
    "same stride": (lambda: CPConv2d(6, 8, 3, 2, "same", rank=2), ValueError, "needs stride 1"),
    "activation": (lambda: CPConv2d(6, 8, 3, rank=2, activation="tanh"), ValueError, "activation must be None or"),
    "dtype": (lambda: CPConv2d(6, 8, 3, rank=2, dtype=torch.int32), TypeError, "dtype must be None or"),
    "bias": (lambda: LowRankLinear(6, 8, "hashed", rank=2), TypeError, "LowRankLinear: bias must be"),
    "features": (lambda: LowRankLinear(6, 0, rank=2), ValueError, "LowRankLinear: out_features must be >= 1"),
    "colours": (lambda: MonochromaticConv2d(3, 8, 3, colours=0), ValueError, "colours must be >= 1"),
    "assignment": (
        lambda: MonochromaticConv2d(3, 2, 3, colours=2, assignment=torch.tensor([0, 2])),
        ValueError,
        r"MonochromaticConv2d: assignment must be in \[0, 2\), got values from 0 to 2",
    ),
    "assignment kind": (
        lambda: MonochromaticConv2d(3, 2, 3, colours=2, assignment=torch.tensor([0.0, 1.0])),
        TypeError,
        "assignment must be int64",
    ),
    "clusters": (
        lambda: BiclusterConv2d(6, 8, 3, clusters=(4, 2), rank=1),
        ValueError,
        r"BiclusterConv2d: clusters\[0\] must divide the 6 input channels, got 4",
    ),
    "inputs": (
        lambda: BiclusterConv2d(2, 2, 3, clusters=1, rank=1, inputs=torch.tensor([1, 1])),
        ValueError,
        "inputs must be a permutation",
    ),
    "x": (lambda: CPConv2d(6, 8, 3, rank=2)(torch.zeros(1, 5, 9, 9)), ValueError, "CPConv2d: x must be .* 6, got"),
    "x rows": (lambda: LowRankLinear(6, 8, rank=2)(torch.zeros(3, 5)), ValueError, "LowRankLinear: x must be"),
    "dense type": (
        lambda: CPConv2d.from_dense(nn.ConvTranspose2d(6, 8, 3), rank=2),
        TypeError,
        "CPConv2d.from_dense: conv must be an initialised nn.Conv2d, got ConvTranspose2d",
    ),
    "lazy": (lambda: CPConv2d.from_dense(nn.LazyConv2d(8, 3), rank=2), TypeError, "initialised nn.Conv2d"),
    "linear type": (lambda: LowRankLinear.from_dense(dense(), rank=2), TypeError, "linear must be .* nn.Linear"),
    "conv type": (lambda: TuckerConv2d.from_dense(nn.Linear(3, 3), rank=2), TypeError, "got Linear"),
    "meta": (lambda: CPConv2d.from_dense(nn.Conv2d(6, 8, 3, device="meta"), rank=2), ValueError, "must have values"),
    "dense groups": (lambda: CPConv2d.from_dense(nn.Conv2d(6, 8, 3, groups=2), rank=2), ValueError, "groups must be 1"),
    "dense mode": (
        lambda: CPConv2d.from_dense(nn.Conv2d(6, 8, 3, padding_mode="circular"), rank=2),
        ValueError,
        "padding_mode must be",
    ),
    "nothing": (lambda: CPConv2d.from_dense(dense()), ValueError, "exactly one of rank, energy and macs"),
    "two": (lambda: CPConv2d.from_dense(dense(), rank=2, macs=2.0), ValueError, "exactly one of rank, energy and macs"),
    "zero": (lambda: SeparableConv2d.from_dense(dense(), rank=0), ValueError, "from_dense: rank must be from 1 to 16"),
    "above": (lambda: SeparableConv2d.from_dense(dense(), rank=17), ValueError, "rank must be from 1 to 16, got 17"),
    "cp above": (lambda: CPConv2d.from_dense(dense(), rank=37), ValueError, "rank must be from 1 to 36, got 37"),
    "tucker above": (lambda: TuckerConv2d.from_dense(dense(), rank=7), ValueError, r"rank\[0\] must be from 1 to 6"),
    "mono above": (lambda: MonochromaticConv2d.from_dense(dense(), rank=9), ValueError, "from 1 to 8, got 9"),
    "bi above": (lambda: BiclusterConv2d.from_dense(dense(), rank=4), ValueError, r"rank\[0\] must be from 1 to 3"),
    "linear above": (lambda: LowRankLinear.from_dense(nn.Linear(6, 8), rank=7), ValueError, "from 1 to 6, got 7"),
    "energy": (lambda: CPConv2d.from_dense(dense(), energy=1.5), ValueError, r"energy must be in \(0, 1\]"),
    "macs": (lambda: SeparableConv2d.from_dense(dense(), macs=50), ValueError, "macs must be at most 8.47"),
    "macs kind": (lambda: SeparableConv2d.from_dense(dense(), macs="4"), TypeError, "macs must be a real number"),
    "metric": (lambda: CPConv2d.from_dense(dense(), rank=2, metric="l1"), ValueError, "metric must be"),
    "no calibrator": (
        lambda: CPConv2d.from_dense(dense(), rank=2, metric="input_cov"),
        ValueError,
        "CPConv2d.from_dense: calibrator must be given",
    ),
    "needless calibrator": (
        lambda: CPConv2d.from_dense(dense(), rank=2, calibrator=CALIBRATOR),
        ValueError,
        'calibrator must be given with metric="input_cov" and only then',
    ),
    "calibrator kind": (
        lambda: LowRankLinear.from_dense(nn.Linear(6, 8), rank=2, metric="input_cov", calibrator=torch.eye(6)),
        TypeError,
        "calibrator must be an rdkernels.compress.InputCovariance, got Tensor",
    ),
    "empty calibrator": (
        lambda: CPConv2d.from_dense(dense(), rank=2, metric="input_cov", calibrator=CALIBRATOR),
        ValueError,
        "calibrator has seen no input",
    ),
    "bicluster metric": (
        lambda: BiclusterConv2d.from_dense(dense(), rank=2, metric="input_cov", calibrator=seen()),
        ValueError,
        "BiclusterConv2d.from_dense: metric must be",
    ),
    "clusters elsewhere": (lambda: CPConv2d.from_dense(dense(), rank=2, clusters=2), TypeError, "clusters"),
    "not finite": (lambda: CPConv2d.from_dense(dense(ANY / 0), rank=2), ValueError, "weight must be finite"),
}


def seen() -> rd.compress.InputCovariance:
    covariance = rd.compress.InputCovariance(C)
    covariance.update(normal(2, C, 4, 4))
    return covariance


@pytest.mark.parametrize("case", MADE)
def test_errors(case: str) -> None:
    make, error, match = MADE[case]
    with pytest.raises(error, match=match):
        make()
