"""The kernels under the sanitizers and on an emulated CPU: check.cpp, with the faults that each checker must find."""

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


def test_neon(drive, need) -> None:
    """aarch64 under an emulator; wrong numbers are found there too."""
    tools = {"qemu-aarch64-static": "qemu-user-static", make.CROSS: "g++-aarch64-linux-gnu"}
    missing = [package for tool, package in tools.items() if not shutil.which(tool)]
    need("native", not missing, f"apt-get install {' '.join(missing)}")
    all_right(drive("check_neon", under=("qemu-aarch64-static",)))
    done = drive("check_neon", "--break=value", under=("qemu-aarch64-static",))
    assert done.returncode == 1 and " 0 wrong" not in done.stdout, done.stdout + done.stderr
