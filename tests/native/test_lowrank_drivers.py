"""The low-rank kernels under the sanitizers and on an emulated CPU: lowrank_check.cpp, with the faults to be found."""

import shutil

import pytest
from native import make

KERNELS = {"bicluster", "cp", "few rows", "many rows", "monochromatic", "separable", "tap grads", "tucker"}
PARTS = {"bf16 loads", "bf16 stores", "erf", "exp", "fp16 loads", "fp16 stores", "gelu", "none", "partial", "phases"}
PARTS |= {"relu", "silu"}
FAULTS = {"load": "READ of size", "store": "WRITE of size", "skip": "wrong", "value": "wrong"}


def tallies(text: str) -> set[str]:
    """What was checked: the name in each line of `<n> lanes  <name>  <n> problems ...`."""
    return {line.split("  ")[1] for line in text.splitlines()}


def all_right(done) -> None:
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    assert tallies(done.stdout) == KERNELS | PARTS, done.stdout
    print(done.stdout)


def found(fault: str, done) -> None:
    assert done.returncode != 0 and FAULTS[fault] in done.stdout + done.stderr, done.stdout + done.stderr
    if FAULTS[fault] == "wrong":  # by every comparison
        assert tallies(done.stdout) == KERNELS | (PARTS if fault == "value" else set()), done.stdout
        assert " 0 wrong" not in done.stdout, done.stdout


@pytest.mark.parametrize("variant", [v for v in make.SANITIZED if make.runs_here(v)])
def test_sanitizers(variant: str, drive) -> None:
    """Exactly-sized buffers, ragged problems, every kernel and dtype, however cut: in bounds, defined, right."""
    all_right(drive(make.LOWRANK_DRIVERS[variant]))


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("variant", [v for v in make.SANITIZED if make.runs_here(v)])
def test_faults_are_found(fault: str, variant: str, drive) -> None:
    """Negative controls: x and y that end an element early, a task left out, a factor that is a hundredth off."""
    found(fault, drive(make.LOWRANK_DRIVERS[variant], f"--break={fault}"))


def test_neon(drive, need) -> None:
    """aarch64 under an emulator; wrong numbers are found there too."""
    tools = {"qemu-aarch64-static": "qemu-user-static", make.CROSS: "g++-aarch64-linux-gnu"}
    missing = [package for tool, package in tools.items() if not shutil.which(tool)]
    need("native", not missing, f"apt-get install {' '.join(missing)}")
    all_right(drive("lowrank_check_neon", under=("qemu-aarch64-static",)))
    found("value", drive("lowrank_check_neon", "--break=value", under=("qemu-aarch64-static",)))
