"""Every CUDA kernel compiled without a GPU for three targets, held to `budget_cuda.json` and to what must be true.

    make budget       rewrite the budget: a rise is a diff to defend

The numbers belong to the nvcc version named in the budget; another version's are held to the rest only.
"""

from __future__ import annotations

import copy
import json
import re

import pytest

from bench.static import bounds, cubin, cuda

HELD = ("registers", "spills", "shared", "instructions", "loop", "extra")
GOALS = {"tile": 1.6, "chunk": 2.6, "element": 17.0}  # instructions per virtual weight beyond the dense twin's
MANY = "many_rows<Block<bf16, tensor, 128, 128>, Forward, tile>"
CHAIN = "chain<Chain<bf16, tensor>, {room}<Chain<bf16, tensor>>>"
ROOMS = ("Lines", "Depthwise", "Core")
MAIN = re.compile(r"many_rows<Block<(?:bf16|fp16), tensor, 128, 128>, \w+, (\w+)>")


def faults(measured: dict) -> list[str]:
    """What no kernel may do, each with kernel and target."""
    found = []
    for name, targets in measured["kernels"].items():
        for target, entry in targets.items():
            loads = {key: n for key, n in entry["moves"].items() if key.startswith("LDG.")}
            granule = name.rstrip(">").split(", ")[-1]
            wide = name.startswith("many_rows<") and granule in ("tile", "chunk", "any")
            says = {
                "spills": entry["spills"] > 0 or entry["stack"] > 0,
                "has atomics": entry["atomics"] > 0,
                "has opcodes of no known pipe": bool(entry["unknown"]),
                "no tensor cores": bool(re.search(r"\b(tensor|tf32)\b", name)) and entry["mma"] == 0,
                "loads the bank in pieces": wide and loads.keys() != {"LDG.128"},
                "hides a loop in the hot one": name.startswith(("many_rows<", "bank_panel<")) and entry["nested"] > 0,
            }
            if goal := MAIN.fullmatch(name):
                most = GOALS.get(goal[1], float("inf"))
                says[f"costs {entry.get('extra')} instructions a weight, goal {most}"] = entry["extra"] > most
            found += [f"{name} on {target}: {text}" for text, wrong in says.items() if wrong]
    return found


def over(measured: dict, budget: dict) -> list[str]:
    """What stands above its budget, each with kernel and target."""
    return [
        f"{name} on {target}: {key} {entry[key]}, budget {allowed}"
        for name, targets in measured["kernels"].items()
        for target, entry in targets.items()
        for key in HELD
        if key in entry and (allowed := budget["kernels"].get(name, {}).get(target, {}).get(key, -1)) < entry[key]
    ]


@pytest.fixture(scope="session")
def toolkit(need) -> str:
    version = cuda.nvcc()
    need(
        "nvcc", version is not None, "no nvcc: install a CUDA toolkit, or set CUDA_HOME to one (compiling needs no GPU)"
    )
    need("nvcc", (cubin.TOOLS / "nvdisasm").exists(), "no nvdisasm: it comes with the triton package")
    return version


@pytest.fixture(scope="session")
def measured(toolkit) -> dict:
    return cuda.measure()


def test_cuda_compiles_within_the_budget(measured):
    budget = json.loads(cuda.BUDGET.read_text())
    if measured["nvcc"] != budget["nvcc"]:
        pytest.skip(f"the budget is for nvcc {budget['nvcc']}, this is {measured['nvcc']}")
    assert not (risen := over(measured, budget)), "\n".join(risen)
    assert measured["kernels"].keys() == budget["kernels"].keys(), "run: make budget"


def test_cuda_compiles_to_what_it_must(measured):
    assert not (found := faults(measured)), "\n".join(found)


def test_cuda_compiles_every_kernel_for_every_target(measured):
    names = measured["kernels"].keys()
    assert {MANY, "bank_owner<bf16, tensor>", "few_rows<bf16, tile, false>"} <= names
    assert {CHAIN.format(room=room) for room in ROOMS} <= names
    for targets in measured["kernels"].values():
        assert targets.keys() == {gpu.arch for gpu in bounds.GPUS}


def test_cuda_compiles_chains_to_a_last_product_no_dearer_than_the_dense_twin(measured):
    """Instructions of the loop of 64 pixels by 128 channels by 64 deep; the dense one gathers x as it goes."""
    (dense,) = [entry for name, entry in measured["kernels"].items() if name == "dense_conv<Chain<bf16, tensor>>"]
    for room in ROOMS:
        for target, entry in measured["kernels"][CHAIN.format(room=room)].items():
            assert entry["loop"] <= dense[target]["loop"], (room, target)


def test_cuda_compiles_control_a_budget_below_the_truth_fails(measured):
    low = copy.deepcopy(measured)
    low["kernels"][MANY]["sm_90"]["registers"] -= 1
    (line,) = over(measured, low)
    assert line.startswith(f"{MANY} on sm_90: registers")


def test_cuda_compiles_control_a_missed_goal_is_seen(measured):
    slow = copy.deepcopy(measured)
    slow["kernels"][MANY]["sm_90"]["extra"] = 1.7
    assert f"{MANY} on sm_90: costs 1.7 instructions a weight, goal 1.6" in faults(slow)


CONTROLS = """
extern "C" __global__ void __launch_bounds__(128) atomic_add(float* to) { atomicAdd(to + threadIdx.x % 7, 1.0f); }
extern "C" __global__ void __launch_bounds__(1024, 2) spilling(const float* x, float* y, int n) {
  float v[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) v[i] = x[threadIdx.x + i * n];
  for (int k = 0; k < n; ++k) {
#pragma unroll
    for (int i = 0; i < 64; ++i) v[i] = v[i] * v[(i + 17) % 64] + x[k];
  }
#pragma unroll
  for (int i = 0; i < 64; ++i) y[threadIdx.x + i * n] = v[i];
}
extern "C" __global__ void __launch_bounds__(128) narrow(const unsigned* x, unsigned* y, int n) {
  unsigned sum = 0;
  for (int i = threadIdx.x; i < n; i += 128) sum = sum * 3 + x[i];
  y[threadIdx.x] = sum;
}
"""


@pytest.fixture(scope="session")
def controls(toolkit, tmp_path_factory) -> dict:
    """Kernels that must be refused, as entries of `measured["kernels"]` by name."""
    folder = tmp_path_factory.mktemp("controls")
    source = folder / "controls.cu"
    source.write_text(CONTROLS)
    found = {}
    for gpu in bounds.GPUS:
        (made,) = cuda.compile_([(source, gpu.arch)], folder)
        for kernel in cubin.read(made):
            found.setdefault(kernel.name, {})[gpu.arch] = {**cuda.count(gpu, kernel, 0), "extra": 0.0}
    return found


@pytest.mark.parametrize(
    ("kernel", "fault"),
    [
        ("atomic_add", "has atomics"),
        ("spilling", "spills"),
        ("narrow", "loads the bank in pieces"),
        ("narrow", "no tensor cores"),
    ],
)
def test_cuda_compiles_control_is_refused(controls, kernel, fault):
    for target, entry in controls[kernel].items():
        assert f"{MANY} on {target}: {fault}" in faults({"kernels": {MANY: {target: entry}}})
