"""Fixtures of every test: poisoned memory, fixed seeds, and backends that may not be missing where CI says so."""

import os
import random
from collections.abc import Callable

import hypothesis
import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch loads OpenMP: spinning threads stall a busy machine

import torch

import rdkernels as rd

pytest.register_assert_rewrite("contract")

hypothesis.settings.register_profile("fixed", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.load_profile("fixed")

REQUIRED = {name.strip() for name in os.environ.get("RDK_REQUIRE", "").split(",") if name.strip()}


def pytest_report_header() -> list[str]:
    info = rd.build_info()
    return [
        f"rdkernels: {', '.join(f'{name} {text}' for name, text in info.items())}",
        f"required (RDK_REQUIRE): {', '.join(sorted(REQUIRED)) or 'nothing'}",
    ]


@pytest.fixture(autouse=True)
def poison():
    """Every torch.empty, in C++ too, starts as NaN: a value that a kernel forgot to write is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def seeds():
    torch.manual_seed(0)
    random.seed(0)


@pytest.fixture
def threads():
    """`threads(n)` sets torch's thread count for the rest of the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def need() -> Callable[[str, bool, str], None]:
    """`need(name, present, why_not)` skips a test without its means, or fails it where RDK_REQUIRE lists `name`."""

    def check(name: str, present: bool, why_not: str) -> None:
        if not present:
            (pytest.fail if name in REQUIRED else pytest.skip)(f"{name}: {why_not}")

    return check
