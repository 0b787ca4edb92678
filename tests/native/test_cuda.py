"""The CUDA kernels of the hashed linear passes on the host: the contract, three orders of threads, sanitizers, traces.

PYTHONPATH=tests python -m native.test_cuda --write        rewrite trace_budget.json: a rise is a diff to defend
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import subprocess
import sys

import pytest
import torch
from contract import Contract, over
from native import make, mutants
from torch import Tensor

import rdkernels as rd
from rdkernels import hashing, registry
from rdkernels.ops.hashed_linear import KERNEL_DTYPES, PATHS
from rdkernels.ops.hashed_linear.cases import CORRECTNESS, HashedLinearCase

BUDGET = pathlib.Path(__file__).with_name("trace_budget.json")
DTYPES = ("bf16", "half", "fp32", "tf32")
PASSES = ("fwd", "bwd_x", "bwd_bank")
SCHEDULES = {"forward, copies late": (0, 0), "reverse, copies early": (1, 1), "random": (2, 2)}


@pytest.fixture(scope="session", autouse=True)
def cuda(need) -> None:
    need("nvcc", make.cuda_home() is not None, make.CUDA_MISSING)


# -- the contract, with the emulated kernels in the native backend's place ---------------------------------------------


def array(t: Tensor):
    return (t.view(torch.uint16) if t.dtype == torch.bfloat16 else t).numpy()


def whole(t: Tensor) -> Tensor:
    """Contiguous and aligned, as the operator hands a bank and a bias to the launches."""
    t = t.contiguous()
    return t.clone() if t.data_ptr() % 16 else t


def emulated(module, name: str, taken: list[str]):
    """Pass `name` by the module's kernels; the path of each call is noted in `taken`."""

    def run(*args) -> Tensor:
        if args[0].shape[0] == 0 and name != "bwd_bank":
            taken.append("none")
            return args[0].new_empty(0, args[3 if name == "fwd" else 2])
        given = [array(a if a.dim() > 1 else whole(a)) if isinstance(a, Tensor) else a for a in args]
        made, path = getattr(module, name)(*given)
        taken.append(PATHS[path])
        t = torch.from_numpy(made)
        return t.view(torch.bfloat16) if args[0].dtype == torch.bfloat16 else t

    return run


def serves(x: Tensor, *_) -> bool:
    return x.dtype in KERNEL_DTYPES and x.device.type == "cpu"


@pytest.fixture(scope="session")
def module(load):
    return load("cuda_values")


@pytest.fixture
def paths(module, monkeypatch) -> list[str]:
    """The native backend of the hashed passes is the emulation."""
    taken: list[str] = []
    for name in PASSES:
        backend = registry.Backend(serves, emulated(module, name, taken))
        monkeypatch.setitem(registry._PASSES[f"hashed_linear_{name}"], "native", backend)
    return taken


class Emulated(Contract):
    op = "hashed_linear"
    cases = CORRECTNESS
    smoke = ("element-few", "chunk-medium", "tile-few")
    backends = ("native",)
    test_backend_is_here = test_backend_is_here_on_cuda = test_inductor = None


@pytest.fixture(autouse=True)
def at_random(module) -> None:
    module.configure(order=2, block_order=2, cp_early=2, strict_exit=True)


@pytest.mark.usefixtures("paths")
class TestHostRun(Emulated):
    """The whole contract, threads and blocks in random order."""


@pytest.mark.usefixtures("paths")
@pytest.mark.parametrize("order,early", list(SCHEDULES.values())[:2], ids=list(SCHEDULES)[:2])
class TestOrders(Emulated):
    """Values under the two other orders."""

    test_layouts = test_double_backward = test_gradcheck = test_opcheck = test_compile = test_autocast = None
    test_deterministic = test_batch_split = test_nan_and_inf = None

    @over()
    def test_accuracy(self, lane, case, order, early, module) -> None:
        module.configure(order=order, block_order=order, cp_early=early, strict_exit=True)
        super().test_accuracy(lane, case)


LARGEST = next(case for case in CORRECTNESS if case.name == "tile-many")


@pytest.mark.parametrize("rows", [1, 8, 9, 16, 17, 64, 65])
@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
def test_path(rows: int, dtype: torch.dtype, module, paths) -> None:
    """Few rows end where the registers do: 16 on tensor cores, 8 in fp32."""
    case = dataclasses.replace(LARGEST, rows=rows)
    tensors = {name: t.requires_grad_() for name, t in case.tensors(dtype).items()}
    with rd.use("native"):
        case.run(tensors).sum().backward()
    few = rows <= (8 if dtype == torch.float32 else 16)
    assert paths == ["few_rows" if few else "many_rows"] * 2 + ["bank_grad"]


@pytest.mark.parametrize("granule", ["element", "chunk", "tile"])
def test_bank_in_shared_memory(granule: str, module) -> None:
    """A bank that fits and is read often is copied once a CTA (the trace's budget names those reads): the same bits."""
    case = HashedLinearCase.square(512, 3, granule, 64)
    t, (go, gi) = case.tensors(torch.bfloat16), hashing.resolve_granule(granule)
    args = array(t["x"]), array(t["bank"]), None, case.out, go, gi, case.seed, 1.0, False
    copied, _ = module.fwd(*args)
    in_place, _ = module.fwd(*args, shared_limit=2 * t["bank"].numel())  # room for the bank alone
    assert (copied == in_place).all()
    budget = json.loads(BUDGET.read_text())
    assert any(f"bf16 {granule}-few | weights.cuh" in key and "ld shared" in key for key in budget)


# -- the same on exactly-sized buffers, in every build -----------------------------------------------------------------


@pytest.mark.parametrize("how", make.SIMT_BUILDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order,early", SCHEDULES.values(), ids=SCHEDULES)
def test_program(how: str, dtype: str, order: int, early: int, drive) -> None:
    """Right, in bounds, defined; in the trace no race within or between blocks and no read of what nobody wrote."""
    done = drive(f"cuda_{how}", dtype, str(order), str(early))
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and not done.stderr, done.stdout[-3000:] + done.stderr[-3000:]
    assert len(lines) == 30 and all(line.endswith(" ok") for line in lines), done.stdout


def conflicts(program: str, drive, dtype: str = "bf16") -> dict[str, float]:
    """`problem | file: text of the line | op space bytes` -> sectors or wavefronts a request, to the fewest."""
    done = drive(program, dtype, "0", "0", "even")
    found: dict[str, float] = {}
    for line in done.stdout.splitlines():
        if not line.startswith("line "):
            continue
        _, problem, file, number, op, space, size, ratio = line.split()
        text = source_line(program, file, int(number))
        key = f"{dtype} {problem} | {pathlib.Path(file).name}: {text} | {op} {space} {size}"
        found[key] = max(found.get(key, 0.0), round(float(ratio), 2))
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    return found


def source_line(program: str, file: str, number: int) -> str:
    """A line of the kernels, of a mutant's own copy where it has one, or of the emulation."""
    own = make.BUILD / "mutants" / program.split("_")[1]
    folders = (own, make.ROOT / "csrc", make.HERE)
    path = next(path for folder in folders for path in sorted(folder.rglob(pathlib.Path(file).name)))
    return path.read_text().splitlines()[number - 1].strip()


def over(found: dict[str, float], budget: dict[str, float]) -> list[str]:
    """What stands above its budget by more than 2 % or has none."""
    return [
        f"{key}: {value}, budget {budget.get(key)}" for key, value in found.items() if value > 1.02 * budget.get(key, 0)
    ]


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_trace_budget(dtype: str, drive) -> None:
    """Sectors per request and bank conflicts of every source line, on problems of whole blocks."""
    budget = json.loads(BUDGET.read_text())
    found = conflicts("cuda_trace", drive, dtype)
    assert not (risen := over(found, budget)), "\n".join(risen)
    gone = [key for key in budget if key.startswith(dtype) and key not in found]
    assert not gone, "no longer there; rewrite the budget: " + "\n".join(gone)


# -- mutants -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", range(len(mutants.MUTANTS)), ids=[m.name for m in mutants.MUTANTS])
def test_mutant_is_caught(n: int, drive) -> None:
    """Each rung that a mutant names sees it: wrong values, a sanitizer's report, a race, or a broken budget."""
    for rung in mutants.MUTANTS[n].caught_by:
        if rung == "budget":
            budget = json.loads(BUDGET.read_text())
            values = conflicts(f"mutant_{n}_trace", drive)
            assert any("shared" in key and value > 2 * budget.get(key, value) for key, value in values.items())
            continue
        sign = {"values": " wrong | simt:", "asan": "AddressSanitizer", "trace": "^race: "}[rung]
        seen = [drive(f"mutant_{n}_{rung}", "bf16", str(order), str(early)) for order, early in SCHEDULES.values()]
        assert any(done.returncode and re.search(sign, done.stdout + done.stderr, re.M) for done in seen), seen


if __name__ == "__main__":

    def drive_here(program: str, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([str(make.BUILD / program), *arguments], capture_output=True, text=True)

    make.build("cuda_trace")
    budget = {
        key: value for dtype in ("bf16", "fp32") for key, value in conflicts("cuda_trace", drive_here, dtype).items()
    }
    if "--write" in sys.argv:
        BUDGET.write_text(json.dumps(dict(sorted(budget.items())), indent=0) + "\n")
    else:
        print(json.dumps(budget, indent=1))
