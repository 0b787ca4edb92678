"""Imports go one way, and importing the package starts nothing."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "rdkernels"

#: What a part of the package may import of the package, besides itself.
MAY = {
    "hashing": set(),
    "native": set(),
    "registry": set(),
    "testing": set(),
    "ops": {"registry", "hashing", "testing"},
    "fits": {"ops", "hashing"},
    "planner": {"ops", "registry"},
    "nn": {"ops", "fits", "hashing", "planner"},
    "compress": {"ops", "nn", "fits", "hashing"},
    "analysis": {"ops", "nn", "compress", "fits", "hashing"},
    "distill": set(),
    "datasets": set(),
}
EVERYTHING = {"__init__", "__main__", "benchmark"}  # the top: the public names and the commands


def imported(path: pathlib.Path, root: pathlib.Path = PACKAGE.parent) -> set[str]:
    """Dotted names of the package's modules, and of tests and bench, that a file imports."""
    package = path.relative_to(root).with_suffix("").parts[:-1]
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            names |= {".".join([*base, alias.name]) for alias in node.names}
    return {name for name in names if name.split(".")[0] in ("rdkernels", "tests", "bench", "contract", "conftest")}


def trespasses(path: pathlib.Path, root: pathlib.Path = PACKAGE.parent) -> set[str]:
    """The imports of a file that the house forbids."""
    inside = path.relative_to(root / "rdkernels").with_suffix("").parts
    part, wrong = inside[0], set()
    for name in imported(path, root):
        top, *rest = name.split(".")
        if top != "rdkernels":
            wrong.add(name)
        elif part in EVERYTHING or not rest or rest[0] == part:
            room = len(rest) > 1 and (root / "rdkernels/ops" / rest[1]).is_dir()  # a module beside the rooms is shared
            if part == "ops" and room and inside != ("ops", "__init__") and rest[1] != inside[1]:
                wrong.add(name)  # a room, or what rooms share, imports a room
        elif rest[0] not in MAY[part]:
            wrong.add(name)
    return wrong


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path: pathlib.Path) -> None:
    assert trespasses(path) == set()


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("ops/one/__init__.py", "from ..two import f"),
        ("ops/one/triton.py", "from rdkernels.ops.two import f"),
        ("ops/shared.py", "from .two import f"),
        ("ops/one/__init__.py", "from ...nn import HashedLinear"),
        ("registry.py", "from . import native"),
        ("nn/hashed.py", "import rdkernels.registry"),
        ("hashing.py", "def f():\n    from .ops import hashed_linear"),
        ("native.py", "from tests import contract"),
        ("__main__.py", "import bench.conftest"),
    ],
)
def test_import_check_sees_a_trespass(tmp_path: pathlib.Path, file: str, line: str) -> None:
    """Negative control."""
    (tmp_path / "rdkernels/ops/two").mkdir(parents=True)
    path = tmp_path / "rdkernels" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line)
    assert trespasses(path, tmp_path)


INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.M)
# Between torch's tensors and the kernels.
TORCH_SIDE = ("tensor.h", "conv_tensor.h", "cuda_call.h", "chain_call.cuh", "checks.h")


def header_trespasses(text: str) -> list[str]:
    return [
        name for name in INCLUDE.findall(text) if name.startswith(("torch", "ATen", "c10")) or name.endswith(TORCH_SIDE)
    ]


@pytest.mark.parametrize("path", sorted((ROOT / "csrc").rglob("*.*h")), ids=lambda p: str(p.relative_to(ROOT)))
def test_kernel_headers_know_no_torch(path: pathlib.Path) -> None:
    if path.name not in TORCH_SIDE:
        assert header_trespasses(path.read_text()) == []
    rooms = {p.name for p in (ROOT / "csrc").iterdir() if p.is_dir()}
    used = {name.split("/")[0] for name in INCLUDE.findall(path.read_text())} & rooms
    assert used <= {"common", path.parent.name}


def test_header_check_sees_torch() -> None:
    """Negative control."""
    assert header_trespasses("#pragma once\n #include <torch/csrc/stable/tensor.h>\n") == ["torch/csrc/stable/tensor.h"]
    assert header_trespasses('#include "common/tensor.h"') == ["common/tensor.h"]
    assert header_trespasses('#include <cstdint>\n#include "common/vec.h"') == []


START = """
import random, sys, torch
state, pythons = torch.get_rng_state(), random.getstate()
threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
import rdkernels
assert torch.equal(state, torch.get_rng_state()) and random.getstate() == pythons
assert not torch.cuda.is_initialized()
assert torch.get_num_threads() == threads and torch.get_default_dtype() == dtype
assert not {"torch._dynamo", "torch._inductor", "matplotlib", "rich", "scipy", "sklearn", "pytest"} & set(sys.modules)
"""


def test_importing_starts_nothing() -> None:
    """No print, no CUDA call, no compile, no random state, no heavy module."""
    done = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
