"""The Ba & Caruana experiment: its nets, its split, its runs on a few random images, what it claims."""

import pytest
import torch
from papers import ba_caruana as ba
from papers import ba_caruana_runs as runs
from papers import ba_caruana_words as words
from papers.experiment import mean

import rdkernels as rd

SIZE = {"labelled": 24, "pool": 64, "test": 16, "members": 2, "teacher_epochs": 1}
SIZE |= {"epochs": 1, "labels": 1, "longer": 2}


@pytest.fixture
def images(monkeypatch, tmp_path):
    def pixels(n):
        return torch.rand(n, 1, 28, 28)

    labels = torch.arange(100) % 10
    data = rd.datasets.Dataset("random", pixels(100), labels, pixels(20), labels[:20])
    monkeypatch.setattr(rd.datasets, "fashion_mnist", lambda: data)
    runs.load.cache_clear()
    monkeypatch.setattr(runs, "DATA", tmp_path)
    monkeypatch.setattr(runs, "BATCH", 10)
    yield data
    runs.load.cache_clear()


def test_nets_are_as_large_as_the_protocol_says():
    assert runs.parameters(runs.teacher_net()) == 468_202
    assert runs.parameters(runs.student_net("plain")) == 785 * 2000 + 2001 * 10
    thin = runs.student_net("bottleneck")
    assert isinstance(thin.hidden, rd.nn.LowRankLinear) and thin.hidden.rank == 64
    assert runs.parameters(thin) == 784 * 64 + 64 * 2000 + 2000 + 2001 * 10
    assert runs.multiply_adds("plain") == 2 * 784 * 2000 + 3 * 2000 * 10
    assert runs.multiply_adds("bottleneck") == 2 * 784 * 64 + 3 * 64 * 2000 + 3 * 2000 * 10


def test_the_teachers_multiply_adds_are_those_of_its_layers():
    products, net = [], runs.teacher_net().eval()
    for layer in net.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.register_forward_hook(
                lambda m, _, y: products.append(m.weight[0].numel() * y[0].numel()) and None,
            )
    net(torch.rand(1, 1, 28, 28))
    assert len(products) == 6 and runs.multiply_adds("teacher") == 3 * sum(products) - products[0]


def test_a_fused_step_is_seen_by_the_layers_that_pack_their_weights():
    torch.manual_seed(0)
    net, x, y = runs.student_net("bottleneck"), torch.rand(8, 784), torch.arange(8)
    optimizer = runs.adam(net, 1e-2, 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        hidden = torch.nn.functional.linear(x, net.hidden.materialize(), net.hidden.bias)
        torch.testing.assert_close(net(x), net.classes(hidden.relu()), rtol=1e-4, atol=1e-5)


def test_augmentation_shifts_and_mirrors_in_training_alone():
    x = torch.zeros(64, 1, 28, 28)
    x[:, 0, 10, 5] = 1
    augment = runs.Augment()
    assert augment.eval()(x) is x
    y = augment.train()(x)
    places = {tuple(p.tolist()) for image in y for p in image[0].nonzero()}
    assert y.shape == x.shape and torch.equal(y.sum((1, 2, 3)), torch.ones(64))
    columns = {c for base in (5, 22) for c in range(base - 2, base + 3)}
    assert {r for r, _ in places} == set(range(8, 13)) and {c for _, c in places} <= columns
    assert {c < 14 for _, c in places} == {True, False}


def test_the_split_is_the_seeds_own(images):
    parts = [runs.split(seed, SIZE) for seed in (0, 0, 1)]
    assert torch.equal(parts[0].train_x, parts[1].train_x) and not torch.equal(parts[0].train_x, parts[2].train_x)
    assert len(parts[0].train_x.unique(dim=0)) == SIZE["pool"]
    assert torch.equal(parts[0].test_x, parts[2].test_x)


def test_images_held_out_are_in_no_pool_and_the_test_images_stay_untouched(images):
    whole, part = runs.split(0, SIZE), runs.split(0, {**SIZE, "held_out": 8})
    assert torch.equal(part.train_x, whole.train_x[:-8]) and torch.equal(part.test_x, whole.train_x[-8:])
    assert torch.equal(part.test_y, whole.train_y[-8:])


@pytest.mark.parametrize("target", [target for target in ba.TARGETS if target != "mimic longer"])
def test_a_student_learns_each_target(images, target):
    found = runs.learn("bottleneck", target, 0, SIZE, 1e-3)
    rows = SIZE["labelled" if target.startswith("labels") else "pool"]
    epochs = 2 if target == "labels longer" else 1
    assert found["steps"] == epochs * -(-rows // 10) and 0 <= found["error"] <= 100
    assert found["parameters"] == 200_186


def test_the_teacher_is_the_mean_of_its_members_and_each_is_trained_once(images, monkeypatch):
    first = runs.teacher_logits(0, SIZE)
    assert first.shape == (SIZE["pool"], 10)
    members = [torch.load(runs._said_by(number, 0, SIZE))["train"] for number in range(2)]
    assert not torch.equal(*members)
    torch.testing.assert_close(first, (members[0] + members[1]) / 2)
    monkeypatch.setattr(runs, "member", None)
    longer = {**SIZE, "epochs": 7}  # the students' epochs are not the members'
    assert torch.equal(runs.teacher_logits(0, longer), first)
    assert runs.teacher(0, SIZE)["error"] == 100 * float(
        (runs.teacher_logits(0, SIZE, "test").argmax(1) != images.test_y[: SIZE["test"]]).double().mean()
    )
    with pytest.raises(TypeError):
        runs.teacher_logits(1, SIZE)


def test_a_member_sees_every_image_both_ways(images):
    net, x = runs.teacher_net().eval(), torch.rand(4, 1, 28, 28)
    torch.testing.assert_close(runs.mirrored_outputs(net, x), runs.mirrored_outputs(net, x.flip(-1)))
    assert not torch.equal(net(x), net(x.flip(-1)))


def results(mimic=12.0, teacher=11.0, plain_mimic=11.7, seconds=80.0, longer=15.0, words_mimic=10.0):
    def seeds(error, seconds=20.0, work=800_000):
        return [{"error": error + d, "cpu_seconds": seconds, "multiply_adds": work} for d in (-0.1, 0.0, 0.1)]

    return {
        "teacher": seeds(teacher),
        "bottleneck labels": seeds(14.5),
        "plain labels": seeds(14.0),
        "bottleneck labels longer": seeds(longer),
        "plain labels longer": seeds(14.1),
        "bottleneck mimic": seeds(mimic),
        "plain mimic": seeds(plain_mimic, seconds, 3_200_000),
        "words teacher": seeds(1.0),
        "words labels": seeds(40.0),
        "words mimic": seeds(words_mimic),
    }


def test_the_judge():
    assert [claim.holds for claim in ba.judge(results())] == [True, True, True, True]
    assert [claim.holds for claim in ba.judge(results(mimic=12.6))] == [False, True, True, False]
    assert [claim.holds for claim in ba.judge(results(teacher=9.0))] == [False, False, True, True]  # of a wide gap
    assert [claim.holds for claim in ba.judge(results(words_mimic=20.0))] == [True, True, False, True]
    assert [claim.holds for claim in ba.judge(results(seconds=59.0))] == [True, True, True, False]
    assert not any(claim.holds for claim in ba.judge(results(teacher=15.0))[:2])  # no gap to close
    assert not ba.judge(results(longer=13.9))[0].holds  # the better of the two on true labels counts
    assert mean(results()["teacher"], "error") == pytest.approx(11.0)


def test_windows_are_those_of_the_columns():
    x = torch.rand(2, 1, words.HEIGHT, 256)
    windows = words.Windows(48)(x)
    assert windows.shape == (2, 63, 32 * 48)
    halved = torch.nn.functional.avg_pool2d(x, 2)[:, 0]
    torch.testing.assert_close(windows[:, 20], 1 - halved[:, :, 40 - 23 : 40 + 25].flatten(1))
    assert (windows[:, 0].view(2, 32, 48)[:, :, :23] == 0).all()


def test_labels_are_the_letters_where_the_teacher_has_them():
    texts = ["ab", "zebra", "ox"]
    said = torch.zeros(3, 9, 97)
    for row, text in enumerate(["ab", "zebra", "on"]):  # the last is misread
        said[row, :, 0] = 1.0
        for step, letter in enumerate(text):
            said[row, step + 1, words.ALPHABET.index(letter) + 1] = 2.0
    rows, classes = words.aligned(said, texts, 3, 0)
    assert sorted(rows.tolist()) == [0, 1]
    sharp = torch.nn.functional.one_hot(classes, 97).float() * 20
    assert words.word_error(sharp, [texts[row] for row in rows.tolist()]) == 0.0
    assert float(words.steps_cross_entropy(sharp, classes)) < 1e-6
    assert float(words.steps_cross_entropy(sharp.roll(1, 1), classes)) > 1.0


@pytest.mark.parametrize("target", ba.WORDS_TARGETS)
def test_a_student_learns_to_read(target, monkeypatch):
    def taught(count, seed):
        x, texts = words.words(count, seed)
        said = torch.zeros(count, 63, 97)
        for row, text in enumerate(texts):
            said[row, :, 0] = 1.0
            for step, letter in enumerate(text):
                said[row, 2 * step, words.ALPHABET.index(letter) + 1] = 2.0
        return x, texts, said + 0.1 * torch.rand(said.shape)

    monkeypatch.setattr(words, "taught", taught)
    found = words.learn(target, 0, ba.QUICK_WORDS)
    assert found["steps"] == (1 if target == "labels" else 2) and 0 <= found["error"] <= 100
    assert found["parameters"] == 1536 * 64 + 64 * 1000 + 1000 + 1001 * 97
