"""The kernels under the sanitizers and on an emulated CPU: check.cpp, with the faults that each checker must find."""

import shutil

import pytest
from native import make

KERNELS = ("bank_grad", "few_rows", "few_rows_grad", "many_rows", "many_rows_grad")
FAULTS = {"load": "heap-buffer-overflow", "shift": "shift exponent", "value": "wrong"}


def all_right(done) -> None:
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    assert [line.split()[2] for line in done.stdout.splitlines()] == sorted(KERNELS), done.stdout
    print(done.stdout)


def found(fault: str, done) -> None:
    assert done.returncode != 0 and FAULTS[fault] in done.stdout + done.stderr, done.stdout + done.stderr
    assert fault != "value" or " 0 wrong" not in done.stdout, done.stdout


@pytest.mark.parametrize("variant", [v for v in make.SANITIZED if make.runs_here(v)])
def test_sanitizers(variant: str, drive) -> None:
    """Exactly-sized buffers, ragged problems, every kernel: in bounds, defined, right."""
    all_right(drive(make.DRIVERS[variant]))


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("variant", [v for v in make.SANITIZED if make.runs_here(v)])
def test_faults_are_found(fault: str, variant: str, drive) -> None:
    """Negative controls: a row's tail read as a whole vector, a shift by 64, a wrong weight."""
    found(fault, drive(make.DRIVERS[variant], f"--break={fault}"))


def test_neon(drive, need) -> None:
    """aarch64 under an emulator; wrong numbers are found there too."""
    tools = {"qemu-aarch64-static": "qemu-user-static", make.CROSS: "g++-aarch64-linux-gnu"}
    missing = [package for tool, package in tools.items() if not shutil.which(tool)]
    need("native", not missing, f"apt-get install {' '.join(missing)}")
    all_right(drive("check_neon", under=("qemu-aarch64-static",)))
    found("value", drive("check_neon", "--break=value", under=("qemu-aarch64-static",)))
