"""Every Triton kernel compiled without a GPU for four targets and held to `budget.json`.

    python -m bench.static.room --write       rewrite the budget: a rise is a diff to defend

The numbers belong to the Triton version named in the budget; another version is compiled, and held to what must be true
of any (tensor-core instructions, no atomics, no spills), but not to the numbers.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).resolve()
BUDGET = HERE.with_name("budget.json")
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
HELD = ("registers", "spills", "shared", "instructions")


def over(measured: dict, budget: dict) -> list[str]:
    """What stands above its budget, each with kernel and target."""
    return [
        f"{name} on {target}: {key} {found[key]}, budget {allowed}"
        for name, targets in measured["kernels"].items()
        for target, found in targets.items()
        for key in HELD
        if (allowed := budget["kernels"].get(name, {}).get(target, {}).get(key, -1)) < found[key]
    ]


@pytest.fixture(scope="session")
def measured(need) -> dict:
    need("triton", importlib.util.find_spec("triton") is not None, "not installed")
    kept = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.static.room"]
    done = subprocess.run(command, cwd=HERE.parents[1], env=kept, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def test_compiles_within_the_budget(measured):
    budget = json.loads(BUDGET.read_text())
    if measured["triton"] != budget["triton"]:
        pytest.skip(f"the budget is for Triton {budget['triton']}, this is {measured['triton']}")
    assert not (risen := over(measured, budget)), "\n".join(risen)
    assert measured["kernels"].keys() == budget["kernels"].keys(), "run: python -m bench.static.room --write"


def test_compiles_to_tensor_cores_where_it_can(measured):
    for name, targets in measured["kernels"].items():
        for target, found in targets.items():
            tensor = ("bf16" in name or "fp16" in name) and not name.endswith("-1")
            assert (found["mma"] > 0) == tensor or (target == "gfx942" and found["mma"] > 0), (name, target, found)


def test_compiles_without_atomics_or_spills(measured):
    for name, targets in measured["kernels"].items():
        for target, found in targets.items():
            assert found["atomics"] == 0 and found["spills"] == 0, (name, target, found)


def test_compiles_control_a_budget_below_the_truth_fails(measured):
    low = json.loads(json.dumps(measured))
    low["kernels"]["fwd-chunk-bf16-512"]["sm_90"]["registers"] -= 1
    (line,) = over(measured, low)
    assert line.startswith("fwd-chunk-bf16-512 on sm_90: registers")


def test_compiles_control_atomics_are_seen(tmp_path):
    code = """
import triton, triton.language as tl
from bench.static import room
@triton.jit
def add(p, BLOCK: tl.constexpr):
    tl.atomic_add(p + tl.arange(0, BLOCK) % 7, 1.0)
for target in {targets!r}:
    assert room.inspect(add, {{"p": "*fp32"}}, {{"BLOCK": 128}}, target, 4, 1)["atomics"] > 0, target
"""
    file = tmp_path / "atomic.py"
    file.write_text(code.format(targets=TARGETS))
    kept = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    kept["PYTHONPATH"] = str(HERE.parents[1])
    done = subprocess.run([sys.executable, str(file)], env=kept, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
