"""`hashed_linear`: the contract, and what only this operation promises."""

import dataclasses
import subprocess
import sys

import pytest
import torch
from contract import Contract, Lane, check, evaluate, inputs, lanes, noise, over
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rdkernels as rd
from rdkernels import hashing, registry
from rdkernels.ops.hashed_linear import PATHS, cases
from rdkernels.ops.hashed_linear.cases import HashedLinearCase
from rdkernels.testing import assert_accurate

OP = "hashed_linear"
GRANULES = ("element", "chunk", "tile", (16, 16), (64, 64), (2, 16), (1, 64), (128, 32))
FAST = [lane for lane in lanes(OP) if not lane.slow and lane.kind in ("fp32", "bf16")]


class TestContract(Contract):
    op = OP
    cases = cases.CORRECTNESS
    smoke = ("element-few", "chunk-medium", "tile-few", "tile-many")

    @over("smoke", kinds=("fp32",))
    @pytest.mark.parametrize("shape", [(), (3,), (2, 1, 3), (0, 2)], ids=str)
    def test_leading_dimensions(self, lane: Lane, case: HashedLinearCase, shape: tuple[int, ...]) -> None:
        """x of any number of dimensions: the rows of the flattened call."""
        bank = case.tensors(lane.dtype, lane.device)["bank"]
        x = noise((*shape, case.in_), lane.dtype, seed=3).to(lane.device)
        with rd.use(lane.backend):
            y = rd.hashed_linear(x, bank, case.out, granule=case.granule, seed=case.seed)
            flat = rd.hashed_linear(x.reshape(-1, case.in_), bank, case.out, granule=case.granule, seed=case.seed)
        assert y.shape == (*shape, case.out)
        assert torch.equal(y.reshape(-1, case.out), flat)


@st.composite
def problems(draw) -> HashedLinearCase:
    granule = draw(st.sampled_from(GRANULES))
    bias = draw(st.sampled_from([None, "tensor", *(["hashed"] if granule == "element" else [])]))
    go, gi = hashing.resolve_granule(granule)
    least = -(-100 // (go * gi))  # torch's largest error over fewer values is chance, and with it the rule
    sizes = {"rows": st.integers(0, 70), "out": st.integers(1, 150), "in_": st.integers(1, 150)}
    return HashedLinearCase(
        "drawn",
        **{name: draw(size) for name, size in sizes.items()},
        slots=draw(st.integers(least, least + 40)),
        granule=granule,
        bias=bias,
        seed=draw(st.integers(0, 2**32 - 1)),
        scale=draw(st.sampled_from([1.0, -0.37, 3.0])),
    )


@pytest.mark.parametrize("lane", FAST, ids=str)
@settings(suppress_health_check=[HealthCheck.differing_executors])
@given(case=problems(), step=st.integers(1, 3), start=st.integers(0, 2))
def test_any_problem(lane: Lane, case: HashedLinearCase, step: int, start: int) -> None:
    """Any shape, seed, granule, scale and bias; x strided and shifted."""
    tensors, grad = inputs(case, lane.dtype)
    wide = torch.full((case.rows, start + step * case.in_), float("nan"), dtype=lane.dtype)
    x = wide[:, start : start + step * case.in_ : step]
    x.copy_(tensors["x"])
    check(OP, lane, case, {**tensors, "x": x}, grad)


@pytest.mark.parametrize("lane", FAST, ids=str)
@pytest.mark.parametrize("case", [c for c in cases.CORRECTNESS if "one-slot" in c.name], ids=lambda c: c.name)
def test_one_slot_is_every_weight(lane: Lane, case: HashedLinearCase) -> None:
    """All of V comes from one granule: its gradient sums over all of V."""
    x, grad = torch.ones(case.rows, case.in_, dtype=lane.dtype), torch.ones(case.rows, case.out, dtype=lane.dtype)
    check(OP, lane, case, {"x": x, "bank": case.tensors(lane.dtype)["bank"]}, grad)


@pytest.mark.parametrize("granule", ["element", "chunk", "tile"])
def test_cases_reach_every_native_kernel(granule: str, need) -> None:
    """The contract's cases take the few-rows and the many-rows kernel, forward and backward, of each granule."""
    need("native", "native" in rd.backends(OP), "not built")
    path = torch.ops.rdkernels_native.hashed_linear_path
    taken = set()
    for case in cases.CORRECTNESS:
        if case.granule == granule and case.rows:
            x, grad = case.tensors(torch.float32)["x"], noise((case.rows, case.out), torch.float32, seed=1)
            bank = case.tensors(torch.float32)["bank"]
            go, gi = rd.hashing.resolve_granule(granule)
            hashed = (go, gi, case.seed, case.scale)
            with rd.use("native"):
                torch.ops.rdkernels.hashed_linear_fwd(x, bank, None, case.out, *hashed, case.bias == "hashed")
                taken.add(("fwd", PATHS[path()]))
                torch.ops.rdkernels.hashed_linear_bwd_x(grad, bank, case.in_, *hashed)
                taken.add(("bwd_x", PATHS[path()]))
                torch.ops.rdkernels.hashed_linear_bwd_bank(grad, x, case.slots, *hashed, case.bias == "hashed")
                taken.add(("bwd_bank", PATHS[path()]))
    rows = {(name, kernel) for name in ("fwd", "bwd_x") for kernel in ("few_rows", "many_rows")}
    assert taken == {*rows, ("bwd_bank", "bank_grad")}


# -- beyond 2**31 virtual weights --------------------------------------------------------------------------------------

HUGE = [
    HashedLinearCase("huge-element", 1, 50_021, 43_003, 1_000_003, "element", seed=5),
    HashedLinearCase("huge-chunk", 1, 50_021, 43_003, 60_013, "chunk", seed=6),
    HashedLinearCase("huge-tile", 1, 50_021, 43_003, 1_009, "tile", seed=7),
]


@pytest.mark.parametrize("case", HUGE, ids=lambda c: c.name)
def test_more_than_two_to_the_31_virtual_weights(case: HashedLinearCase, need) -> None:
    """Sampled rows of V, the last ones among them, against the map at their coordinates, in all three passes."""
    need("native", "native" in rd.backends(OP), "not built")
    assert case.out * case.in_ > 2**31
    tensors = case.tensors(torch.float32)
    rows = torch.tensor([0, 1, 31_337, case.out - 33, case.out - 1])
    index, sign = rd.hashing.index_and_sign_at(
        rows[:, None], torch.arange(case.in_), case.slots, case.granule, case.seed
    )
    grad = torch.zeros(1, case.out)
    grad[0, rows] = noise((len(rows),), torch.float32, seed=1)
    with rd.use("native"):
        got = evaluate(case.run, tensors, grad)

    def sampled(dtype: torch.dtype) -> dict[str, torch.Tensor]:
        x, bank, g = tensors["x"].to(dtype), tensors["bank"].to(dtype), grad[:, rows].to(dtype)
        v = bank[index] * sign
        d_bank = torch.zeros_like(bank).index_add_(0, index.flatten(), ((g.T @ x) * sign).flatten())
        return {"y": x @ v.T, "d x": g @ v, "d bank": d_bank}

    got["y"] = got["y"][:, rows]
    exact, peer = sampled(torch.float64), sampled(torch.float32)
    for name, t in got.items():
        assert_accurate(t, exact[name], peer[name], f"{case.name}: {name}")


# -- memory ------------------------------------------------------------------------------------------------------------

_STEP = """
import sys, torch, rdkernels as rd
backend, size, rows, granule, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5])
torch.set_num_threads(threads)

def memory(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))

def step(layer, x):
    optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
    layer(x).backward(torch.ones(x.shape[0], layer.out_features))
    optimizer.step()
    return optimizer

with rd.use(backend):
    step(rd.nn.HashedLinear(64, 64, granule=granule), torch.randn(rows, 64, requires_grad=True))  # loads and starts all
    layer = rd.nn.HashedLinear(size, size, granule=granule, bias=False, seed=1)
    x = torch.randn(rows, size, requires_grad=True)
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
    before = memory("VmRSS")
    kept = step(layer, x)
    print(memory("VmHWM") - before, layer.bank.size * 4)
"""


def extra_memory(backend: str, size: int, rows: int, granule: str, threads: int) -> tuple[int, int]:
    """Bytes a training step adds to a process at its peak, and what it may add."""
    command = [sys.executable, "-c", _STEP, backend, str(size), str(rows), granule, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    extra, bank = map(int, done.stdout.split())
    activations = 4 * 3 * rows * size  # y, its gradient, the gradient of x
    return extra, 4 * bank + activations + threads * 2**23


@pytest.mark.parametrize("granule", ["element", "chunk", "tile"])
def test_memory_of_a_training_step(granule: str, need) -> None:
    """Under 4 banks + activations + 8 MiB a thread, where the virtual matrix has 256 MiB."""
    need("native", "native" in rd.backends(OP), "not built")
    extra, allowed = extra_memory("native", size=8192, rows=64, granule=granule, threads=2)
    assert extra < allowed < 8192 * 8192 * 4 / 4, f"{extra / 2**20:.1f} MiB, allowed {allowed / 2**20:.1f} MiB"


def test_memory_check_sees_a_dense_matrix() -> None:
    """Negative control: the reference builds V and must fail the check."""
    extra, allowed = extra_memory("reference", size=2048, rows=64, granule="chunk", threads=2)
    assert extra > allowed


# -- errors ------------------------------------------------------------------------------------------------------------

X, BANK = torch.randn(2, 8), torch.randn(64)
ERRORS = {
    "x no tensor": (dict(x=[1.0]), TypeError, "x must be a Tensor, got list"),
    "x integer": (dict(x=X.long()), TypeError, "x must have one of the dtypes .*float32.*, got torch.int64"),
    "x complex": (dict(x=X.cfloat()), TypeError, "x must have one of the dtypes .*, got torch.complex64"),
    "x 0-d": (dict(x=X[0, 0]), ValueError, "x must have at least one dimension .*, got a 0-d tensor"),
    "bank integer": (dict(bank=BANK.int()), TypeError, "bank must have one of the dtypes .*, got torch.int32"),
    "bank no tensor": (dict(bank=None), TypeError, "bank must be a Tensor, got NoneType"),
    "bank 2-D": (dict(bank=BANK.view(4, 16)), ValueError, r"bank must be 1-D .*, got shape \[4, 16\]"),
    "bank ragged": (dict(bank=BANK[:40]), ValueError, r"whole number .* slots of 1 x 16 = 16 values.*got shape \[40\]"),
    "bank empty": (dict(bank=BANK[:0]), ValueError, r"at least one.* got shape \[0\]"),
    "bank ragged for a tile": (dict(granule="tile"), ValueError, r"slots of 32 x 32 = 1024 values.*got shape \[64\]"),
    "bank dtype": (dict(bank=BANK.half()), TypeError, "bank must have x's dtype torch.float32, got torch.float16"),
    "bank device": (dict(bank=BANK.to("meta")), ValueError, "bank must be on x's device cpu, got meta"),
    "out_features 0": (dict(out_features=0), ValueError, "out_features must be an int >= 1, got 0"),
    "out_features float": (dict(out_features=4.0), ValueError, "out_features must be an int >= 1, got 4.0"),
    "granule name": (dict(granule="row"), ValueError, "granule must be one of .*'chunk'.*, got 'row'"),
    "granule pair": (dict(granule=(3, 16)), ValueError, r"granule must be .*powers of two.*, got \(3, 16\)"),
    "granule narrow": (dict(granule=(16, 8)), ValueError, r"gi in 16..4096, got \(16, 8\)"),
    "seed negative": (dict(seed=-1), ValueError, r"seed must be an int in 0..4294967295 \(uint32\), got -1"),
    "seed large": (dict(seed=2**32), ValueError, "seed must be an int .*, got 4294967296"),
    "seed float": (dict(seed=1.0), ValueError, "seed must be an int .*, got 1.0"),
    "scale": (dict(scale="2"), TypeError, "scale must be a real number, got str"),
    "bias name": (dict(bias="hash"), ValueError, "bias must be a Tensor, None or \"hashed\", got 'hash'"),
    "bias number": (dict(bias=1.0), TypeError, 'bias must be a Tensor, None or "hashed", got float'),
    "bias hashed": (dict(bias="hashed"), ValueError, r'bias="hashed" needs granule "element", got granule \(1, 16\)'),
    "bias shape": (dict(bias=torch.zeros(5)), ValueError, r"bias must have shape \[4\], got \[5\]"),
    "bias integer": (
        dict(bias=torch.zeros(4).int()),
        TypeError,
        "bias must have one of the dtypes .*, got torch.int32",
    ),
    "bias dtype": (
        dict(bias=torch.zeros(4).half()),
        TypeError,
        "bias must have x's dtype .*float32, got torch.float16",
    ),
    "bias device": (dict(bias=torch.zeros(4, device="meta")), ValueError, "bias must be on x's device cpu, got meta"),
}


@pytest.mark.parametrize("wrong", ERRORS)
def test_errors(wrong: str) -> None:
    """One clear error that names the argument, what came and what is allowed; no kernel has run."""
    given_, kind, text = ERRORS[wrong]
    arguments = dict(x=X, bank=BANK, out_features=4) | given_
    with registry.trace() as ran, pytest.raises(kind, match=text):
        rd.hashed_linear(**arguments)
    assert ran == []


def test_forced_backend_that_does_not_serve() -> None:
    with rd.use("native"), pytest.raises(RuntimeError, match=r"serves torch.float64 on cpu \(forced: 'native'\)"):
        rd.hashed_linear(X.double(), BANK.double(), 4)


def test_cases_are_distinct_and_tell_their_cost() -> None:
    names = [case.name for case in cases.CORRECTNESS]
    assert len(names) == len(set(names))
    case = dataclasses.replace(cases.CORRECTNESS[-1], rows=2, out=3, in_=4, slots=1, granule="element")
    assert case.flops() == 2 * 2 * 3 * 4
    assert case.bytes(4) == 4 * (2 * 4 + 2 * 3 + 1)


@pytest.mark.parametrize("granule", ["chunk", "element"])
@pytest.mark.parametrize("rows", [1, 3, 8, 64])
def test_coherent_data(granule: str, rows: int) -> None:
    """Data that lines up with a row or a column of V, as training makes it: signs do not cancel, roundings add up."""
    depth, width, seed = 4096, 64, 3
    bank = torch.rand(1024) + 0.5
    wide = hashing.virtual_weight(bank, width, depth, granule, seed)
    tall = hashing.virtual_weight(bank, depth, width, granule, seed)
    x, dy = wide[0].sign() * torch.rand(rows, depth), tall[:, 0].sign() * torch.rand(rows, depth)
    y = rd.hashed_linear(x, bank, width, granule=granule, seed=seed)
    assert_accurate(y, x.double() @ wide.double().T, x @ wide.T, "y")
    at = torch.zeros(rows, width, requires_grad=True)
    (dx,) = torch.autograd.grad(rd.hashed_linear(at, bank, depth, granule=granule, seed=seed), at, dy)
    assert_accurate(dx, dy.double() @ tall.double(), dy @ tall, "dx")


@pytest.mark.parametrize("shape", [(2, 3, 0), (0,), (4, 0)])
def test_no_inputs(shape: tuple[int, ...]) -> None:
    """No input features: the bias alone, as in torch."""
    bias = torch.randn(5)
    y = rd.hashed_linear(torch.empty(shape), torch.randn(16), 5, bias=bias)
    torch.testing.assert_close(y, bias.expand(*shape[:-1], 5))
