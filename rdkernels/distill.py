"""Losses that teach a small net what a large one computes: functions, for a training loop of your own.

All of them: scalars, means over rows, with gradients by the student's tensors (and a projection) alone; floating
tensors of any dtype, which may differ between student and teacher. Computed, and returned, in float32, or in float64
where either is float64; `torch.autocast` changes nothing inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: The relations between queries, keys and values that `attention_relation` knows.
PAIRS = tuple("".join(pair) for pair in product("qkv", repeat=2))


@dataclass(frozen=True, eq=False)
class LogitStats:
    """Mean and standard deviation of a teacher's logits over the training set; made by `LogitStats.of`.

    Attributes:
        mean, std: `[C]`, one of each class, or `[]`, one of all.
    """

    mean: Tensor
    std: Tensor

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            _check_floating("LogitStats", name, getattr(self, name))
        if self.mean.dim() > 1 or self.mean.shape != self.std.shape:
            raise ValueError(
                f"LogitStats: mean and std must both be [C] or both [], "
                f"got {list(self.mean.shape)} and {list(self.std.shape)}"
            )
        if not bool((self.std > 0).all()):
            raise ValueError(f"LogitStats: std must be > 0, got {self.std.min().item():g}")

    @classmethod
    def of(cls, logits: Tensor, *, per_class: bool = True) -> LogitStats:
        """The statistics of `logits` `[..., C]`, the teacher's on the whole training set; rows are all but the last.

        "Subtracting the mean and dividing the standard deviation across the training set" (section 2.2): per class,
        every logit becomes a regression target of mean 0 and variance 1, as targets are standardised elsewhere. With
        `per_class=False` one mean and one deviation serve all classes: classes that vary more then weigh more, as in
        the raw logits, and argmax needs no `Unnormalize`. Standard deviations are the population's (divided by the
        number of rows). Sums are float64; float32 is stored, float64 for float64 logits.

        Raises:
            TypeError: `logits` is not a floating tensor.
            ValueError: it has no rows, values that are not finite, or a class whose logit never varies.
        """
        _check_floating("LogitStats.of", "logits", logits)
        if logits.dim() < 2 or not logits.numel():
            raise ValueError(f"LogitStats.of: logits must be [..., C] with at least one row, got {list(logits.shape)}")
        rows = logits.detach().reshape(-1, logits.shape[-1] if per_class else 1).double()
        if not bool(rows.isfinite().all()):
            raise ValueError("LogitStats.of: logits must be finite, got inf or nan")
        still = (rows.amax(0) == rows.amin(0)).nonzero().flatten().tolist()
        if still:
            which = f"those of the classes {still}" if per_class else "all of them"
            raise ValueError(f"LogitStats.of: logits must vary from row to row, {which} do not")
        mean, std = rows.mean(0), rows.std(0, correction=0)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        shape = mean.shape if per_class else ()
        return cls(mean.to(dtype).reshape(shape), std.to(dtype).reshape(shape))

    def normalize(self, logits: Tensor) -> Tensor:
        """`(logits - mean) / std`, on the logits' device, in float32 or wider."""
        mean, std, wide = self._beside("normalize", logits)
        return (wide - mean) / std

    def unnormalize(self, logits: Tensor) -> Tensor:
        """`logits * std + mean`: what `normalize` was given."""
        mean, std, wide = self._beside("unnormalize", logits)
        return wide * std + mean

    def _beside(self, method: str, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        _check_floating(f"LogitStats.{method}", "logits", logits)
        if self.mean.dim() and (not logits.dim() or logits.shape[-1] != self.mean.shape[0]):
            raise ValueError(
                f"LogitStats.{method}: logits must be [..., C] with C = {self.mean.shape[0]}, got {list(logits.shape)}"
            )
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return self.mean.to(wide), self.std.to(wide), wide


class Unnormalize(nn.Module):
    """The end of a student trained by `mimic`: from normalised logits to the teacher's own.

    `y = x * std + mean`, in x's dtype. Without it the argmax of per-class normalised logits is not the teacher's class,
    and a softmax has the wrong temperature. Train the student alone, then use `nn.Sequential(student,
    Unnormalize(stats))`. Its buffers `mean` and `std` are in the state dict.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, stats: LogitStats) -> None:
        super().__init__()
        if not isinstance(stats, LogitStats):
            raise TypeError(f"Unnormalize: stats must be a LogitStats, got {type(stats).__name__}")
        self.register_buffer("mean", stats.mean.clone())
        self.register_buffer("std", stats.std.clone())

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return (wide * self.std.to(wide) + self.mean.to(wide)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"classes={self.mean.shape[0]}" if self.mean.dim() else "one mean and std"


def mimic(student_logits: Tensor, teacher_logits: Tensor, stats: LogitStats | None = None) -> Tensor:
    r"""`1/(2T) sum_t ||g(x_t) - (z_t - mean) / std||^2`: the student regresses the teacher's logits.

    The squares are summed over the C classes and averaged over the T rows, with the half of equation 1: `C / 2` times
    `F.mse_loss`.

    Args:
        student_logits: g, `[..., C]`: they learn the *normalised* logits; `Unnormalize` brings them back.
        teacher_logits: z, `[..., C]`, raw, before the softmax; for an ensemble, the mean of its members'.
        stats: of the teacher on the training set; None regresses the raw logits.

    It wants a learning rate of its own. Normalised targets have unit scale where raw logits have a deviation of 4 to 7,
    so the rate that suits the raw logits is a several times larger step relative to them: on Fashion-MNIST, Adam at
    2e-3 killed 29 % of a student's ReLUs, and half of it was well. Start at half the rate that serves cross-entropy.

    It pays where the teacher labels much data *of the training distribution* that has no labels; without that, the
    labels serve as well.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is allowed.

    Source: Ba, Caruana, "Do Deep Nets Really Need to be Deep?", NIPS 2014, equation 1 and section 2.2.
    """
    student, teacher = _same_shape("mimic", "student_logits", student_logits, "teacher_logits", teacher_logits)
    if stats is not None:
        if not isinstance(stats, LogitStats):
            raise TypeError(f"mimic: stats must be a LogitStats or None, got {type(stats).__name__}")
        teacher = stats.normalize(teacher)
    return (student - teacher).square().sum(-1).mean() / 2


def kd(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """`T^2 KL(softmax(z / T) || softmax(g / T))`, averaged over the rows: distillation at temperature T.

    The factor `T^2` keeps the size of the gradients when T changes. The mean is over rows, not over elements: DeiT and
    MiniViT divide by rows x classes, so their weight of this loss is C times ours. Add the cross-entropy of the labels,
    where there are labels, yourself.

    Args:
        student_logits: g, `[..., C]`.
        teacher_logits: z, `[..., C]`; both finite: a class is masked by a large negative logit, not by -inf.
        temperature: T > 0; 1 for plain KL, 2 to 10 as a rule.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is allowed.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.
    """
    student, teacher = _same_shape("kd", "student_logits", student_logits, "teacher_logits", teacher_logits)
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)):
        raise TypeError(f"kd: temperature must be a real number, got {type(temperature).__name__}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"kd: temperature must be > 0 and finite, got {temperature}")
    own, target = (F.log_softmax(logits / temperature, -1) for logits in (student, teacher))
    return (target.exp() * (target - own)).sum(-1).mean() * temperature**2


def hidden(
    student: Tensor,
    teacher: Tensor,
    projection: Callable[[Tensor], Tensor] | None = None,
    *,
    relation: bool = False,
) -> Tensor:
    """The student's hidden states near to the teacher's.

    By value, the default: the mean over all elements of `(projection(student) - teacher)^2`.

    By relation: with `s` and `t` the states at unit length and `N` tokens, `1/N sum_ij (s_i . s_j - t_i . t_j)^2`,
    averaged over the sequences. It compares cosines between the tokens of one sequence: widths may differ, nothing has
    to be learned, and a rotation or scale of all the states costs nothing.

    Args:
        student: `[..., ds]`; `[..., N, ds]` with `relation`.
        teacher: `[..., dt]`, the same but for the last dimension.
        projection: from ds to dt, as an `nn.Linear(ds, dt)` whose parameters your optimiser gets; it is needed where
            the widths differ. It is called on `student` as it came.
        relation: compare by relation; takes no projection.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is allowed.

    Source: FitNets (Romero et al., ICLR 2015), equation 3 and TinyBERT (Jiao et al., 2020), equation 8, but for the
    scale; by relation MiniViT (Zhang et al., CVPR 2022) as its code computes it (its weight 49 is N).
    """
    if relation and projection is not None:
        raise ValueError("hidden: projection must be None with relation=True, which compares different widths")
    if projection is not None:
        if not callable(projection):
            raise TypeError(f"hidden: projection must be callable, got {type(projection).__name__}")
        _check_floating("hidden", "student", student)
        student = projection(student)
    name = "student" if projection is None else "projection(student)"
    s, t = _widened("hidden", name, student, "teacher", teacher)
    if not relation:
        if s.shape != t.shape:
            hint = "; give a projection or relation=True" if s.shape[:-1] == t.shape[:-1] else ""
            raise ValueError(f"hidden: {name} must have the teacher's shape {list(t.shape)}, got {list(s.shape)}{hint}")
        return F.mse_loss(s, t)
    if s.dim() < 2 or s.shape[:-1] != t.shape[:-1] or not s.numel():
        raise ValueError(
            f"hidden: student must be [..., N, ds] and teacher [..., N, dt], got {list(s.shape)} and {list(t.shape)}"
        )
    with torch.autocast(s.device.type, enabled=False):
        own, target = (h @ h.mT for h in (F.normalize(s, dim=-1), F.normalize(t, dim=-1)))
    return (own - target).square().sum(-1).mean()


def attention_relation(
    student_qkv: Sequence[Tensor],
    teacher_qkv: Sequence[Tensor],
    heads: int,
    *,
    pairs: Sequence[str] = PAIRS,
    mask: Tensor | None = None,
) -> Tensor:
    """Queries, keys and values that relate the tokens as the teacher's do.

    For a pair of a and b among q, k, v: both are split anew into `heads` relation heads of width `d = width / heads`,
    `R = softmax(a b^T / sqrt(d))` `[B, heads, N, N]`, and the loss is the cross-entropy
    `-sum_j R_teacher[i, j] log R_student[i, j]`, averaged over sequences, heads and tokens i, then over the pairs. Its
    least value is the entropy of the teacher's relations, not 0; MiniLMv2's KL is the same less that constant.

    Args:
        student_qkv, teacher_qkv: (q, k, v) of one layer each, `[B, N, width]`: after the projections, heads side by
            side (`t.transpose(1, 2).flatten(2)` of `[B, h, N, d]`). Widths and numbers of attention heads may differ.
        heads: relation heads; it divides both widths and need not be the number of attention heads.
        pairs: some of "qq", "qk", ..., "vv"; all nine (MiniViT) if left out. MiniLMv2: ("qq", "kk", "vv").
        mask: bool `[B, N]`, True where there is a token. Padding is neither looked at nor averaged over; a batch
            without tokens costs 0.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is allowed.

    Source: Wang et al., "MiniLMv2", ACL Findings 2021; Zhang et al., "MiniViT", CVPR 2022, whose code this is equal to.
    """
    names, owner = ("q", "k", "v"), "attention_relation"
    for who, qkv in (("student_qkv", student_qkv), ("teacher_qkv", teacher_qkv)):
        if not isinstance(qkv, (tuple, list)) or len(qkv) != 3:
            got = f"{len(qkv)} of them" if isinstance(qkv, (tuple, list)) else type(qkv).__name__
            raise TypeError(f"{owner}: {who} must be a sequence of three tensors q, k, v, got {got}")
        for name, t in zip(names, qkv, strict=True):
            _check_floating(owner, f"{who}'s {name}", t)
            if t.dim() != 3 or t.shape != qkv[0].shape or not t.numel():
                raise ValueError(f"{owner}: {who}'s {name} must be [B, N, width] as q, got {list(t.shape)}")
        if isinstance(heads, bool) or not isinstance(heads, int) or heads < 1 or qkv[0].shape[2] % heads:
            raise ValueError(
                f"{owner}: heads must be an int >= 1 that divides {who}'s width {qkv[0].shape[2]}, got {heads!r}"
            )
    batch = student_qkv[0].shape[:2]
    if teacher_qkv[0].shape[:2] != batch:
        raise ValueError(
            f"{owner}: teacher_qkv must have student_qkv's [B, N] = {list(batch)}, got {list(teacher_qkv[0].shape[:2])}"
        )
    if isinstance(pairs, str) or not pairs or not set(pairs) <= set(PAIRS):
        raise ValueError(f"{owner}: pairs must be a sequence of some of {list(PAIRS)}, got {pairs!r}")
    if mask is not None and (not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != batch):
        got = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"{owner}: mask must be a bool Tensor of [B, N] = {list(batch)}, got {got}")

    split: list[dict[str, Tensor]] = [{}, {}]
    for name, s, t in zip(names, student_qkv, teacher_qkv, strict=True):
        both = _widened(owner, f"student_qkv's {name}", s, f"teacher_qkv's {name}", t)
        for side, value in zip(split, both, strict=True):
            side[name] = value.unflatten(2, (heads, -1)).transpose(1, 2)  # [B, heads, N, d]
    loss = student_qkv[0].new_zeros((), dtype=both[0].dtype)
    for pair in pairs:
        own, target = (_log_relation(side[pair[0]], side[pair[1]], mask) for side in split)
        entropies = -(target.exp() * own).sum(-1)  # [B, heads, N]
        if mask is None:
            loss = loss + entropies.mean()
        else:
            real = mask[:, None].to(entropies.dtype)
            loss = loss + (entropies * real).sum() / (real.sum() * heads).clamp(min=1)
    return loss / len(pairs)


def _log_relation(a: Tensor, b: Tensor, mask: Tensor | None) -> Tensor:
    """`log softmax(a b^T / sqrt(d))`; a column without a token has a large negative, finite number in place of -inf."""
    with torch.autocast(a.device.type, enabled=False):
        scores = (a * a.shape[-1] ** -0.5) @ b.mT
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], torch.finfo(scores.dtype).min / 2)
    return F.log_softmax(scores, -1)


def _check_floating(owner: str, name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{owner}: {name} must be a Tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{owner}: {name} must be floating, got {value.dtype}")


def _widened(owner: str, student_name: str, student: Tensor, teacher_name: str, teacher: Tensor) -> list[Tensor]:
    """Both in the dtype that is computed in, the teacher detached."""
    _check_floating(owner, student_name, student)
    _check_floating(owner, teacher_name, teacher)
    if student.device != teacher.device:
        raise ValueError(
            f"{owner}: {teacher_name} must be on {student_name}'s device {student.device}, got {teacher.device}"
        )
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    return [student.to(dtype), teacher.detach().to(dtype)]


def _same_shape(owner: str, student_name: str, student: Tensor, teacher_name: str, teacher: Tensor) -> list[Tensor]:
    """Both widened; of one shape `[..., C]` with at least one row."""
    pair = _widened(owner, student_name, student, teacher_name, teacher)
    if student.dim() < 2 or not student.numel():
        raise ValueError(f"{owner}: {student_name} must be [..., C] with at least one row, got {list(student.shape)}")
    if student.shape != teacher.shape:
        raise ValueError(
            f"{owner}: {teacher_name} must have {student_name}'s shape {list(student.shape)}, got {list(teacher.shape)}"
        )
    return pair
