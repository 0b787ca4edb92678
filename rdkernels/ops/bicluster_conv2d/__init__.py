"""Convolution by clusters of inputs and outputs, each pair of clusters of low rank: the contract."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from ..chain import call, define_chain
from ..convolution import (
    Geometry,
    IntOrPair,
    check_epilogue,
    check_image,
    check_index,
    check_output,
    check_tensor,
    geometry,
)
from ..packing import packed
from ..replay import replayed
from ..stages import Conv, Select, Stage, pads

OP = "bicluster_conv2d"


def stages(factors, where: Geometry) -> list[Stage]:
    """Gather the clusters, C/G -> K1 for every pair (g, h), the kh x kw cores, K2 -> O/H summed over g, scatter."""
    inner, core, outer, inputs, outputs = factors
    g, h, k1, own = inner.shape
    k2, f = core.shape[2], outer.shape[1]
    # between the cores (g, h, k2) and the outer factor (h, g, k2): the channels of one output cluster side by side
    by_output = torch.arange(g * h * k2, device=core.device).view(g, h, k2).transpose(0, 1).reshape(-1)
    return [
        Select(inputs),
        Conv(inner.reshape(g * h * k1, own, 1, 1), 0, groups=g),
        *pads(where),
        Conv(core.reshape(g * h * k2, k1, *core.shape[4:]), 1, where.stride, where.padding, where.dilation, g * h),
        Select(by_output),
        Conv(outer.reshape(h * f, g * k2, 1, 1), 2, groups=h),
        Select(torch.argsort(outputs)),
    ]


define_chain(
    OP,
    stages,
    ("inner", "core", "outer"),
    ("inputs", "outputs"),
    lambda x, f, where: (
        f[2].shape[0] * f[2].shape[1],
        *where.out(x.shape[2], x.shape[3], f[1].shape[4], f[1].shape[5]),
    ),
    maps=lambda x, f, where: {
        2: (math.prod(f[0].shape[:3]), *x.shape[2:]),
        3: (math.prod(f[1].shape[:3]), *where.out(x.shape[2], x.shape[3], *f[1].shape[4:])),
    },
)


def inverse(name: str, order: Tensor) -> Tensor:
    """The inverse of permutation `name`, computed and checked when the tensor is new or was written."""
    return packed(f"{OP} {name}", (order,), functools.partial(_inverted, name))


def _inverted(name: str, order: Tensor) -> Tensor:
    values, places = order.sort()
    if not torch.equal(values, torch.arange(len(order), device=order.device)):
        raise ValueError(f"{OP}: {name} must be a permutation of 0 ... {len(order) - 1}, got {order.tolist()}")
    return places


from . import native  # noqa: E402,F401  it attaches itself to the pass above


@replayed(5)
def bicluster_conv2d(
    x: Tensor,
    inner: Tensor,
    core: Tensor,
    outer: Tensor,
    inputs: Tensor,
    outputs: Tensor,
    bias: Tensor | None = None,
    *,
    stride: IntOrPair = 1,
    padding: IntOrPair | str = 0,
    dilation: IntOrPair = 1,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Inputs in G and outputs in H clusters of equal size, each pair a Tucker-2 of its own, in one pass.

    `y = act(conv(x, W) + bias + residual)` where for the a-th input of cluster g and the b-th output of cluster h
    `W[outputs[h*O/H+b], inputs[g*C/G+a]] = sum_{p,q} outer[h,b,g,q] * core[g,h,q,p] * inner[g,h,p,a]`, in
    `G * H * (K1 * C/G + K1 * K2 * kh * kw + K2 * O/H)` multiply-adds per output (stride 1).

    Args:
        x: `[N, C, H, W]`; channels_last is read row by row, as anything else. N may be 0.
        inner: `[G, H, K1, C/G]`.
        core: `[G, H, K2, K1, kh, kw]`.
        outer: `[H, O/H, G, K2]`.
        inputs: int64 `[C]`, a permutation: the channels of x, cluster after cluster.
        outputs: int64 `[O]`, a permutation: the channels of y, cluster after cluster.
        bias: `[O]` or None, in y's order.
        stride, padding, dilation: as in `torch.nn.functional.conv2d` (ints, pairs, "same", "valid").
        activation: None, "relu", "gelu" (by erf) or "silu", applied last.
        residual: of y's shape, added before the activation, or None.

    Returns:
        `[N, O, H', W']` in x's dtype and memory format.

    Dtypes, gradients (none by the permutations), determinism and errors: as `separable_conv2d`. On a GPU the values of
    the permutations are not looked at by this function.

    Source: Denton et al., "Exploiting Linear Structure Within Convolutional Networks for Efficient Evaluation", NIPS
    2014, section 3.4 (biclustering), with the two SVDs of section 3.2 for each pair.
    """
    check_image(OP, x)
    check_tensor(OP, "inner", inner, ["G", "H", "K1", "C/G"], x)
    g, h, k1, own = inner.shape
    if g * own != x.shape[1]:
        raise ValueError(f"{OP}: inner must have G * C/G = {x.shape[1]} inputs as x has, got {g} * {own}")
    check_tensor(OP, "core", core, [g, h, "K2", k1, "kh", "kw"], x)
    k2, kh, kw = core.shape[2], core.shape[4], core.shape[5]
    check_tensor(OP, "outer", outer, [h, "O/H", g, k2], x)
    out = h * outer.shape[1]
    check_index(OP, "inputs", inputs, [x.shape[1]], x)
    check_index(OP, "outputs", outputs, [out], x)
    where = geometry(OP, kh, kw, stride, padding, dilation)
    oh, ow = check_output(OP, x, kh, kw, where)
    act = check_epilogue(OP, x, (x.shape[0], out, oh, ow), bias, residual, activation)
    if not x.is_cuda and not torch.compiler.is_compiling():
        for name, order in (("inputs", inputs), ("outputs", outputs)):
            inverse(name, order)
    return call(OP, x, (inner, core, outer, inputs, outputs), bias, residual, where, act)
