"""The CUDA kernels of the low-rank chains on the host: the contract, three orders of threads, sanitizers, traces.

PYTHONPATH=tests python -m native.test_lowrank_cuda --write    rewrite lowrank_trace_budget.json: a rise is to defend
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import subprocess
import sys

import pytest
import torch
from contract import LAYOUTS, Contract, Lane, over, packed, running
from conv_suite import LowRankConv, drawn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native import make
from native.test_cuda import DTYPES, SCHEDULES, array, conflicts, serves, whole
from native.test_cuda import over as above
from torch import Tensor

import rdkernels as rd
from rdkernels import registry
from rdkernels.ops.convolution import Geometry, new_output
from rdkernels.ops.cp_conv2d import cases as cp
from rdkernels.ops.lowrank_linear import cases as linear
from rdkernels.ops.separable_conv2d import cases as separable
from rdkernels.ops.tucker_conv2d import cases as tucker
from rdkernels.testing import Case, assert_accurate

BUDGET = pathlib.Path(__file__).with_name("lowrank_trace_budget.json")
SMALL = 101376  # bytes of shared memory that a kernel may opt in to on GPUs of compute capability 8.6
KINDS = ("fp32", "bf16", "fp16")


@pytest.fixture(scope="session", autouse=True)
def cuda(need) -> None:
    need("nvcc", make.cuda_home() is not None, make.CUDA_MISSING)


@pytest.fixture(scope="session")
def module(load):
    return load("lowrank_cuda_values")


@pytest.fixture(autouse=True)
def at_random(module) -> None:
    module.configure(order=2, block_order=2, cp_early=2, strict_exit=True)


# -- the contract, with the emulated kernels in the native backend's place ---------------------------------------------

CHAINS = {"lowrank_linear": ("lines", 2), "separable_conv2d": ("lines", 2), "cp_conv2d": ("cp", 4)}
CHAINS["tucker_conv2d"] = "tucker", 3


def emulated(module, op: str, chosen: list[tuple] | None = None, **options):
    """The forward pass of `op` by the module's kernels, every array as the operator hands it to the launches."""
    chain, count = CHAINS[op]

    def run(x: Tensor, *args) -> list[Tensor]:
        factors, (bias, residual), activation = args[:count], args[count : count + 2], args[-2]
        if op == "lowrank_linear":
            y = x.new_full((x.shape[0], factors[1].shape[0]), float("nan"))
            images = [None if t is None else t.T[None, :, :, None] for t in (x, y, residual)]
            factors, where = [f[:, :, None] for f in factors], (1, 1, 0, 0, 0, 0, 1, 1)
        else:
            where = args[-10:-2]
            y = new_output(x, *_out(op, x, factors, where)).fill_(float("nan"))
            images = [x, y, residual]
        if y.numel():
            given = [array(whole(f)) for f in factors]
            added = [None if bias is None else array(whole(bias)), None if residual is None else array(images[2])]
            made = module.run(chain, array(images[1]), array(images[0]), given, *added, where, activation, **options)
            if chosen is not None:
                chosen.append(made)
        return [y]

    return run


def _out(op: str, x: Tensor, factors, where) -> tuple[int, int, int]:
    spans = {"separable_conv2d": (0, 1), "cp_conv2d": (1, 2), "tucker_conv2d": (1, 1)}[op]
    kh, kw = (factors[n].shape[k] for n, k in zip(spans, (2, 3) if op == "tucker_conv2d" else (-1, -1), strict=True))
    return factors[-1].shape[0], *Geometry(*where).out(x.shape[2], x.shape[3], kh, kw)


@pytest.fixture(autouse=True)
def native(module, monkeypatch) -> None:
    """The native backend of the forward passes is the emulation."""
    for op in CHAINS:
        monkeypatch.setitem(registry._PASSES[f"{op}_fwd"], "native", registry.Backend(serves, emulated(module, op)))


class Emulated(Contract):
    """What of the contract is the kernels': the gradients are torch's, from the values that these return."""

    test_backend_is_here = test_backend_is_here_on_cuda = test_inductor = None
    test_double_backward = test_gradcheck = test_opcheck = test_compile = test_autocast = None
    test_deterministic = test_batch_split = None

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if not hasattr(metafunc.function, "over"):
            return
        which, kinds, _ = metafunc.function.over
        runs = [
            pytest.param(Lane("native", "cpu", kind), case, id=f"{kind}-{case.name}")
            for kind in KINDS
            if kind in kinds
            for case in self.cases
            if which == "cases" or case.name in self.smoke
        ]
        metafunc.parametrize("lane,case", runs)

    @over()
    def test_accuracy(self, lane: Lane, case: Case) -> None:
        """The fused forward keeps the accuracy rule, on every pass by these kernels."""
        forward(lane, self.op, case)

    @over("smoke", kinds=("fp32", "bf16"))
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layouts(self, lane: Lane, case: Case, layout: str) -> None:
        """Inputs of any strides and storage offset."""
        forward(lane, self.op, case, LAYOUTS[layout])

    @over("smoke", kinds=("fp32", "bf16"))
    @pytest.mark.parametrize("activation", [None, "relu", "gelu", "silu"])
    def test_activations(self, lane: Lane, case: Case, activation: str | None) -> None:
        forward(lane, self.op, dataclasses.replace(case, activation=activation))

    @over("smoke", kinds=("bf16",))
    @pytest.mark.parametrize("order,early", list(SCHEDULES.values())[:2], ids=list(SCHEDULES)[:2])
    def test_orders(self, lane: Lane, case: Case, order: int, early: int, module) -> None:
        """The same bits in every order of threads, blocks and copies."""
        tensors = case.tensors(lane.dtype)
        with rd.use("native"):
            at_random = case.run(tensors)
            module.configure(order=order, block_order=order, cp_early=early, strict_exit=True)
            assert torch.equal(case.run(tensors), at_random)

    def test_few_ranks_at_a_time(self, module, monkeypatch) -> None:
        """Where shared memory is short T is made in segments or for a smaller tile; where nothing fits that is said."""
        lane, chosen = Lane("native", "cpu", "bf16"), []
        some = {"rank": 150} if self.op == "lowrank_linear" else {"ranks": RANKS[self.op], "h": 6, "w": 11}
        case = dataclasses.replace(next(c for c in self.cases if c.name in ("many", "ragged")), **some)
        limits = iter([SMALL, *(k * 1024 for k in (56, 46, 43, 40, 38, 16))])
        with pytest.raises(RuntimeError, match="too large for this GPU's shared memory"):
            while True:
                run = emulated(module, self.op, chosen, shared_limit=next(limits))
                monkeypatch.setitem(registry._PASSES[f"{self.op}_fwd"], "native", registry.Backend(serves, run))
                forward(lane, self.op, case)
        assert len({segment for _, _, segment, _ in chosen}) > 1, chosen

    @over("smoke", kinds=("fp32",))
    def test_tf32(self, lane: Lane, case: Case, module, monkeypatch) -> None:
        """Where tf32 is allowed: the error of factors with eleven bits, which full float32 does not have."""
        tensors = dataclasses.replace(case, activation=None).tensors(lane.dtype)
        with rd.use("reference"):
            exact = case.run({name: t.double() for name, t in tensors.items()})
        run = emulated(module, self.op, tf32=True)
        monkeypatch.setitem(registry._PASSES[f"{self.op}_fwd"], "native", registry.Backend(serves, run))
        with rd.use("native"):
            error = (case.run(tensors).double() - exact).abs().max() / exact.abs().max()
        assert 1e-5 < error < 5e-3


def forward(lane: Lane, op: str, case: Case, spell=lambda t: t) -> None:
    tensors = case.tensors(lane.dtype)
    dense = {name: packed(t) for name, t in ((name, spell(t)) for name, t in tensors.items())}
    with rd.use("reference"):
        exact, peer = case.run({name: t.double() for name, t in dense.items()}), case.run(dense)
    with running(lane, op):
        got = case.run({name: spell(t) for name, t in tensors.items()})
    assert_accurate(got, exact, peer, f"{lane} {case.name}")


class EmulatedConv(Emulated, LowRankConv):
    smoke = ("strided-dilated", "seven")
    test_changed_factor = test_is_the_dense_convolution = test_without_gradients = None


class TestLinear(Emulated):
    op, cases, smoke = "lowrank_linear", linear.CORRECTNESS, ("few", "many")


class TestSeparable(EmulatedConv):
    op, cases = "separable_conv2d", separable.CORRECTNESS


class TestCP(EmulatedConv):
    op, cases = "cp_conv2d", cp.CORRECTNESS


class TestTucker(EmulatedConv):
    op, cases = "tucker_conv2d", tucker.CORRECTNESS


RANKS = {"separable_conv2d": (150,), "cp_conv2d": (600,), "tucker_conv2d": (70, 150)}  # too many for a small GPU
CASES = {"separable_conv2d": separable.SeparableCase, "cp_conv2d": cp.CPCase, "tucker_conv2d": tucker.TuckerCase}


def test_segments_again_for_every_block(module, monkeypatch) -> None:
    """More tiles than multiprocessors: a CTA makes T for each of its blocks of channels, segment by segment."""
    chosen: list[tuple] = []
    run = emulated(module, "separable_conv2d", chosen, shared_limit=34816 + 128)
    monkeypatch.setitem(registry._PASSES["separable_conv2d_fwd"], "native", registry.Backend(serves, run))
    case = separable.SeparableCase("tiny-maps", 140, 8, 1, 1, 140, (1, 1), (70,))
    forward(Lane("native", "cpu", "bf16"), "separable_conv2d", case)
    assert chosen == [(1, 1, 64, 1)]


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
@pytest.mark.parametrize("op", CASES)
@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_problem(op: str, kind: str, data: st.DataObject) -> None:
    case = data.draw(drawn(CASES[op], st.tuples(*[st.integers(1, 100)] * len(RANKS[op]))))
    forward(Lane("native", "cpu", kind), op, case)


# -- on exactly-sized buffers, in every build --------------------------------------------------------------------------

RUNS = [("values", kind, *schedule) for kind in DTYPES for schedule in SCHEDULES.values()]
RUNS += [(how, kind, *SCHEDULES["random"]) for how, kind in (("asan", "bf16"), ("asan", "fp32"), ("trace", "bf16"))]


@pytest.mark.parametrize("how,kind,order,early", RUNS)
def test_program(how: str, kind: str, order: int, early: int, drive) -> None:
    """Right, in bounds, defined; in the trace no race within or between blocks and no read of what nobody wrote."""
    done = drive(f"lowrank_cuda_{how}", kind, str(order), str(early))
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and not done.stderr, done.stdout[-3000:] + done.stderr[-3000:]
    assert len(lines) == 8 and all(line.endswith(" ok") for line in lines), done.stdout


@pytest.mark.parametrize("kind", ["bf16", "fp32"])
def test_trace_budget(kind: str, drive) -> None:
    """Sectors per request and bank conflicts of every source line, on problems of whole tiles and blocks."""
    budget = json.loads(BUDGET.read_text())
    found = conflicts("lowrank_cuda_trace", drive, kind)
    assert not (risen := above(found, budget)), "\n".join(risen)
    gone = [key for key in budget if key.startswith(kind) and key not in found]
    assert not gone, "no longer there; rewrite the budget: " + "\n".join(gone)


if __name__ == "__main__":

    def drive_here(program: str, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([str(make.BUILD / program), *arguments], capture_output=True, text=True)

    make.build("lowrank_cuda_trace")
    measured = {
        key: value
        for kind in ("bf16", "fp32")
        for key, value in conflicts("lowrank_cuda_trace", drive_here, kind).items()
    }
    if "--write" in sys.argv:
        BUDGET.write_text(json.dumps(dict(sorted(measured.items())), indent=0) + "\n")
    else:
        print(json.dumps(measured, indent=1))
