"""`lowrank_linear`: the contract, and what only this operation promises."""

import dataclasses

import pytest
import torch
from contract import Contract, Lane, check, inputs, lanes, noise, on, over, running
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rdkernels as rd
from rdkernels import registry
from rdkernels.ops.lowrank_linear import cases
from rdkernels.ops.lowrank_linear.cases import LowRankCase
from rdkernels.testing import assert_accurate

OP = "lowrank_linear"
FAST = [lane for lane in lanes(OP) if not lane.slow and lane.kind in ("fp32", "bf16")]


class TestContract(Contract):
    op = OP
    cases = cases.CORRECTNESS
    smoke = ("one-row", "few", "medium")
    own_backward = False

    @over(kinds=("fp32", "bf16", "fp16"), backends=("native", "triton"))
    @pytest.mark.parametrize("activation", [None, "relu", "gelu", "silu"])
    def test_without_gradients(self, lane: Lane, case: LowRankCase, activation: str | None) -> None:
        """The fused epilogue (with gradients torch applies the activation), to the accuracy rule."""
        case = dataclasses.replace(case, activation=activation)
        tensors, _ = inputs(case, lane.dtype)
        with rd.use("reference"):
            exact, peer = case.run({k: t.double() for k, t in tensors.items()}), case.run(tensors)
        with running(lane, OP):
            got = case.run(on(lane, tensors))
        assert_accurate(got, exact, peer, f"{lane} {case.name} {activation}")

    @over("smoke", kinds=("fp32",))
    @pytest.mark.parametrize("shape", [(), (3,), (2, 1, 3), (0, 2)], ids=str)
    def test_leading_dimensions(self, lane: Lane, case: LowRankCase, shape: tuple[int, ...]) -> None:
        """x of any number of dimensions: the rows of the flattened call."""
        tensors = on(lane, case.tensors(lane.dtype))
        x = noise((*shape, case.in_), lane.dtype, seed=3).to(lane.device)
        with rd.use(lane.backend):
            y = rd.lowrank_linear(x, tensors["down"], tensors["up"])
            flat = rd.lowrank_linear(x.reshape(-1, case.in_), tensors["down"], tensors["up"])
        assert y.shape == (*shape, case.out)
        assert torch.equal(y.reshape(-1, case.out), flat)

    @over("smoke", kinds=("fp32",))
    def test_changed_factor(self, lane: Lane, case: LowRankCase) -> None:
        """A factor written in place is seen: nothing packed for the old values is used."""
        tensors = on(lane, dataclasses.replace(case, bias=False, residual=False, activation=None).tensors(lane.dtype))
        with running(lane, OP):
            for name in ("down", "up"):
                before = rd.lowrank_linear(**tensors)
                tensors[name].mul_(2)
                torch.testing.assert_close(rd.lowrank_linear(**tensors), before * 2)


problems = st.builds(
    LowRankCase,
    st.just("drawn"),
    st.integers(1, 70),
    st.integers(1, 200),
    st.integers(1, 80),
    st.integers(1, 200),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, "relu", "gelu", "silu"]),
)


@pytest.mark.parametrize("lane", FAST, ids=str)
@settings(suppress_health_check=[HealthCheck.differing_executors])
@given(case=problems)
def test_any_problem(lane: Lane, case: LowRankCase) -> None:
    tensors, grad = inputs(case, lane.dtype)
    check(OP, lane, case, tensors, grad)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.tensor(1.0)}, ValueError, "x must have at least one dimension"),
        ({"x": torch.zeros(2, 0), "down": torch.zeros(4, 0)}, ValueError, "x must have in >= 1"),
        ({"x": [1.0]}, TypeError, "x must be a Tensor"),
        ({"x": torch.zeros(2, 7)}, ValueError, "down must have shape"),
        ({"down": torch.zeros(0, 6)}, ValueError, "down must have shape"),
        ({"up": torch.zeros(5, 3)}, ValueError, "up must have shape"),
        ({"up": torch.zeros(5, 4).double()}, TypeError, "dtype"),
        ({"up": torch.zeros(5, 4, device="meta")}, ValueError, "up must be on x's device"),
        ({"bias": torch.zeros(4)}, ValueError, "bias must have shape"),
        ({"residual": torch.zeros(5)}, ValueError, "residual must have shape"),
        ({"activation": "tanh"}, ValueError, "activation must be"),
    ],
)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    """One error each, naming the argument, before any pass runs."""
    call = {"x": torch.zeros(2, 6), "down": torch.zeros(4, 6), "up": torch.zeros(5, 4), **change}
    with registry.trace() as ran, pytest.raises(error, match=message):
        rd.lowrank_linear(**call)
    assert not ran
