"""Which variants run here; what the compiler made of AVX-512, read from the test module where it does not."""

import platform
import re
import shutil
import subprocess

import pytest
from native import make

JUMP = re.compile(r"j\w+\s+([0-9a-f]+)")


def loops(instructions: list[tuple[int, str]]) -> list[list[str]]:
    """The innermost loops of a function: from a backward jump's target to the jump, none inside another."""
    found = []
    for n, (at, text) in enumerate(instructions):
        jump = JUMP.match(text)
        if jump and (target := int(jump[1], 16)) <= at:
            body = [m for m, (where, _) in enumerate(instructions) if target <= where and m <= n]
            if not any(set(inner) <= set(body) for inner in found):
                found.append(body)
    return [[instructions[n][1] for n in body] for body in found]


@pytest.mark.parametrize("variant", make.VARIANTS)
def test_runs_here(variant: str) -> None:
    """One visible skip per instruction set that nothing here was run on."""
    if not make.runs_here(variant):
        pytest.skip(f"this CPU lacks {variant}: compiled and read, not run (`wide` runs the source that AVX-512 gets)")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="AVX-512 is x86")
@pytest.mark.parametrize("packed", ["false", "true"])
def test_micro_kernel(packed: str, built, need) -> None:
    """The 12 x 32 loop: 24 multiply-adds on as many registers, 12 broadcasts, no vector on the stack."""
    need("native", bool(shutil.which("objdump")), "apt-get install binutils")
    (module,) = make.BUILD.glob(f"{make.MODULES['avx512']}.*so")
    text = subprocess.run(["objdump", "-dC", "--no-show-raw-insn", module], capture_output=True, text=True).stdout
    code = re.search(rf"<void rdk::micro<12, 2, {packed}>.*>:\n((?:.+\n)+)", text)
    assert code, "no function micro<12, 2>"
    lines = re.findall(r"^\s*([0-9a-f]+):\s+(.*?)\s*$", code[1], re.MULTILINE)
    (loop,) = [x for x in loops([(int(at, 16), op) for at, op in lines]) if any("vfmadd" in op for op in x)]
    sums = [re.search(r"(%zmm\d+)$", op)[1] for op in loop if op.startswith("vfmadd")]
    broadcasts = [op for op in loop if op.startswith("vbroadcastss") or "{1to16}" in op]
    assert len(sums) == len(set(sums)) == 24 and len(broadcasts) == 12, loop
    assert not [op for op in loop if "zmm" in op and "(%rsp" in op], loop
    assert len(loop) <= 48, loop
