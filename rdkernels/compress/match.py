"""Which layers of a model a conversion changes, which it leaves, and why."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..nn import WeightBank
from .report import Row
from .spec import Spec

Specs = Spec | Mapping[str, Spec | None]

LAYERS = WeightBank.__module__.rpartition(".")[0]  # the package of the layers
_DENSE: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d)
#: Modules that read the weights of their children, past the children's forward.
_READERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
COMPUTED = (
    "its weight is computed (a parametrization, weight_norm or prune); make it permanent first: "
    "torch.nn.utils.prune.remove, torch.nn.utils.parametrize.remove_parametrizations"
)
_STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


@dataclass(frozen=True)
class Target:
    """A layer to convert: all its names in the model, and its spec with nothing left to draw."""

    names: tuple[str, ...]
    module: Any
    spec: Spec

    @property
    def name(self) -> str:
        return " = ".join(self.names)


def match(model: nn.Module, specs: Specs) -> list[Target | Row]:
    """In the model's order, each layer to convert, or a report's row that says why a layer is left.

    Raises:
        TypeError, ValueError: see `rdkernels.convert`.
    """
    patterns = _checked(model, specs)
    named = dict(model.named_modules(remove_duplicate=False))
    for pattern in patterns:
        if not any(_matches(pattern, name) for name in named):
            near = difflib.get_close_matches(pattern, named, n=3, cutoff=0.4)
            hint = f"; near: {', '.join(map(repr, near))}" if near else f"; the names are {list(named)[:8]}"
            raise ValueError(f"pattern {pattern!r} matches no module{hint}")
    found: list[Target | Row] = []
    for names, module in _layers(named, patterns):
        decided = _deciding(names, patterns)
        name = " = ".join(names)
        kind = type(module).__name__
        spec = patterns[decided] if decided is not None else None
        if spec is None:
            if (
                decided in names
                and not isinstance(module, _DENSE)
                and all(p is None for p in module._parameters.values())
            ):
                inside = f"{decided}.*" if decided else "*"
                raise ValueError(
                    f"{name or 'the model'}: {kind} has no weight; to leave what is inside, name {inside!r}"
                )
            why = "no pattern matches" if decided is None else f"its pattern {decided!r} has no spec"
            found.append(Row(name, kind, reason=why))
            continue
        reason = _reason(names, module, spec, named)
        if reason is None:
            found.append(Target(names, module, spec.for_layer(names[0])))
        elif decided in names:
            raise ValueError(f"{name or 'the model'}: {reason}")
        else:
            found.append(Row(name, kind, reason=reason))
    _check_use(patterns, found)
    return found


def _checked(model: nn.Module, specs: Specs) -> dict[str, Spec | None]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        if isinstance(module, DistributedDataParallel):
            raise ValueError(f"model must be converted before it is wrapped, got DistributedDataParallel at {name!r}")
    patterns = {"*": specs} if isinstance(specs, Spec) else specs
    if not isinstance(patterns, Mapping) or not patterns:
        raise TypeError(f"specs must be a spec or a mapping of names to specs, got {specs!r}")
    for pattern, spec in patterns.items():
        if not isinstance(pattern, str) or not isinstance(spec, (Spec, type(None))):
            raise TypeError(f"specs must map names to specs or None, got {pattern!r}: {spec!r}")
    return dict(patterns)


def _matches(pattern: str, name: str) -> bool:
    return pattern == name or fnmatchcase(name, pattern)


def _layers(named: Mapping[str, nn.Module], patterns: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], nn.Module]]:
    """Each module that counts as a layer, once, with its names: it owns parameters, or is named outright."""
    names: dict[int, list[str]] = {}
    inside: list[str] = []
    for name, module in named.items():
        if name not in patterns and any(name.startswith(prefix) for prefix in inside):
            continue
        if compressed(module) or hasattr(module, "parametrizations"):
            inside.append(f"{name}." if name else "")
        if isinstance(module, _DENSE) or any(p is not None for p in module._parameters.values()) or name in patterns:
            names.setdefault(id(module), []).append(name)
    modules = {id(m): m for m in named.values()}
    for key, all_names in names.items():
        yield tuple(all_names), modules[key]


def _first(name: str, patterns: Mapping[str, Any]) -> str | None:
    return next((p for p in patterns if _matches(p, name)), None)


def compressed(module: nn.Module) -> bool:
    """A layer of `rdkernels.nn`: it can build the dense weight that it stands for."""
    return hasattr(module, "materialize") and any(c.__module__.startswith(LAYERS) for c in type(module).__mro__)


def _deciding(names: tuple[str, ...], patterns: Mapping[str, Spec | None]) -> str | None:
    """The first pattern that matches the layer; by whichever of its names, if all agree on the spec."""
    chosen = [p for p in (_first(name, patterns) for name in names) if p is not None]
    for other in chosen[1:]:
        if patterns[other] != patterns[chosen[0]]:
            raise ValueError(
                f"{' = '.join(names)}: one layer, but patterns {chosen[0]!r} and {other!r} give it different specs"
            )
    return next((p for p in chosen if p in names), chosen[0]) if chosen else None


def _reason(names: tuple[str, ...], module: Any, spec: Spec, named: Mapping[str, nn.Module]) -> str | None:
    """Why the layer must stay as it is; raises where the spec knows it but cannot represent it."""
    kind, own_name = type(module).__name__, names[0] or "the model"
    if compressed(module):
        return "is compressed already"
    dense = next((t for t in spec.types if isinstance(module, t)), None)
    if dense is None:
        inner = f"; name what is inside, as in '{names[0] and names[0] + '.'}*'" if list(module.children()) else ""
        return f"{type(spec).__name__} is for {' and '.join('nn.' + t.__name__ for t in spec.types)}, not {kind}{inner}"
    if "weight" not in module._parameters:
        return COMPUTED
    if type(module).forward is not dense.forward:  # type: ignore[attr-defined]
        return f"{kind} is a subclass of nn.{dense.__name__} with a forward of its own"
    weight = module._parameters["weight"]
    if isinstance(weight, nn.UninitializedParameter):
        raise ValueError(f"{own_name}: {kind} is lazy; run the model once, so that it gets its shape")
    if type(weight) is not nn.Parameter:
        return f"its weight is a {type(weight).__name__}, not a plain parameter"
    if weight.is_meta:
        raise ValueError(f"{own_name}: {kind} is on the meta device; give the model values first")
    for name in names:
        parent = named[name.rpartition(".")[0]] if name else None
        if isinstance(parent, _READERS):
            return f"nn.{type(parent).__name__} reads its weight directly"
    tied = [
        f"{name}.{key}".lstrip(".")
        for name, other in named.items()
        for key, p in other._parameters.items()
        if other is not module and any(p is own for own in module._parameters.values() if own is not None)
    ]
    if tied:
        return f"shares a parameter with {tied[0]}"
    if any(getattr(module, hooks) for hooks in _STATE_HOOKS):
        return "has hooks on its state dict"
    if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in module._parameters.values() if p is not None):
        return "has hooks on the gradients of its parameters"
    problem = spec.problem(module)
    if problem:
        raise ValueError(f"{own_name}: {problem} (to leave the layer, map its name to None, before other patterns)")
    return None


def _check_use(patterns: Mapping[str, Spec | None], found: list[Target | Row]) -> None:
    """No pattern with a spec may come to nothing in silence."""
    changed = {n: _first(n, patterns) for target in found if isinstance(target, Target) for n in target.names}
    for pattern, spec in patterns.items():
        if spec is None or pattern in changed.values():
            continue
        left = [
            f"{row.name or 'the model'}: {row.reason}"
            for row in found
            if isinstance(row, Row) and any(_matches(pattern, name) for name in row.name.split(" = "))
        ]
        left += [
            f"{name or 'the model'}: the earlier pattern {first!r} decides"
            for name, first in changed.items()
            if _matches(pattern, name)
        ]
        raise ValueError(f"pattern {pattern!r} changes no layer; {'; '.join(left[:4]) or 'none there has parameters'}")
