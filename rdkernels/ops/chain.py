"""Low-rank convolutions as chains of plain torch stages: their definition, their backward, and how an op calls a pass.

A room describes its operation once, as `stages(factors, geometry)`: convolutions whose weights are views of the
factors, and selections of channels. From that follow the reference backend, the unfused rival of the bench and the
gradients. The fused backends do the same chain in one pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..registry import backend, define, define_native, define_whole, native_on_cpu, picks, plain, run
from .convolution import Activation, Geometry, in_one_dtype, memory_format, new_output
from .packing import differentiated
from .replay import record
from .stages import Conv, Stage, apply_activation, run_stages

Stages = Callable[[Sequence[Tensor], Geometry], list[Stage]]


class _Chained(NamedTuple):
    stages: Stages
    given: int  # factors and indices
    out: Callable[..., tuple[int, int, int]]
    maps: Callable[..., dict[int, tuple[int, int, int]]]
    backward: Callable[..., list[Tensor | None]] | None


_CHAINS: dict[str, _Chained] = {}


def stages_of(op: str, factors: Sequence[Tensor], where: Geometry) -> list[Stage]:
    """The operation as stages: its factors, then its indices, in the order of its arguments."""
    return _CHAINS[op].stages(factors, where)


def unfused(
    op: str,
    x: Tensor,
    factors: Sequence[Tensor],
    bias: Tensor | None,
    residual: Tensor | None,
    where: Geometry,
    act: int,
) -> Tensor:
    """The operation as the chain of torch calls that its kernels replace."""
    *inner, last = _CHAINS[op].stages(factors, where)
    y = run_stages(x, inner)[-1]
    inside = isinstance(last, Conv)
    y = last(y, bias) if isinstance(last, Conv) else last(y)
    y = y if bias is None or inside else y + bias[:, None, None]
    y = y if residual is None else y + residual
    return apply_activation(y, act)


def define_chain(
    op: str,
    stages: Stages,
    factors: Sequence[str],
    indices: Sequence[str],
    out: Callable[..., tuple[int, int, int]],
    maps: Callable[..., dict[int, tuple[int, int, int]]] = lambda *_: {},
    backward: Callable[..., list[Tensor | None]] | None = None,
) -> None:
    """Declare the forward pass of `op` and attach its reference.

    `out(x, factors, geometry)` gives the output's channels, height and width, `maps` those of the inputs of some stages
    by the stage's number. `indices` are int64 arguments after the factors. The pass returns a list: y, and with `keep`
    these maps, which save the backward from computing them again; it is set for float32 on the CPU only.
    `backward(dy, x, factors, geometry, needs)` replaces the one that goes back through the stages; it must consist of
    differentiable torch calls too.
    """
    count = len(factors) + len(indices)
    _CHAINS[op] = _Chained(stages, count, out, maps, backward)
    tensors = ", ".join(f"Tensor {name}" for name in (*factors, *indices))
    numbers = ", ".join(f"int {name}" for name in Geometry._fields)
    schema = f"(Tensor x, {tensors}, Tensor? bias, Tensor? residual, {numbers}, int activation, bool keep) -> Tensor[]"

    def fake(x: Tensor, *args: Any) -> list[Tensor]:
        where = Geometry(*args[-10:-2])
        kept = new_maps(op, x, args[:count], where) if args[-1] else ()
        return [new_output(x, *out(x, args[:count], where)), *kept]

    def reference(x: Tensor, *args: Any) -> list[Tensor]:
        wide = torch.promote_types(x.dtype, torch.float32)
        own = [t.to(wide) if t.is_floating_point() else t for t in args[:count]]
        bias, residual = (None if t is None else t.to(wide) for t in args[count : count + 2])
        where = Geometry(*args[-10:-2])
        y = unfused(op, x.to(wide), own, bias, residual, where, args[-2])
        kept = kept_maps(op, x, own, where) if args[-1] else ()
        return [y.to(dtype=x.dtype, memory_format=memory_format(x), copy=True), *kept]

    define(op, "fwd", schema, fake)
    backend(f"{op}_fwd", "reference")(reference)


def new_maps(op: str, x: Tensor, factors: Sequence[Tensor], where: Geometry) -> list[Tensor]:
    """The maps that a pass keeps, channels_last; zeros where a stride may leave pixels out."""
    sizes = [(x.shape[0], *size) for size in _CHAINS[op].maps(x, factors, where).values()]
    made = [torch.empty(s, dtype=x.dtype, device=x.device, memory_format=torch.channels_last) for s in sizes]
    return made if where[:2] == (1, 1) else [t.zero_() for t in made]


def kept_maps(op: str, x: Tensor, factors: Sequence[Tensor], where: Geometry) -> list[Tensor]:
    """The same, computed by torch: for a backend that does not keep its own."""
    wanted = _CHAINS[op].maps(x, factors, where)
    inputs = run_stages(x, _CHAINS[op].stages(factors, where)[: max(wanted, default=0)])
    return [inputs[n].contiguous(memory_format=torch.channels_last) for n in wanted]


class NativeCall(NamedTuple):
    """What a room's CPU kernel needs of a call: the packed factors, its integers, further tensors."""

    packed: Tensor
    numbers: tuple[int, ...]
    tensors: tuple[Tensor | None, ...] = ()


def native_chain(op: str, numbers: Sequence[str], maps: int = 0, tensors: Sequence[str] = ()) -> Callable:
    """The decorated `prepare(x, factors)` describes a call to the CPU library's `<op>_run`.

    `numbers` and `tensors` name what that operator is given besides, `maps` is how many rank maps it keeps.
    """
    kept = "".join(f"Tensor(m{n}!)? map{n}, " for n in range(maps))
    integers = ", ".join(f"int {name}" for name in (*numbers, *Geometry._fields, "activation"))
    own = "".join(f"Tensor? {name}, " for name in tensors)
    define_native(
        f"{op}_run(Tensor(a!) y, Tensor x, Tensor packed, Tensor? bias, Tensor? residual, {kept}{own}{integers}) -> ()"
    )
    twin = getattr(torch.ops.rdkernels_native, f"{op}_run").default
    chained = _CHAINS[op]

    def attach(prepare: Callable[..., NativeCall]) -> Callable[..., NativeCall]:
        @native_on_cpu(f"{op}_fwd", f"{op}_run")
        def fwd(x: Tensor, *args: Any) -> list[Tensor]:
            factors, (bias, residual) = args[: chained.given], args[chained.given : chained.given + 2]
            where, (activation, keep) = Geometry(*args[-10:-2]), args[-2:]
            call, form = prepare(x, factors), memory_format(x)
            size = (x.shape[0], *chained.out(x, factors, where))
            numbers = (*call.tensors, *call.numbers, *where, activation)

            def launch(x: Tensor, bias: Tensor | None, residual: Tensor | None, kept: Sequence = (None,) * maps):
                y = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=form)
                if residual is not None:
                    residual = residual.contiguous(memory_format=form)
                twin(y, x, call.packed, bias, residual, *kept, *numbers)
                return y

            if keep:
                found = new_maps(op, x, factors, where)
                return [launch(x, bias, residual, found), *found]
            record(f"{op}_fwd", launch)
            return [launch(x, bias, residual)]

        return prepare

    return attach


def _fwd(
    op: str,
    x: Tensor,
    factors: Sequence[Tensor],
    bias: Tensor | None,
    residual: Tensor | None,
    where: Geometry,
    act: int,
    keep: bool,
) -> list[Tensor]:
    return run(f"{op}_fwd", x, *factors, bias, residual, *where, act, keep)


def _backward(
    op: str,
    dy: Tensor | None,
    x: Tensor,
    factors: Sequence[Tensor],
    maps: Sequence[Tensor],
    where: Geometry,
    needs: Sequence[bool],
) -> Gradients:
    """Gradients of the chain by x and every factor that is needed, from differentiable torch calls alone."""
    if (own_backward := _CHAINS[op].backward) is not None:
        return own_backward(dy, x, factors, where, needs)
    stages = _CHAINS[op].stages(factors, where)
    known = dict(zip(_CHAINS[op].maps(x, factors, where), maps, strict=True)) if maps else {}
    inputs = [x]
    for n, stage in enumerate(stages[:-1], 1):
        inputs.append(known[n] if n in known else stage(inputs[-1]))
    found: list[Tensor | None] = [None] * (1 + len(factors))
    first = next((n for n, s in enumerate(stages) if isinstance(s, Conv) and needs[1 + s.factor]), len(stages))
    for n in range(len(stages) - 1, -1, -1):
        stage = stages[n]
        own = isinstance(stage, Conv) and needs[1 + stage.factor]
        if dy is None or (not own and not needs[0] and n < first):
            break
        dx, dw = stage.gradients(dy, inputs[n], needs[0] or n > first, own)
        if isinstance(stage, Conv) and dw is not None and own:
            found[1 + stage.factor] = dw.reshape(factors[stage.factor].shape)
        dy = dx
    if needs[0]:
        found[0] = dy
    return found


class _Chain(torch.autograd.Function):
    @staticmethod
    def forward(ctx, op, where, x, bias, residual, *factors):
        keep = x.device.type == "cpu" and x.dtype == torch.float32 and Geometry(*where).symmetric
        y, *maps = _fwd(op, x, factors, bias, residual, Geometry(*where), 0, keep)
        ctx.save_for_backward(x, *factors, *maps)
        ctx.call = op, where, len(factors)
        return y

    @staticmethod
    def backward(ctx, dy):
        op, where, count = ctx.call
        x, *rest = ctx.saved_tensors
        factors, maps = rest[:count], rest[count:]
        by_x, by_bias, by_residual, *by_factor = ctx.needs_input_grad[2:]
        dy = dy.contiguous(memory_format=memory_format(x))
        dbias = dy.sum((0, 2, 3), dtype=torch.promote_types(dy.dtype, torch.float32)) if by_bias else None
        needs = [by_x, *by_factor]
        if torch.is_grad_enabled():  # the maps are constants of the graph: a second derivative goes through x
            dx, *dfactors = _wide_backward(op, dy, x, factors, [], Geometry(*where), needs)
        else:
            direct = plain((dy, x, *factors, *maps))
            whole = _all_gradients if direct else torch.ops.rdkernels.lowrank_chain_bwd
            made = whole(op, dy, x, factors, maps, list(where), needs)
            dx, *dfactors = (t if needed else None for t, needed in zip(made, needs, strict=True))
        differentiated(factors)
        return None, None, dx, dbias if dbias is None else dbias.to(dy.dtype), dy if by_residual else None, *dfactors


Gradients = list[Tensor | None]
NativeBackward = Callable[[Tensor, Tensor, Sequence[Tensor], Sequence[Tensor], Geometry], Sequence[Tensor]]
_BACKWARDS: dict[str, NativeBackward] = {}


def native_backward(op: str) -> Callable[[NativeBackward], NativeBackward]:
    """The decorated function gives the gradients by x and all factors from the CPU library and the kept maps.

    It is called where the forward ran there and kept its maps, channels_last, for stride 1; None where the reversed
    chain would need a negative padding.
    """

    def attach(function: NativeBackward) -> NativeBackward:
        _BACKWARDS[op] = function
        return function

    return attach


def pixels(t: Tensor) -> Tensor:
    """`[N, C, H, W]` -> `[N * H * W, C]`, a view where the channels lie side by side."""
    return t.permute(0, 2, 3, 1).flatten(0, 2)


def run_reversed(
    op: str,
    dy: Tensor,
    dx: Tensor,
    turned: Sequence[Tensor],
    numbers: Sequence[int],
    weights: Tensor,
    back: Geometry,
    tensors: Sequence[Tensor | None] = (),
) -> list[Tensor]:
    """Fills dx by the CPU kernel of `op` on dy with its factors turned, and gives the maps inside."""
    maps = new_maps(op, dy, turned, back)
    getattr(torch.ops.rdkernels_native, f"{op}_run").default(
        dx, dy, weights, None, None, *maps, *tensors, *numbers, *back, Activation.none
    )
    return maps


def reversed_geometry(where: Geometry, kh: int, kw: int) -> Geometry:
    """Of the chain that takes dy to dx, for stride 1; a negative padding where there is none."""
    h, w = where.dilation_h * (kh - 1), where.dilation_w * (kw - 1)
    return Geometry(1, 1, h - where.top, h - where.bottom, w - where.left, w - where.right, *where[6:])


def _wide_backward(
    op: str,
    dy: Tensor,
    x: Tensor,
    factors: Sequence[Tensor],
    maps: Sequence[Tensor],
    where: Geometry,
    needs: Sequence[bool],
) -> Gradients:
    """`_backward` in x's dtype; 16-bit in float32 on the CPU, rounded once."""
    kind = x.device.type
    narrow = kind == "cpu" and x.dtype in (torch.bfloat16, torch.float16)
    given = [t.float() if narrow and t.is_floating_point() else t for t in (dy, x, *factors)]
    with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else contextlib.nullcontext():
        found = _backward(op, given[0], given[1], given[2:], maps, where, needs)
    return [t.to(x.dtype) if narrow and t is not None else t for t in found]


def _all_gradients(
    op: str,
    dy: Tensor,
    x: Tensor,
    factors: Sequence[Tensor],
    maps: Sequence[Tensor],
    where: Sequence[int],
    needs: Sequence[bool],
) -> list[Tensor]:
    """By x and every factor; an empty tensor for one that is not needed."""
    own, geometry = _BACKWARDS.get(op), Geometry(*where)
    made: Sequence[Tensor | None] | None = None
    if own and maps and where[0] == where[1] == 1 and x.numel() and picks(f"{op}_fwd", "native", x):
        made = own(dy, x, factors, [m.contiguous(memory_format=torch.channels_last) for m in maps], geometry)
    if made is None:
        made = _wide_backward(op, dy, x, factors, maps, geometry, needs)
    dx, *dfactors = (t if needed else None for t, needed in zip(made, needs, strict=True))
    formed = [None if dx is None else dx.contiguous(memory_format=memory_format(x))]
    formed += [None if t is None else t.contiguous() for t in dfactors]
    return [x.new_empty(0) if t is None else t for t in formed]


def _fake_gradients(op, dy, x, factors, maps, where, needs):
    by_x, *by_factor = needs
    dx = torch.empty_like(x, memory_format=memory_format(x)) if by_x else x.new_empty(0)
    return [dx, *(f.new_empty(f.shape) if own else x.new_empty(0) for f, own in zip(factors, by_factor, strict=True))]


define_whole(
    "lowrank_chain_bwd",
    "(str op, Tensor dy, Tensor x, Tensor[] factors, Tensor[] maps, int[] where, bool[] needs) -> Tensor[]",
    _fake_gradients,
    _all_gradients,
)


def call(
    op: str,
    x: Tensor,
    given: Sequence[Tensor],
    bias: Tensor | None,
    residual: Tensor | None,
    where: Geometry,
    activation: Activation,
) -> Tensor:
    """The checked arguments of a public function -> its result: autocast, one dtype, autograd."""
    x, bias, residual, *factors = in_one_dtype(op, x, bias, residual, *given)
    differentiated = (x, bias, residual, *factors)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in differentiated):
        return apply_activation(_Chain.apply(op, tuple(where), x, bias, residual, *factors), int(activation))
    return _fwd(op, x, factors, bias, residual, where, int(activation), False)[0]
