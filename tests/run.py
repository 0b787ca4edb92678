"""Every test, in every mode that this machine can run; then what was left out and how to get it.

    python tests/run.py [pytest arguments]

A mode is one pytest process: the machine's own instruction set; the native test programs; each lower set, for the
native kernels; the Triton kernels under the interpreter. The first runs beside the others, which print when they end.
`RDK_REQUIRE=native,triton` makes a missing backend a failure in the mode that has it.
"""

import collections
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from typing import IO

import torch

ROOT = pathlib.Path(__file__).resolve().parents[1]
LADDER = {"AVX512": ["avx2", "default"], "AVX2": ["default"]}
FETCH = "apt-get download {0} && dpkg -x {0}_*.deb FOLDER, then put FOLDER/usr/bin on PATH (no root needed)"
TOOLS = {
    "qemu-aarch64-static": FETCH.format("qemu-user-static"),
    "aarch64-linux-gnu-g++": "apt-get install g++-aarch64-linux-gnu",
    "clang-format": "pip install clang-format",
    "ninja": "pip install ninja",
}


def modes() -> list[tuple[str, dict[str, str], list[str]]]:
    """Name, environment and pytest arguments of every mode."""
    capability = torch.backends.cpu.get_cpu_capability()
    kernels = "native and not (compile or inductor or opcheck)"  # those ask the operators, not the instructions
    lower = [
        (f"native kernels, {isa}", {"ATEN_CPU_CAPABILITY": isa}, ["--ignore=tests/native", "-k", kernels])
        for isa in LADDER.get(capability, [])
    ]
    interpreter = (
        "Triton interpreter",
        {"TRITON_INTERPRET": "1"},
        ["--ignore-glob=tests/test_triton*.py", "-k", "triton"],
    )
    own = f"all tests, {capability.lower()}"
    if sys.argv[1:]:
        return [(own, {}, []), *lower, interpreter]
    programs = ("native test programs", {}, ["tests/native"])
    return [(own, {}, ["--ignore=tests/native"]), programs, *lower, interpreter]


def required(environment: dict[str, str]) -> str:
    """`RDK_REQUIRE` without the backend that a mode cannot have: Triton runs on a CPU under its interpreter only."""
    names = [name for name in os.environ.get("RDK_REQUIRE", "").split(",") if name]
    return ",".join(n for n in names if n != "triton" or "TRITON_INTERPRET" in environment or torch.cuda.is_available())


def run(name: str, environment: dict[str, str], arguments: list[str], output: IO[str]) -> collections.Counter:
    """Run one mode: the counts of its outcomes, with skips by reason; a process that broke counts as a failure."""
    print(f"\n===== {name} =====", file=output, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *arguments, *sys.argv[1:]]
        env = {**os.environ, **environment, "RDK_REQUIRE": required(environment)}
        code = subprocess.run(command, cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT).returncode
        counts: collections.Counter = collections.Counter()
        for case in ElementTree.parse(report).iter("testcase") if report.exists() else ():
            skip = case.find("skipped")
            if skip is not None:
                counts["skipped"] += 1
                counts["because", skip.get("message", "")] += 1
            elif case.find("failure") is not None or case.find("error") is not None:
                counts["failed"] += 1
            else:
                counts["passed"] += 1
    if code not in (0, 5) and not counts["failed"]:  # 5: nothing was selected
        counts["failed"] += 1
    return counts


def main() -> int:
    total: collections.Counter = collections.Counter()
    lines = []
    first, *others = modes()
    with tempfile.TemporaryFile("w+") as aside, ThreadPoolExecutor(2) as lanes:
        beside = lanes.submit(lambda: [run(*mode, aside) for mode in others])
        outcomes = [run(*first, sys.stdout), *beside.result()]
        aside.seek(0)
        shutil.copyfileobj(aside, sys.stdout)
    for (name, environment, _), counts in zip([first, *others], outcomes, strict=True):
        lines.append(f"{name:<28} " + ", ".join(f"{counts[k]} {k}" for k in ("passed", "failed", "skipped")))
        total += counts
        interpreted = "TRITON_INTERPRET" in environment and counts["passed"] > 0
    print("\n===== left out =====")
    for key, count in total.items():
        if isinstance(key, tuple):
            elsewhere = " (the interpreter's mode ran it)" if key[1].startswith("triton:") and interpreted else ""
            print(f"{count:4} x {key[1]}{elsewhere}")
    for tool, how in TOOLS.items():
        if not shutil.which(tool, path=f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"):
            print(f"     {tool} is not here: {how}")
    if not torch.cuda.is_available():
        print("     no GPU: Triton kernels ran under the interpreter and were compiled, never timed")
        print("     on a machine with a GPU, `make gpu-check` confirms them and the CUDA kernels")
    print("\n===== modes =====", *lines, sep="\n")
    print(f"\n{total['skipped']} skipped, named above")
    print(f"{total['passed']} passed, {total['failed']} failed")
    return 1 if total["failed"] or not total["passed"] else 0


if __name__ == "__main__":
    sys.exit(main())
