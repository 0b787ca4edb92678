"""The covariance of a layer's inputs, summed over a stream of batches, and its use as the metric of a fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

_BLOCK = 2**22  # values of x that are widened to float64 at a time: 32 MiB


Seen = TypeVar("Seen", bound="_Inputs")


class _Inputs:
    """Sees what a layer is given."""

    def update(self, x: Tensor) -> None:
        raise NotImplementedError

    @contextmanager
    def attached(self: Seen, module: nn.Module) -> Iterator[Seen]:
        """While the context is open, `module`'s inputs are counted; what it computes does not change."""

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.update(args[0] if args else kwargs["input"])

        handle = module.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            yield self
        finally:
            handle.remove()


class InputCovariance(_Inputs):
    """Sums `x x^T` over everything that a layer is given: the metric `E||(W - W~) x||^2` of `metric="input_cov"`.

    For an nn.Conv2d over the channels, `[C, C]`, every position of every map counted once and padding not at all; for
    an nn.Linear over the features, `[in, in]`. Not centred. The sums are float64 on the CPU: `8 * size**2` bytes, and a
    fit decomposes them, so name the layers rather than calibrate a linear one of tens of thousands of inputs.

    Args:
        size: channels or features.
        channel_dim: where they are in x: 1 for maps `[N, C, H, W]`, -1 for rows `[..., in]`.
        ridge: `covariance()` adds this much of the mean of the diagonal to the diagonal, so that directions which the
            data never took keep a small weight and the root can be inverted.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is allowed.
    """

    def __init__(self, size: int, *, channel_dim: int = 1, ridge: float = 1e-6) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"InputCovariance: size must be an int >= 1, got {size!r}")
        if channel_dim not in (1, -1):
            raise ValueError(f"InputCovariance: channel_dim must be 1 or -1, got {channel_dim!r}")
        if not ridge > 0:
            raise ValueError(f"InputCovariance: ridge must be > 0, got {ridge!r}")
        self.size, self.channel_dim, self.ridge = size, channel_dim, float(ridge)
        self.sums = torch.zeros(size, size, dtype=torch.float64, device="cpu")
        self.count = 0  # vectors seen

    @classmethod
    def of(cls, module: nn.Module, *, ridge: float = 1e-6) -> InputCovariance:
        """An empty one that suits `module`, an nn.Conv2d or nn.Linear."""
        if isinstance(module, nn.Conv2d):
            return cls(module.in_channels, channel_dim=1, ridge=ridge)
        if isinstance(module, nn.Linear):
            return cls(module.in_features, channel_dim=-1, ridge=ridge)
        raise TypeError(f"InputCovariance: module must be an nn.Conv2d or nn.Linear, got {type(module).__name__}")

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Count every vector of `x`: a batch of the layer's inputs."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(
                f"InputCovariance: x must be a floating Tensor, got {getattr(x, 'dtype', type(x).__name__)}"
            )
        least = 1 if self.channel_dim == -1 else 3
        channel = -1 if self.channel_dim == -1 else -3 if x.dim() == 3 else 1
        if x.dim() < least or x.shape[channel] != self.size:
            layout = "[..., in]" if self.channel_dim == -1 else "[N, C, H, W]"
            raise ValueError(f"InputCovariance: x must be {layout} with {self.size} channels, got {list(x.shape)}")
        items = x[None] if channel == -3 else x.reshape(-1, self.size) if channel == -1 else x
        step = max(1, _BLOCK // max(1, items[:1].numel()))
        for block in items.detach().split(step):
            vectors = block.transpose(0, 1).flatten(1).to(torch.float64)  # [size, vectors]
            self.sums += (vectors @ vectors.T).cpu()
            self.count += vectors.shape[1]

    def covariance(self) -> Tensor:
        """`sums / count`, float64 `[size, size]`, with the ridge on the diagonal."""
        if self.count == 0:
            raise ValueError("InputCovariance: calibrator has seen no input; run the model on some batches first")
        mean = self.sums / self.count
        if not mean.isfinite().all():
            raise ValueError("InputCovariance: calibrator has seen an input that is not finite")
        level = mean.diagonal().mean()
        if level == 0:
            raise ValueError("InputCovariance: calibrator has seen only zeros")
        return mean + self.ridge * level * torch.eye(self.size, dtype=torch.float64, device="cpu")


class WeightInputCovariance(_Inputs):
    """The centred covariance of all that meets one unit's weights, `[n, n]`: the kernel of the dictionary "emp".

    For an nn.Linear the features, `n = in`; for an nn.Conv2d the patches as the convolution sees them, padding
    included, `n = C * kh * kw`. The sums are float64 on the CPU.

    Args:
        module: the nn.Linear, or nn.Conv2d of groups 1.
        squared: the covariance of the inputs' squares, for "emp2".

    Raises:
        TypeError, ValueError: naming the argument, what came and what is allowed.
    """

    def __init__(self, module: nn.Module, *, squared: bool = False) -> None:
        if not isinstance(module, (nn.Linear, nn.Conv2d)):
            raise TypeError(
                f"WeightInputCovariance: module must be an nn.Conv2d or nn.Linear, got {type(module).__name__}"
            )
        if isinstance(module, nn.Conv2d) and module.groups != 1:
            raise ValueError(f"WeightInputCovariance: module must have groups 1, got {module.groups}")
        self.squared, self.size = squared, module.weight[0].numel()
        self._channels = module.weight.shape[1]
        self._conv: dict[str, Any] | None = None
        if isinstance(module, nn.Conv2d):
            self._sides = module._reversed_padding_repeated_twice
            self._mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
            self._conv = {name: getattr(module, name) for name in ("kernel_size", "dilation", "stride")}
        self.sums = torch.zeros(self.size, self.size, dtype=torch.float64, device="cpu")
        self.total = torch.zeros(self.size, dtype=torch.float64, device="cpu")
        self.origin: Tensor | None = None  # near the mean, so that centring the sums cancels little
        self.count = 0  # vectors seen

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Count every vector of `x`: a batch of the layer's inputs."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(
                f"WeightInputCovariance: x must be a floating Tensor, got {getattr(x, 'dtype', type(x).__name__)}"
            )
        layout, channel = ("[..., in]", -1) if self._conv is None else ("[N, C, H, W]", -3)
        if x.dim() < -channel or x.shape[channel] != self._channels:
            raise ValueError(
                f"WeightInputCovariance: x must be {layout} with {self._channels} channels, got {list(x.shape)}"
            )
        items = x.detach().reshape(-1, *x.shape[channel:])
        step = max(1, _BLOCK // max(1, items[:1].numel() * self.size // self._channels))
        for block in items.split(step):
            vectors = self._vectors(block.to(torch.float64))  # [vectors, size]
            if not len(vectors):
                continue
            if self.origin is None:
                self.origin = vectors.mean(0).cpu()
            vectors = vectors - self.origin.to(vectors.device)
            self.sums += (vectors.T @ vectors).cpu()
            self.total += vectors.sum(0).cpu()
            self.count += len(vectors)

    def _vectors(self, block: Tensor) -> Tensor:
        if self._conv is not None:
            patches = functional.unfold(functional.pad(block, self._sides, self._mode), **self._conv)
            block = patches.transpose(1, 2).reshape(-1, self.size)
        return block.square() if self.squared else block

    def covariance(self) -> Tensor:
        """The covariance, float64 `[n, n]`, normalised by the count."""
        if self.count == 0:
            raise ValueError("WeightInputCovariance: observer has seen no input; run the model on some batches first")
        mean = self.total / self.count
        found = self.sums / self.count - mean[:, None] * mean
        if not found.isfinite().all():
            raise ValueError("WeightInputCovariance: observer has seen an input that is not finite")
        if not found.diagonal().any():
            raise ValueError("WeightInputCovariance: observer has seen only one value of every input")
        return found


@contextmanager
def calibrate(
    model: nn.Module, modules: Iterable[str | nn.Module] | None = None, *, ridge: float = 1e-6
) -> Iterator[dict[str, InputCovariance]]:
    """While the context is open, count the inputs of some of the model's layers: name -> `InputCovariance`::

        with rd.compress.calibrate(model, ["features.3"]) as found:
            model(batch)
        layer = rd.nn.TuckerConv2d.from_dense(conv, macs=4, metric="input_cov", calibrator=found["features.3"])

    Args:
        model: whose forward is run inside the context.
        modules: names (as in `named_modules()`) or the modules themselves; None: every nn.Conv2d (groups 1) and
            nn.Linear.
        ridge: as in `InputCovariance`.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is allowed.
    """
    named = dict(model.named_modules())
    if modules is None:
        chosen = {
            name: m
            for name, m in named.items()
            if isinstance(m, nn.Linear) or (isinstance(m, nn.Conv2d) and m.groups == 1)
        }
    else:
        names = {id(m): name for name, m in named.items()}
        chosen = {}
        for wanted in [modules] if isinstance(modules, (str, nn.Module)) else modules:
            name = wanted if isinstance(wanted, str) else names.get(id(wanted))
            if name is None or name not in named:
                raise ValueError(f"calibrate: modules must be names or modules of the model, got {wanted!r}")
            chosen[name] = named[name]
    found = {name: InputCovariance.of(m, ridge=ridge) for name, m in chosen.items()}
    with ExitStack() as stack:
        for name, covariance in found.items():
            stack.enter_context(covariance.attached(chosen[name]))
        yield found


def roots(covariance: Tensor | None, size: int) -> tuple[Tensor, Tensor] | None:
    """The symmetric root of a positive definite covariance `[size, size]` and the root's inverse."""
    if covariance is None:
        return None
    if covariance.shape != (size, size):
        raise ValueError(f"covariance must have shape [{size}, {size}], got {list(covariance.shape)}")
    values, vectors = torch.linalg.eigh(covariance.to(device="cpu", dtype=torch.float64))
    if not values[0] > 0:
        raise ValueError(f"covariance must be positive definite, got the eigenvalue {float(values[0]):.3g}")
    return (vectors * values.sqrt()) @ vectors.T, (vectors * values.rsqrt()) @ vectors.T


def whiten(weight: Tensor, covariance: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """`weight` `[out, in, ...]` times the covariance's root, in float64 on the CPU, and the root's inverse.

    Factors of the result that act on the inputs are brought back by a product with that inverse: exact, and the
    structure of every other factor is kept.
    """
    wide = weight.detach().to(device="cpu", dtype=torch.float64)
    if not wide.isfinite().all():
        raise ValueError("weight must be finite")
    found = roots(covariance, weight.shape[1])
    if found is None:
        return wide, None
    return torch.einsum("oc...,cd->od...", wide, found[0]), found[1]


def unwhiten(factor: Tensor, inverse: Tensor | None) -> Tensor:
    """`factor` `[..., in]` for the inputs as they come."""
    return factor if inverse is None else factor @ inverse
