"""The compiled test modules and drivers."""

import functools
import importlib.util
import subprocess
from collections.abc import Callable
from types import ModuleType

import pytest
from native import make


@pytest.fixture(scope="session")
def built() -> None:
    """Everything compiled, two at a time."""
    make.build()


@pytest.fixture(scope="session")
def load(built) -> Callable[[str], ModuleType]:
    """`load(name)` imports a test module, or that of a variant."""

    @functools.cache
    def module(name: str) -> ModuleType:
        name = make.MODULES.get(name, name)
        (file,) = make.BUILD.glob(f"{name}.*so")
        spec = importlib.util.spec_from_file_location(name, file)
        made = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(made)
        return made

    return module


@pytest.fixture(scope="session", params=[v for v in make.VARIANTS if make.runs_here(v)])
def probe(request, load) -> ModuleType:
    """The test module of each variant that runs here."""
    return load(request.param)


@pytest.fixture
def drive(built):
    """`drive(driver, *arguments, under=[emulator])` runs a driver to its end."""

    def run(driver: str, *arguments: str, under: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
        env = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=0"}
        command = [*under, str(make.BUILD / driver), *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)

    return run
