"""The Ba & Caruana experiment: its nets, its split, its runs on a few random images, what it claims."""

import pytest
import torch
from papers import ba_caruana as ba
from papers.experiment import mean

import rdkernels as rd

SIZE = {"labelled": 24, "pool": 64, "test": 16, "teacher_epochs": 1, "epochs": 1, "longer": 2}


@pytest.fixture
def images(monkeypatch, tmp_path):
    def pixels(n):
        return torch.rand(n, 1, 28, 28)

    labels = torch.arange(100) % 10
    data = rd.datasets.Dataset("random", pixels(100), labels, pixels(20), labels[:20])
    monkeypatch.setattr(rd.datasets, "fashion_mnist", lambda: data)
    ba.load.cache_clear()
    monkeypatch.setattr(ba, "DATA", tmp_path)
    monkeypatch.setattr(ba, "BATCH", 10)
    yield data
    ba.load.cache_clear()


def test_nets_are_as_large_as_the_protocol_says():
    assert ba.parameters(ba.teacher_net()) == 421_834
    assert ba.parameters(ba.student_net("plain")) == 785 * 2000 + 2001 * 10
    thin = ba.student_net("bottleneck")
    assert isinstance(thin.hidden, rd.nn.LowRankLinear) and thin.hidden.rank == 100
    assert ba.parameters(thin) == 784 * 100 + 100 * 2000 + 2000 + 2001 * 10
    assert ba.multiply_adds("plain") == 2 * 784 * 2000 + 3 * 2000 * 10
    assert ba.multiply_adds("bottleneck") == 2 * 784 * 100 + 3 * 100 * 2000 + 3 * 2000 * 10


def test_augmentation_shifts_and_mirrors_in_training_alone():
    x = torch.zeros(64, 1, 28, 28)
    x[:, 0, 10, 5] = 1
    augment = ba.Augment()
    assert augment.eval()(x) is x
    y = augment.train()(x)
    places = {tuple(p.tolist()) for image in y for p in image[0].nonzero()}
    assert y.shape == x.shape and torch.equal(y.sum((1, 2, 3)), torch.ones(64))
    columns = {c for base in (5, 22) for c in range(base - 2, base + 3)}
    assert {r for r, _ in places} == set(range(8, 13)) and {c for _, c in places} <= columns
    assert {c < 14 for _, c in places} == {True, False}


def test_the_split_is_the_seeds_own(images):
    orders = [ba.split(seed, SIZE)[1] for seed in (0, 0, 1)]
    assert torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])
    assert len(orders[0].unique()) == SIZE["pool"]


@pytest.mark.parametrize("target", ba.TARGETS)
def test_a_student_learns_each_target(images, target):
    found = ba.learn("bottleneck", target, 0, SIZE, 1e-3)
    rows = SIZE["labelled" if target.startswith("labels") else "pool"]
    epochs = 2 if target == "labels longer" else 1
    assert found["steps"] == epochs * -(-rows // 10) and 0 <= found["error"] <= 100
    assert found["parameters"] == 300_410


def test_the_teacher_is_trained_once(images, monkeypatch):
    first = ba.teacher_logits(0, SIZE)
    assert first.shape == (SIZE["pool"], 10)
    monkeypatch.setattr(ba, "teach", None)
    assert torch.equal(ba.teacher_logits(0, SIZE), first)
    with pytest.raises(TypeError):
        ba.teacher_logits(1, SIZE)


def results(mimic=12.0, teacher=11.0, plain_mimic=11.7, seconds=80.0, longer=15.0):
    def runs(error, seconds=20.0, work=800_000):
        return [{"error": error + d, "cpu_seconds": seconds, "multiply_adds": work} for d in (-0.1, 0.0, 0.1)]

    return {
        "teacher": runs(teacher),
        "bottleneck labels": runs(14.5),
        "plain labels": runs(14.0),
        "bottleneck labels longer": runs(longer),
        "plain labels longer": runs(14.1),
        "bottleneck mimic": runs(mimic),
        "plain mimic": runs(plain_mimic, seconds, 3_200_000),
    }


def test_the_judge():
    assert [claim.holds for claim in ba.judge(results())] == [True, True, True]
    assert [claim.holds for claim in ba.judge(results(mimic=12.6))] == [False, True, False]
    assert [claim.holds for claim in ba.judge(results(teacher=9.0))] == [False, False, True]  # little of a wide gap
    assert [claim.holds for claim in ba.judge(results(seconds=59.0))] == [True, True, False]
    assert not any(claim.holds for claim in ba.judge(results(teacher=15.0))[:2])  # no gap to close
    assert not ba.judge(results(longer=13.9))[0].holds  # the better of the two on true labels counts
    assert mean(results()["teacher"], "error") == pytest.approx(11.0)
