"""`rd.size` against bytes counted by hand and against what `torch.save` writes."""

import dataclasses
import io
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

import rdkernels as rd


def entropy_bits(n: int, zeros: int) -> float:
    """`log2` of how many masks there are, which n H(p) exceeds by less than log2(n + 1)."""
    return (math.lgamma(n + 1) - math.lgamma(zeros + 1) - math.lgamma(n - zeros + 1)) / math.log(2)


def test_a_plain_model() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Linear(8, 5, bias=False).bfloat16())
    model[0].bias.requires_grad_(False)
    size = rd.size(model)
    conv, norm, linear = size.layers
    assert (conv.name, conv.kind, conv.trained, conv.stored) == ("0", "Conv2d", 4 * 216, 4 * 224)
    assert (norm.trained, norm.stored) == (4 * 16, 4 * 32 + 8)  # the statistics and the count are stored
    assert (linear.name, linear.trained, linear.stored, linear.entropy) == ("3", 80, 80, 80)
    assert (size.trained, size.stored) == (864 + 64 + 80, 896 + 136 + 80)
    assert size["0"] is conv
    with pytest.raises(KeyError, match=r"no layer '2' .* \['0', '1', '3'\]"):
        size["2"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        size.trained = 0  # type: ignore[misc]


@pytest.mark.parametrize("numel", [0, 1, 7])
def test_the_table_adds_up(numel: int) -> None:
    model = nn.Sequential(nn.Linear(1000, 1000), nn.ParameterList([torch.zeros(numel)]))
    head, *rows, total = str(rd.size(model)).splitlines()
    assert head.split() == ["layer", "kind", "trained", "stored", "entropy-coded"]
    assert rows[0].split()[:4] == ["0", "Linear", "4,004,000", "4,004,000"]
    assert total.split()[1] == f"{4004000 + 4 * numel:,}"
    assert len({len(line) for line in (head, *rows, total)}) == 1


def test_stored_is_what_a_checkpoint_holds() -> None:
    """A file is larger by its header alone, and by little."""
    model = nn.Sequential(
        rd.nn.HashedLinear(256, 256, compression=8),
        rd.nn.LowRankLinear(256, 256, rank=16),
        rd.nn.MonochromaticConv2d(3, 64, 7, colours=8),
        nn.BatchNorm2d(64),
    )
    stored = rd.size(model).stored
    assert stored == sum(t.numel() * t.element_size() for t in model.state_dict().values())
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    assert stored < file.tell() < stored + 16384


def test_what_is_shared_counts_once() -> None:
    bank = rd.nn.WeightBank(64)
    linear = nn.Linear(6, 6)
    tied = nn.Linear(6, 6, bias=False)
    tied.weight = linear.weight
    shared_memory = nn.Linear(6, 6, bias=False)
    shared_memory.weight = nn.Parameter(linear.weight.detach())
    a, b = (rd.nn.HashedLinear(16, 16, False, granule="element", bank=bank) for _ in range(2))
    size = rd.size(nn.ModuleList([linear, tied, linear, shared_memory, a, b, a]))
    assert [(la.name, la.trained, la.stored) for la in size.layers] == [
        ("0", 168, 168),
        ("1", 0, 0),
        ("3", 0, 0),
        ("4", 0, 72),
        ("4.bank", 256, 256),
        ("5", 0, 72),
    ]
    assert size.trained == 168 + 256
    apart = rd.size(nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6, bias=False)]))  # negative control
    assert apart.trained == 168 + 144


def test_many_maps_are_not_taken_for_one() -> None:
    """Each is made anew for the state dict; memory that is freed and used again is not sharing."""
    layers = [rd.nn.HashedLinear(16, 16, False, granule="element") for _ in range(40)]
    size = rd.size(nn.Sequential(*layers))
    assert [la.stored for la in size.layers if la.kind == "HashedLinear"] == [72] * 40


def test_what_is_built_anew_is_not_stored() -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("kept", torch.zeros(10))
    model.register_buffer("built", torch.zeros(1000), persistent=False)
    assert rd.size(model).stored == 24 + 40


def test_a_predicted_layers_dictionary() -> None:
    remade = rd.nn.PredictedLinear(64, 32, fraction=0.25, dictionary="gauss", seed=1)
    row = rd.size(remade)[""]
    assert row.trained == 4 * (32 * 16 + 32)
    assert row.stored == row.trained + 8 * len(remade.recipe)
    given = rd.nn.PredictedLinear(64, 32, fraction=0.25, dictionary=torch.randn(64, 16))
    assert rd.size(given)[""].stored == row.stored + 4 * 64 * 16


@given(st.integers(1, 300), st.floats(0, 1), st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_a_pruned_weight_is_entropy_coded(n: int, density: float, dtype: torch.dtype) -> None:
    model = nn.Linear(n, 1, bias=False, dtype=dtype)
    with torch.no_grad():
        model.weight.fill_(1).mul_(torch.rand(1, n) < density)
    kept = int(model.weight.count_nonzero())
    row = rd.size(model)[""]
    item = model.weight.element_size()
    assert row.stored == row.trained == n * item
    low = entropy_bits(n, n - kept) / 8 + kept * item
    assert min(row.stored, math.floor(low)) <= row.entropy <= min(row.stored, low + math.log2(n + 1) / 8 + 1)


def test_pruning_made_permanent_is_what_counts() -> None:
    model = nn.Linear(100, 100)
    prune.l1_unstructured(model, "weight", amount=0.9)
    assert rd.size(model).stored == 2 * 40000 + 400  # the weight as it was, and the mask
    prune.remove(model, "weight")
    size = rd.size(model)
    assert size.stored == 40400
    assert size.entropy == math.ceil(10000 * (-0.1 * math.log2(0.1) - 0.9 * math.log2(0.9)) / 8) + 4000 + 400


def test_integers_are_counted_in_full() -> None:
    model = nn.Module()
    model.register_buffer("zeros", torch.zeros(100, dtype=torch.int64))
    assert rd.size(model) == rd.compress.Size(0, 800, 800, (rd.compress.LayerSize("", "Module", 0, 800, 800),))


class Coded(nn.Module):
    """A layer that says what its indices come to."""

    coded = "indices"

    def __init__(self) -> None:
        super().__init__()
        self.codebook = nn.Parameter(torch.tensor([0.0, 1.0]))
        self.register_buffer("indices", torch.zeros(1000, dtype=torch.uint8))

    def coded_bits(self) -> float:
        return 81.5


def test_coded_indices() -> None:
    row = rd.size(nn.Sequential(Coded()))["0"]
    assert (row.trained, row.stored, row.entropy) == (8, 1008, 11 + math.ceil(2 / 8) + 4)


@pytest.mark.parametrize("zero", [False, True])
def test_a_palette(zero: bool) -> None:
    dense = nn.Linear(200, 100)
    prune.remove(prune.l1_unstructured(dense, "weight", amount=0.9), "weight")
    layer = rd.nn.PaletteLinear.from_dense(dense, 4, zero=zero)
    row = rd.size(layer)[""]
    values = 4 * (16 - zero + 100)
    assert row.trained == values
    assert row.stored == values + layer.indices.numel() + 8 * len(layer.palette)
    counts = layer.materialize().unique(return_counts=True)[1].tolist()  # distinct values: the codebook's entries
    bits = sum(n * math.log2(20000 / n) for n in counts)
    codebook = values if zero else values - 4 + 1  # without `zero` one of its 16 values is 0 too: a byte says which
    assert row.entropy == math.ceil(bits / 8) + codebook + 8 * len(layer.palette)
    assert row.entropy < rd.size(dense).entropy < rd.size(dense).stored / 5


def test_the_model_is_left_alone() -> None:
    model = nn.Sequential(rd.nn.HashedLinear(16, 16), nn.BatchNorm1d(16))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    rd.size(model)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        ({"weight": torch.ones(2)}, TypeError, "model must be an nn.Module, got dict"),
        (nn.Sequential(nn.LazyLinear(3)), ValueError, "the lazy '0.weight'; run it once"),
        (nn.Sequential(nn.Linear(3, 3, device="meta")), ValueError, "'0.weight' on the meta device"),
        (nn.ParameterList([torch.eye(3).to_sparse()]), TypeError, "'0' of layout torch.sparse_coo"),
    ],
)
def test_errors(model, error, words: str) -> None:
    with pytest.raises(error, match=words):
        rd.size(model)
