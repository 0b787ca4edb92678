"""The CPU library's own backward passes: that they run, which maps they are given, and where torch's stand in."""

import importlib

import pytest
import torch

import rdkernels as rd
from rdkernels.ops import chain

OPS = ["separable_conv2d", "cp_conv2d", "tucker_conv2d", "bicluster_conv2d"]


@pytest.fixture(autouse=True)
def here(need) -> None:
    need("native", "native" in rd.backends("cp_conv2d"), "no CPU library")


def problem(op: str):
    """A padded 3 x 3 case of stride 1 and some ranks, with its tensors as leaves."""
    cases = importlib.import_module(f"rdkernels.ops.{op}.cases").CORRECTNESS
    case = next(c for c in cases if c.n > 1 and c.stride == c.padding == 1 and min(c.kernel) == 3 and c.ranks[-1] > 1)
    return case, {name: t.requires_grad_() for name, t in case.tensors(torch.float32).items()}


class Stages(Exception):
    """The backward that goes through the stages by torch was entered."""


@pytest.fixture
def no_stages(monkeypatch) -> None:
    def refuse(*_):
        raise Stages

    monkeypatch.setattr(chain, "_wide_backward", refuse)


@pytest.mark.parametrize("op", OPS)
def test_own_backward_runs(op: str, no_stages) -> None:
    case, tensors = problem(op)
    y = case.run(tensors)
    y.backward(torch.randn_like(y))
    assert all(t.grad is not None for t in tensors.values())


@pytest.mark.parametrize("op", OPS)
def test_control_another_backend_goes_through_the_stages(op: str, no_stages) -> None:
    case, tensors = problem(op)
    with rd.use("reference"), pytest.raises(Stages):
        case.run(tensors).sum().backward()


@pytest.mark.parametrize("op", OPS)
def test_kept_maps_are_the_stages_inputs(op: str) -> None:
    case, tensors = problem(op)
    where, given = case.geometry, [*(tensors[n].detach() for n in case.shapes()), *case.indices().values()]
    x = tensors["x"].detach()
    found = {}
    for backend in ("native", "reference"):
        with rd.use(backend):
            _, *found[backend] = chain._fwd(op, x, given, None, None, where, 0, True)
    assert len(found["native"]) == len(found["reference"]) > 0
    for native, reference in zip(found["native"], found["reference"], strict=True):
        torch.testing.assert_close(native, reference)
        with pytest.raises(AssertionError):  # an order of channels that is another one is seen
            torch.testing.assert_close(native.roll(1, 1), reference)
