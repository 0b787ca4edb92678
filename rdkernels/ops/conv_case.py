"""The case type of the convolution rooms, the shapes they are tested on and the layers they are timed on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..testing import Layer, Problem
from .convolution import Activation, Geometry, IntOrPair, geometry
from .stages import Conv, Stage, apply_activation, run_stages

C = TypeVar("C", bound="ConvCase")
FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class ConvCase:
    """`n` maps of `c` x `h` x `w`, `out` channels by a `kernel` through `ranks` (what they are, the room says)."""

    name: str
    n: int
    c: int
    h: int
    w: int
    out: int
    kernel: tuple[int, int]
    ranks: tuple[int, ...]
    stride: IntOrPair = 1
    padding: IntOrPair | str = 0
    dilation: IntOrPair = 1
    bias: bool = False
    residual: bool = False
    activation: str | None = None
    channels_last: bool = True

    op: ClassVar[str]
    function: ClassVar[Callable[..., Tensor]]
    chain: ClassVar[Callable[..., list[Stage]]]  # the room's

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The factors by name, in the order of the operation's arguments."""
        raise NotImplementedError

    def fans(self) -> dict[str, int]:
        """How many products each factor's output sums, by name: its values are scaled by the root."""
        raise NotImplementedError

    def indices(self) -> dict[str, Tensor]:
        """The int64 arguments after the factors; a function of the case alone."""
        return {}

    def macs(self) -> int:
        """Multiply-adds of one forward."""
        raise NotImplementedError

    @property
    def geometry(self) -> Geometry:
        return geometry(self.op, *self.kernel, self.stride, self.padding, self.dilation)

    @property
    def size(self) -> tuple[int, int]:
        """The output's height and width."""
        return self.geometry.out(self.h, self.w, *self.kernel)

    def tensors(self, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
        """x, the factors and, where the case has them, bias and residual: normal, factors scaled by their fan-in."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        made = {"x": normal(self.n, self.c, self.h, self.w)}
        made |= {name: normal(*shape) / self.fans()[name] ** 0.5 for name, shape in self.shapes().items()}
        if self.bias:
            made["bias"] = normal(self.out)
        if self.residual:
            made["residual"] = normal(self.n, self.out, *self.size)
        made = {name: t.to(device=device, dtype=dtype) for name, t in made.items()}
        if self.channels_last:
            for name in {"x", "residual"} & made.keys():
                made[name] = made[name].contiguous(memory_format=torch.channels_last)
        return made

    def arguments(self, tensors: dict[str, Tensor]) -> tuple[list[Tensor], dict[str, Any]]:
        """The positional and the keyword arguments of the public function."""
        device = tensors["x"].device
        given = [tensors["x"], *(tensors[k] for k in self.shapes()), *(t.to(device) for t in self.indices().values())]
        where: dict[str, Any] = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        added: dict[str, Any] = {k: tensors[k] for k in ("bias", "residual") if k in tensors}
        return given, {**where, **added, "activation": self.activation}

    def run(self, tensors: dict[str, Tensor]) -> Tensor:
        given, named = self.arguments(tensors)
        return type(self).function(*given, **named)

    def flops(self) -> int:
        return 2 * self.macs()

    def dense_macs(self) -> int:
        return self.n * math.prod(self.size) * self.out * self.c * math.prod(self.kernel)

    def bytes(self, itemsize: int) -> int:
        weights = sum(math.prod(shape) for shape in self.shapes().values())
        return itemsize * (self.n * (self.c * self.h * self.w + self.out * math.prod(self.size)) + weights)

    def layer(self, tensors: dict[str, Tensor]) -> Layer:
        weights = tuple(t for name, t in tensors.items() if name not in ("x", "residual"))
        (_, *given), named = self.arguments(tensors)
        run = type(self).function
        return Layer(lambda x: run(x, *given, **named), weights)

    def dense(self, tensors: dict[str, Tensor]) -> dict[str, Layer]:
        """`F.conv2d` with a weight of its own, per memory format."""
        found = {}
        bias = tensors.get("bias")
        where: dict[str, Any] = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        for name, kind in FORMATS.items():
            weight = torch.randn(self.out, self.c, *self.kernel, dtype=tensors["x"].dtype, device=tensors["x"].device)
            weight = weight.contiguous(memory_format=kind)
            run = partial(F.conv2d, weight=weight, bias=bias, **where)
            found[name] = Layer(run, (weight,) if bias is None else (weight, bias), kind)
        return found

    def stages(self, tensors: dict[str, Tensor]) -> list[Stage]:
        """The chain that a torch user would write."""
        given = [*(tensors[name] for name in self.shapes()), *self.indices().values()]
        return type(self).chain(given, self.geometry)

    def unfused(self, tensors: dict[str, Tensor]) -> dict[str, Layer]:
        """The chain of torch convolutions with weights of their own, laid out for each memory format."""
        bias, residual, act = tensors.get("bias"), tensors.get("residual"), Activation[self.activation or "none"]
        found = {}
        for name, kind in FORMATS.items():
            own = [
                s._replace(weight=s.weight.detach().clone(memory_format=kind)) if isinstance(s, Conv) else s
                for s in self.stages(tensors)
            ]
            weights = tuple(s.weight for s in own if isinstance(s, Conv))
            run = partial(_run_chain, own, bias, residual, act)
            found[name] = Layer(run, weights if bias is None else (*weights, bias), kind)
        return found


def _run_chain(
    stages: Sequence[Stage], bias: Tensor | None, residual: Tensor | None, act: Activation, x: Tensor
) -> Tensor:
    """The chain at its fastest: the bias in the last convolution, if that ends it."""
    *first, last = stages
    y = run_stages(x, first)[-1]
    if isinstance(last, Conv):
        y = F.conv2d(y, last.weight, bias, last.stride, last.padding, last.dilation, last.groups)
    else:
        y = last(y) if bias is None else last(y) + bias[:, None, None]
    return apply_activation(y if residual is None else y + residual, act)


def correctness(cls: type[ConvCase], small: tuple[int, ...], ragged: tuple[int, ...], wide: tuple[int, ...]) -> tuple:
    """Small and awkward: every geometry, epilogue and format, each size class of the kernels."""
    plain = cls("plain", 2, 5, 9, 8, 7, (3, 3), small, padding=1)
    return (
        cls("one", 1, 1, 1, 1, 1, (1, 1), (1,) * len(small)),
        replace(plain, name="empty-batch", n=0, bias=True),
        plain,
        replace(plain, name="nchw", channels_last=False, bias=True),
        replace(plain, name="same-even", kernel=(2, 4), padding="same", bias=True),
        replace(plain, name="strided", stride=(2, 3), padding=(1, 2), bias=True, activation="relu"),
        replace(plain, name="dilated", dilation=(2, 3), padding=(2, 3), kernel=(3, 2), residual=True),
        replace(plain, name="strided-dilated", stride=2, dilation=2, padding=3, h=13, w=11, residual=True, bias=True),
        replace(plain, name="small-map", h=1, w=2, kernel=(5, 5), padding=2, activation="gelu", bias=True),
        replace(plain, name="valid", n=1, padding="valid", activation="silu", residual=True, bias=True),
        cls("ragged", 1, 19, 15, 33, 37, (3, 5), ragged, padding=(1, 2), bias=True, activation="relu", residual=True),
        cls("wide-kernel", 1, 3, 23, 31, 20, (7, 11), ragged, stride=(2, 4), padding=3, bias=True),
        cls("seven", 2, 40, 7, 7, 48, (3, 3), wide, padding=1, bias=True),
        cls("deep", 1, 130, 6, 14, 150, (3, 3), wide, padding=1, bias=True),
        cls("rows", 1, 16, 60, 5, 16, (3, 3), ragged, padding=1),
        cls("long-line", 1, 4, 4, 700, 8, (3, 3), ragged, padding=1, bias=True, channels_last=False),
    )


class Goal(NamedTuple):
    """What is asked of the geometric mean over the layers and the batches, and of each."""

    mean: float | None = None
    each: float | None = None


NO_GOAL, NEVER_SLOWER = Goal(), Goal(None, 1.0)


def bench(
    cases: Sequence[ConvCase], captured: Goal = NO_GOAL, unfused: Goal = NO_GOAL, training: Goal = NEVER_SLOWER
) -> tuple[Problem, ...]:
    """The problems of these cases: the forward against dense and unfused, forward and backward against unfused.

    The goals of the first are captured fractions, of the others the unfused chain's time / ours.
    """

    def problems(work: str, rival: str, goal: Goal) -> list[Problem]:
        panel = f"{cases[0].op} {work}, against {rival}"
        return [
            Problem(
                case,
                panel,
                case.name.removesuffix(f"-n{case.n}"),
                case.n,
                work,
                rival,
                goal.each,
                goal.mean,
                case.dense_macs() / case.macs() if rival == "dense" else None,
            )
            for case in cases
        ]

    return (
        *problems("forward", "dense", captured),
        *problems("forward", "unfused", unfused),
        *problems("forward+backward", "unfused", training),
    )


class Shape(NamedTuple):
    """One layer of a known network: `c` -> `out` channels, a square kernel on a square map."""

    name: str
    c: int
    size: int
    out: int
    kernel: int
    stride: int = 1
    padding: int = 0


ALEXNET1 = Shape("AlexNet conv1", 3, 227, 96, 11, 4)
ZF1 = Shape("ZF conv1", 3, 224, 96, 7, 2, 1)
ALEXNET2 = Shape("AlexNet conv2", 96, 27, 256, 5, 1, 2)
VGG3, VGG4 = Shape("VGG conv3", 256, 56, 256, 3, 1, 1), Shape("VGG conv4", 512, 28, 512, 3, 1, 1)
RESNET = tuple(
    Shape(f"ResNet-50 3x3@{size}", c, size, c, 3, 1, 1) for c, size in ((64, 56), (128, 28), (256, 14), (512, 7))
)
LAYERS = (ALEXNET2, VGG3, VGG4, *RESNET)


def layer_case(cls: type[C], shape: Shape, ranks: tuple[int, ...], n: int) -> C:
    """The bench's problem: a known layer at these ranks, `n` maps, a bias as such layers have."""
    name = f"{shape.name.replace(' ', '-')}-r{'x'.join(map(str, ranks))}-n{n}"
    square = (shape.kernel, shape.kernel)
    return cls(
        name,
        n,
        shape.c,
        shape.size,
        shape.size,
        shape.out,
        square,
        ranks,
        stride=shape.stride,
        padding=shape.padding,
        bias=True,
    )
