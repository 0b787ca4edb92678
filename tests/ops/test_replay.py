"""A repeated call goes straight to the CPU kernel, and everything that makes it another call is seen."""

import gc

import pytest
import torch

import rdkernels as rd
from rdkernels import registry
from rdkernels.ops import packing, replay
from rdkernels.ops import separable_conv2d as room

PASS = ("separable_conv2d_fwd", "native")


@pytest.fixture(autouse=True)
def here(need) -> None:
    need("native", "native" in rd.backends("separable_conv2d"), "no CPU library")


@pytest.fixture
def checks(monkeypatch) -> list[str]:
    """One entry for each call that entered the function itself."""
    entered: list[str] = []
    check = room.check_image
    monkeypatch.setattr(room, "check_image", lambda op, x: (entered.append(op), check(op, x))[1])
    return entered


def tensors(n: int = 2, c: int = 5, ranks: int = 3, out: int = 7) -> tuple[torch.Tensor, ...]:
    return torch.randn(n, c, 6, 9), torch.randn(ranks, c, 3), torch.randn(out, ranks, 3), torch.randn(out)


def expected(x, vertical, horizontal, bias=None, **options):
    with rd.use("reference"):
        return rd.separable_conv2d(x, vertical, horizontal, bias, **options)


def test_second_call_is_replayed(checks) -> None:
    x, *given = tensors()
    residual = torch.randn(2, 7, 6, 9)
    with registry.trace() as calls:
        first = rd.separable_conv2d(x, *given, padding=1, activation="relu", residual=residual)
        again = rd.separable_conv2d(x, *given, padding=1, activation="relu", residual=residual)
    assert calls == [PASS, PASS] and len(checks) == 1
    assert torch.equal(first, again) and first.data_ptr() != again.data_ptr()
    x2, bias, residual = torch.randn_like(x), torch.randn(7), torch.randn_like(residual)
    y = rd.separable_conv2d(x2, *given[:2], bias, padding=1, activation="relu", residual=residual)
    assert len(checks) == 1  # other values and another bias of the same kind: still the same call
    wanted = expected(x2, *given[:2], bias, padding=1, activation="relu", residual=residual)
    torch.testing.assert_close(y, wanted)


@pytest.mark.parametrize(
    "change",
    [
        lambda x, v, h, b: (x[:1], v, h, b),
        lambda x, v, h, b: (x.contiguous(memory_format=torch.channels_last), v, h, b),
        lambda x, v, h, b: (x.bfloat16(), v.bfloat16(), h.bfloat16(), b.bfloat16()),
        lambda x, v, h, b: (x, v.clone(), h, b),
        lambda x, v, h, b: (x, v, h),
        lambda x, v, h, b: (x, v.mul_(2), h, b),
        lambda x, v, h, b: (x, v, h.requires_grad_(), b),
    ],
    ids=["batch", "format", "dtype", "factor", "no bias", "written in place", "gradient"],
)
def test_other_calls_are_checked(checks, change) -> None:
    given = tensors()
    for _ in range(2):
        rd.separable_conv2d(*given)
    assert len(checks) == 1
    other = change(*given)
    y = rd.separable_conv2d(*other)
    assert len(checks) == 2
    loose = {"rtol": 2e-2, "atol": 2e-2} if other[0].dtype == torch.bfloat16 else {}
    torch.testing.assert_close(y.detach(), expected(*other).detach(), **loose)


def test_new_storage_is_seen(checks) -> None:
    x, vertical, horizontal, bias = tensors()
    vertical = torch.nn.Parameter(vertical, requires_grad=False)
    rd.separable_conv2d(x, vertical, horizontal, bias)
    vertical.data = torch.randn(3, 5, 3)
    torch.testing.assert_close(
        rd.separable_conv2d(x, vertical, horizontal, bias), expected(x, vertical, horizontal, bias)
    )
    assert len(checks) == 3  # the expectation's own is one


@pytest.mark.parametrize(
    "options", [{"stride": True}, {"dilation": 1.0}, {"stride": (1.0, 1)}, {"padding": (True, True)}], ids=str
)
def test_equal_is_not_valid(options) -> None:
    """True == 1 and 1.0 == 1 as keys of a dict, yet they are errors as arguments."""
    given = tensors()
    for stride, padding in ((1, 0), ((1, 1), (1, 1))):
        rd.separable_conv2d(*given, stride=stride, padding=padding, dilation=1)
    with pytest.raises(ValueError, match=next(iter(options))):
        rd.separable_conv2d(*given, **{"stride": 1, "padding": 0, "dilation": 1, **options})


def test_other_device_is_an_error() -> None:
    x, vertical, horizontal, bias = tensors()
    rd.separable_conv2d(x, vertical, horizontal, bias)
    with pytest.raises(ValueError, match="bias must be on x's device"):
        rd.separable_conv2d(x, vertical, horizontal, bias.to("meta"))


def test_forced_backend_and_autocast_are_obeyed(checks) -> None:
    given = tensors()
    rd.separable_conv2d(*given)
    with rd.use("reference"), registry.trace() as calls:
        rd.separable_conv2d(*given)
    assert calls == [("separable_conv2d_fwd", "reference")]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert rd.separable_conv2d(*given).dtype == torch.bfloat16
    assert len(checks) == 3


def test_nothing_outlives_the_factors() -> None:
    x, vertical, horizontal, bias = tensors()
    gc.collect()
    before = len(packing._derived)
    rd.separable_conv2d(x, vertical, horizontal, bias)
    assert len(packing._derived) == before + 1
    del vertical
    gc.collect()
    assert len(packing._derived) == before


def test_kept_calls_are_few(checks) -> None:
    x, *given = tensors(n=1)
    for w in range(3, 5 + replay.KINDS):
        rd.separable_conv2d(x[..., :1].expand(-1, -1, -1, w), *given)
    kept = packing.derived(given[:2])
    assert len(kept[rd.separable_conv2d.__wrapped__]) == replay.KINDS and "separable_conv2d" in kept
    del checks[:]
    rd.separable_conv2d(x[..., :1].expand(-1, -1, -1, w), *given)
    assert not checks  # the latest is kept, the first is not
    rd.separable_conv2d(x[..., :1].expand(-1, -1, -1, 3), *given)
    assert len(checks) == 1
