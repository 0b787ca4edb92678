"""`convert`: which layers it changes and which it leaves, what a new layer keeps, the data it sees, what it refuses."""

import contextlib
import copy
import pathlib
import re
import warnings
import zlib
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import rdkernels as rd
from rdkernels.compress import CPDegenerate, Report, Spec
from rdkernels.nn import HashedLinear, LowRankLinear, MonochromaticConv2d, SeparableConv2d, TuckerConv2d


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)),
        nn.Flatten(),
        nn.Linear(8 * 16, 20),
        nn.Dropout(0.5),
        nn.Linear(20, 10),
    )


def images(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, 6, 6)


def converted(model: nn.Module, specs: Any, *args: Any, **more: Any) -> tuple[nn.Module, Report]:
    reports: list[Report] = []
    model = rd.convert(model, specs, *args, report=reports.append, **more)
    (report,) = reports
    return model, report


def test_patterns_in_their_order() -> None:
    model = net()
    specs = {"0.0": rd.Monochromatic(4), "4": None, "0.*": rd.Tucker(4), "*": rd.Hashed(4, seed=1)}
    result, report = converted(model, specs)
    assert result is model and model(images()).shape == (4, 10)
    kinds = [type(m) for m in model.modules()]
    assert kinds.count(MonochromaticConv2d) == kinds.count(TuckerConv2d) == kinds.count(HashedLinear) == 1
    assert isinstance(model[4], nn.Linear)
    assert [row.name for row in report.rows] == ["0.0", "0.2", "0.3", "2", "4"]
    assert [row.name for row in report.changed] == ["0.0", "0.2", "2"]
    assert report["0.3"].reason == "Tucker is for nn.Conv2d, not BatchNorm2d"
    assert report["4"].reason == "its pattern '4' has no spec"
    assert report["0.2"].parameters == (8 * 8 * 9 + 8, 4 * 8 + 16 * 9 + 8 * 4 + 8)


def test_a_spec_alone_is_for_every_layer_and_the_rest_is_reported() -> None:
    model, report = converted(net(), rd.LowRank(2))
    assert [type(m) for m in (model[0][0], model[2])] == [SeparableConv2d, LowRankLinear]  # type: ignore[index]
    assert [row.name for row in report.left] == ["0.3"]
    _, report = converted(net(), {"2": rd.LowRank(2)})
    assert {row.reason for row in report.left} == {"no pattern matches"} and len(report.left) == 4


def test_the_report_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    model = net()
    before = copy.deepcopy(model)
    model = rd.convert(model, {"2": rd.LowRank(2), "0.*": rd.Tucker(3)}, report=print)
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["layer", "from", "to", "parameters", "error"]
    error = model[2].relative_error(before[2])  # type: ignore[index]
    assert re.fullmatch(rf"2 +Linear +LowRankLinear +2,580 -> 316 +{error:.4f}", lines[3])
    assert re.fullmatch(r"0.3 +BatchNorm2d +left: Tucker is for nn.Conv2d, not BatchNorm2d", lines[2])
    assert len({line.index("left") for line in lines if "left" in line} | {head.index("to")}) == 1
    rd.convert(net(), rd.LowRank(2))
    assert capsys.readouterr() == ("", "")


def test_the_model_itself() -> None:
    layer = nn.Linear(20, 12)
    for specs in (rd.Hashed(4, seed=3), {"": rd.Hashed(4, seed=3)}, {"*": rd.Hashed(4, seed=3)}):
        made, report = converted(layer, specs)
        assert isinstance(made, HashedLinear) and made.seed == 3 and report[""].after == "HashedLinear"
    with pytest.raises(ValueError, match="convert: the model: rank must be from 1 to 12, got 13"):
        rd.convert(layer, rd.LowRank(13))


def test_fresh_is_drawn_by_torchs_generator() -> None:
    torch.manual_seed(3)
    models = [converted(net(), rd.LowRank(2), "fresh") for _ in range(2)]
    assert models[0][1].changed[0].error is None
    weights = [m[2].materialize() for m, _ in models]  # type: ignore[index,operator]
    torch.manual_seed(3)
    again = rd.convert(net(), rd.LowRank(2), init="fresh")[2].materialize()  # type: ignore[index]
    assert torch.equal(weights[0], again) and not torch.equal(weights[0], weights[1])


def test_every_hashed_layer_has_a_map_of_its_own() -> None:
    model = rd.convert(nn.Sequential(*(nn.Linear(16, 16) for _ in range(3))), rd.Hashed(4, seed=7))
    assert [m.seed for m in model] == [(7 + zlib.crc32(str(n).encode())) % 2**32 for n in range(3)]  # type: ignore
    assert len({m.seed for m in model}) == 3  # type: ignore[union-attr]
    other = rd.convert(nn.Sequential(*(nn.Linear(16, 16) for _ in range(3))), {"2": rd.Hashed(4, seed=7)})
    assert other[2].seed == model[2].seed  # type: ignore[index]
    torch.manual_seed(1)
    drawn = [rd.convert(nn.Sequential(nn.Linear(16, 16)), rd.Hashed(4))[0].seed for _ in range(2)]  # type: ignore
    assert drawn[0] != drawn[1]


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.other = nn.Linear(16, 16), nn.Linear(16, 16)
        self.second = self.first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.other(self.first(x)))


def test_a_layer_of_two_names_is_converted_once() -> None:
    for specs in (
        rd.LowRank(4),
        {"first": rd.LowRank(4)},
        {"second": rd.LowRank(4)},
        {"s*": rd.LowRank(4), "f*": None},
    ):
        if specs == {"s*": rd.LowRank(4), "f*": None}:
            with pytest.raises(ValueError, match="first = second: one layer, but patterns 'f\\*' and 's\\*'"):
                rd.convert(Twice(), specs)
            continue
        model, report = converted(Twice(), specs)
        assert model.first is model.second and isinstance(model.first, LowRankLinear)
        assert report["first"] is report["second"] and report["first"].name == "first = second"


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.middle = nn.Embedding(16, 12), nn.Linear(12, 12)
        self.head = nn.Linear(12, 16, bias=False)
        self.head.weight = self.embed.weight


def hooked() -> nn.Module:
    layer = nn.Linear(12, 12)
    layer.weight.register_hook(lambda g: g)
    return nn.Sequential(layer, nn.Linear(12, 12))


def hooked_when_accumulated() -> nn.Module:
    layer = nn.Linear(12, 12)
    layer.weight.register_post_accumulate_grad_hook(lambda p: None)
    return nn.Sequential(layer, nn.Linear(12, 12))


def state_hooked() -> nn.Module:
    layer = nn.Linear(12, 12)
    layer.register_state_dict_post_hook(lambda *_: None)
    return nn.Sequential(layer, nn.Linear(12, 12))


class Special(nn.Parameter):
    pass


def special() -> nn.Module:
    layer = nn.Linear(12, 12)
    layer.weight = Special(layer.weight.detach())
    return nn.Sequential(layer, nn.Linear(12, 12))


class Own(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Same(nn.Linear):
    pass


LEFT = {
    "tied": (Tied, "head", "shares a parameter with embed.weight"),
    "attention": (
        lambda: nn.Sequential(nn.MultiheadAttention(12, 2), nn.Linear(12, 12)),
        "0.out_proj",
        "nn.MultiheadAttention reads its weight directly",
    ),
    "encoder": (
        lambda: nn.Sequential(nn.TransformerEncoderLayer(12, 2, 12), nn.Linear(12, 12)),
        "0.linear1",
        "nn.TransformerEncoderLayer reads its weight directly",
    ),
    "pruned": (
        lambda: nn.Sequential(prune.l1_unstructured(nn.Linear(12, 12), "weight", 0.5), nn.Linear(12, 12)),
        "0",
        "its weight is computed",
    ),
    "parametrized": (
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(12, 12)), nn.Linear(12, 12)),
        "0",
        "its weight is computed",
    ),
    "own forward": (
        lambda: nn.Sequential(Own(12, 12), nn.Linear(12, 12)),
        "0",
        "Own is a subclass of nn.Linear with a forward of its own",
    ),
    "special parameter": (special, "0", "its weight is a Special, not a plain parameter"),
    "gradient hook": (hooked, "0", "has hooks on the gradients of its parameters"),
    "accumulation hook": (hooked_when_accumulated, "0", "has hooks on the gradients of its parameters"),
    "state hook": (state_hooked, "0", "has hooks on its state dict"),
    "compressed": (
        lambda: nn.Sequential(LowRankLinear(12, 12, rank=3), nn.Linear(12, 12)),
        "0",
        "is compressed already",
    ),
    "other type": (
        lambda: nn.Sequential(nn.Conv1d(12, 12, 3), nn.Linear(12, 12)),
        "0",
        "Hashed is for nn.Linear, not Conv1d",
    ),
    "container": (
        lambda: nn.ModuleDict({"a": nn.Sequential(nn.Linear(12, 12))}),
        "a",
        "Hashed is for nn.Linear, not Sequential; name what is inside, as in 'a.*'",
    ),
}


@pytest.mark.parametrize(("make", "name", "reason"), LEFT.values(), ids=LEFT)
def test_left_with_the_reason_or_refused_if_named(make: Any, name: str, reason: str) -> None:
    model = make()
    before = model.get_submodule(name)
    _, report = converted(model, rd.Hashed(4))
    assert model.get_submodule(name) is before and len(report.changed) == 1
    if name != "a":
        found = report[name].reason
        assert found is not None and found.startswith(reason)
    with pytest.raises(ValueError, match=f"convert: {re.escape(name)}: {re.escape(reason)}"):
        rd.convert(make(), {name: rd.Hashed(4)})


def test_a_subclass_that_computes_the_same_is_converted() -> None:
    assert isinstance(rd.convert(nn.Sequential(Same(12, 12)), rd.Hashed(4))[0], HashedLinear)  # type: ignore[index]


@pytest.mark.parametrize(
    ("specs", "text"),
    [
        ({"0.00": rd.CP(2)}, "pattern '0.00' matches no module; near: '0.0'"),
        ({"xyz.*": rd.CP(2)}, r"pattern 'xyz.\*' matches no module; the names are \['', '0', '0.0'"),
        ({"1*": rd.Hashed(4)}, r"pattern '1\*' changes no layer; none there has parameters"),
        ({"0.3*": rd.CP(2)}, r"pattern '0.3\*' changes no layer; 0.3: CP is for nn.Conv2d, not BatchNorm2d"),
        ({"0": rd.CP(2)}, r"0: CP is for nn.Conv2d, not Sequential; name what is inside, as in '0.\*'"),
        ({"0": None, "*": rd.CP(2)}, r"0: Sequential has no weight; to leave what is inside, name '0.\*'"),
        ({"": rd.CP(2)}, r"the model: CP is for nn.Conv2d, not Sequential; name what is inside, as in '\*'"),
        ({"*": rd.LowRank(15)}, "0.0: rank must be from 1 to 9, got 15"),
        (
            {"0.*": rd.CP(2), "0.0": rd.Tucker(2)},
            r"pattern '0.0' changes no layer; 0.0: the earlier pattern '0.\*' dec",
        ),
        ({}, "specs must be a spec or a mapping"),
        ([rd.CP(2)], "specs must be a spec or a mapping"),
        ({"0.0": "cp"}, "specs must map names to specs or None, got '0.0': 'cp'"),
        ({"0.0": rd.Tucker(2, metric="input_cov")}, "0.0: data must be given: Tucker"),
    ],
)
def test_refused(specs: Any, text: str) -> None:
    with pytest.raises((TypeError, ValueError), match="convert: " + text):
        rd.convert(net(), specs)


def test_models_that_are_not_ready() -> None:
    with pytest.raises(ValueError, match="convert: 0: LazyLinear is lazy; run the model once"):
        rd.convert(nn.Sequential(nn.LazyLinear(10)), rd.Hashed(4))
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(12, 12))
    with pytest.raises(ValueError, match="convert: 0: Linear is on the meta device"):
        rd.convert(model, rd.Hashed(4), init="fresh")
    with pytest.raises(TypeError, match="convert: model must be an nn.Module, got dict"):
        rd.convert({}, rd.Hashed(4))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='convert: init must be "fit" or "fresh", got \'random\''):
        rd.convert(net(), rd.CP(2), init="random")  # type: ignore[arg-type]


def test_an_error_leaves_the_model_as_it_was() -> None:
    """The last layer's fit fails: no layer has been replaced, and the error names it."""
    model = net()
    with torch.no_grad():
        model[4].weight[0, 0] = float("nan")
    modules = list(model.modules())
    with pytest.raises(ValueError, match="convert: 4: LowRankLinear.from_dense: weight must be finite"):
        rd.convert(model, {"0.*": rd.Tucker(2), "*": rd.LowRank(3)})
    assert all(a is b for a, b in zip(modules, model.modules(), strict=True))


class Warner(rd.LowRank):
    def fit(self, module: nn.Module, observer: Any = None) -> nn.Module:
        warnings.warn("the terms cancel", CPDegenerate, stacklevel=2)
        return super().fit(module, observer)


def test_warnings_name_the_layer_and_can_be_made_errors() -> None:
    with pytest.warns(CPDegenerate, match="2: the terms cancel"):
        rd.convert(net(), {"2": Warner(2)})
    model = net()
    with warnings.catch_warnings():
        warnings.simplefilter("error", CPDegenerate)
        with pytest.raises(CPDegenerate, match="2: the terms cancel"):
            rd.convert(model, {"2": Warner(2)})
    assert type(model[2]) is nn.Linear


@pytest.mark.parametrize("init", ["fit", "fresh"])
@pytest.mark.parametrize("spec", [rd.LowRank(2), rd.Hashed(4), rd.Hashed(4, hashed_bias=True)], ids=str)
def test_a_new_layer_keeps(spec: Spec, init: Any) -> None:
    """Device, dtype, mode, requires_grad of weight and bias, hooks with their handles."""
    layer = nn.Linear(12, 12, dtype=torch.bfloat16).eval()
    layer.weight.requires_grad_(False)
    calls: list[str] = []
    handle = layer.register_forward_hook(lambda m, i, o: calls.append(type(m).__name__))
    layer.register_forward_pre_hook(lambda m, a, k: calls.append("kwargs"), with_kwargs=True)
    model = nn.Sequential(layer, nn.Linear(12, 12))
    made = rd.convert(model, {"0": spec}, init=init)[0]  # type: ignore[index]
    assert not made.training and model.training
    for name, p in made.named_parameters():
        assert p.dtype == torch.bfloat16 and p.requires_grad == (name == "bias")
    x = torch.randn(2, 12, dtype=torch.bfloat16)
    made(x)
    assert calls == ["kwargs", type(made).__name__]
    handle.remove()
    made(x)
    assert calls.count(type(made).__name__) == 1


MEASURED = {"2": rd.LowRank(4, metric="input_cov")}


@pytest.mark.parametrize("form", ["list", "tensor", "pairs", "dicts", "loader", "generator", "function"])
def test_data(form: str) -> None:
    x = images(8)
    batches = x.split(4)
    data: Any = {
        "list": list(batches),
        "tensor": x,
        "pairs": [(b, torch.zeros(4)) for b in batches],
        "dicts": [{"image": b, "label": 0} for b in batches],
        "loader": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=4, shuffle=True),
        "generator": (b for b in batches),
        "function": lambda model: [model(b) for b in batches],
    }[form]
    torch.manual_seed(2)
    model = net()
    model[3].eval()
    modes, stats = [m.training for m in model.modules()], model[0][3].running_mean.clone()  # type: ignore[index]
    dense, seen = copy.deepcopy(model).eval(), {}
    dense[2].register_forward_hook(lambda m, i, o: seen.update(x=i[0]))
    dense(x)
    state = torch.get_rng_state()
    rd.convert(model, MEASURED, data=data)
    assert torch.equal(state, torch.get_rng_state())
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(stats, model[0][3].running_mean) and not model[2]._forward_pre_hooks  # type: ignore[index]
    observer = rd.compress.InputCovariance.of(dense[2])
    observer.update(seen["x"])
    same = rd.LowRank(4, metric="input_cov").fit(dense[2], observer)
    torch.testing.assert_close(model[2].materialize(), same.materialize())


def test_data_that_does_not_serve() -> None:
    for data in ([], [(images(),)][:0]):
        with pytest.raises(ValueError, match="convert: 2: data never reached the layer, and LowRank"):
            rd.convert(net(), MEASURED, data=data)
    for data in ([3], [[]], [{"x": "text"}]):
        with pytest.raises(TypeError, match="convert: data must give tensors"):
            rd.convert(net(), MEASURED, data=data)
    model = net()
    with contextlib.suppress(RuntimeError):
        rd.convert(model, MEASURED, data=[torch.randn(4, 3, 2, 2)])  # the model itself fails
    assert model.training and not model[2]._forward_pre_hooks and type(model[2]) is nn.Linear


class Rich(ValueError):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)


def test_errors_of_the_users_own_code_come_as_they_are() -> None:
    def data(model: nn.Module) -> None:
        raise Rich(3, "mine")

    with pytest.raises(Rich) as caught:
        rd.convert(net(), MEASURED, data=data)
    assert caught.value.args == (3, "mine")


def test_data_is_not_looked_at_without_need() -> None:
    def fail(model: nn.Module) -> None:
        raise AssertionError

    rd.convert(net(), {"2": rd.LowRank(4)}, data=fail)


def test_the_page_runs_and_shows_what_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    page = (pathlib.Path(__file__).parents[2] / "docs/compress.md").read_text()
    codes, (table,) = (re.findall(rf"```{kind}\n(.*?)```", page, re.S) for kind in ("python", "text"))
    scope: dict[str, Any] = {}
    exec(codes[0], scope)
    assert capsys.readouterr().out == table
    for code in codes[1:]:
        exec(code, scope)
    assert type(scope["model"][0]) is rd.nn.PaletteLinear


def test_a_module_of_ones_own_with_a_materialize_is_no_compressed_layer() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def materialize(self) -> torch.Tensor:
            return self.fc.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x)

    reports: list[rd.compress.Report] = []
    model = rd.convert(nn.Sequential(Own(), nn.Linear(6, 3)), rd.Palette(2), report=reports.append)
    assert isinstance(model[0].fc, rd.nn.PaletteLinear)  # type: ignore[index]
    assert {row.name for row in reports[0].rows} == {"0.fc", "1"}
