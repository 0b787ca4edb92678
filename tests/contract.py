"""What every operation promises on every backend. An operation's test module subclasses `Contract`:

    class TestContract(Contract):
        op = "hashed_linear"
        cases = CORRECTNESS
        smoke = ("element-few", "chunk-medium", "tile-few")

The truth is the reference in float64, the peer by whose error a backend is measured is the reference in its dtype.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import rdkernels as rd
from rdkernels import registry
from rdkernels.testing import Case, assert_accurate

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
INTERPRETER_FLOPS = 5e6  # the largest case whose accuracy is shown under the Triton interpreter, at about 100 MFLOP/s
SLOW_FLOPS = 2e6  # and the largest smoke case there, for all other tests

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Lane:
    """One backend on one device in one dtype."""

    backend: str
    device: str
    kind: str

    def __str__(self) -> str:
        return f"{self.backend}-{self.device}-{self.kind}"

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.kind]

    @property
    def slow(self) -> bool:
        return self.backend == "triton" and self.device == "cpu"


def lanes(op: str) -> list[Lane]:
    """Every lane that serves `op` in this process."""
    every = [Lane(b, d, k) for b in rd.backends(op) for d in DEVICES for k in DTYPES]
    return [
        lane
        for lane in every
        if registry.serves(op, lane.backend, torch.empty(1, 1, dtype=lane.dtype, device=lane.device))
    ]


def over(
    which: str = "cases", kinds: Sequence[str] = tuple(DTYPES), backends: Sequence[str] = registry.ORDER
) -> Callable:
    """Run the test for each lane of these dtypes and backends: on the "cases", the "smoke" ones, or "one" a device."""

    def mark(test: Callable) -> Callable:
        test.over = which, kinds, backends
        return test

    return mark


# -- evaluating a case -------------------------------------------------------------------------------------------------


def noise(shape: Sequence[int], dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def inputs(case: Case, dtype: torch.dtype) -> tuple[Tensors, Tensor]:
    """The case's inputs and a gradient of its output, on the CPU."""
    tensors = case.tensors(dtype)
    with rd.use("reference"), torch.no_grad():
        shape = case.run(tensors).shape
    return tensors, noise(shape, dtype, seed=1)


def evaluate(run: Callable[[Tensors], Tensor], tensors: Tensors, grad: Tensor, *, second: bool = False) -> Tensors:
    """The output and the gradient by every input; with `second` also the gradients of a fixed combination of those."""
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    grad = grad.detach().requires_grad_(second)
    y = run(leaves)
    first = torch.autograd.grad(y, list(leaves.values()), grad, create_graph=second)
    result = {"y": y, **{f"d {name}": t for name, t in zip(leaves, first, strict=True)}}
    if second:
        probes = [noise(t.shape, t.dtype, seed=2 + n).to(t.device) for n, t in enumerate(first)]
        of = {**leaves, "dy": grad}
        twice = torch.autograd.grad(first, list(of.values()), probes, allow_unused=True)
        result |= {f"dd {name}": t for name, t in zip(of, twice, strict=True) if t is not None}
    return {name: t.detach() for name, t in result.items()}


def move(t: Tensor, device: str) -> Tensor:
    """`t` on `device` with its strides, its offset and what stands between its elements: `Tensor.to` packs a view."""
    if t.device.type == device:
        return t
    whole = t.as_strided((t.untyped_storage().nbytes() // t.element_size(),), (1,), 0)
    return whole.to(device).as_strided(t.shape, t.stride(), t.storage_offset())


def packed(t: Tensor) -> Tensor:
    """`t` without gaps, in its memory format."""
    last = t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last)
    return t if last else t.contiguous()


def on(lane: Lane, tensors: Tensors) -> Tensors:
    return {name: move(t, lane.device) for name, t in tensors.items()}


@contextlib.contextmanager
def running(lane: Lane, op: str) -> Iterator[None]:
    """Force the lane's backend; raise AssertionError unless every pass of `op` ran inside, each on that backend."""
    with rd.use(lane.backend), registry.trace() as ran:
        yield
    assert set(ran) == {(name, lane.backend) for name in registry._FAMILY[op]}, f"{lane}: ran {ran}"


def check(op: str, lane: Lane, case: Case, tensors: Tensors, grad: Tensor, *, second: bool = False) -> Tensors:
    """Evaluate on the lane and hold every result to the accuracy rule; returns the results."""
    dense = {name: packed(t) for name, t in tensors.items()}
    with rd.use("reference"):
        wide = {name: t.double() for name, t in dense.items()}
        exact = evaluate(case.run, wide, packed(grad).double(), second=second)
        peer = evaluate(case.run, dense, packed(grad), second=second)
    with running(lane, op):
        got = evaluate(case.run, on(lane, tensors), move(grad, lane.device), second=second)
    assert got.keys() == exact.keys()
    for name, t in got.items():
        assert_accurate(t, exact[name], peer[name], f"{lane} {case.name}: {name}")
    return got


def batch(tensors: Tensors, rows: slice) -> Tensors:
    """The inputs of a part of the batch."""
    return {name: t[rows] if name in ("x", "residual") else t for name, t in tensors.items()}


def same_bits(left: Tensors, right: Tensors) -> None:
    """Raise AssertionError unless both hold the same bits (NaN equal to NaN)."""
    for name, t in left.items():
        torch.testing.assert_close(right[name], t, rtol=0, atol=0, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}")


# -- layouts: the same values in other strides; NaN stands wherever the view does not reach ----------------------------


def _transposed(t: Tensor) -> Tensor:
    return t.mT.contiguous().mT if t.dim() > 1 else t


def _sliced(t: Tensor) -> Tensor:
    wide = t.new_full((*t.shape[:-1], 2 * t.shape[-1] + 1), float("nan"))
    view = wide[..., 1::2]
    view.copy_(t)
    return view


def _unaligned(t: Tensor) -> Tensor:
    view = t.new_full((t.numel() + 2,), float("nan"))[1:-1].view(t.shape)
    view.copy_(t)
    return view


def _expanded(t: Tensor) -> Tensor:
    return t[:1].expand_as(t) if t.numel() else t


LAYOUTS = {"transposed": _transposed, "sliced": _sliced, "unaligned": _unaligned, "expanded": _expanded}


class _Calls(TorchDispatchMode):
    """Collects the calls of this library's operators: what `opcheck` is then run on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[torch._ops.OpOverload, tuple]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == registry.NAMESPACE:
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


class Contract:
    """Subclass it as `Test...`; every test runs for each lane and case that its `over` names."""

    op: str
    cases: Sequence[Case]
    smoke: Sequence[str]  # names of the cases for the checks that take long
    backends: Sequence[str] = registry.ORDER  # the lanes that it runs on
    #: Expanded, these make every output the same sum of equal terms: torch's error, the yardstick, is then one sample.
    never_constant: Sequence[str] = ()
    written_for: Sequence[str] = ("native", "triton")  # the backends whose absence is a fault, not a decision
    own_backward = True  # False: the gradients are torch's, and need not be the same for any number of threads

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if not hasattr(metafunc.function, "over"):
            return
        which, kinds, backends = metafunc.function.over
        every = metafunc.function.__name__ == "test_accuracy"  # the one test that a slow lane runs on all cases
        cases = [case for case in self.cases if which == "cases" or case.name in self.smoke]
        runs = [
            pytest.param(lane, case, id=f"{lane}-{case.name}")
            for lane in lanes(self.op)
            if lane.kind in kinds and lane.backend in backends and lane.backend in self.backends
            for case in cases
            if not lane.slow or case.flops() <= (INTERPRETER_FLOPS if every else SLOW_FLOPS * (case.name in self.smoke))
        ]
        if which == "one":
            runs = list({run.values[0].device: run for run in reversed(runs)}.values())
        metafunc.parametrize("lane,case", runs)

    @pytest.mark.parametrize("backend", [b for b in registry.ORDER if b != "reference"])
    def test_backend_is_here(self, backend: str, need) -> None:
        if backend not in self.written_for:
            pytest.skip(f"{self.op} has no {backend} kernels")
        present = any(lane.backend == backend for lane in lanes(self.op))
        need(backend, present, f"does not serve {self.op} on {DEVICES}: {rd.build_info()}")

    @pytest.mark.parametrize("backend", [b for b in registry.ORDER if b != "reference"])
    def test_backend_is_here_on_cuda(self, backend: str, need) -> None:
        if backend not in self.written_for:
            pytest.skip(f"{self.op} has no {backend} kernels")
        kinds = {lane.kind for lane in lanes(self.op) if lane.backend == backend and lane.device == "cuda"}
        why = f"serves {sorted(kinds) or 'nothing'}: {rd.build_info()}" if "cuda" in DEVICES else "no GPU"
        need(f"{backend}-cuda", {"fp32", "bf16", "fp16"} <= kinds, why)

    @over()
    def test_accuracy(self, lane: Lane, case: Case) -> None:
        """Forward and every gradient keep the accuracy rule, and every pass ran on the lane's backend."""
        tensors, grad = inputs(case, lane.dtype)
        check(self.op, lane, case, tensors, grad)

    @over(kinds=("fp32", "bf16"))
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layouts(self, lane: Lane, case: Case, layout: str) -> None:
        """Inputs and incoming gradients of any strides and storage offset."""
        tensors, grad = inputs(case, lane.dtype)
        spell, kept = LAYOUTS[layout], self.never_constant if layout == "expanded" else ()
        spelled = {name: t if name in kept else spell(t) for name, t in tensors.items()}
        check(self.op, lane, case, spelled, spell(grad))

    @over(kinds=("fp32", "bf16"))
    def test_double_backward(self, lane: Lane, case: Case) -> None:
        tensors, grad = inputs(case, lane.dtype)
        got = check(self.op, lane, case, tensors, grad, second=True)
        assert any(name.startswith("dd ") for name in got)

    @over(kinds=("fp64",), backends=("reference",))
    def test_gradcheck(self, lane: Lane, case: Case) -> None:
        tensors = case.tensors(lane.dtype)
        leaves = [t.to(lane.device).requires_grad_() for t in tensors.values()]

        def run(*values: Tensor) -> Tensor:
            return case.run(dict(zip(tensors, values, strict=True)))

        with rd.use("reference"):
            torch.autograd.gradcheck(run, leaves, fast_mode=True)
            torch.autograd.gradgradcheck(run, leaves, fast_mode=True)

    @over("smoke", kinds=("fp32", "bf16"))
    def test_opcheck(self, lane: Lane, case: Case) -> None:
        """Schema, fake kernel, autograd registration and AOT dispatch of every pass, contiguous and transposed."""
        tensors, grad = inputs(case, lane.dtype)
        with running(lane, self.op):
            with _Calls() as seen:
                evaluate(case.run, on(lane, tensors), grad.to(lane.device))
            for func, args in seen.calls:
                for spell in (torch.clone, _transposed):
                    torch.library.opcheck(func, tree_map_only(Tensor, lambda t, spell=spell: spell(t.detach()), args))

    @over("smoke", kinds=("fp32",))
    @pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
    def test_compile(self, lane: Lane, case: Case, dynamic: bool) -> None:
        """`fullgraph=True`, forward and backward: the bits of eager, on the same backend, at two batch sizes."""
        self.compiled(lane, case, backend="aot_eager", dynamic=dynamic)

    @over("one", kinds=("fp32",))
    def test_inductor(self, lane: Lane, case: Case) -> None:
        self.compiled(lane, case, backend="inductor", dynamic=False)

    def compiled(self, lane: Lane, case: Case, **options) -> None:
        tensors, grad = inputs(case, lane.dtype)
        tensors, grad = on(lane, tensors), grad.to(lane.device)
        torch._dynamo.reset()
        run = torch.compile(case.run, fullgraph=True, **options)
        with running(lane, self.op):
            for rows in {grad.shape[0], max(2, grad.shape[0] // 2)}:
                part = batch(tensors, slice(None, rows))
                same_bits(evaluate(case.run, part, grad[:rows]), evaluate(run, part, grad[:rows]))

    @over("smoke", kinds=("fp32",))
    def test_autocast(self, lane: Lane, case: Case) -> None:
        """Under autocast the result is that of the cast inputs, the gradients come back in the inputs' dtype."""
        tensors, grad = inputs(case, lane.dtype)
        low = torch.bfloat16
        tensors, grad = on(lane, tensors), grad.to(lane.device, low)
        with running(lane, self.op):
            with torch.autocast(lane.device, dtype=low):
                got = evaluate(case.run, tensors, grad)
            plain = evaluate(case.run, {name: t.to(low) for name, t in tensors.items()}, grad)
        assert got["y"].dtype == low
        assert {t.dtype for name, t in got.items() if name != "y"} == {lane.dtype}
        same_bits({name: t.to(got[name].dtype) for name, t in plain.items()}, got)

    @over(kinds=("fp32", "bf16"))
    def test_deterministic(self, lane: Lane, case: Case, threads) -> None:
        """The same bits from run to run and for one and two threads (the reference is torch's matmul: run to run)."""
        tensors, grad = inputs(case, lane.dtype)
        tensors, grad = on(lane, tensors), grad.to(lane.device)
        with running(lane, self.op):
            threads(2)
            first = evaluate(case.run, tensors, grad)
            same_bits(first, evaluate(case.run, tensors, grad))
            threads(2 if lane.backend == "reference" else 1)
            again = evaluate(case.run, tensors, grad)
            same_bits({name: first[name] for name in (first if self.own_backward else ("y",))}, again)

    @over(kinds=("fp32",))
    def test_batch_split(self, lane: Lane, case: Case) -> None:
        """The batch in two parts gives the rows of the whole, within the accuracy rule."""
        tensors, grad = inputs(case, lane.dtype)
        with rd.use("reference"):
            exact = evaluate(case.run, {name: t.double() for name, t in tensors.items()}, grad.double())
            peer = evaluate(case.run, tensors, grad)
        tensors, grad = on(lane, tensors), grad.to(lane.device)
        cut = (grad.shape[0] + 1) // 3
        with running(lane, self.op):
            parts = [
                evaluate(case.run, batch(tensors, rows), grad[rows]) for rows in (slice(None, cut), slice(cut, None))
            ]
        for name in ("y", "d x"):
            assert_accurate(torch.cat([part[name] for part in parts]), exact[name], peer[name], f"{lane} split: {name}")

    @over(kinds=("fp32", "bf16"))
    def test_nan_and_inf(self, lane: Lane, case: Case) -> None:
        """NaN and infinities in x come out where plain torch has them, and nowhere else."""
        tensors, grad = inputs(case, lane.dtype)
        x = tensors["x"]
        for n, value in enumerate((float("nan"), float("inf"), -float("inf"))):
            if x.shape[0] > n:
                x[n, (7 * n) % x.shape[1]] = value
        check(self.op, lane, case, tensors, grad)
