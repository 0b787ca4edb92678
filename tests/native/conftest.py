"""The compiled test modules and drivers."""

import functools
import importlib.util
import platform
import subprocess
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from native import make


@pytest.fixture(scope="session")
def built() -> None:
    """Everything compiled, two at a time."""
    make.build()


@pytest.fixture(scope="session")
def runs() -> Callable[[str], None]:
    """`runs(variant)` skips a test whose instruction set this CPU lacks."""
    cpu = torch.cpu.get_capabilities()
    flag = {"avx2": "avx2", "wide": "avx2", "avx512": "avx512_f"} if platform.machine() == "x86_64" else {}

    def check(variant: str) -> None:
        if variant in flag and not cpu.get(flag[variant]):
            note = "; compiled and read only, `wide` runs its source" if variant == "avx512" else ""
            pytest.skip(f"{variant}: this CPU lacks it{note}")

    return check


@pytest.fixture(scope="session")
def load(built, runs) -> Callable[[str], ModuleType]:
    """`load(variant)` imports its test module."""

    @functools.cache
    def module(variant: str) -> ModuleType:
        runs(variant)
        (file,) = make.BUILD.glob(f"{make.MODULES[variant]}.*so")
        spec = importlib.util.spec_from_file_location(make.MODULES[variant], file)
        made = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(made)
        return made

    return module


@pytest.fixture(scope="session", params=make.VARIANTS)
def probe(request, load) -> ModuleType:
    """The test module of each variant."""
    return load(request.param)


@pytest.fixture
def drive(built):
    """`drive(driver, *arguments, under=[emulator])` runs a driver to its end."""

    def run(driver: str, *arguments: str, under: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
        env = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=0"}
        command = [*under, str(make.BUILD / driver), *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)

    return run
