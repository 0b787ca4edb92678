"""What every low-rank convolution promises beyond the contract: its weight, formats, epilogues, errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from contract import LAYOUTS, Contract, Lane, evaluate, inputs, on, over, running
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import rdkernels as rd
from rdkernels.ops.conv_case import ConvCase
from rdkernels.testing import assert_accurate

#: The dense weight of each operation, from its factors and indices: the definition, written once more.
WEIGHTS: dict[str, Callable[..., Tensor]] = {
    "separable_conv2d": lambda v, h: torch.einsum("orj,rci->ocij", h, v),
    "cp_conv2d": lambda i, v, h, o: torch.einsum("or,rc,ri,rj->ocij", o, i, v, h),
    "tucker_conv2d": lambda i, c, o: torch.einsum("oq,qpij,pc->ocij", o, c, i),
    "monochromatic_conv2d": lambda c, f, a: f[:, None] * c[a][:, :, None, None],
    "bicluster_conv2d": lambda i, c, o, inputs, outputs: _biclustered(i, c, o, inputs, outputs),
}


def _biclustered(inner: Tensor, core: Tensor, outer: Tensor, inputs: Tensor, outputs: Tensor) -> Tensor:
    weight = torch.einsum("hbgq,ghqpij,ghpa->hbgaij", outer, core, inner)
    weight = weight.flatten(0, 1).flatten(1, 2)
    return weight[torch.argsort(outputs)][:, torch.argsort(inputs)]


class LowRankConv(Contract):
    """The contract, and what convolutions add to it."""

    smoke = ("plain", "strided-dilated", "seven")
    own_backward = False

    @over("smoke", kinds=("fp32", "bf16"))
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layouts(self, lane: Lane, case: ConvCase, layout: str) -> None:
        super().test_layouts(lane, case, layout)

    @over("smoke", kinds=("fp32", "bf16"))
    def test_double_backward(self, lane: Lane, case: ConvCase) -> None:
        super().test_double_backward(lane, case)

    @over("smoke", kinds=("fp64",), backends=("reference",))
    def test_gradcheck(self, lane: Lane, case: ConvCase) -> None:
        super().test_gradcheck(lane, case)

    @over(kinds=("fp64",), backends=("reference",))
    def test_is_the_dense_convolution(self, lane: Lane, case: ConvCase) -> None:
        """The reference, against torch's convolution with the weight that the factors make."""
        tensors = case.tensors(lane.dtype)
        given, _ = case.arguments(tensors)
        weight = WEIGHTS[self.op](*given[1:])
        exact = F.conv2d(tensors["x"], weight, tensors.get("bias"), case.stride, case.padding, case.dilation)
        exact = exact + tensors["residual"] if case.residual else exact
        act = {None: lambda t: t, "relu": F.relu, "gelu": F.gelu, "silu": F.silu}[case.activation]
        with rd.use("reference"):
            torch.testing.assert_close(case.run(tensors), act(exact))

    @over("smoke", kinds=("fp32", "bf16", "fp16"), backends=("native", "triton"))
    @pytest.mark.parametrize("activation", [None, "relu", "gelu", "silu"])
    def test_activations(self, lane: Lane, case: ConvCase, activation: str | None) -> None:
        """The fused epilogue (with gradients torch applies the activation), to the accuracy rule."""
        case = dataclasses.replace(case, activation=activation)
        tensors, _ = inputs(case, lane.dtype)
        with rd.use("reference"):
            exact, peer = case.run({k: t.double() for k, t in tensors.items()}), case.run(tensors)
        with running(lane, self.op):
            got = case.run(on(lane, tensors))
        assert_accurate(got, exact, peer, f"{lane} {case.name} {activation}")

    @over(kinds=("fp32", "bf16", "fp16"), backends=("native", "triton"))
    def test_without_gradients(self, lane: Lane, case: ConvCase) -> None:
        self.test_activations(lane, case, case.activation)

    @over("smoke", kinds=("fp32", "bf16"))
    @pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
    def test_memory_format(self, lane: Lane, case: ConvCase, last: bool) -> None:
        """y has x's format, with and without gradients; the values do not depend on it beyond the accuracy rule."""
        kind = torch.channels_last if last else torch.contiguous_format
        tensors = on(lane, case.tensors(lane.dtype))
        tensors["x"] = tensors["x"].contiguous(memory_format=kind)
        with running(lane, self.op):
            assert case.run(tensors).is_contiguous(memory_format=kind)
            tensors["x"].requires_grad_()
            assert case.run(tensors).is_contiguous(memory_format=kind)

    @over("smoke", kinds=("fp32",))
    def test_changed_factor(self, lane: Lane, case: ConvCase) -> None:
        """A factor written in place or replaced is seen: nothing packed for the old values is used."""
        tensors = on(lane, case.tensors(lane.dtype))
        names = list(case.shapes())
        with running(lane, self.op):
            for name in names:
                before = case.run(tensors)
                tensors[name].mul_(2)
                torch.testing.assert_close(
                    case.run(tensors) - self._constant(case, tensors), (before - self._constant(case, tensors)) * 2
                )
                tensors[name] = tensors[name] / 2
                torch.testing.assert_close(case.run(tensors), before)

    @staticmethod
    def _constant(case: ConvCase, tensors: dict[str, Tensor]) -> Tensor | float:
        """What the epilogue of a smoke case adds."""
        bias = tensors["bias"][:, None, None] if case.bias else 0.0
        return bias + (tensors["residual"] if case.residual else 0.0)


def drawn(cls: type[ConvCase], ranks: st.SearchStrategy[tuple[int, ...]]) -> st.SearchStrategy[ConvCase]:
    """Any problem that fits: sizes, kernels, strides, paddings, dilations, epilogues, formats.

    Not the smallest: torch's largest error over few values is chance, and with it the accuracy rule.
    """

    @st.composite
    def case(draw: Callable) -> ConvCase:
        pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
        kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
        dilation = draw(pair)
        spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        same = draw(st.booleans())
        return cls(
            "drawn",
            draw(st.integers(1, 2)),
            draw(st.integers(8, 40)),
            *(draw(st.integers(span + 6, span + 30)) for span in spans),
            draw(st.integers(8, 40)),
            kernel,
            draw(ranks),
            stride=1 if same else draw(pair),
            padding="same" if same else draw(st.tuples(st.integers(0, 3), st.integers(0, 3))),
            dilation=dilation,
            bias=draw(st.booleans()),
            residual=draw(st.booleans()),
            activation=draw(st.sampled_from([None, "relu", "gelu", "silu"])),
            channels_last=draw(st.booleans()),
        )

    return case()


def holds(lane: Lane, case: ConvCase) -> None:
    """The fused forward keeps the accuracy rule; the gradients, most of them torch's own sums, are close."""
    tensors, grad = inputs(case, lane.dtype)
    wide = {name: t.double() for name, t in tensors.items()}
    with rd.use("reference"):
        exact, peer = evaluate(case.run, wide, grad.double()), case.run(tensors)
    with running(lane, case.op):
        y = case.run(on(lane, tensors))
        got = evaluate(case.run, on(lane, tensors), grad.to(lane.device))
    assert_accurate(y, exact["y"], peer, f"{lane} {case}")
    eps = torch.finfo(lane.dtype).eps
    for name, t in got.items():
        most = float(exact[name].abs().max())
        torch.testing.assert_close(t.double().cpu(), exact[name], rtol=0, atol=200 * eps * most)


def bad_calls(tensors: dict[str, Tensor], factors: list[str]) -> list[tuple[dict, type[Exception], str]]:
    """Changes of a good call, the error and what its message must name."""
    x, first = tensors["x"], factors[0]
    f = tensors[first]
    return [
        ({"x": x[0]}, ValueError, "x must have shape"),
        ({"x": x.long()}, TypeError, "x must have one of the dtypes"),
        ({"x": None}, TypeError, "x must be a Tensor"),
        ({"x": torch.cat([x, x], 1)}, ValueError, f"{first} must"),
        ({first: f[:0]}, ValueError, f"{first} must have shape"),
        ({first: f.double()}, TypeError, "dtype"),
        ({first: f.to("meta")}, ValueError, f"{first} must be on x's device"),
        ({factors[-1]: tensors[factors[-1]][None]}, ValueError, f"{factors[-1]} must have shape"),
        ({"bias": torch.zeros(3)}, ValueError, "bias must have shape"),
        ({"residual": torch.zeros(3)}, ValueError, "residual must have shape"),
        ({"stride": 0}, ValueError, "stride must be"),
        ({"padding": -1}, ValueError, "padding must be"),
        ({"padding": "full"}, ValueError, "padding must be"),
        ({"padding": "same", "stride": 2}, ValueError, "needs stride 1"),
        ({"dilation": (1, 2, 3)}, ValueError, "dilation must be"),
        ({"dilation": 40}, ValueError, "does not fit"),
        ({"activation": "tanh"}, ValueError, "activation must be"),
    ]


def refuses(case: ConvCase) -> None:
    """Every bad call raises its one error, before any pass runs."""
    tensors = case.tensors(torch.float32)
    given, named = case.arguments(tensors)
    names = ["x", *case.shapes(), *case.indices()]
    function = getattr(rd, case.op)
    from rdkernels import registry

    for change, error, message in bad_calls(tensors, list(case.shapes())):
        arguments = {**dict(zip(names, given, strict=True)), **named, **change}
        with registry.trace() as ran, pytest.raises(error, match=message):
            function(**arguments)
        assert not ran, change
