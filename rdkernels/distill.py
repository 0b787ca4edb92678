"""Losses that teach a small net what a large one computes: functions, for a training loop of your own.

All of them: scalars, means over rows, with gradients by the student's tensors (and a projection) alone; floating
tensors of any dtype, which may differ between student and teacher. Computed, and returned, in float32, or in float64
where either is float64; `torch.autocast` changes nothing inside.
"""

from __future__ import annotations

import math
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
        teacher_logits: z, `[..., C]`.
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
