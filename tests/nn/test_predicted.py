"""`PredictedLinear` and `PredictedConv2d`: both orders, gradients, fitting, state."""

import copy
import io
import itertools
import pickle

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.nn import functional

from rdkernels.fits import WeightInputCovariance
from rdkernels.nn import PredictedConv2d, PredictedLinear
from rdkernels.testing import assert_accurate

ORDERS = ("expand", "pool")
X = torch.randn(6, 48, generator=torch.Generator().manual_seed(0))
ATOMS = torch.randn(48, 20, generator=torch.Generator().manual_seed(1)) / 48**0.5
MAPS = torch.randn(3, 4, 9, 8, generator=torch.Generator().manual_seed(0))


def seen(dense: nn.Module, x: torch.Tensor, squared: bool = False) -> WeightInputCovariance:
    observer = WeightInputCovariance(dense, squared=squared)
    observer.update(torch.cat([x, 2 * x.flip(0), x.roll(1, -1)]))
    return observer


LINEARS = {
    "se": dict(fraction=0.25, topology=(6, 8)),
    "se columns": dict(fraction=0.25, topology=(6, 8), columns=5, sigma=2.0),
    "se channels": dict(fraction=0.3, topology=(3, 4, 4), columns=4),
    "se raw": dict(fraction=0.25, topology=(48,), whiten=False),
    "emp": dict(fraction=0.25, dictionary="emp", columns=3, observer=seen(nn.Linear(48, 1), X)),
    "emp2": dict(fraction=0.25, dictionary="emp2", observer=seen(nn.Linear(48, 1), X, True)),
    "gauss": dict(fraction=0.25, dictionary="gauss", columns=7),
    "identity": dict(fraction=0.25, dictionary="identity", columns=4, bias=False),
    "dct": dict(fraction=0.25, dictionary="dct", topology=(3, 4, 4)),
    "tensor": dict(fraction=0.25, dictionary=ATOMS, columns=2, bias=False),
}
CONV = nn.Conv2d(4, 10, (3, 2))
CONVS = {
    "se": dict(fraction=0.5, padding=1),
    "se columns": dict(fraction=0.3, columns=4, stride=2, padding="valid"),
    "se reflect": dict(fraction=0.5, columns=2, padding=(1, 0), padding_mode="reflect"),
    "emp": dict(fraction=0.25, dictionary="emp", columns=3, padding="same", observer=seen(CONV, MAPS)),
    "gauss": dict(fraction=0.25, dictionary="gauss", columns=3, padding="same", padding_mode="circular"),
    "identity": dict(fraction=0.25, dictionary="identity", columns=2, dilation=(2, 1), bias=False),
    "dct": dict(fraction=0.5, dictionary="dct", padding="same", dilation=2),
}


def linear(name: str, **more) -> PredictedLinear:
    return PredictedLinear(48, 23, seed=9, **{**LINEARS[name], **more})


def conv(name: str, **more) -> PredictedConv2d:
    return PredictedConv2d(4, 10, (3, 2), seed=9, **{**CONVS[name], **more})


BOTH = [
    *(pytest.param(linear, name, X, id=f"linear {name}") for name in LINEARS),
    *(pytest.param(conv, name, MAPS, id=f"conv {name}") for name in CONVS),
]
every = pytest.mark.parametrize(("make", "name", "x"), BOTH)


def ordered(layer, order: str):
    """The layer, made to compute in this order."""
    layer.order = lambda rows, **_: order
    return layer


def dense_of(layer, dtype: torch.dtype) -> nn.Module:
    """The dense twin of the materialised weight."""
    weight = layer.materialize().detach().to(dtype)
    bias = layer.bias is not None
    if weight.dim() == 2:
        twin: nn.Module = nn.Linear(*weight.T.shape, bias, dtype=dtype)
    else:
        where = (layer.stride, layer.padding, layer.dilation, 1, bias, layer.padding_mode)
        twin = nn.Conv2d(4, 10, (3, 2), *where, dtype=dtype)
    twin.load_state_dict({"weight": weight} | ({"bias": layer.bias.detach().to(dtype)} if bias else {}))
    return twin


# -- what it computes --------------------------------------------------------------------------------------------------


@every
def test_weight_is_the_dictionary_times_the_coefficients(make, name: str, x: torch.Tensor) -> None:
    """Column by column and channel by channel, in float64, by a loop."""
    layer = make(name, dtype=torch.float64)
    d = layer.dictionary
    source = LINEARS[name].get("dictionary") if make is linear else None
    observer = (LINEARS if make is linear else CONVS)[name].get("observer")
    blocks = d.build(source if isinstance(source, torch.Tensor) else observer and observer.covariance())
    outputs = len(layer.coefficients)
    column = [j for j in range(d.columns) for _ in range(outputs // d.columns + (j < outputs % d.columns))]
    rows = []
    for unit, j in enumerate(column):
        v = layer.coefficients[unit].detach().view(d.channels, d.atoms)
        rows.append(torch.cat([blocks[j].T @ v[c] for c in range(d.channels)]))
    torch.testing.assert_close(layer.materialize().detach().flatten(1), torch.stack(rows), rtol=1e-12, atol=1e-12)


@every
@pytest.mark.parametrize("order", ORDERS)
def test_forward_and_gradients(make, name: str, x: torch.Tensor, order: str) -> None:
    """Each order against float64, with the dense layer of the same weight as the peer."""
    layer = ordered(make(name), order)
    # the cast regenerates a recipe's atoms in float64, so the truth takes those that the layer has
    wide = copy.deepcopy(layer).double()
    wide._fixed.copy_(layer._fixed)
    exact_x, own_x, peer_x = x.double().requires_grad_(), x.clone().requires_grad_(), x.clone().requires_grad_()
    weight = wide.materialize()
    exact = functional_of(layer, exact_x, weight, wide.bias)
    peer_weight = layer.materialize()
    peer = functional_of(layer, peer_x, peer_weight, layer.bias)
    got = layer(own_x)
    assert_accurate(got, exact, peer)
    g = torch.randn_like(got)
    params = list(layer.parameters())
    grads = torch.autograd.grad(got, [own_x, *params], g)
    peers = torch.autograd.grad(peer, [peer_x, *params], g)
    exacts = torch.autograd.grad(exact, [exact_x, *wide.parameters()], g.double())
    for what, mine, theirs, true in zip(("x", *dict(layer.named_parameters())), grads, peers, exacts, strict=True):
        assert_accurate(mine, true, theirs, what)


def functional_of(layer, x: torch.Tensor, weight: torch.Tensor, bias) -> torch.Tensor:
    if weight.dim() == 2:
        return functional.linear(x, weight, bias)
    twin = dense_of(layer, weight.dtype)
    return twin._conv_forward(x, weight, bias)


@every
@pytest.mark.parametrize("order", ORDERS)
def test_gradcheck(make, name: str, x: torch.Tensor, order: str) -> None:
    layer = ordered(make(name, dtype=torch.float64), order)
    names = [n for n, _ in layer.named_parameters()]
    inputs = (x[:2].double().requires_grad_(), *(p.detach().clone().requires_grad_() for p in layer.parameters()))
    call = lambda v, *ps: torch.func.functional_call(layer, dict(zip(names, ps, strict=True)), (v,))  # noqa: E731
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)


@every
def test_only_coefficients_and_bias_are_trained(make, name: str, x: torch.Tensor) -> None:
    layer = make(name)
    fixed = layer._fixed.clone()
    assert {n for n, p in layer.named_parameters() if p.requires_grad} <= {"coefficients", "bias"}
    optimiser = torch.optim.SGD(layer.parameters(), lr=1e-3)
    before = layer(x).square().mean()
    before.backward()
    optimiser.step()
    assert torch.equal(layer._fixed, fixed) and layer(x).square().mean() < before


@given(
    st.integers(1, 12), st.integers(1, 14), st.integers(0, 5), st.sampled_from(["gauss", "identity", "se"]), st.data()
)
def test_both_orders_agree(inputs: int, outputs: int, rows: int, kind: str, data: st.DataObject) -> None:
    columns = data.draw(st.integers(1, outputs))
    channels = data.draw(st.sampled_from([c for c in range(1, inputs + 1) if inputs % c == 0]))
    settings = dict(fraction=data.draw(st.floats(0.6, 1)), columns=columns, topology=(channels, 1, inputs // channels))
    layer = PredictedLinear(inputs, outputs, dtype=torch.float64, dictionary=kind, seed=3, **settings)
    x = torch.randn(rows, inputs, dtype=torch.float64)
    exact = functional.linear(x, layer.materialize(), layer.bias)
    for order in ORDERS:
        torch.testing.assert_close(ordered(layer, order)(x), exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(), (0,), (2, 3), (2, 0, 3)])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["se channels", "identity"])
def test_shapes(shape: tuple, order: str, name: str) -> None:
    layer = ordered(linear(name), order)
    x = torch.randn(*shape, 48)
    torch.testing.assert_close(layer(x), functional.linear(x, layer.materialize(), layer.bias))
    image = ordered(conv("se columns"), order)
    assert torch.allclose(image(MAPS[0]), image(MAPS)[0], atol=1e-6)
    assert image(MAPS[:0]).shape == (0, 10, 4, 4)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_16_bits(order: str, dtype: torch.dtype) -> None:
    for make, name, x in ((linear, "se columns", X), (linear, "identity", X), (conv, "se", MAPS)):
        layer = ordered(make(name), order)
        near = dict(rtol=0, atol=8 * torch.finfo(dtype).eps * float(layer(x).detach().abs().max()))
        half = copy.deepcopy(layer).to(dtype)
        torch.testing.assert_close(half(x.to(dtype)).float(), layer(x), **near)
        with torch.autocast("cpu", dtype):
            y = layer(x)
        assert y.dtype == dtype
        torch.testing.assert_close(y.float(), layer(x), **near)


@pytest.mark.parametrize("count", [1, 4])
def test_gathering_is_deterministic(threads, count: int) -> None:
    """Columns that see one input add to its gradient in one order, for any thread count."""
    layer = PredictedLinear(96, 50, fraction=0.5, dictionary="identity", columns=10, seed=1)
    x = torch.randn(1000, 96, requires_grad=True)
    layer.coefficients.requires_grad_(False)
    threads(1)
    (first,) = torch.autograd.grad(layer._pool(x), x, torch.ones(1000, 50))
    threads(count)
    for _ in range(3):
        (again,) = torch.autograd.grad(layer._pool(x), x, torch.ones(1000, 50))
        assert torch.equal(first, again)


# -- which order -------------------------------------------------------------------------------------------------------


def test_order_takes_fewer_multiply_adds() -> None:
    """Worked by hand: 784 -> 500, 39 atoms, J columns; expanding is 500 * 39 * 784, pooling 784 * 39 * J a row."""
    one, ten = (PredictedLinear(784, 500, fraction=0.05, topology=(28, 28), columns=j) for j in (1, 10))
    assert [one.order(b) for b in (1, 100, 10**6)] == ["pool"] * 3
    assert [ten.order(b) for b in (1, 100, 10**6)] == ["pool"] * 3
    wide = PredictedLinear(784, 500, fraction=0.25, topology=(28, 28), columns=10)
    expand, pool = (lambda b: 500 * 196 * 784 + b * 500 * 784), (lambda b: b * (784 * 1960 + 500 * 196))
    for b in (1, 60, 61, 62, 1000):
        assert wide.order(b) == ("expand" if expand(b) < pool(b) else "pool")
    assert {wide.order(b) for b in (1, 1000)} == set(ORDERS)
    # without a gradient for x, what is pooled needs none: the first layer of a net
    assert wide.order(100, weight_grad=True) == "pool"
    assert wide.order(100, weight_grad=True, input_grad=True) == "expand"
    gather = PredictedLinear(784, 500, fraction=0.9, dictionary="identity", columns=10)
    assert {gather.order(b) for b in (1, 10**6)} == {"pool"}


def test_forward_takes_the_order(monkeypatch) -> None:
    layer, taken = linear("gauss"), []
    for order, method in (("expand", "_expand"), ("pool", "_pool")):
        run = getattr(layer, method)
        monkeypatch.setattr(layer, method, lambda *a, run=run, order=order: (taken.append(order), run(*a))[1])
    for rows, grad, x_grad in itertools.product((1, 4, 6, 8, 100), (False, True), (False, True)):
        with torch.set_grad_enabled(grad):
            layer(torch.ones(rows, 48, requires_grad=x_grad))
        assert taken.pop() == layer.order(rows, weight_grad=grad, input_grad=grad and x_grad) and not taken
    image = conv("se")
    for order, method in (("expand", "_full"), ("pool", "_pool")):
        monkeypatch.setattr(image, method, lambda x, order=order: taken.append(order) or x)
        image.order = lambda rows, order=order, **_: taken.append(rows) or order
        image(MAPS)
        assert taken == [3 * 9 * 9, order]
        taken.clear()


# -- first values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["se", "gauss", "identity", "dct"])
def test_weight_starts_with_the_variance_of_linear(kind: str) -> None:
    layer = PredictedLinear(
        400, 500, fraction=0.25, dictionary=kind, topology=(20, 20), columns=1 + 4 * (kind != "dct")
    )
    assert abs(float(layer.materialize().detach().std()) / (3 * 400) ** -0.5 - 1) < 0.05
    assert abs(float(layer.bias.detach().std()) / (3 * 400) ** -0.5 - 1) < 0.1
    before = copy.deepcopy(layer.state_dict())
    layer.reset_parameters()
    assert not torch.equal(before["coefficients"], layer.coefficients) and not torch.equal(before["bias"], layer.bias)


def test_seed_is_drawn_from_torch() -> None:
    seeds = []
    for start in (0, 0, 1):
        torch.manual_seed(start)
        seeds.append(PredictedLinear(8, 8, fraction=0.5, dictionary="gauss").dictionary.seed)
    assert seeds[0] == seeds[1] != seeds[2]
    first, again, other = (PredictedLinear(48, 8, fraction=0.5, dictionary="gauss", seed=s) for s in (5, 5, 6))
    assert torch.equal(first.atoms, again.atoms) and not torch.equal(first.atoms, other.atoms)


# -- fitting -----------------------------------------------------------------------------------------------------------


@every
def test_from_dense_is_least_squares(make, name: str, x: torch.Tensor) -> None:
    """No coefficients are closer: the residual is orthogonal to every atom."""
    layer = make(name, dtype=torch.float64)
    dense = dense_of(layer, torch.float64).eval()
    nn.init.normal_(dense.weight)
    settings = dict((LINEARS if make is linear else CONVS)[name])
    for own in ("bias", "padding", "stride", "dilation", "padding_mode"):
        settings.pop(own, None)
    fitted = type(layer).from_dense(dense, seed=9, **settings)
    assert not fitted.training and fitted.coefficients.dtype == torch.float64
    gap = (fitted.materialize() - dense.weight).square().sum()
    (slope,) = torch.autograd.grad(gap, fitted.coefficients)
    assert slope.abs().max() < 1e-8
    assert fitted.relative_error(dense) == pytest.approx(float((gap.sqrt() / dense.weight.norm()).detach()))
    assert 0.3 < fitted.relative_error(dense) < 1
    if dense.bias is not None:
        assert torch.equal(fitted.bias, dense.bias)
    itself = type(layer).from_dense(dense_of(layer, torch.float64), seed=9, **settings)
    assert itself.relative_error(dense_of(layer, torch.float64)) < 1e-6  # what is representable is found


@pytest.mark.parametrize("columns", [1, 3])
def test_everything_trained_is_the_dense_layer(columns: int) -> None:
    for dense, cls in ((nn.Linear(12, 7), PredictedLinear), (nn.Conv2d(3, 7, 3, padding=1), PredictedConv2d)):
        layer = cls.from_dense(dense, fraction=1.0, dictionary="identity", columns=columns)
        assert torch.equal(layer.materialize(), dense.weight) and layer.relative_error(dense) == 0
        x = torch.randn(2, 12) if cls is PredictedLinear else torch.randn(2, 3, 5, 5)
        assert torch.equal(ordered(layer, "expand")(x), dense(x))


def test_from_dense_errors() -> None:
    with pytest.raises(
        TypeError, match=r"PredictedLinear.from_dense: linear must be an initialised nn.Linear, got Conv"
    ):
        PredictedLinear.from_dense(nn.Conv2d(1, 1, 1), fraction=0.5)
    with pytest.raises(ValueError, match=r"conv must have values, got one on the meta device"):
        PredictedConv2d.from_dense(nn.Conv2d(1, 1, 2, device="meta"), fraction=0.5)
    broken = nn.Linear(4, 4)
    nn.init.constant_(broken.weight, float("nan"))
    with pytest.raises(ValueError, match=r"PredictedLinear.from_dense: weight must be finite"):
        PredictedLinear.from_dense(broken, fraction=0.5, dictionary="gauss")
    with pytest.raises(ValueError, match=r"PredictedConv2d: groups must be 1, got 2"):
        PredictedConv2d.from_dense(nn.Conv2d(2, 2, 3, groups=2), fraction=0.5)


# -- state -------------------------------------------------------------------------------------------------------------


def through_torch_save(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def through_safetensors(state: dict) -> dict:
    return safetensors.torch.load(safetensors.torch.save({k: v.contiguous() for k, v in state.items()}))


@every
@pytest.mark.parametrize("through", [through_torch_save, through_safetensors])
def test_state_dict_rebuilds_the_function(make, name: str, x: torch.Tensor, through) -> None:
    layer = make(name)
    state = through(layer.state_dict())
    stored = layer.dictionary.kind in ("emp", "emp2", "given")
    assert set(state) == {"recipe", *dict(layer.named_parameters())} | ({"atoms"} if stored else set())
    empty = {"emp": {"observer": None}, "emp2": {"observer": None}, "given": {"dictionary": torch.ones(48, 20)}}
    other = make(name, **empty.get(layer.dictionary.kind, {}))
    if layer.dictionary.kind in ("emp", "emp2"):
        assert other(x).isnan().all()  # until it is loaded
    other.load_state_dict(state)
    assert torch.equal(other(x), layer(x))


@every
def test_copies_pickles_and_casts(make, name: str, x: torch.Tensor) -> None:
    layer = make(name)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))
    if layer.dictionary.kind not in ("emp", "emp2", "given"):
        fixed = layer._fixed.clone()
        assert torch.equal(copy.deepcopy(layer).bfloat16().float()._fixed, fixed)  # made again, not rounded
        direct = make(name, dtype=torch.bfloat16)
        assert torch.equal(copy.deepcopy(layer).bfloat16()._fixed, direct._fixed)


def test_meta_device() -> None:
    for name in ("se channels", "identity"):
        layer = linear(name)
        with torch.device("meta"):
            empty = linear(name)
        assert empty._fixed.is_meta
        empty.to_empty(device="cpu")
        empty.load_state_dict(layer.state_dict())
        assert torch.equal(empty(X), layer(X))


@pytest.mark.parametrize("name", LINEARS)
def test_assigned_state_brings_the_atoms_along(name: str) -> None:
    """From the meta device, and in another dtype: the fixed tensor goes where the coefficients went."""
    layer = linear(name)
    state = layer.state_dict()
    empty = linear(name, dtype=torch.float64).to("meta")  # float32 comes from the state
    empty.load_state_dict(state, assign=True)
    assert torch.equal(empty(X), layer(X))
    narrow = {key: t.bfloat16() if t.is_floating_point() else t for key, t in state.items()}
    other = linear(name)
    other.load_state_dict(narrow, assign=True)
    want = copy.deepcopy(layer).bfloat16()
    assert torch.equal(other._fixed, want._fixed) and torch.equal(other(X.bfloat16()), want(X.bfloat16()))


@pytest.mark.parametrize("name", ["se channels", "gauss", "identity"])
def test_an_emptied_layer_has_its_atoms(name: str) -> None:
    layer = linear(name)
    other = copy.deepcopy(layer)._apply(torch.zeros_like)  # what `to_empty` may find in new memory
    assert torch.equal(other._fixed, layer._fixed)


@pytest.mark.parametrize("layer, x", [(linear("se"), X), (linear("identity"), X), (conv("se"), MAPS)])
def test_an_exported_layer_takes_any_number_of_rows(layer, x: torch.Tensor) -> None:
    rows = torch.export.Dim("rows", min=2, max=4096)
    exported = torch.export.export(layer, (x,), dynamic_shapes={"x": {0: rows}}).module()
    for count in (2, 5, 300):
        many = x.repeat(100, *[1] * (x.dim() - 1))[:count]
        torch.testing.assert_close(exported(many), layer(many))


def test_distributed_checkpoint_functions() -> None:
    layer = nn.Sequential(linear("se"), nn.ReLU(), PredictedLinear(23, 4, fraction=0.5, dictionary="gauss", seed=1))
    other = copy.deepcopy(layer)
    for p in other.parameters():
        nn.init.zeros_(p)
    set_model_state_dict(other, get_model_state_dict(layer))
    assert torch.equal(other(X), layer(X))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (dict(seed=8), r"seed: the layer has 8, the state dict 9"),
        (dict(sigma=2.0), r"sigma: the layer has 2.0, the state dict 1.0"),
        (dict(ridge=0.5), r"ridge: the layer has 0.5, the state dict 0.1"),
        (dict(whiten=False), r"whiten: the layer has 0, the state dict 1"),
        (dict(columns=2), r"columns: the layer has 2, the state dict 1"),
        (dict(topology=(8, 6)), r"height: the layer has 8, the state dict 6"),
        (dict(dictionary="gauss"), r"dictionary: the layer has gauss, the state dict se"),
    ],
)
def test_another_recipe_is_refused(change: dict, text: str) -> None:
    with pytest.raises(RuntimeError, match=text):
        PredictedLinear(48, 23, **{**LINEARS["se"], "seed": 9, **change}).load_state_dict(linear("se").state_dict())


def test_state_dict_without_or_with_a_broken_recipe_is_refused() -> None:
    state = linear("se").state_dict()
    with pytest.raises(RuntimeError, match=r"recipe: must be int64 \[11\], the state dict has torch.float32 \[11\]"):
        linear("se").load_state_dict(state | {"recipe": state["recipe"].float()})
    del state["recipe"]
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "recipe"'):
        linear("se").load_state_dict(state)
    assert linear("se").load_state_dict(state, strict=False).missing_keys == ["recipe"]


def test_settings_that_are_not_used_do_not_matter() -> None:
    linear("gauss", sigma=3.0, ridge=0.7).load_state_dict(linear("gauss").state_dict())
    linear("emp", ridge=0.7).load_state_dict(linear("emp").state_dict())  # its atoms are stored


def test_extra_repr() -> None:
    text = repr(PredictedLinear(784, 500, fraction=0.05, topology=(28, 28), columns=10, seed=5))
    for part in ("in_features=784", "dictionary=se", "fraction=0.04974", "columns=10", "topology=(28, 28)", "seed=5"):
        assert part in text
    trained = 4 * (500 * 39 + 500)
    assert f"trained_bytes={trained}, stored_bytes={trained + 88} (dense {4 * 500 * 785})" in text
    text = repr(linear("emp"))
    trained = 4 * 23 * 13
    assert f"trained_bytes={trained}, stored_bytes={trained + 88 + 4 * 3 * 12 * 48}" in text
    assert "kernel_size=(3, 2), stride=(2, 2), padding" not in repr(conv("se columns"))
    assert "padding=(1, 0)" in repr(conv("se reflect")) and "padding_mode=reflect" in repr(conv("se reflect"))


def test_no_subnormals() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        settings = dict(fraction=0.05, topology=(28, 28), columns=10, dtype=dtype)
        atoms = PredictedLinear(784, 500, **settings).atoms.double().abs()
        assert atoms[atoms > 0].min() > torch.finfo(dtype).tiny


@every
def test_compile(make, name: str, x: torch.Tensor) -> None:
    torch._dynamo.reset()  # a class's forward is compiled anew for a few shapes only
    layer = make(name)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    (mine,), (theirs,) = (torch.autograd.grad(f(x).square().sum(), [layer.coefficients]) for f in (compiled, layer))
    torch.testing.assert_close(mine, theirs)


def test_compile_with_any_batch() -> None:
    torch._dynamo.reset()
    layer = linear("se columns")
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (2, 5, 17):
        x = torch.randn(rows, 48)
        torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (dict(in_features=0), r"in_features must be >= 1, got 0"),
        (dict(out_features=2.0), r"out_features must be an int, got 2.0"),
        (dict(bias=1), r"bias must be True or False, got 1"),
        (dict(dtype=torch.int32), r"dtype must be floating, got torch.int32"),
        (dict(fraction=2), r"fraction must be in \(0, 1\], got 2"),
        (dict(topology=None), r"topology must say how the 48 inputs lie"),
        (dict(columns=24), r"columns must be at most the outputs, 23, got 24"),
        (dict(observer=seen(nn.Linear(48, 1), X)), r"observer must be None with dictionary \"se\""),
        (dict(dictionary="emp", observer=3), r"observer must be an rdkernels.fits.WeightInputCovariance, got int"),
        (dict(dictionary="emp2", observer=seen(nn.Linear(48, 1), X)), r"observer must have squared=True"),
        (dict(dictionary="emp", observer=seen(nn.Linear(6, 1), X[:, :6])), r"observer must be of 48 inputs, got 6"),
    ],
)
def test_errors(change: dict, text: str) -> None:
    arguments = dict(in_features=48, out_features=23, fraction=0.25, topology=(6, 8)) | change
    with pytest.raises((TypeError, ValueError), match=f"PredictedLinear: {text}"):
        PredictedLinear(**arguments)


def test_errors_of_the_convolution_and_of_x() -> None:
    for change, text in (
        (dict(groups=2), "groups must be 1, got 2"),
        (dict(padding_mode="odd"), "padding_mode must be one of"),
        (dict(kernel_size=0), r"kernel_size\[0\] must be >= 1, got 0"),
        (dict(stride=0), "stride must be"),
        (dict(padding="same", stride=2), 'padding="same" needs stride 1'),
        (dict(kernel_size=1), "fraction must be at least half of one of the 1 positions, got 0.25"),
    ):
        with pytest.raises(ValueError, match=f"PredictedConv2d: {text}"):
            PredictedConv2d(**{**dict(in_channels=2, out_channels=2, kernel_size=3, fraction=0.25), **change})
    with pytest.raises(ValueError, match=r"x must have in_features = 48 as its last dimension, got \[3, 47\]"):
        linear("se")(torch.ones(3, 47))
    with pytest.raises(ValueError, match=r"with C = in_channels = 4, got \[1, 3, 9, 9\]"):
        conv("se")(torch.ones(1, 3, 9, 9))
