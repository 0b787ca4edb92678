"""The CPU library's gradient of a convolution's taps against torch's in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rdkernels import native


@pytest.fixture(autouse=True)
def here(need) -> None:
    need("native", native.loaded("cpu"), "no CPU library")


def grads(dz, t, groups, kh, kw, top, left, down, across):
    return torch.ops.rdkernels_native.lowrank_tap_grads(dz, t, groups, kh, kw, top, left, down, across)


def exact(dz, t, groups, kh, kw, top, left, down, across):
    """The same and the sum of the products' magnitudes, by shifted views in float64."""
    (r1, h, w), (r2, oh, ow) = t.shape[1:], dz.shape[1:]
    span_h, span_w = down * (kh - 1), across * (kw - 1)
    bottom, right = max(0, oh - top + span_h - h), max(0, ow - left + span_w - w)
    around = torch.nn.functional.pad(t.double(), (left, right, top, bottom))
    made = torch.empty(2, kh, kw, groups, r2 // groups, r1 // groups, dtype=torch.float64)
    for i in range(kh):
        for j in range(kw):
            part = around[:, :, i * down : i * down + oh, j * across : j * across + ow]
            pair = dz.double().unflatten(1, (groups, -1)), part.unflatten(1, (groups, -1))
            made[0, i, j] = torch.einsum("ngqhw,ngphw->gqp", *pair)
            made[1, i, j] = torch.einsum("ngqhw,ngphw->gqp", *(v.abs() for v in pair))
    return made


def maps(n, groups, r2, r1, h, w, oh, ow):
    generator = torch.Generator().manual_seed(n + r1 + 7 * r2 + 31 * w)
    dz, t = (
        torch.randn(n, oh, ow, groups * r2, generator=generator),
        torch.randn(n, h, w, groups * r1, generator=generator),
    )
    return dz.permute(0, 3, 1, 2), t.permute(0, 3, 1, 2)


def check(n, groups, r2, r1, size, taps, before, dilation, out):
    dz, t = maps(n, groups, r2, r1, *size, *out)
    where = (groups, *taps, *before, *dilation)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = grads(dz, t, *where)
        torch.set_num_threads(2)
        two = grads(dz, t, *where)
    finally:
        torch.set_num_threads(threads)
    assert one.shape == (*taps, groups, r2, r1)
    assert torch.equal(one, two)
    value, magnitude = exact(dz, t, *where)
    pixels = n * out[0] * out[1]  # summed in blocks of at most 320 and, of a large map, at least 32
    roundings = min(pixels, 320 + pixels // 32) + 2
    assert ((one - value).abs() <= roundings * 2.0**-24 * magnitude).all()


few = st.integers(1, 3)
pairs = st.tuples(few, few)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(1, 5),
    groups=few,
    r2=st.integers(1, 37),
    r1=st.integers(1, 70),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    taps=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    before=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    dilation=pairs,
    out=st.tuples(st.integers(1, 20), st.integers(1, 20)),
)
@example(1, 1, 14, 32, (3, 700), (1, 3), (0, 1), (1, 1), (3, 700))  # rows of several blocks
@example(2, 1, 3, 5, (90, 41), (3, 3), (1, 1), (2, 2), (88, 39))  # several parts; a ring that goes round
@example(9, 2, 16, 16, (3, 3), (3, 3), (1, 1), (1, 1), (3, 3))  # several maps a block
@example(1, 1, 2, 2, (4, 4), (3, 3), (40, 40), (1, 1), (4, 4))  # no tap inside
def test_equals_float64_with_the_same_bits_for_any_threads(n, groups, r2, r1, size, taps, before, dilation, out):
    check(n, groups, r2, r1, size, taps, before, dilation, out)


def test_nothing_outside_is_read():
    """What a tap does not reach may be NaN, also beside the channels that are given."""
    wide = torch.full((2, 6, 9, 50), float("nan"))
    wide[:, :5, :8, 3:37] = torch.randn(2, 5, 8, 34)
    t = wide.permute(0, 3, 1, 2)[:, 3:37, :5, :8]
    dz = torch.randn(2, 5, 8, 15).permute(0, 3, 1, 2)
    value, magnitude = exact(dz, t, 1, 3, 3, 1, 1, 1, 1)
    assert ((grads(dz, t, 1, 3, 3, 1, 1, 1, 1) - value).abs() <= 90 * 2.0**-24 * magnitude).all()


def test_of_no_pixels_is_zero():
    dz, t = maps(0, 1, 3, 4, 5, 5, 5, 5)
    assert torch.equal(grads(dz, t, 1, 3, 3, 1, 1, 1, 1), torch.zeros(3, 3, 1, 3, 4))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=st.tuples(st.integers(1, 7), st.integers(1, 7), few, st.integers(1, 20), st.integers(1, 40)))
def test_taps_last_moves_every_value(shape):
    made = torch.arange(1, 1 + torch.Size(shape).numel(), dtype=torch.float32).view(shape)
    turned = torch.ops.rdkernels_native.lowrank_taps_last(made)
    assert turned.is_contiguous() and torch.equal(turned, made.permute(2, 3, 4, 0, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda dz, t: (dz.double(), t, 1), "float32"),
        (lambda dz, t: (dz.contiguous(), t, 1), "side by side"),
        (lambda dz, t: (dz, t, 3), "3 groups"),
        (lambda dz, t: (dz[:1], t, 1), "one batch"),
    ],
)
def test_refuses(change, message):
    dz, t = maps(2, 1, 6, 4, 5, 5, 5, 5)
    dz, t, groups = change(dz, t)
    with pytest.raises(RuntimeError, match=message):
        grads(dz, t, groups, 3, 3, 1, 1, 1, 1)
