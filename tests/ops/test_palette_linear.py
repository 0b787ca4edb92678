"""`palette_linear`: the contract, and what only this operation promises."""

import pytest
import torch
from contract import Contract, Lane, check, inputs, lanes, noise, on, over, running
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rdkernels as rd
from rdkernels import registry
from rdkernels.ops.palette_linear import cases, pack, packed_shape, unpack
from rdkernels.ops.palette_linear.cases import PaletteCase

OP = "palette_linear"
FAST = [lane for lane in lanes(OP) if lane.kind in ("fp32", "bf16")]


class TestContract(Contract):
    op = OP
    cases = cases.CORRECTNESS
    smoke = ("row-4", "few-3", "medium-5")
    never_constant = ("codebook",)
    written_for = ("native",)

    @over("smoke", kinds=("fp32",))
    @pytest.mark.parametrize("shape", [(), (3,), (2, 1, 3), (0, 2)], ids=str)
    def test_leading_dimensions(self, lane: Lane, case: PaletteCase, shape: tuple[int, ...]) -> None:
        """x of any number of dimensions: the rows of the flattened call."""
        tensors = on(lane, case.tensors(lane.dtype))
        x = noise((*shape, case.in_), lane.dtype, seed=3).to(lane.device)
        with rd.use(lane.backend):
            y = case.run({**tensors, "x": x})
            flat = case.run({**tensors, "x": x.reshape(-1, case.in_)})
        assert y.shape == (*shape, case.out)
        assert torch.equal(y.reshape(-1, case.out), flat)


problems = st.builds(
    PaletteCase,
    st.just("drawn"),
    st.integers(1, 40),
    st.integers(1, 300),
    st.integers(1, 200),
    st.integers(1, 8),
    st.booleans(),
)


@pytest.mark.parametrize("lane", FAST, ids=str)
@settings(suppress_health_check=[HealthCheck.differing_executors])
@given(case=problems)
def test_any_problem(lane: Lane, case: PaletteCase) -> None:
    tensors, grad = inputs(case, lane.dtype)
    check(OP, lane, case, tensors, grad)


@given(st.integers(1, 40), st.integers(1, 70), st.integers(1, 8), st.integers(0, 9))
def test_packing(out: int, in_: int, bits: int, seed: int) -> None:
    """There and back; the size is the documented one: `bits` a weight, whole blocks."""
    drawn = torch.randint(0, 2**bits, (out, in_), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    packed = pack(drawn, bits)
    assert packed.shape == packed_shape(out, in_, bits) and packed.dtype == torch.uint8
    assert packed.numel() * 8 == (out + -out % 16) * (in_ + -in_ % 8) * bits
    assert torch.equal(unpack(packed, bits, in_)[:out], drawn)
    assert int(unpack(packed, bits, in_)[out:].sum()) == 0


def test_packing_is_the_documented_one() -> None:
    """5 bits: nibbles of two inputs, then the fifth bits of eight; byte l is output l's."""
    drawn = torch.zeros(16, 3, dtype=torch.uint8)
    drawn[2] = torch.tensor([0b11001, 0b00111, 0b10010])
    found = pack(drawn, 5)
    want = torch.zeros(5, 16, dtype=torch.uint8)
    want[:, 2] = torch.tensor([0b0111_1001, 0b0000_0010, 0, 0, 0b101])
    assert torch.equal(found, want.reshape(1, -1))


@pytest.mark.parametrize("lane", FAST, ids=str)
@pytest.mark.parametrize("rows", [1, 4])
def test_only_members_reach_an_entry(lane: Lane, rows: int) -> None:
    """An entry without members may be NaN and gets no gradient; a filled-up strip or byte reads none."""
    index = torch.ones(5, 11, dtype=torch.uint8)
    codebook = torch.tensor([float("nan"), 0.5, float("nan"), float("nan")], dtype=lane.dtype, requires_grad=True)
    x = torch.ones(rows, 11, dtype=lane.dtype, requires_grad=True)
    with running(lane, OP):
        y = rd.palette_linear(x, codebook, pack(index, 2), 5, bits=2)
        y.sum().backward()
    assert torch.equal(y, torch.full_like(y, 5.5))
    assert codebook.grad.tolist() == [0, 55 * rows, 0, 0]
    assert torch.equal(x.grad, torch.full_like(x, 2.5))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.tensor(1.0)}, ValueError, r"x must be \[..., in\]"),
        ({"x": torch.zeros(2, 0)}, ValueError, r"x must be \[..., in\]"),
        ({"x": [1.0]}, TypeError, "x must be a Tensor"),
        ({"x": torch.zeros(2, 6, dtype=torch.int32)}, TypeError, "x must have one of the dtypes"),
        ({"x": torch.zeros(2, 9)}, ValueError, "indices must have shape"),
        ({"codebook": torch.zeros(15)}, ValueError, r"codebook must have shape \[16\]"),
        ({"codebook": torch.zeros(16).double()}, TypeError, "codebook must have x's dtype"),
        ({"codebook": torch.zeros(16, device="meta")}, ValueError, "codebook must be on x's device"),
        ({"indices": torch.zeros(1, 48)}, TypeError, "indices must be a uint8 Tensor"),
        ({"indices": torch.zeros(2, 64, dtype=torch.uint8)}, ValueError, "indices must have shape"),
        ({"out_features": 0}, ValueError, "out_features must be an int >= 1"),
        ({"out_features": 17}, ValueError, "indices must have shape"),
        ({"bias": torch.zeros(4)}, ValueError, r"bias must have shape \[5\]"),
        ({"bits": 9}, ValueError, "bits must be an int from 1 to 8"),
        ({"bits": True}, ValueError, "bits must be an int from 1 to 8"),
    ],
)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    """One error each, naming the argument, before any pass runs."""
    indices = torch.zeros(1, 64, dtype=torch.uint8)
    call = {"x": torch.zeros(2, 6), "codebook": torch.zeros(16), "indices": indices, "out_features": 5, "bits": 4}
    with registry.trace() as ran, pytest.raises(error, match=message):
        rd.palette_linear(**{**call, **change})
    assert not ran
    assert rd.palette_linear(**call).shape == (2, 5)
