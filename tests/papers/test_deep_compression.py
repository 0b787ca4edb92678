"""The Deep Compression experiment: what it counts, what it prunes, what it claims."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from papers import deep_compression as dc

import rdkernels as rd


def numbers(net):
    return sum(p.numel() for p in net.parameters())


def test_the_net_and_its_pruned_sizes_are_the_papers():
    net = dc.lenet()
    assert numbers(net) == 266_610
    left = [dc.prune(net, stage) for stage in (1, 2, 3)]
    assert left[0] > left[1] > left[2] == 18_816 + 2_700 + 260
    for name, density in dc.DENSITY.items():
        weight = net.get_submodule(name).weight
        assert int((weight != 0).sum()) == round(density * weight.numel())


def test_pruning_keeps_the_largest():
    net = dc.lenet()
    before = net.fc2.weight.detach().clone()
    dc.prune(net, 1)
    kept = net.fc2.weight != 0
    assert torch.equal(net.fc2.weight[kept], before[kept])
    assert before[kept].abs().min() >= before[~kept].abs().max()


def test_pruned_weights_stay_only_inside():
    net = dc.lenet()
    dc.prune(net, 3)
    pruned = net.fc1.weight == 0

    def step():
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        net(torch.randn(8, 784)).square().sum().backward()
        optimizer.step()
        net.zero_grad()

    kept = net.fc1.weight.detach().clone()
    with dc.pruned_stay(net):
        step()
    assert not net.fc1.weight[pruned].any() and not torch.equal(net.fc1.weight, kept)
    step()
    assert net.fc1.weight[pruned].any()


@pytest.mark.parametrize(
    ("counts", "bits"), [([], 0), ([7], 7), ([1, 1], 2), ([4, 2, 1, 1], 14), ([8, 0, 8], 16), ([1] * 8, 24)]
)
def test_huffman_by_hand(counts, bits):
    assert dc.huffman(counts) == bits


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=40))
def test_huffman_is_within_a_bit_of_the_entropy(counts):
    total = sum(counts)
    entropy = -sum(n * math.log2(n / total) for n in counts)
    assert entropy - 1e-6 <= dc.huffman(counts) <= entropy + total


@given(st.lists(st.integers(0, 499), min_size=1, max_size=30, unique=True))
def test_distances_lead_back_to_the_places(places):
    weight = torch.zeros(500)
    weight[places] = 1
    at, found = -1, []
    steps = dc.distances(weight)
    assert all(0 <= step < 32 for step in steps)
    for step in steps:
        at += step + 1
        found.append(at)
    assert set(places) <= set(found)
    assert all(b - a == 32 for a, b in zip([-1, *found], found, strict=False) if b not in places)  # fillers alone


def test_bytes_by_hand():
    weight = torch.zeros(1, 100)
    weight[0, [0, 1, 50]] = torch.tensor([2.0, 2.0, 3.0])
    fixed, coded = dc.paper_bytes([weight], bits=2, others=8)  # distances 0, 0, 31 (filler), 16; values 2, 2, 0, 3
    assert fixed == 8 + 4 * (5 + 2) / 8
    assert coded == 8 + (6 + 6) / 8 + 3 + 3  # {0: 2, 31: 1, 16: 1} and {2: 2, 0: 1, 3: 1}; a byte a symbol


def rows(error, entropy):
    made = {"dense": [{"error": 10.0, "bytes": 1_066_440}]}
    made["tuned 6"] = [{"error": error, "entropy": entropy, "huffman": entropy, "fixed": 2 * entropy}]
    return made


def test_the_judge():
    (good,) = dc.judge(rows(10.9, 30_000))
    assert good.holds and good.numbers["times smaller, entropy"] == pytest.approx(35.548)
    assert not dc.judge(rows(11.1, 30_000))[0].holds
    assert not dc.judge(rows(10.9, 36_000))[0].holds


def test_a_run_on_random_images(monkeypatch):
    labels = torch.arange(60) % 10
    data = rd.datasets.Dataset("random", torch.rand(60, 1, 28, 28), labels, torch.rand(20, 1, 28, 28), labels[:20])
    monkeypatch.setattr(rd.datasets, "fashion_mnist", lambda: data)
    size = {"train": 60, "test": 20, "dense": 1, "retrain": 1, "rounds": 2, "tune": 1}
    found = dc.compress(0, size, bits=(6, 2))
    assert found["dense"]["bytes"] == 1_066_440
    kept = found["pruned 3"]["kept"]
    for way in dc.WAYS:
        for bits in (6, 2):
            row = found[f"{way} {bits}"]
            assert row["kept"] == kept == 21_776  # pruned weights stayed pruned through every phase
            assert row["entropy"] < 36_000 and row["huffman"] < row["fixed"]
        assert found[f"{way} 2"]["entropy"] < found[f"{way} 6"]["entropy"]
    grids = dc.tables({name: [row] for name, row in found.items()})
    assert [len(grid.rows) for grid in grids] == [3, 2, 2]
