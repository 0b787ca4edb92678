"""The distillation losses against independent float64 formulas, their gradients, their errors."""

import itertools
import math
import pathlib
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from rdkernels import distill

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def normal(*shape: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    return (scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


def softmax(scores: list[float]) -> list[float]:
    top = max(scores)
    powers = [math.exp(s - top) for s in scores]
    return [p / sum(powers) for p in powers]


def mimic_formula(g: Tensor, z: Tensor) -> float:
    """Equation 1, in plain Python."""
    rows = zip(g.reshape(-1, g.shape[-1]).tolist(), z.reshape(-1, z.shape[-1]).tolist(), strict=True)
    errors = [sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) for x, y in rows]
    return sum(errors) / (2 * len(errors))


def kd_formula(g: Tensor, z: Tensor, temperature: float) -> float:
    rows = list(zip(g.reshape(-1, g.shape[-1]).tolist(), z.reshape(-1, z.shape[-1]).tolist(), strict=True))
    total = 0.0
    for x, y in rows:
        p, q = (softmax([v / temperature for v in row]) for row in (y, x))
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / len(rows)


def relation_formula(student, teacher, heads: int, pairs, mask: Tensor | None = None) -> float:
    """The cross-entropy of the relations, head by head and token by token."""
    batch, n, _ = student[0].shape
    losses = []
    for a, b in pairs:
        rows = []
        for item, head, i in itertools.product(range(batch), range(heads), range(n)):
            tokens = [j for j in range(n) if mask is None or bool(mask[item, j])]
            if i not in tokens:
                continue
            rs = []
            for side in (student, teacher):
                d = side[0].shape[2] // heads
                part = slice(head * d, (head + 1) * d)
                query, keys = side["qkv".index(a)][item, i, part], side["qkv".index(b)][item]
                rs.append(softmax([float(query @ keys[j, part]) / d**0.5 for j in tokens]))
            rows.append(-sum(t * math.log(s) for s, t in zip(*rs, strict=True)))
        losses.append(sum(rows) / len(rows))
    return sum(losses) / len(losses)


shapes = st.tuples(st.integers(1, 7), st.integers(2, 9))


@given(shapes, st.booleans(), st.integers(0, 99))
def test_mimic_is_equation_1(shape, per_class: bool, seed: int) -> None:
    z = normal(*shape, seed=seed, scale=5)
    g = normal(*shape, seed=seed + 1)
    stats = distill.LogitStats.of(torch.cat([z, normal(4, shape[1], seed=seed + 2)]), per_class=per_class)
    targets = (z - stats.mean) / stats.std
    assert float(distill.mimic(g, z, stats)) == pytest.approx(mimic_formula(g, targets), rel=1e-12)
    assert float(distill.mimic(g, z)) == pytest.approx(mimic_formula(g, z), rel=1e-12)
    assert float(distill.mimic(g[:, None], z[:, None], stats)) == pytest.approx(mimic_formula(g, targets), rel=1e-12)
    assert float(distill.mimic(g, z)) == pytest.approx(float(F.mse_loss(g, z)) * shape[1] / 2, rel=1e-12)


def test_stats_are_the_training_sets() -> None:
    z = normal(500, 3, scale=4) + torch.tensor([1.0, -7.0, 30.0])
    stats = distill.LogitStats.of(z)
    assert torch.allclose(stats.mean, z.mean(0)) and torch.allclose(stats.std, z.std(0, correction=0))
    assert torch.allclose(stats.normalize(z).mean(0), torch.zeros(3).double(), atol=1e-12)
    assert torch.allclose(stats.normalize(z).square().mean(0), torch.ones(3).double())
    assert torch.allclose(stats.unnormalize(stats.normalize(z)), z)
    one = distill.LogitStats.of(z, per_class=False)
    assert one.mean.shape == () and float(one.mean) == pytest.approx(float(z.mean()))
    assert float(one.std) == pytest.approx(float(z.std(correction=0)))
    assert torch.equal(one.normalize(z).argmax(1), z.argmax(1))
    assert not torch.equal(stats.normalize(z).argmax(1), z.argmax(1))  # why Unnormalize exists


@pytest.mark.parametrize("dtype", DTYPES)
def test_unnormalize_gives_the_teachers_logits_back(dtype: torch.dtype) -> None:
    z = (normal(200, 4, scale=4) + torch.tensor([1.0, -7.0, 30.0, 2.0])).to(dtype)
    stats = distill.LogitStats.of(z)
    assert stats.mean.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    end = distill.Unnormalize(stats)
    back = end(stats.normalize(z).to(dtype))
    assert back.dtype == dtype
    assert torch.allclose(
        back.double(), z.double(), rtol=4 * torch.finfo(dtype).eps, atol=8 * torch.finfo(dtype).eps * 30
    )
    assert torch.equal(end(stats.normalize(z)).argmax(1), z.argmax(1))
    assert set(end.state_dict()) == {"mean", "std"}
    other = distill.Unnormalize(distill.LogitStats.of(normal(9, 4, seed=3)))
    other.load_state_dict(end.state_dict())
    assert torch.equal(other(normal(5, 4).to(dtype)), end(normal(5, 4).to(dtype)))


@given(shapes, st.sampled_from([0.5, 1.0, 4.0, 20.0]), st.integers(0, 99))
def test_kd_is_the_kl_at_a_temperature(shape, temperature: float, seed: int) -> None:
    g, z = normal(*shape, seed=seed, scale=3), normal(*shape, seed=seed + 1, scale=3)
    loss = distill.kd(g, z, temperature)
    assert float(loss) == pytest.approx(kd_formula(g, z, temperature), rel=1e-9, abs=1e-12)
    assert float(distill.kd(z, z, temperature)) == pytest.approx(0, abs=1e-12)


def test_kd_of_a_high_temperature_is_mimicry() -> None:
    """Hinton: logit matching is the limit, for logits of mean zero; and the two directions of KL are not the same."""
    g, z = (t - t.mean(1, keepdim=True) for t in (normal(6, 5), normal(6, 5, seed=1)))
    assert float(distill.kd(g, z, 1e4)) == pytest.approx(float(distill.mimic(g, z)) / 5, rel=1e-3)
    assert float(distill.kd(g, z, 1.0)) != pytest.approx(float(distill.kd(z, g, 1.0)), rel=1e-3)


def test_extreme_logits_are_finite() -> None:
    g, z = torch.tensor([[300.0, -300.0]]), torch.tensor([[-300.0, 300.0]])
    assert float(distill.kd(g, z, 1.0)) == pytest.approx(600)


def test_hidden_by_value() -> None:
    s, t = normal(2, 5, 4), normal(2, 5, 6, seed=1)
    projection = nn.Linear(4, 6).double()
    expected = (s @ projection.weight.T + projection.bias - t).square().mean()
    assert torch.allclose(distill.hidden(s, t, projection), expected)
    assert torch.allclose(distill.hidden(s, 2 * s), s.square().mean())
    distill.hidden(s, t, projection).backward()
    assert projection.weight.grad is not None and projection.weight.grad.abs().sum() > 0


@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 5), st.integers(1, 5), st.integers(0, 99))
def test_hidden_by_relation(batch: int, n: int, ds: int, dt: int, seed: int) -> None:
    s, t = normal(batch, n, ds, seed=seed), normal(batch, n, dt, seed=seed + 1)
    total = 0.0
    for item, i, j in itertools.product(range(batch), range(n), range(n)):
        cosines = [float(h[item, i] @ h[item, j] / (h[item, i].norm() * h[item, j].norm())) for h in (s, t)]
        total += (cosines[0] - cosines[1]) ** 2
    assert float(distill.hidden(s, t, relation=True)) == pytest.approx(total / (batch * n), rel=1e-9, abs=1e-12)


def test_hidden_by_relation_sees_no_rotation() -> None:
    s = normal(2, 7, 5)
    turn = torch.linalg.qr(normal(5, 5, seed=1)).Q
    assert float(distill.hidden(3 * s @ turn, s, relation=True)) < 1e-24
    assert float(distill.hidden(s.flip(1), s, relation=True)) > 1e-2  # negative control: other tokens


@given(
    st.integers(1, 2),
    st.integers(1, 5),
    st.sampled_from([1, 2, 3]),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sets(st.sampled_from(distill.PAIRS), min_size=1),
    st.booleans(),
    st.integers(0, 99),
)
def test_attention_relation(batch, n, heads, ds, dt, pairs, masked, seed) -> None:
    student = [normal(batch, n, ds * heads, seed=seed + k) for k in range(3)]
    teacher = [normal(batch, n, dt * heads, seed=seed + 3 + k) for k in range(3)]
    mask = torch.rand(batch, n, generator=torch.Generator().manual_seed(seed)) < 0.7 if masked else None
    if mask is not None:
        mask[:, 0] = True
    loss = distill.attention_relation(student, teacher, heads, pairs=sorted(pairs), mask=mask)
    assert float(loss) == pytest.approx(relation_formula(student, teacher, heads, pairs, mask), rel=1e-9)


def test_attention_relation_takes_all_nine_pairs_unless_told() -> None:
    student, teacher = [[normal(2, 4, w, seed=w + k) for k in range(3)] for w in (4, 6)]
    assert len(set(distill.PAIRS)) == 9
    each = [float(distill.attention_relation(student, teacher, 2, pairs=[pair])) for pair in distill.PAIRS]
    assert len({round(v, 12) for v in each}) == 9
    assert float(distill.attention_relation(student, teacher, 2)) == pytest.approx(sum(each) / 9)
    assert float(distill.attention_relation(student, teacher, 1)) != pytest.approx(sum(each) / 9)


def test_attention_relation_is_least_at_the_teacher() -> None:
    teacher = [normal(2, 4, 6, seed=k, scale=2) for k in range(3)]
    least = distill.attention_relation(teacher, teacher, 3)
    for seed in range(5):
        other = [t + 0.1 * normal(2, 4, 6, seed=10 * seed + k) for k, t in enumerate(teacher)]
        assert distill.attention_relation(other, teacher, 3) > least


def test_padding_is_not_looked_at() -> None:
    student, teacher = [[normal(3, 5, 4, seed=s + k) for k in range(3)] for s in (0, 5)]
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    student = [t.requires_grad_() for t in student]
    loss = distill.attention_relation(student, teacher, 2, mask=mask)
    loss.backward()
    for t in student:
        assert not t.grad[~mask].any() and t.grad[mask].all()
    moved = [[t.detach() + 50 * normal(3, 5, 4) * ~mask[..., None] for t in side] for side in (student, teacher)]
    assert torch.equal(distill.attention_relation(*moved, 2, mask=mask), loss)
    assert not torch.allclose(distill.attention_relation(*moved, 2), loss)  # negative control
    assert distill.attention_relation(student, teacher, 2, mask=torch.zeros_like(mask)) == 0


def losses():
    """Each loss as a function of the student's and the teacher's tensor `[2, 3, 4]`."""
    stats = distill.LogitStats.of(normal(20, 4, scale=4, seed=9))
    mask = torch.tensor([[1, 1, 1], [1, 0, 1]]).bool()
    return {
        "mimic": lambda s, t: distill.mimic(s, t, stats),
        "kd": lambda s, t: distill.kd(s, t, 3.0),
        "hidden": distill.hidden,
        "hidden relation": lambda s, t: distill.hidden(s, t, relation=True),
        "attention": lambda s, t: distill.attention_relation([s, -s.flip(1), 2 * s], [t, t.flip(2), -t], 2),
        "attention mask": lambda s, t: distill.attention_relation([s, -s.flip(1), 2 * s], [t] * 3, 2, mask=mask),
    }


@pytest.mark.parametrize("name", losses())
def test_gradients_are_right_and_only_the_students(name: str) -> None:
    loss = losses()[name]
    s, t = normal(2, 3, 4).requires_grad_(), normal(2, 3, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, t.detach()), (s,))
    value = loss(s, t)
    assert value.shape == () and value.dtype == torch.float64
    value.backward()
    assert t.grad is None and s.grad is not None and s.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("name", losses())
def test_every_dtype_is_computed_wide(name: str, dtype: torch.dtype) -> None:
    """What comes in is rounded; what is done with it is float32, under autocast too."""
    loss = losses()[name]
    s, t = normal(2, 3, 4, dtype=dtype), normal(2, 3, 4, seed=1, dtype=dtype)
    value = loss(s, t)
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(loss(s.double(), t.double())), rel=1e-5)
    assert loss(s, t.double()).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(s, t), value)


def test_a_student_learns() -> None:
    """Mimicry end to end: a student of the teacher's form reaches the teacher's logits through `Unnormalize`."""
    teacher, student = nn.Linear(6, 4), nn.Linear(6, 4)
    x = normal(256, 6, dtype=torch.float32)
    with torch.no_grad():
        teacher.bias.copy_(torch.tensor([5.0, -5.0, 0.0, 20.0]))
        z = teacher(x)
    stats = distill.LogitStats.of(z)
    optimiser = torch.optim.Adam(student.parameters(), lr=0.05)
    for _ in range(300):
        optimiser.zero_grad()
        distill.mimic(student(x), z, stats).backward()
        optimiser.step()
    whole = nn.Sequential(student, distill.Unnormalize(stats))
    assert torch.allclose(whole(x), z, atol=1e-2)
    assert not torch.allclose(student(x), z, atol=1)


Q = normal(2, 3, 4)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: distill.LogitStats.of([1.0]), TypeError, "logits must be a Tensor, got list"),
        (lambda: distill.LogitStats.of(torch.ones(3, 2).long()), TypeError, "logits must be floating"),
        (lambda: distill.LogitStats.of(torch.ones(3)), ValueError, r"\[\.\.\., C\] with at least one row, got \[3\]"),
        (lambda: distill.LogitStats.of(torch.ones(0, 3)), ValueError, "at least one row"),
        (
            lambda: distill.LogitStats.of(torch.eye(3)[:, :2] * torch.tensor([1, 0])),
            ValueError,
            r"classes \[1\] do not",
        ),
        (lambda: distill.LogitStats.of(torch.ones(3, 2), per_class=False), ValueError, "all of them do not"),
        (lambda: distill.LogitStats.of(torch.tensor([[1.0], [torch.inf]])), ValueError, "finite"),
        (lambda: distill.LogitStats(torch.zeros(3), torch.zeros(3)), ValueError, "std must be > 0, got 0"),
        (lambda: distill.LogitStats(torch.zeros(3), torch.ones(2)), ValueError, r"both be \[C\] or both \[\]"),
        (lambda: distill.LogitStats(torch.zeros(3), 1.0), TypeError, "std must be a Tensor, got float"),
        (lambda: distill.LogitStats.of(Q).normalize(normal(2, 5)), ValueError, r"C = 4, got \[2, 5\]"),
        (lambda: distill.Unnormalize(1.0), TypeError, "stats must be a LogitStats, got float"),
        (lambda: distill.mimic(Q, normal(2, 3, 5)), ValueError, r"teacher_logits must have student_logits's shape"),
        (lambda: distill.mimic(Q[0, 0], Q[0, 0]), ValueError, "student_logits must be"),
        (lambda: distill.mimic(Q, Q, (0, 1)), TypeError, "stats must be a LogitStats or None, got tuple"),
        (lambda: distill.kd(Q[:0], Q[:0], 1), ValueError, "at least one row"),
        (lambda: distill.kd(Q, Q.long(), 1), TypeError, "teacher_logits must be floating, got torch.int64"),
        (lambda: distill.kd(Q, Q, 0), ValueError, "temperature must be > 0 and finite, got 0"),
        (lambda: distill.kd(Q, Q, math.nan), ValueError, "temperature must be > 0"),
        (lambda: distill.kd(Q, Q, "4"), TypeError, "temperature must be a real number, got str"),
        (lambda: distill.kd(Q, Q.to("meta"), 1), ValueError, "teacher_logits must be on student_logits's device cpu"),
        (lambda: distill.hidden(Q, normal(2, 3, 5)), ValueError, "got .*; give a projection or relation=True"),
        (
            lambda: distill.hidden(Q, normal(2, 2, 4)),
            ValueError,
            r"must have the teacher's shape \[2, 2, 4\], got \S+ 3, 4\]$",
        ),
        (lambda: distill.hidden(Q, Q, 3), TypeError, "projection must be callable, got int"),
        (lambda: distill.hidden(Q, Q, nn.Identity(), relation=True), ValueError, "projection must be None"),
        (lambda: distill.hidden(Q, normal(2, 2, 4), relation=True), ValueError, "hidden: student must be"),
        (lambda: distill.attention_relation([Q, Q], [Q] * 3, 2), TypeError, "student_qkv must be .*, got 2 of them"),
        (lambda: distill.attention_relation([Q] * 3, Q, 2), TypeError, "teacher_qkv must be .*, got Tensor"),
        (lambda: distill.attention_relation([Q] * 3, [Q, Q, Q[:, :2]], 2), ValueError, "teacher_qkv's v must be"),
        (
            lambda: distill.attention_relation([Q] * 3, [Q] * 3, 3),
            ValueError,
            "heads must .* student_qkv's width 4, got 3",
        ),
        (lambda: distill.attention_relation([Q] * 3, [normal(2, 3, 6)] * 3, 4), ValueError, "teacher_qkv's width 6"),
        (
            lambda: distill.attention_relation([Q] * 3, [Q[:, :2]] * 3, 2),
            ValueError,
            r"\[B, N\] = \[2, 3\], got \[2, 2\]",
        ),
        (lambda: distill.attention_relation([Q] * 3, [Q] * 3, 2, pairs="qk"), ValueError, "pairs must be"),
        (lambda: distill.attention_relation([Q] * 3, [Q] * 3, 2, pairs=[]), ValueError, "pairs must be"),
        (lambda: distill.attention_relation([Q] * 3, [Q] * 3, 2, pairs=["qx"]), ValueError, r"got \['qx'\]"),
        (lambda: distill.attention_relation([Q] * 3, [Q] * 3, 2, mask=Q[..., 0]), ValueError, "mask must be a bool"),
    ],
)
def test_errors_say_what_is_allowed(call, error, words: str) -> None:
    with pytest.raises(error, match=words):
        call()


def test_the_docs_examples_run() -> None:
    text = (pathlib.Path(__file__).parent.parent / "docs/distill.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) == 3
    space: dict = {}
    for block in blocks:
        exec(block, space)
    assert space["loss"].isfinite() and space["projection"].weight.grad.any()
