"""Runs the Triton kernels: `triton_suite.py`, each time in a process of its own, for the mode is chosen at import."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest
import torch

import rdkernels as rd
from rdkernels.ops.hashed_linear import triton as room
from rdkernels.ops.hashed_linear.cases import CORRECTNESS

ROOT = pathlib.Path(__file__).resolve().parents[1]
SUITE = str(pathlib.Path(__file__).with_name("triton_suite.py"))
HOW = (
    "pip install ttsem==0.1.0, on Python < 3.12: pip download --no-deps --python-version 3.13 --only-binary=:all: "
    "ttsem==0.1.0, then pip install --no-deps --ignore-requires-python ttsem-0.1.0-py3-none-any.whl"
)


def suite(mode: str, module: list[str], **environment: str) -> None:
    kept = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "RDKERNELS_BACKEND", "RDK_REQUIRE")}
    command = [sys.executable, "-m", *module, SUITE, "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        command, cwd=ROOT, env={**kept, **environment, "RDK_TRITON_MODE": mode}, capture_output=True, text=True
    )
    assert done.returncode == 0 and " passed" in done.stdout, f"{mode}:\n{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    assert "too large to be checked for races" not in done.stdout, done.stdout[-2000:]


@pytest.fixture(autouse=True)
def installed(need):
    need("triton", importlib.util.find_spec("triton") is not None, "not installed")


if "TRITON_INTERPRET" not in os.environ:  # the mode that interprets the contract suite need not repeat these

    def test_triton_interpreter():
        suite("interpreter", ["pytest"], TRITON_INTERPRET="1")

    def test_triton_ttsem(need):
        need("ttsem", importlib.util.find_spec("ttsem") is not None, f"not installed; {HOW}")
        suite("ttsem", ["ttsem.sanitize", "pytest"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_triton_gpu():
    suite("gpu", ["pytest"])


def test_triton_is_attached_and_says_what_it_is():
    assert "triton" in rd.backends("hashed_linear")
    assert rd.build_info()["triton"] == room.status() and room.status()[0].isdigit()


def test_triton_import_is_light():
    code = "import sys, rdkernels; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], cwd=ROOT).returncode == 0


def test_triton_serves_the_cpu_only_when_interpreted(monkeypatch):
    x = torch.empty(1, 1)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not room._serves(x)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert room._serves(x) and room._serves(x.bfloat16()) and not room._serves(x.double())


def test_triton_config_is_pure_and_legal():
    correctness = [(c.rows, c.out, c.in_, rd.hashing.resolve_granule(c.granule)) for c in CORRECTNESS]
    large = [(m, 4096, 4096, g) for m in (1, 8, 64, 512) for g in ((1, 1), (1, 16), (32, 32), (128, 16), (16, 4096))]
    for rows, out, in_, (go, gi) in correctness + large:
        for name in ("fwd", "bwd_x", "bwd_bank"):
            for size in (2, 4):
                problem = (name, max(rows, 1), out, in_, go, gi, size)
                blocks = {room.config(*problem, arch) for arch in ("sm_80", "sm_90", "gfx942") for _ in range(2)}
                assert len({(c.bm, c.bn, c.bk, c.split) for c in blocks}) == 1
                for c in blocks:
                    assert all(n & (n - 1) == 0 for n in (c.bm, c.bn, c.bk)) and c.split >= 1
                    assert c.bk % 16 == 0 and (c.bm == 1 or min(c.bm, c.bn, c.bk) >= 16)


def test_triton_panels_are_a_bounded_part_of_the_layer():
    shapes = (4096, 4096, 1, 1), (4096, 4096, 1, 16), (3, 10**7, 1, 16), (10**6, 10**5, 4, 64), (5, 7, 1, 1)
    for n, k, go, gi in shapes:
        down, across = room.panel(n, k, go, gi)
        assert 1 <= down * across * go * gi <= max(1 << 16, min(n * k // 16, 1 << 20))
