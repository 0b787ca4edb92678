"""The kernels under the sanitizers and on emulated CPUs: check.cpp, with the faults that each checker must find."""

import platform
import shutil

import pytest
from native import make

KERNELS = ("bank_grad", "few_rows", "few_rows_grad", "many_rows", "many_rows_grad")
FAULTS = {"load": "heap-buffer-overflow", "shift": "shift exponent"}


def all_right(done) -> None:
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    assert [line.split()[2] for line in done.stdout.splitlines()] == sorted(KERNELS), done.stdout
    print(done.stdout)


@pytest.mark.parametrize("variant", make.SANITIZED)
def test_sanitizers(variant: str, drive, runs) -> None:
    """Exactly-sized buffers, ragged problems, every kernel: in bounds, defined, right."""
    runs(variant)
    all_right(drive(make.DRIVERS[variant]))


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("variant", make.SANITIZED)
def test_sanitizers_find(fault: str, variant: str, drive, runs) -> None:
    """Negative controls: a tail read as a whole vector, a shift by 64."""
    runs(variant)
    done = drive(make.DRIVERS[variant], f"--break={fault}")
    assert done.returncode != 0 and FAULTS[fault] in done.stderr, done.stdout + done.stderr


EMULATED = {"check_neon": ["qemu-aarch64-static"], "check_plain": ["qemu-x86_64-static", "-cpu", "Nehalem"]}


@pytest.mark.parametrize("driver", EMULATED)
def test_emulated(driver: str, drive, need) -> None:
    """aarch64 with NEON, and x86 without AVX; one wrong weight is found there too."""
    if driver == "check_plain" and platform.machine() != "x86_64":
        pytest.skip("the base build of this machine is no x86")
    tools = {EMULATED[driver][0]: "qemu-user-static", make.CROSS: "g++-aarch64-linux-gnu"}
    missing = [package for tool, package in tools.items() if not shutil.which(tool)]
    need("native", not missing, f"apt-get install {' '.join(missing)}")
    all_right(drive(driver, under=EMULATED[driver]))
    done = drive(driver, "--break=value", under=EMULATED[driver])
    assert done.returncode == 1 and " 0 wrong" not in done.stdout, done.stdout + done.stderr
