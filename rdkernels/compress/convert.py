"""Dense layers of a model become compressed ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .match import Specs, Target, match
from .report import Report, Row
from .spec import Observer

Data = Iterable[Any] | Callable[[nn.Module], Any]

_CALL_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)

_NAMED = (TypeError, ValueError, RuntimeError, ImportError, torch.linalg.LinAlgError)


def convert(
    model: nn.Module,
    specs: Specs,
    init: Literal["fit", "fresh"] = "fit",
    data: Data | None = None,
    *,
    report: Callable[[Report], Any] | None = None,
) -> nn.Module:
    """Replace layers of `model` by compressed ones, by name::

        model = rd.convert(model, {"features.0": rd.Tucker(ratio=4), "classifier.*": rd.Hashed(64)}, report=print)

    The model is changed in place and returned; where it is itself the layer, the new layer is. Every layer is fitted
    before any is replaced: an error leaves the model as it was. A new layer keeps device, dtype, training mode, hooks
    on calls and `requires_grad`. Optimisers made before hold the old parameters.

    Args:
        model: not yet wrapped in DistributedDataParallel.
        specs: name patterns (`fnmatch`, on the names of `named_modules()`) to specs; the first that matches a layer
            decides, and None leaves it. A spec alone is for every layer: `{"*": spec}`.
        init: "fit", close to the layer as it is, or "fresh", drawn anew from torch's generator.
        data: for specs that must see the layers' inputs, else not looked at. Batches: tensors, or tuples, lists or
            dicts whose first entry is the model's input; a tensor is one batch. Or a function of the model that runs
            it. It is run once, in eval mode and without gradients; modes and torch's random state are put back.
        report: called once with the `Report` of every layer that was changed and every one that was left, with the
            reason: `print`, or a list's `append`.

    A layer under several names is converted once and stays shared. Left are layers of types that the spec does not know
    and those that could not be replaced without another effect: weights that are computed, tied to another module's or
    read by an nn.MultiheadAttention or nn.TransformerEncoderLayer around them (a model of yours that reads the weight
    of a layer inside it must leave that layer: None). Where the layer was named outright, not by a wildcard, that is
    an error.

    Raises:
        TypeError, ValueError: a pattern that matches no module or changes nothing; a layer, named, that the spec cannot
            represent, whose fit fails or whose inputs `data` does not show.
    """
    if init not in ("fit", "fresh"):
        raise ValueError(f'convert: init must be "fit" or "fresh", got {init!r}')
    with owned("convert"):
        model, done = apply(model, match(model, specs), init, data)
    if report is not None:
        report(done)
    return model


def apply(model: nn.Module, found: Sequence[Target | Row], init: str, data: Data | None) -> tuple[nn.Module, Report]:
    """`convert` after the matching."""
    observers = observe(model, found, data)
    made: dict[str, nn.Module] = {}
    rows = []
    for entry in found:
        if isinstance(entry, Row):
            rows.append(entry)
            continue
        with naming(entry.name):
            make = entry.spec.fit if init == "fit" else entry.spec.fresh
            layer = make(entry.module, observers.get(entry.name))
        _keep(entry.module, layer)
        made |= dict.fromkeys(entry.names, layer)
        counts = count_parameters(entry.module), count_parameters(layer)
        error = relative_error(entry.module, layer) if init == "fit" else None
        kinds = type(entry.module).__name__, type(layer).__name__
        rows.append(Row(entry.name, *kinds, counts, error))
    for name, layer in made.items():
        if not name:
            return layer, Report(tuple(rows))
        model.set_submodule(name, layer)
    return model, Report(tuple(rows))


def needed(found: Sequence[Target | Row], data: Data | None) -> dict[str, tuple[Target, Observer]]:
    """The layers, by name, whose specs must see their inputs, each with an empty observer."""
    needs = {}
    for target in found:
        if isinstance(target, Target):
            with naming(target.name):
                observer = target.spec.observer(target.module)
                if observer is not None and data is None:
                    raise ValueError(f"data must be given: {target.spec} looks at the layer's inputs")
            if observer is not None:
                needs[target.name] = target, observer
    return needs


def observe(model: nn.Module, found: Sequence[Target | Row], data: Data | None) -> dict[str, Observer]:
    """The observers that the specs need, by layer, after the data went through the model."""
    needs = needed(found, data)
    if not needs or data is None:
        return {}
    seen: set[str] = set()
    with ExitStack() as stack:
        stack.enter_context(_evaluation(model))
        for name, (target, observer) in needs.items():
            stack.enter_context(observer.attached(target.module))
            stack.callback(target.module.register_forward_pre_hook(lambda *_, name=name: seen.add(name)).remove)
        _run(model, data)
    for name, (target, _) in needs.items():
        if name not in seen:
            with naming(name):
                raise ValueError(f"data never reached the layer, and {target.spec} looks at its inputs")
    return {name: observer for name, (_, observer) in needs.items()}


def _run(model: nn.Module, data: Data) -> None:
    if callable(data) and not isinstance(data, (Tensor, Iterable)):
        data(model)
        return
    device = next((p.device for p in model.parameters()), None)
    for batch in [data] if isinstance(data, Tensor) else data:  # type: ignore[union-attr]
        x = batch
        if isinstance(batch, Mapping):
            x = next(iter(batch.values()), None)
        elif isinstance(batch, (tuple, list)):
            x = batch[0] if batch else None
        if not isinstance(x, Tensor):
            raise TypeError(f"data must give tensors, or tuples, lists or dicts that begin with one, got {batch!r:.60}")
        model(x.to(device))


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients; modes and torch's random state as before at the end."""
    modes = [(module, module.training) for module in model.modules()]
    devices = {p.device.index for p in model.parameters() if p.is_cuda}
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training


def count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@torch.no_grad()
def relative_error(dense: nn.Module, layer: Any) -> float:
    """`||W - W~||_F / ||W||_F` of a layer and the one that stands for it."""
    weight: Any = dense.weight
    gap = (weight.double() - layer.materialize().double()).norm()
    return float(gap / weight.double().norm()) if gap else 0.0


def _keep(dense: Any, layer: nn.Module) -> None:
    """What a replaced layer hands on besides its weight; the handles of its hooks still remove them."""
    for name, parameter in layer.named_parameters():
        origin = dense.bias if name == "bias" else dense.weight
        if not origin.requires_grad:
            parameter.requires_grad_(False)
    if any(getattr(dense, hooks) for hooks in _CALL_HOOKS):
        for hooks in _CALL_HOOKS:
            setattr(layer, hooks, getattr(dense, hooks))


@contextmanager
def naming(layer: str) -> Iterator[None]:
    """Errors and warnings from inside begin with the layer's name."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with owned(layer or "the model"):
            yield
    for warning in caught:
        warnings.warn(f"{layer or 'the model'}: {warning.message}", warning.category, stacklevel=2)


@contextmanager
def owned(owner: str) -> Iterator[None]:
    """Errors from inside begin with the owner's name."""
    try:
        yield
    except _NAMED as error:
        if type(error) not in _NAMED:  # another's: it may hold more than its text
            raise
        raise type(error)(f"{owner}: {error}") from error
