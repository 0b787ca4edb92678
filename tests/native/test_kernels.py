"""Each kernel below the op boundary, forced on every problem it can do, per instruction set."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rdkernels import hashing, native
from rdkernels.ops.hashed_linear import cases, reference
from rdkernels.testing import assert_accurate

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FORWARD, GRAD = ("few_rows", "many_rows"), ("few_rows_grad", "many_rows_grad")


def array(t: Tensor) -> np.ndarray:
    """The tensor's own memory, strides and all; bfloat16 as uint16."""
    return (t.view(torch.uint16) if t.dtype == torch.bfloat16 else t).numpy()


def tensor(a: np.ndarray) -> Tensor:
    t = torch.from_numpy(a)
    return t.view(torch.bfloat16) if a.dtype == np.uint16 else t


def noise(*shape: int, dtype: torch.dtype, layout: str = "rows") -> Tensor:
    """Normal numbers as they come, as "columns" (transposed), or as a "window" of a matrix of NaN."""
    t = torch.randn(*shape, dtype=torch.float64).to(dtype)
    if layout == "columns":
        return t.T.contiguous().T
    if layout == "window":
        around = torch.full((shape[0], shape[1] + 7), torch.nan, dtype=dtype)
        around[:, 3:-4] = t
        return around[:, 3:-4]
    return t


class Problem:
    """A case's bank with NaN wherever the map leads nowhere, x, dy, and what every kernel makes of them."""

    def __init__(self, probe, case: cases.HashedLinearCase, dtype: torch.dtype, layout: str = "rows"):
        self.probe, self.case = probe, case
        granule = hashing.resolve_granule(case.granule)
        self.ones = case.bias == "hashed"
        self.map = (*granule, case.seed)
        self.x = noise(case.rows, case.in_, dtype=dtype, layout=layout)
        self.dy = noise(case.rows, case.out, dtype=dtype, layout=layout)
        self.bias = noise(1, case.out, dtype=dtype)[0] if case.bias == "tensor" else None
        index, _ = hashing.index_and_sign(case.out, case.in_ + self.ones, case.slots, granule, case.seed)
        used = index.unique()
        self.bank = torch.full((case.slots * math.prod(granule),), torch.nan, dtype=dtype)
        self.bank[used] = noise(len(used), 1, dtype=dtype)[:, 0]

    def kernels(self) -> list[str]:
        """Every kernel that serves this number of rows."""
        limits = {"few_rows": self.probe.few_rows, "few_rows_grad": self.probe.few_grad_rows}
        return [k for k in (*FORWARD, *GRAD, "bank_grad") if self.case.rows <= limits.get(k, self.case.rows)]

    def run(self, kernel: str, **schedule: int) -> Tensor:
        case = self.case
        if kernel == "bank_grad":
            args = array(self.dy), array(self.x), case.slots, *self.map, case.scale, self.ones
            return tensor(self.probe.bank_grad(*args, **schedule))
        if kernel in GRAD:
            args = array(self.dy), array(self.bank), case.in_, case.slots, *self.map, case.scale
            return tensor(self.probe.product(kernel, *args, **schedule))
        bias = None if self.bias is None else array(self.bias)
        args = array(self.x), array(self.bank), case.out, case.slots, *self.map, case.scale, bias, self.ones
        return tensor(self.probe.product(kernel, *args, **schedule))

    def reference(self, kernel: str, dtype: torch.dtype) -> Tensor:
        case, scale = self.case, self.case.scale
        x, dy, bank = (t.to(dtype) for t in (self.x, self.dy, self.bank))
        if kernel == "bank_grad":
            return reference.bwd_bank(dy, x, case.slots, *self.map, scale, self.ones)
        if kernel in GRAD:
            return reference.bwd_x(dy, bank, case.in_, *self.map, scale)
        bias = None if self.bias is None else self.bias.to(dtype)
        return reference.fwd(x, bank, bias, case.out, *self.map, scale, self.ones)

    def check(self, kernel: str) -> Tensor:
        got = self.run(kernel)
        assert got.isfinite().all(), kernel
        assert_accurate(got, self.reference(kernel, torch.float64), self.reference(kernel, got.dtype), kernel)
        return got


SIZES = st.integers(1, 330)


def enough_slots(granule: hashing.Granule) -> int:
    """For a hundred bank entries: the rule asks for twice torch's worst error, which few entries leave to luck."""
    return -(-100 // math.prod(hashing.resolve_granule(granule)))


@st.composite
def problems(draw) -> cases.HashedLinearCase:
    granule = draw(
        st.sampled_from([(1, 1), (1, 16), (2, 16), (4, 64), (16, 16), (32, 32), (64, 64), (128, 16), (1, 128)])
    )
    bias = draw(st.sampled_from([None, "tensor", *(["hashed"] if granule == (1, 1) else [])]))
    rows = draw(st.one_of(st.integers(1, 9), st.integers(10, 60)))
    slots, seed = enough_slots(granule) + draw(st.integers(0, 40)), draw(st.integers(0, 2**32 - 1))
    return cases.HashedLinearCase("any", rows, draw(SIZES), draw(SIZES), slots, granule, bias, seed, 0.7)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("case", [c for c in cases.CORRECTNESS if c.rows], ids=lambda c: c.name)
def test_cases(probe, case: cases.HashedLinearCase, dtype: torch.dtype) -> None:
    """Every kernel within the accuracy rule, few-rows and many-rows both where both can."""
    problem = Problem(probe, case, dtype)
    for kernel in problem.kernels():
        problem.check(kernel)


@given(problems(), st.sampled_from(list(DTYPES.values())), st.sampled_from(["rows", "columns", "window"]))
def test_any_problem_and_layout(probe, case, dtype, layout) -> None:
    problem = Problem(probe, case, dtype, layout)
    for kernel in problem.kernels():
        problem.check(kernel)


@pytest.mark.parametrize("granule", ["element", "chunk", (4, 16), "tile"])
def test_every_number_of_rows(probe, granule) -> None:
    """Each instance of the few-rows kernels and each tail of the micro-kernel's rows."""
    for rows in range(1, 26):
        case = cases.HashedLinearCase("rows", rows, 45, 83, enough_slots(granule), granule, seed=rows)
        problem = Problem(probe, case, torch.float32)
        for kernel in problem.kernels():
            problem.check(kernel)


def test_kernels_refuse_more_rows_than_they_have(probe) -> None:
    for kernel, limit in (("few_rows", probe.few_rows), ("few_rows_grad", probe.few_grad_rows)):
        problem = Problem(probe, cases.HashedLinearCase("rows", limit + 1, 9, 9, 1, "chunk"), torch.float32)
        assert kernel not in problem.kernels()
        with pytest.raises(ValueError, match="too many rows"):
            problem.run(kernel)


@given(problems(), st.sampled_from(list(DTYPES.values())), st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_bits_do_not_depend_on_the_tasks(probe, case, dtype, piece, shuffle) -> None:
    """Any division of the tasks, in any order: the same bits."""
    problem = Problem(probe, case, dtype)
    for kernel in problem.kernels():
        once, pieces = problem.run(kernel), problem.run(kernel, piece=piece, shuffle=shuffle)
        assert torch.equal(once.view(torch.uint8), pieces.view(torch.uint8)), kernel


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(
    "partitions, rows, out", [(1, 5, 40), (2, 5, 300), (4, 20, 300), (8, 40, 300), (16, 300, 1040)]
)
def test_bank_grad_merges_in_any_order(probe, partitions: int, rows: int, out: int, dtype: torch.dtype) -> None:
    """The tree of partial banks: whoever arrives last adds, the bits stay."""
    problem = Problem(probe, cases.HashedLinearCase("merge", rows, out, 33, 9, "element", seed=rows), dtype)
    assert probe.bank_grad_tasks(rows, out, 33, 9) == partitions
    want = problem.check("bank_grad")
    for shuffle in range(1, 20):
        assert torch.equal(want, problem.run("bank_grad", piece=1, shuffle=shuffle))


def test_rows_do_not_depend_on_the_batch(probe) -> None:
    """A row of y from the many-rows kernel has the same bits in a batch of any size."""
    case = cases.HashedLinearCase("batch", 600, 45, 283, 3, "chunk")
    problem = Problem(probe, case, torch.float32)
    y = problem.run("many_rows")
    for rows in (1, 11, 13, 512, 513):
        part = Problem(probe, cases.HashedLinearCase("batch", rows, 45, 283, 3, "chunk"), torch.float32)
        part.x, part.bank = problem.x[:rows], problem.bank
        assert torch.equal(part.run("many_rows"), y[:rows])


@pytest.mark.parametrize("packed", [False, True])
def test_micro(probe, packed: bool) -> None:
    """C (+)= A B for every number of rows and strips."""
    for rows in range(1, probe.micro_rows + 1):
        for strips in range(1, probe.micro_strips + 1):
            for depth in (0, 1, 37):
                a, b = torch.randn(rows, depth), torch.randn(strips, depth, 16)
                c = torch.randn(rows, 16 * strips)
                right = b.transpose(0, 1).reshape(depth, 16 * strips)
                exact, peer = a.double() @ right.double(), a @ right
                for add in (torch.zeros_like(c), c):
                    left = a.T.contiguous() if packed else a
                    got = probe.micro(left.numpy(), b.numpy(), add.clone().numpy(), packed, add is c)
                    assert_accurate(tensor(got), exact + add, peer + add, f"{rows} rows, {strips} strips")


def test_a_wrong_bit_is_seen(probe) -> None:
    """Negative control of this module's checks: a bank with one sign turned."""
    problem = Problem(probe, cases.HashedLinearCase("control", 3, 40, 50, 2, "chunk"), torch.float32)
    run = problem.run
    used = int(problem.bank.isfinite().nonzero()[0])

    def broken(kernel: str, **schedule: int) -> Tensor:
        problem.bank[used] *= -1
        try:
            return run(kernel, **schedule)
        finally:
            problem.bank[used] *= -1

    problem.run = broken
    for kernel in (*FORWARD, "many_rows_grad"):
        with pytest.raises(AssertionError, match="elements off"):
            problem.check(kernel)


# -- which kernel an op takes ------------------------------------------------------------------------------------------


def test_thresholds(load, need) -> None:
    """The op changes kernels where the limits of the kernels are."""
    need("native", native.loaded("cpu"), "not built")
    probe = load(native.ISA)
    op, path = torch.ops.rdkernels_native, torch.ops.rdkernels_native.hashed_linear_path
    few, many = 1, 2
    for rows in range(1, 20):
        x, bank = torch.randn(rows, 40), torch.randn(64)
        op.hashed_linear_fwd(x, bank, None, 40, 1, 16, 0, 1.0, False)
        assert path() == (few if rows <= probe.few_rows else many)
        op.hashed_linear_bwd_x(x, bank, 40, 1, 16, 0, 1.0)
        assert path() == (few if rows <= probe.few_grad_rows else many)
