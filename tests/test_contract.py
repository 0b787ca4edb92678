"""Negative controls of the contract: a broken backend must fail the test that is there for it."""

import itertools
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from contract import LAYOUTS, Contract, Lane, move
from torch.autograd.gradcheck import GradcheckError

from rdkernels import registry
from rdkernels.ops.hashed_linear import cases

OP = "hashed_linear"
FWD, BWD_X, BWD_BANK = "hashed_linear_fwd", "hashed_linear_bwd_x", "hashed_linear_bwd_bank"
REFERENCE = {name: registry._PASSES[name]["reference"].run for name in registry._FAMILY[OP]}
LANE = Lane("triton", "cpu", "fp32")  # the broken backend stands in triton's place
CASE = next(case for case in cases.CORRECTNESS if case.name == "chunk-few")


class Suite(Contract):
    op = OP
    cases = (CASE,)
    smoke = (CASE.name,)


@pytest.fixture
def install(monkeypatch) -> Callable:
    """Put the reference in triton's place, with some passes replaced."""

    def put(**broken: Callable) -> None:
        for name, run in REFERENCE.items():
            monkeypatch.setitem(
                registry._PASSES[name], "triton", registry.Backend(lambda *_: True, broken.get(name, run))
            )

    return put


def changed(name: str, change: Callable[[torch.Tensor], None]) -> dict[str, Callable]:
    """A pass whose result is changed in place."""

    def run(*args):
        result = REFERENCE[name](*args)
        change(result)
        return result

    return {name: run}


def zero_one(t: torch.Tensor) -> None:
    t.view(-1)[t.numel() // 2] = 0


def flip_one(t: torch.Tensor) -> None:
    t.view(-1)[-1] *= -1


def ignoring_strides(t: torch.Tensor) -> torch.Tensor:
    return t.as_strided(t.shape, torch.empty(t.shape, device="meta").stride(), t.storage_offset())


def on_first(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Callable]:
    """A pass whose first argument is changed before it runs."""
    return {name: lambda first, *rest: REFERENCE[name](change(first), *rest)}


def noisy(name: str) -> dict[str, Callable]:
    count = itertools.count()
    return {name: lambda *args: REFERENCE[name](*args) * (1 + 1e-7 * (next(count) % 2 + 1))}


def constant(name: str, value: Callable[[], float]) -> dict[str, Callable]:
    """A pass whose whole result is one value: torch's own matmul depends on the thread count."""
    return {name: lambda *args: REFERENCE[name](*args).fill_(value())}


def by_batch(x, *rest) -> torch.Tensor:
    return REFERENCE[FWD](x, *rest) * (1 + 1e-3 * x.shape[0])


def unlike_the_fake(*args) -> torch.Tensor:
    return REFERENCE[FWD](*args).mT.contiguous().mT


def writing_to_its_input(x, *rest) -> torch.Tensor:
    return REFERENCE[FWD](x.neg_(), *rest)


@pytest.fixture
def suite() -> Suite:
    return Suite()


def test_the_sound_backend_passes(suite, install, threads) -> None:
    install()
    suite.test_accuracy(LANE, CASE)
    suite.test_layouts(LANE, CASE, "sliced")
    suite.test_double_backward(LANE, CASE)
    suite.test_opcheck(LANE, CASE)
    suite.test_compile(LANE, CASE, True)
    suite.test_autocast(LANE, CASE)
    suite.test_batch_split(LANE, CASE)
    suite.test_nan_and_inf(LANE, CASE)


@pytest.mark.parametrize("change", [zero_one, flip_one])
@pytest.mark.parametrize("name", REFERENCE)
def test_one_wrong_element(suite, install, name: str, change: Callable) -> None:
    install(**changed(name, change))
    with pytest.raises(AssertionError, match="1 of .* elements off"):
        suite.test_accuracy(LANE, CASE)


def test_unwritten_memory(suite, install) -> None:
    """An output that a kernel did not write is NaN, in eager as in the contract."""
    assert torch.empty(1000).isnan().all()
    install(**{FWD: lambda x, bank, bias, out, *_: x.new_empty(x.shape[0], out)})
    with pytest.raises(AssertionError, match="got nan"):
        suite.test_accuracy(LANE, CASE)


def test_another_backend_ran(suite, monkeypatch) -> None:
    """A backend that hands one pass on to another does not count as having run."""
    for name, run in REFERENCE.items():
        monkeypatch.setitem(registry._PASSES[name], "triton", registry.Backend(lambda *_: True, run))
    monkeypatch.setattr(registry, "_forced", None)
    real = registry.pick
    monkeypatch.setattr(registry, "pick", lambda name, args: REFERENCE[name] if name == BWD_X else real(name, args))
    with pytest.raises(AssertionError, match="triton-cpu-fp32: ran"):
        suite.test_accuracy(LANE, CASE)


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
@pytest.mark.parametrize("name", REFERENCE)
def test_ignored_strides(suite, install, name: str, layout: str) -> None:
    install(**on_first(name, ignoring_strides))
    with pytest.raises((AssertionError, RuntimeError)):
        suite.test_layouts(LANE, CASE, layout)


def test_ignored_offset(suite, install) -> None:
    install(**on_first(FWD, lambda x: x.as_strided(x.shape, x.stride(), 0)))
    with pytest.raises(AssertionError):
        suite.test_layouts(LANE, CASE, "unaligned")


@pytest.mark.parametrize("name", REFERENCE)
def test_wrong_second_derivative(suite, install, name: str) -> None:
    """Each pass comes again in the second derivatives of the two others."""
    count = itertools.count()

    def right_at_first(*args):
        return REFERENCE[name](*args) * (1 if next(count) == 0 else -1)

    install(**{name: right_at_first})
    with pytest.raises(AssertionError, match=": dd "):
        suite.test_double_backward(LANE, CASE)


@pytest.mark.parametrize("name", [BWD_X, BWD_BANK])
def test_wrong_reference_gradient(suite, monkeypatch, name: str) -> None:
    broken = registry.Backend(lambda *_: True, changed(name, flip_one)[name])
    monkeypatch.setitem(registry._PASSES[name], "reference", broken)
    with pytest.raises(GradcheckError):
        suite.test_gradcheck(Lane("reference", "cpu", "fp64"), CASE)


@pytest.mark.parametrize("broken", [unlike_the_fake, writing_to_its_input])
def test_wrong_operator(suite, install, broken: Callable) -> None:
    install(**{FWD: broken})
    with pytest.raises(Exception, match="opcheck|OpCheck|strides|mutated"):
        suite.test_opcheck(LANE, CASE)


@pytest.mark.parametrize("name", REFERENCE)
def test_other_bits_when_compiled(suite, install, name: str) -> None:
    install(**noisy(name))
    with pytest.raises(AssertionError, match="not equal"):
        suite.test_compile(LANE, CASE, False)


@pytest.mark.parametrize("name", REFERENCE)
def test_other_bits_from_run_to_run(suite, install, threads, name: str) -> None:
    install(**noisy(name))
    with pytest.raises(AssertionError, match="not equal"):
        suite.test_deterministic(LANE, CASE, threads)


def test_other_bits_with_other_threads(suite, install, threads) -> None:
    install(**constant(FWD, float), **constant(BWD_X, float), **constant(BWD_BANK, torch.get_num_threads))
    with pytest.raises(AssertionError, match="d bank: .*not equal"):
        suite.test_deterministic(LANE, CASE, threads)


def test_result_that_depends_on_the_batch(suite, install) -> None:
    install(**{FWD: by_batch})
    with pytest.raises(AssertionError, match="split: y"):
        suite.test_batch_split(LANE, CASE)


@pytest.mark.parametrize("change", [torch.nan_to_num, lambda x: x + 0 * x.sum()])
def test_nan_lost_or_spread(suite, install, change: Callable) -> None:
    install(**on_first(FWD, change))
    with pytest.raises(AssertionError, match="torch has"):
        suite.test_nan_and_inf(LANE, CASE)


def test_autocast_that_is_not_seen(suite, install, monkeypatch) -> None:
    install()
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    with pytest.raises((AssertionError, RuntimeError)):
        suite.test_autocast(LANE, CASE)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_move_keeps_the_layout(layout) -> None:
    """On a GPU too a kernel gets the strides and the offset under test; `Tensor.to` would pack them."""
    t = LAYOUTS[layout](torch.randn(6, 5))
    moved = move(t, "meta")
    assert (moved.device.type, moved.shape, moved.stride()) == ("meta", t.shape, t.stride())
    assert moved.storage_offset() == t.storage_offset()
    assert moved.untyped_storage().nbytes() == t.untyped_storage().nbytes()
    if layout == "sliced":  # negative control
        assert t.to("meta").stride() != t.stride()


REQUIRE = """
import pytest
@pytest.mark.parametrize("name", ["here", "missing"])
def test_backend(need, name):
    need(name, name == "here", "not built")
"""


@pytest.mark.parametrize(
    ("required", "outcome"), [("", "1 passed, 1 skipped"), ("here, missing", "1 failed, 1 passed")]
)
def test_required_backends_fail_instead_of_skipping(tmp_path: pathlib.Path, required: str, outcome: str) -> None:
    (tmp_path / "conftest.py").write_text((pathlib.Path(__file__).parent / "conftest.py").read_text())
    (tmp_path / "test_need.py").write_text(REQUIRE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    environment = {**os.environ, "RDK_REQUIRE": required}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert outcome in done.stdout, done.stdout
