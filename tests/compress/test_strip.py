"""`rd.strip`: plain modules that compute what the layers did, and their ONNX export."""

import copy
import subprocess
import sys
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

import rdkernels as rd

FORMS = {
    "SeparableConv2d": {"rank": 3},
    "CPConv2d": {"rank": 3},
    "TuckerConv2d": {"rank": (2, 3)},
    "MonochromaticConv2d": {"colours": 3, "assignment": torch.tensor([2, 0, 1, 1, 0, 2])},
    "BiclusterConv2d": {
        "clusters": (2, 3),
        "rank": (2, 1),
        "inputs": torch.tensor([3, 0, 2, 1]),
        "outputs": torch.tensor([5, 2, 0, 3, 1, 4]),
    },
}
PLAIN = (nn.Linear, nn.Conv2d, nn.ReLU, nn.GELU, nn.SiLU, nn.ZeroPad2d, nn.Sequential, nn.Identity)


def conv_of(form: str, *geometry, **named) -> nn.Module:
    return getattr(rd.nn, form)(4, 6, *geometry, dtype=torch.float64, **FORMS[form], **named)


def assert_plain(model: nn.Module) -> None:
    for module in model.modules():
        assert type(module).__module__.split(".")[0] != "rdkernels", type(module)


def assert_same(stripped: nn.Module, model: nn.Module, x: torch.Tensor, tolerance: float = 1e-12) -> None:
    with torch.no_grad():
        assert torch.allclose(stripped(x), model(x), rtol=tolerance, atol=tolerance)


sizes = st.tuples(st.integers(1, 4), st.integers(1, 4))


@given(
    st.sampled_from(sorted(FORMS)),
    sizes,
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.tuples(st.integers(1, 2), st.integers(1, 3)),
    st.booleans(),
    st.sampled_from([None, "relu", "gelu", "silu"]),
)
def test_every_form_on_any_geometry(form, kernel, stride, padding, dilation, bias, activation) -> None:
    layer = conv_of(form, kernel, stride, padding, dilation, bias=bias, activation=activation)
    stripped = rd.strip(layer)
    assert all(isinstance(m, PLAIN) for m in stripped.modules())
    assert_same(stripped, layer, torch.randn(2, 4, 11, 13, dtype=torch.float64))


@pytest.mark.filterwarnings("ignore:Using padding=.same.:UserWarning")
@pytest.mark.parametrize("kernel", [(2, 3), (3, 2), (4, 4), (1, 2), (3, 3)])
@pytest.mark.parametrize("form", sorted(FORMS))
def test_same_padding_puts_the_odd_line_where_torch_does(form: str, kernel) -> None:
    for dilation in (1, (3, 2)):
        layer = conv_of(form, kernel, padding="same", dilation=dilation)
        x = torch.randn(2, 4, 9, 10, dtype=torch.float64)
        stripped = rd.strip(layer)
        assert stripped(x).shape[2:] == x.shape[2:]
        assert_same(stripped, layer, x)
        dense = nn.functional.conv2d(x, layer.materialize(), layer.bias, padding="same", dilation=dilation)
        assert torch.allclose(stripped(x), dense)


def test_what_the_chains_are() -> None:
    """No form with a chain of its own becomes a dense kernel."""
    kinds = {}
    for form in FORMS:
        stripped = rd.strip(conv_of(form, 3, padding=1))
        kinds[form] = [(tuple(m.weight.shape), m.groups, m.padding) for m in stripped.modules() if hasattr(m, "groups")]
    assert kinds == {
        "SeparableConv2d": [((3, 4, 3, 1), 1, (1, 0)), ((6, 3, 1, 3), 1, (0, 1))],
        "CPConv2d": [
            ((3, 4, 1, 1), 1, (0, 0)),
            ((3, 1, 3, 1), 3, (1, 0)),
            ((3, 1, 1, 3), 3, (0, 1)),
            ((6, 3, 1, 1), 1, (0, 0)),
        ],
        "TuckerConv2d": [((2, 4, 1, 1), 1, (0, 0)), ((3, 2, 3, 3), 1, (1, 1)), ((6, 3, 1, 1), 1, (0, 0))],
        "MonochromaticConv2d": [((6, 4, 1, 1), 1, (0, 0)), ((6, 1, 3, 3), 6, (1, 1))],
        "BiclusterConv2d": [((12, 4, 1, 1), 1, (0, 0)), ((6, 2, 3, 3), 6, (1, 1)), ((6, 6, 1, 1), 1, (0, 0))],
    }
    linear = rd.strip(rd.nn.LowRankLinear(8, 7, rank=2, activation="silu"))
    assert [type(m) for m in linear] == [nn.Linear, nn.Linear, nn.SiLU]
    assert linear[0].bias is None and linear[1].weight.shape == (7, 2)


@pytest.mark.parametrize("clusters", [(1, 1), (1, 2), (2, 1), (4, 6), (2, 2)])
def test_bicluster_with_any_clusters(clusters) -> None:
    orders = {"inputs": torch.randperm(4), "outputs": torch.randperm(6)}
    layer = rd.nn.BiclusterConv2d(4, 6, 3, dtype=torch.float64, clusters=clusters, rank=(1, 2), **orders)
    assert_same(rd.strip(layer), layer, torch.randn(2, 4, 8, 8, dtype=torch.float64))


LINEAR = {
    "low rank": lambda: rd.nn.LowRankLinear(24, 10, rank=3, activation="relu", dtype=torch.float64),
    "low rank, no bias": lambda: rd.nn.LowRankLinear(24, 10, False, rank=3, dtype=torch.float64),
    "hashed": lambda: rd.nn.HashedLinear(24, 10, compression=4, scale=0.5, dtype=torch.float64),
    "hashed bias": lambda: rd.nn.HashedLinear(24, 10, "hashed", granule="element", compression=4, dtype=torch.float64),
    "predicted": lambda: rd.nn.PredictedLinear(24, 10, dtype=torch.float64, fraction=0.25, columns=2, topology=(24,)),
    "identity": lambda: rd.nn.PredictedLinear(24, 10, dtype=torch.float64, fraction=0.25, dictionary="identity"),
    "palette": lambda: rd.nn.PaletteLinear(24, 10, bits=3, zero=True, dtype=torch.float64),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear_layers(name: str) -> None:
    layer = LINEAR[name]()
    stripped = rd.strip(layer)
    assert_plain(stripped)
    assert_same(stripped, layer, torch.randn(2, 5, 24, dtype=torch.float64))


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
def test_predicted_convolution(mode: str) -> None:
    where = {"padding": (1, 2), "stride": (1, 2), "padding_mode": mode}
    layer = rd.nn.PredictedConv2d(4, 6, 3, dtype=torch.float64, fraction=0.4, columns=2, **where)
    stripped = rd.strip(layer)
    assert type(stripped) is nn.Conv2d
    assert_same(stripped, layer, torch.randn(2, 4, 8, 9, dtype=torch.float64))


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize("groups", [1, 2])
def test_palette_convolution(groups: int, mode: str) -> None:
    where = {"padding": (1, 2), "stride": (1, 2), "padding_mode": mode, "groups": groups}
    layer = rd.nn.PaletteConv2d(4, 6, 3, dtype=torch.float64, bits=2, **where)
    stripped = rd.strip(layer)
    assert type(stripped) is nn.Conv2d and stripped.weight.requires_grad
    assert_same(stripped, layer, torch.randn(2, 4, 8, 9, dtype=torch.float64))


class Net(nn.Module):
    """Every family in one model; a bank and a layer that are used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.bank = rd.nn.WeightBank(512)
        self.features = nn.Sequential(
            rd.nn.MonochromaticConv2d(3, 8, 5, padding="same", colours=2, activation="relu"),
            nn.BatchNorm2d(8),
            rd.nn.TuckerConv2d(8, 8, 3, padding=1, stride=2, rank=(4, 4), activation="silu"),
            rd.nn.CPConv2d(8, 8, 3, padding=1, rank=6, activation="gelu"),
            rd.nn.SeparableConv2d(8, 8, 3, padding=1, dilation=1, rank=4),
            rd.nn.BiclusterConv2d(8, 8, 3, padding=1, clusters=2, rank=2),
            rd.nn.PaletteConv2d(8, 8, 3, padding=1, bits=4),
            rd.nn.PredictedConv2d(8, 8, 3, padding=1, fraction=0.5, dictionary="gauss"),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
        )
        self.a = rd.nn.HashedLinear(128, 32, bank=self.bank, scale=0.3)
        self.b = rd.nn.HashedLinear(32, 32, bank=self.bank, scale=0.3)
        self.head = nn.ModuleDict(
            {
                "mid": rd.nn.PaletteLinear(32, 32, bits=4),
                "predicted": rd.nn.PredictedLinear(32, 32, fraction=0.5, dictionary="gauss"),
                "out": rd.nn.LowRankLinear(32, 5, rank=4),
            }
        )
        with torch.no_grad():
            for layer in self.features:  # so that the result depends on x, not on biases alone
                for name in getattr(layer, "_names", ())[-1:]:
                    getattr(layer, name).mul_(4)

    def forward(self, x):
        y = self.a(self.features(x)).relu()
        y = self.head["mid"](self.b(self.b(y).relu())).relu()
        return self.head["out"](self.head["predicted"](y).relu())


def test_a_model_keeps_names_mode_and_everything_else() -> None:
    model = Net()
    model.features[4].eval()
    model.b.requires_grad_(False)
    before = copy.deepcopy(model)
    stripped = rd.strip(model)
    x = torch.randn(3, 3, 12, 12)
    assert_plain(stripped)
    assert list(dict(stripped.named_children())) == list(dict(model.named_children()))
    assert isinstance(stripped.bank, nn.Identity) and isinstance(stripped.head["out"], nn.Sequential)
    assert stripped.training and not any(m.training for m in stripped.features[4].modules())
    assert all(m.training for m in stripped.features[2].modules())
    assert not stripped.b.weight.requires_grad and stripped.features[3][0].weight.requires_grad
    assert not stripped.a.weight.requires_grad  # its bank is b's, which is frozen
    assert stripped.a.bias.requires_grad
    assert_same(stripped.eval(), model.eval(), x, 1e-5)
    assert type(model.a) is rd.nn.HashedLinear and model.a.bank is model.b.bank is model.bank
    for (name, t), was in zip(model.state_dict().items(), before.state_dict().values(), strict=True):
        assert torch.equal(t, was), name
    mine = {p.data_ptr() for p in model.parameters()}
    assert not mine & {p.data_ptr() for p in stripped.parameters()}
    with torch.no_grad():  # negative control: the copy is not tied to the model
        stripped.features[0][0].weight.zero_()
    assert not torch.allclose(stripped(x), model(x), atol=1e-3)


@torch.no_grad()
def test_each_factor_is_trained_as_it_was() -> None:
    layer = conv_of("BiclusterConv2d", 3)
    layer.core.requires_grad_(False)
    parametrize.register_parametrization(layer, "inner", nn.Tanh())
    stripped = rd.strip(layer)
    assert [p.requires_grad for p in stripped.parameters()] == [True, False, True, True]
    assert all(p.is_leaf for p in stripped.parameters())
    assert_same(stripped, layer, torch.randn(1, 4, 5, 5, dtype=torch.float64))


def test_a_layer_used_twice_stays_one() -> None:
    layer = rd.nn.LowRankLinear(6, 6, rank=2)
    stripped = rd.strip(nn.ModuleList([layer, nn.ReLU(), layer]))
    assert stripped[0] is stripped[2]


def test_a_layer_outside_the_module_tree_too() -> None:
    model = nn.Sequential(rd.nn.LowRankLinear(6, 6, rank=2))
    model.order = [model[0]]
    stripped = rd.strip(model)
    assert stripped.order[0] is stripped[0] and stripped.order[0] is not model[0]


def test_a_model_without_compressed_layers_is_copied() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    stripped = rd.strip(model)
    assert stripped is not model and stripped[0] is not model[0]
    assert torch.equal(stripped[0].weight, model[0].weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype) -> None:
    model = Net().eval().to(dtype)
    stripped = rd.strip(model)
    assert {p.dtype for p in stripped.parameters()} == {dtype}
    x = torch.randn(2, 3, 12, 12, dtype=dtype)
    with torch.no_grad():
        ours, plain = model(x), stripped(x)
    assert plain.dtype == dtype
    assert torch.allclose(ours.float(), plain.float(), atol=20 * torch.finfo(dtype).eps * float(ours.abs().max()))


def test_nothing_is_drawn() -> None:
    model = Net()
    state = torch.get_rng_state()
    rd.strip(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_it_loads_without_this_package(tmp_path) -> None:
    layers = rd.nn.CPConv2d(4, 4, 2, rank=1, padding="same", activation="silu"), rd.nn.HashedLinear(4, 4)
    torch.save(rd.strip(nn.Sequential(*layers)), tmp_path / "net.pt")
    script = (
        f"import sys, torch; m = torch.load({str(tmp_path / 'net.pt')!r}, weights_only=False)\n"
        "assert 'rdkernels' not in sys.modules; print(m(torch.ones(1, 4, 4, 4)).shape[1:])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "torch.Size([4, 4, 4])"), done.stderr


class Own(rd.nn.LowRankLinear):
    def forward(self, x):
        return super().forward(x) + 1


def hooked() -> nn.Module:
    model = nn.Sequential(nn.ReLU(), rd.nn.LowRankLinear(4, 4, rank=1))
    model[1].register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: torch.ones(3), TypeError, "model must be an nn.Module, got Tensor"),
        (hooked, ValueError, r"strip: 1 \(LowRankLinear\) must have no hooks, got \['forward_hooks'\]"),
        (
            lambda: nn.Sequential(Own(4, 4, rank=1)),
            ValueError,
            r"strip: 0 \(Own\) must have its class's forward, got Own",
        ),
    ],
)
def test_errors(make, error, words: str) -> None:
    with pytest.raises(error, match=words):
        rd.strip(make())


def test_a_residual_is_refused() -> None:
    stripped = rd.strip(rd.nn.LowRankLinear(4, 4, rank=1))
    with pytest.raises(TypeError):
        stripped(torch.ones(1, 4), torch.ones(1, 4))


def test_onnx(need, tmp_path) -> None:
    """The exported file, run by onnxruntime, gives what the compressed model gives."""
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  what torch's exporter is written with
    except ImportError as error:
        need("onnx", False, str(error))
    model = Net().eval()
    x = torch.randn(2, 3, 12, 12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(rd.strip(model), (x,), tmp_path / "net.onnx", dynamo=True, verbose=False)
    graph = onnx.load(tmp_path / "net.onnx").graph
    assert {n.domain for n in graph.node} <= {"", "ai.onnx"}
    assert "Conv" in {n.op_type for n in graph.node}
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (name,) = (given.name for given in session.get_inputs())
    with torch.no_grad():
        ours, others = model(x), model(x.flip(2))
    assert not torch.allclose(ours, others, atol=1e-2)  # negative control: the result depends on x
    (theirs,) = session.run(None, {name: x.numpy()})
    assert torch.allclose(torch.from_numpy(theirs), ours, rtol=1e-4, atol=1e-5)
