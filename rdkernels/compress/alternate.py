"""Training and compressing by turns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from .convert import Data, apply, count_parameters, naming, needed, observe, owned
from .match import COMPUTED, Specs, Target, match
from .report import Report, Row
from .spec import Spec


@dataclass(frozen=True)
class Phase:
    """A stretch of training; what has just been done to the model.

    Args:
        kind: "train", nothing yet; "refit", the weights were moved, in place, onto what the specs can represent: the
            optimiser can go on; "convert", the layers were replaced: make a new optimiser.
        step: how often the model has been compressed: 0, 1, ...
        model: to train now; after "convert" the compressed one, which is another object where the model is one layer.
        report: what the compression did, with the error of every layer; None in the first phase.
    """

    kind: Literal["train", "refit", "convert"]
    step: int
    model: nn.Module
    report: Report | None = None


def alternate(
    model: nn.Module, specs: Specs | Sequence[Specs], steps: int | None = None, data: Data | None = None
) -> Iterator[Phase]:
    """Train, compress, train, compress, ..., train: the loop's body is the training::

        for phase in rd.alternate(model, {"fc*": rd.Palette(4)}, steps=3):
            if phase.kind != "refit":
                optimizer = torch.optim.SGD(phase.model.parameters(), lr=0.1)
            train(phase.model, optimizer, epochs=5)
        model = phase.model

    `steps` compressions between `steps + 1` phases. All but the last move the dense weights in place
    (`Spec.refit`); the last is `rdkernels.convert(model, specs)`. Dense weights can leave what the specs represent
    while they train, and are moved back less far each time; at the end the compressed layers train as they are.

    Args:
        model: dense, not yet wrapped in DistributedDataParallel; processes that train one must run alike, on the same
            `data`.
        specs: as in `rdkernels.convert`, or a sequence of them, one a compression, such as a palette of 6, 5 and
            then 4 bits.
        steps: >= 1; may be left out where `specs` is a sequence.
        data: as in `rdkernels.convert`; run at every compression, so batches must be there more than once.

    Layers and specs are checked, and seeds drawn, at the call: without a sequence, a layer keeps its map throughout.
    Each compression is of all its layers or, after an error, of none.

    Raises:
        TypeError, ValueError: as `rdkernels.convert`; in a later phase, a layer that was replaced since, or pruned
            without `prune.remove`.
    """
    with owned("alternate"):
        schedule = _schedule(specs, steps)
        if isinstance(data, Iterator) and len(schedule) > 1:
            raise TypeError("data must give its batches anew at every step: a list or a DataLoader, not an iterator")
        once = {id(entry): match(model, entry) for entry in schedule}
        for entry in once.values():
            needed(entry, data)
        found = [once[id(entry)] for entry in schedule]
    return _phases(model, found, data)


def _phases(model: nn.Module, found: Sequence[list[Target | Row]], data: Data | None) -> Iterator[Phase]:
    yield Phase("train", 0, model)
    for step, entry in enumerate(found[:-1], 1):
        with owned("alternate"):
            _check_same(model, entry)
            report = _refit(model, entry, data)
        yield Phase("refit", step, model, report)
    with owned("alternate"):
        _check_same(model, found[-1])
        model, report = apply(model, found[-1], "fit", data)
    yield Phase("convert", len(found), model, report)


def _check_same(model: nn.Module, found: Sequence[Target | Row]) -> None:
    """A layer that was replaced, or whose weight became a computed one, would be compressed to no effect."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for entry in found:
        if not isinstance(entry, Target):
            continue
        name = entry.name or "the model"
        if any(modules.get(own) is not entry.module for own in entry.names):
            raise ValueError(f"{name}: was replaced since alternate was called")
        if "weight" not in entry.module._parameters:
            raise ValueError(f"{name}: {COMPUTED}")


def _schedule(specs: Specs | Sequence[Specs], steps: int | None) -> list[Specs]:
    listed = not isinstance(specs, (Spec, Mapping))
    if listed and (not isinstance(specs, Sequence) or not specs):
        raise TypeError(f"specs must be a spec, a mapping of names to specs or a sequence of them, got {specs!r}")
    if steps is None and listed:
        steps = len(specs)  # type: ignore[arg-type]
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be an int >= 1, got {steps!r}")
    if listed and len(specs) != steps:  # type: ignore[arg-type]
        raise ValueError(f"specs must have one entry for each of {steps} steps, got {len(specs)}")  # type: ignore[arg-type]
    return list(specs) if listed else [specs] * steps  # type: ignore[arg-type,list-item]


def _refit(model: nn.Module, found: Sequence[Target | Row], data: Data | None) -> Report:
    observers = observe(model, found, data)
    rows = []
    with _all_or_none([entry.module.weight for entry in found if isinstance(entry, Target)]):
        for entry in found:
            if isinstance(entry, Target):
                with naming(entry.name):
                    error = entry.spec.refit(entry.module, observers.get(entry.name))
                kind, count = type(entry.module).__name__, count_parameters(entry.module)
                entry = Row(entry.name, kind, kind, (count, count), error)
            rows.append(entry)
    return Report(tuple(rows))


@contextmanager
@torch.no_grad()
def _all_or_none(weights: Sequence[Tensor]) -> Iterator[None]:
    """After an error the weights are as they were."""
    before = [weight.clone() for weight in weights]
    try:
        yield
    except BaseException:
        for weight, old in zip(weights, before, strict=True):
            weight.copy_(old)
        raise
