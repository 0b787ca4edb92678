"""Layers whose weight is predicted from few trained values by a fixed dictionary."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import fits
from ..fits.budget import check_rank, pair_of_ranks
from ..fits.dictionary import FROM_DATA, GIVEN, KINDS, STORED, clean
from ..ops.convolution import geometry
from .hashed import draw_seed
from .lowrank import errors_of

Order = Literal["expand", "pool"]
IntOrPair = int | Sequence[int]
Layer = TypeVar("Layer", bound="Predicted")

#: What the state dict's int64 entry `recipe` holds, in this order; ridge and sigma as the bits of a float64. The
#: settings after `width` are 0 where the atoms are stored.
RECIPE_FIELDS = (
    "recipe_version",
    "dictionary",
    "columns",
    "atoms",
    "channels",
    "height",
    "width",
    "seed",
    "whiten",
    "ridge",
    "sigma",
)
_VERSION = 1
_NAMES = (*KINDS, GIVEN)


class Predicted(nn.Module):
    """`W = [U_1 V_1, ..., U_J V_J]^T`: the atoms U are fixed, the coefficients V are trained.

    Buffers: `atoms` `[J, n_a, positions]`, one channel's block of the U^T; of the dictionary "identity" instead `index`
    `[J, n_a]`, the inputs that a column sees. They are in the state dict only where the recipe cannot make them again.
    """

    _dense_type: Any  # nn.Linear or nn.Conv2d
    _gathers = 0  # whether pooling by an identity multiplies
    _pool_weight = 1.0  # time of one of pooling's multiply-adds over that of a dense layer's

    bias: nn.Parameter | None
    dictionary: fits.Dictionary
    atoms: Tensor
    index: Tensor

    def _register(
        self,
        outputs: int,
        dictionary: fits.Dictionary,
        source: Tensor | None,
        bias: bool,
        device: Any,
        dtype: torch.dtype | None,
    ) -> None:
        if not isinstance(bias, bool):
            raise TypeError(f"bias must be True or False, got {bias!r}")
        dtype = dtype or torch.get_default_dtype()
        if not dtype.is_floating_point:
            raise TypeError(f"dtype must be floating, got {dtype}")
        self.dictionary, self._outputs = dictionary, outputs
        self._runs = _runs(outputs, dictionary.columns)
        sets = (dictionary.columns, dictionary.atoms)
        if dictionary.kind == "identity":
            self.register_buffer("index", torch.empty(sets, dtype=torch.int64, device=device), persistent=False)
        else:
            block = torch.empty(*sets, dictionary.inputs // dictionary.channels, dtype=dtype, device=device)
            self.register_buffer("atoms", block, persistent=dictionary.kind in STORED)
        self._build(source)
        self.coefficients = nn.Parameter(torch.empty(outputs, dictionary.per_unit, dtype=dtype, device=device))
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(outputs, dtype=dtype, device=device)) if bias else None
        )
        self.reset_parameters()

    @property
    def fraction(self) -> float:
        """Trained values of a unit over its weights, as reached."""
        return self.dictionary.per_unit / self.dictionary.inputs

    @property
    def recipe(self) -> Tensor:
        """The int64 values of `RECIPE_FIELDS`, on the CPU: the state dict's entry of that name."""
        d = self.dictionary
        height, width = (*d.positions, 0)[:2]
        settings = (0,) * 4 if d.kind in STORED else (d.seed, d.whiten, *map(_bits, (d.ridge, d.sigma)))
        fields = (_VERSION, _NAMES.index(d.kind), d.columns, d.atoms, d.channels, height, width, *settings)
        return torch.tensor(fields, dtype=torch.int64, device="cpu")

    @property
    def _fixed(self) -> Tensor:
        return self.index if self.dictionary.kind == "identity" else self.atoms

    @torch.no_grad()
    def _build(self, source: Tensor | None = None) -> None:
        """Fill the buffer."""
        kind, fixed = self.dictionary.kind, self._fixed
        if fixed.is_meta:
            return
        if kind == "identity":
            fixed.copy_(self.dictionary.index_sets())
        elif kind in STORED and source is None:
            fixed.fill_(float("nan"))
        else:
            fixed.copy_(clean(self.dictionary.build(source), fixed.dtype))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        before = self._fixed
        super()._apply(fn, recurse)
        changed = before.is_meta or self._fixed.dtype != before.dtype
        if changed and self.dictionary.kind not in STORED:
            self._build()  # a cast and its way back lose nothing; what left the meta device has values
        return self

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw coefficients and bias anew, uniform: the weight gets the dense twin's variance, `1 / (3 * fan_in)`."""
        inputs = self.dictionary.inputs
        for (first, count, width), rows in zip(self._runs, self._rows(), strict=True):
            if self.coefficients.is_meta:
                break
            if self.dictionary.kind == "identity":
                gain = torch.full((count,), self.fraction, dtype=torch.float64)
            else:
                gain = self.atoms[first : first + count].double().square().sum(1).mean(1)  # [count]
            bound = (inputs * gain).rsqrt().nan_to_num(posinf=0.0).to(self.coefficients.device)
            own = self.coefficients[rows].view(count, width, -1)
            own.uniform_(-1, 1).mul_(bound[:, None, None])
        if self.bias is not None:
            nn.init.uniform_(self.bias, -(inputs**-0.5), inputs**-0.5)

    def _rows(self) -> list[slice]:
        """The units of each run of columns."""
        ends, rows = 0, []
        for _, count, width in self._runs:
            rows.append(slice(ends, ends + count * width))
            ends += count * width
        return rows

    def _dense_atoms(self) -> Tensor:
        if self.dictionary.kind != "identity":
            return self.atoms
        one = self.coefficients.new_zeros(*self.index.shape, self.dictionary.inputs)
        return one.scatter_(2, self.index[..., None], 1.0)

    def _expand(self) -> Tensor:
        """The weight `[out, n_v]`."""
        d, parts = self.dictionary, []
        for (first, count, width), rows in zip(self._runs, self._rows(), strict=True):
            own = self.coefficients[rows]
            if d.kind == "identity":
                index = self.index[first : first + count, None].expand(-1, width, -1).reshape(own.shape)
                parts.append(own.new_zeros(len(own), d.inputs).scatter(1, index, own))
            else:
                blocks = own.view(count, width * d.channels, d.atoms)
                parts.append(torch.bmm(blocks, self.atoms[first : first + count]).view(len(own), d.inputs))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def order(self, rows: int, *, weight_grad: bool = False, input_grad: bool = False) -> Order:
        """How `forward` computes `rows` rows, or output positions: what takes fewer multiply-adds.

        "expand": `W = U V` once, then the dense layer. "pool": `x U`, then the coefficients as a small layer for each
        column. Those of the backward count too, where the weight or x needs a gradient.
        """
        d = self.dictionary
        weights, trained = self._outputs * d.inputs, self._outputs * d.per_unit
        expand, pool = trained * (d.inputs // d.channels), rows * d.inputs * d.columns * d.atoms
        if d.kind == "identity":
            expand, pool = 0, pool * self._gathers
        passes = 1 + weight_grad + input_grad
        full = (1 + weight_grad) * expand + passes * rows * weights
        small = (1 + input_grad) * pool + passes * rows * trained
        return "expand" if full < small * self._pool_weight else "pool"

    def _order(self, x: Tensor, rows: int) -> Order:
        grad = torch.is_grad_enabled()
        weight_grad = grad and self.coefficients.requires_grad
        return self.order(rows, weight_grad=weight_grad, input_grad=grad and x.requires_grad)

    def materialize(self) -> Tensor:
        """The weight of the dense twin, in its shape; differentiable with respect to the coefficients."""
        raise NotImplementedError

    @torch.no_grad()
    def relative_error(self, dense: nn.Module) -> float:
        """`||W - materialize()||_F / ||W||_F` in float64, with W the weight of the layer `dense`."""
        weight: Any = dense.weight
        own = self.materialize()
        if own.shape != weight.shape:
            raise ValueError(
                f"{type(self).__name__}.relative_error: dense must have a weight of shape {list(own.shape)}, "
                f"got {list(weight.shape)}"
            )
        gap = float((weight.double() - own.double()).norm())
        return gap / float(weight.double().norm()) if gap else 0.0

    @torch.no_grad()
    def _fill(self: Layer, dense: Any) -> Layer:
        """The coefficients of least `||W - W~||_F`, and the bias and mode of `dense`."""
        weight = dense.weight.detach().flatten(1).to(device="cpu", dtype=torch.float64)
        if not weight.isfinite().all():
            raise ValueError("weight must be finite")
        d = self.dictionary
        atoms = self._fixed.cpu() if d.kind == "identity" else self.atoms.cpu().double()
        for (first, count, width), rows in zip(self._runs, self._rows(), strict=True):
            for j, unit in zip(range(first, first + count), range(rows.start, rows.stop, width), strict=True):
                target = weight[unit : unit + width]
                if d.kind == "identity":
                    found = target[:, atoms[j]]
                else:
                    found = _least_squares(atoms[j], target.reshape(width * d.channels, -1)).reshape(width, -1)
                self.coefficients[unit : unit + width] = found.to(self.coefficients)
        if self.bias is not None:
            self.bias.copy_(dense.bias)
        return self.train(dense.training)

    def _size_repr(self) -> str:
        d = self.dictionary
        grid = (d.channels, *d.positions) if d.channels > 1 else d.positions
        settings = "".join(
            f", {name}={value}"
            for name, value in (("topology", grid), ("sigma", d.sigma), ("ridge", d.ridge), ("seed", d.seed))
            if (name != "topology" or len(grid) > 1) and (name in ("topology", "seed") or value)
        )
        trained = [p for p in self.parameters() if p.requires_grad]
        sizes = [sum(t.numel() * t.element_size() for t in ts) for ts in (trained, self.state_dict().values())]
        item = self.coefficients.element_size()
        dense = item * self._outputs * (d.inputs + (self.bias is not None))
        return (
            f"bias={self.bias is not None}, dictionary={d.kind}, fraction={self.fraction:.4g}, columns={d.columns}"
            f"{settings}, trained_bytes={sizes[0]}, stored_bytes={sizes[1]} (dense {dense})"
        )

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "recipe"] = self.recipe  # not a buffer: none may cast, broadcast or leave it uninitialised

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing_keys, unexpected_keys, error_msgs):
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing_keys, unexpected_keys, error_msgs)
        key = prefix + "recipe"
        if key in unexpected_keys:
            unexpected_keys.remove(key)
        if key not in state_dict:
            missing_keys.append(key)
        else:
            error_msgs.extend(f"{prefix}{text}" for text in _disagreements(self.recipe, state_dict[key]))


class PredictedLinear(Predicted):
    """`y = x @ W.T + bias`, each column of units with weights `U v`: fixed atoms U, trained coefficients v.

    Denil et al. 2013, equation 3 and section 3: U predicts a unit's weights from their values at a few inputs.

    Args:
        in_features, out_features, bias, device, dtype: as in `nn.Linear`.
        fraction: trained coefficients over weights; a unit has `n_a = round(fraction * n_v)` of its `n_v` weights, for
            a topology with channels that many of each channel's.
        dictionary: of the atoms, the columns of U.
            "se": ridge predictor by a squared exponential over the coordinates of `topology`; zero between channels.
            "emp", "emp2": ridge predictor by the covariance of the inputs, or of their squares; needs `observer`.
            "gauss": independent normal values. "identity": a unit sees n_a of the inputs.
            "dct": the lowest cosines of `topology`. A Tensor `[in, n]`: n_a of its atoms, without a predictor.
        columns: groups of units with index sets, and so atoms, of their own.
        topology: how the inputs lie, in row-major order: (length,), (height, width) or (channels, height, width).
        ridge: lambda of the ridge predictor over the mean of the kernel's diagonal. The authors took 0.1 for "se" and
            1e-3 for "emp2".
        sigma: of "se", in pixels.
        whiten: True, the ridge predictor `k_a^T (K_a + lambda I)^-1`; False, the kernel's own columns `k_a^T`.
        seed: uint32, of the index sets and "gauss". None draws one from torch's default CPU generator; processes that
            train one model must draw the same or be given it.
        observer: an `rdkernels.fits.WeightInputCovariance` that has seen the layer's inputs. Without one the atoms of
            "emp" and "emp2" are NaN until a state dict is loaded.

    Shapes: x `[..., in]`, result `[..., out]`. Parameters: `coefficients` `[out, n_a]`, `bias` `[out]` or None.

    The state dict holds the parameters, `recipe`, the int64 values of `RECIPE_FIELDS`, and the atoms that come from
    data. Loading one whose recipe differs from the layer's raises RuntimeError that names both values.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is allowed.
    """

    _dense_type = nn.Linear

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        fraction: float,
        dictionary: str | Tensor = "se",
        columns: int = 1,
        topology: Sequence[int] | None = None,
        ridge: float = 0.1,
        sigma: float = 1.0,
        whiten: bool = True,
        seed: int | None = None,
        observer: fits.WeightInputCovariance | None = None,
    ) -> None:
        super().__init__()
        with errors_of("PredictedLinear"):
            self.in_features = check_rank("in_features", in_features)
            self.out_features = check_rank("out_features", out_features)
            recipe = fits.Dictionary.of(
                in_features,
                out_features,
                dictionary,
                fraction,
                columns=columns,
                topology=topology,
                ridge=ridge,
                sigma=sigma,
                whiten=whiten,
                seed=draw_seed() if seed is None else seed,
            )
            self._register(out_features, recipe, _source(recipe, dictionary, observer), bias, device, dtype)

    @classmethod
    def from_dense(cls, linear: nn.Linear, **settings: Any) -> PredictedLinear:
        """The layer closest to `linear`: of all coefficients the least squares of `||W - W~||_F`.

        Args:
            linear: its bias is copied; device, dtype and training mode are kept.
            settings: the constructor's keyword-only arguments.

        Raises:
            TypeError, ValueError: naming the argument, what came and what is allowed.
        """
        with errors_of("PredictedLinear.from_dense"):
            weight = _weight_of(cls, "linear", linear)
        shape = (linear.in_features, linear.out_features, linear.bias is not None)
        layer = cls(*shape, weight.device, weight.dtype, **settings)
        with errors_of("PredictedLinear.from_dense"):
            return layer._fill(linear)

    def materialize(self) -> Tensor:
        return self._expand()

    def forward(self, x: Tensor) -> Tensor:
        if not x.dim() or x.shape[-1] != self.in_features:
            raise ValueError(
                f"PredictedLinear: x must have in_features = {self.in_features} as its last dimension, "
                f"got {list(x.shape)}"
            )
        if self._order(x, x.numel() // self.in_features) == "expand":
            return functional.linear(x, self._expand(), self.bias)
        return self._pool(x.reshape(-1, self.in_features)).view(*x.shape[:-1], self.out_features)

    def _pool(self, x: Tensor) -> Tensor:
        """`x` `[B, in]` times the atoms of every column, then the coefficients column by column."""
        d, batch = self.dictionary, x.shape[0]
        if d.kind == "identity":
            pooled = x[:, self.index.reshape(-1)]
        else:
            pooled = functional.linear(x.reshape(batch * d.channels, d.inputs // d.channels), self.atoms.flatten(0, 1))
        pooled = pooled.view(batch, d.channels, d.columns, d.atoms)
        pooled = pooled.permute(2, 0, 1, 3).reshape(d.columns, batch, d.per_unit)
        parts = []
        for (first, count, width), rows in zip(self._runs, self._rows(), strict=True):
            own = self.coefficients[rows].view(count, width, d.per_unit).mT
            group = pooled[first : first + count]
            if self.bias is None:
                y = torch.bmm(group, own)
            else:
                y = torch.baddbmm(self.bias[rows].view(count, 1, width), group, own)
            parts.append(y.transpose(0, 1).reshape(batch, count * width))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, {self._size_repr()}"


class PredictedConv2d(Predicted):
    """`nn.Conv2d` with every column of filters predicted: fixed atoms, trained coefficients.

    Args:
        in_channels to dtype: as in `nn.Conv2d`, of groups 1.
        fraction to observer: as in `PredictedLinear`, of the `n_v = C * kh * kw` weights of a filter. The topology is
            the filter's `(C, kh, kw)`: for "se" and "dct" the atoms are those of one channel, the same for each.

    Parameters: `coefficients` `[out, n_a]`, by channel first where the atoms are one channel's, and `bias` `[out]` or
    None. State dict, raises: as `PredictedLinear`.
    """

    _dense_type = nn.Conv2d
    _gathers = 1
    _pool_weight = 3.5  # few filters a group: measured on a CPU

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrPair,
        stride: IntOrPair = 1,
        padding: IntOrPair | str = 0,
        dilation: IntOrPair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        fraction: float,
        dictionary: str | Tensor = "se",
        columns: int = 1,
        ridge: float = 0.1,
        sigma: float = 1.0,
        whiten: bool = True,
        seed: int | None = None,
        observer: fits.WeightInputCovariance | None = None,
    ) -> None:
        super().__init__()
        with errors_of("PredictedConv2d"):
            self.in_channels = check_rank("in_channels", in_channels)
            self.out_channels = check_rank("out_channels", out_channels)
            self.kernel_size = pair_of_ranks(kernel_size, name="kernel_size")
            if groups != 1:
                raise ValueError(f"groups must be 1, got {groups!r}")
            modes = ("zeros", "reflect", "replicate", "circular")
            if padding_mode not in modes:
                raise ValueError(f"padding_mode must be one of {list(modes)}, got {padding_mode!r}")
        where = geometry("PredictedConv2d", *self.kernel_size, stride, padding, dilation)
        self.stride, self.dilation, self.padding_mode = where[:2], where[6:], padding_mode
        self.padding = padding if isinstance(padding, str) else (where.top, where.left)
        self._sides = (where.left, where.right, where.top, where.bottom)
        topology = (in_channels, *self.kernel_size)
        inputs = in_channels * self.kernel_size[0] * self.kernel_size[1]
        with errors_of("PredictedConv2d"):
            recipe = fits.Dictionary.of(
                inputs,
                out_channels,
                dictionary,
                fraction,
                columns=columns,
                topology=topology,
                ridge=ridge,
                sigma=sigma,
                whiten=whiten,
                seed=draw_seed() if seed is None else seed,
            )
            self._register(out_channels, recipe, _source(recipe, dictionary, observer), bias, device, dtype)

    @classmethod
    def from_dense(cls, conv: nn.Conv2d, **settings: Any) -> PredictedConv2d:
        """The layer closest to `conv`, as `PredictedLinear.from_dense`; its geometry is kept."""
        with errors_of("PredictedConv2d.from_dense"):
            weight = _weight_of(cls, "conv", conv)
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
            weight.device,
            weight.dtype,
            **settings,
        )
        with errors_of("PredictedConv2d.from_dense"):
            return layer._fill(conv)

    def materialize(self) -> Tensor:
        return self._expand().view(self.out_channels, self.in_channels, *self.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() not in (3, 4) or x.shape[-3] != self.in_channels:
            raise ValueError(
                f"PredictedConv2d: x must be [N, C, H, W] or [C, H, W] with C = in_channels = {self.in_channels}, "
                f"got {list(x.shape)}"
            )
        batch = x if x.dim() == 4 else x[None]
        y = self._pool(batch) if self._order(x, self._positions(batch)) == "pool" else self._full(batch)
        return y if x.dim() == 4 else y[0]

    def _positions(self, x: Tensor) -> int:
        """Output positions of all maps."""
        left, right, top, bottom = self._sides
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        sizes = (x.shape[-2] + top + bottom, x.shape[-1] + left + right)
        h, w = ((n - span) // s + 1 for n, span, s in zip(sizes, spans, self.stride, strict=True))
        return x.shape[0] * h * w

    def _convolve(self, x: Tensor, filters: Tensor, bias: Tensor | None, groups: int = 1) -> Tensor:
        if self.padding_mode == "zeros":
            return functional.conv2d(x, filters, bias, self.stride, self.padding, self.dilation, groups)
        padded = functional.pad(x, self._sides, self.padding_mode)
        return functional.conv2d(padded, filters, bias, self.stride, 0, self.dilation, groups)

    def _full(self, x: Tensor) -> Tensor:
        return self._convolve(x, self.materialize(), self.bias)

    def _pool(self, x: Tensor) -> Tensor:
        """`x` convolved with the atoms of every column, then the coefficients as 1x1 filters, column by column."""
        d = self.dictionary
        atoms = self._dense_atoms().view(-1, self.in_channels // d.channels, *self.kernel_size)  # [J * n_a, ...]
        pooled = self._convolve(x, atoms.repeat(d.channels, 1, 1, 1), None, d.channels)
        if d.channels > 1 and d.columns > 1:  # from channels of columns to columns of channels
            pooled = pooled.unflatten(1, (d.channels, d.columns, d.atoms)).transpose(1, 2).flatten(1, 3)
        parts = []
        for (first, count, _), rows in zip(self._runs, self._rows(), strict=True):
            group = pooled[:, first * d.per_unit : (first + count) * d.per_unit]
            bias = None if self.bias is None else self.bias[rows]
            parts.append(functional.conv2d(group, self.coefficients[rows, :, None, None], bias, groups=count))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        if self.padding not in ((0, 0), "valid"):
            text += f", padding={self.padding!r}"
        if self.dilation != (1, 1):
            text += f", dilation={self.dilation}"
        if self.padding_mode != "zeros":
            text += f", padding_mode={self.padding_mode}"
        return f"{text}, {self._size_repr()}"


def _runs(outputs: int, columns: int) -> list[tuple[int, int, int]]:
    """Columns of equal width that follow each other: (first, how many, units of each); the wider ones come first."""
    width, wider = divmod(outputs, columns)
    return [run for run in ((0, wider, width + 1), (wider, columns - wider, width)) if run[1]]


def _least_squares(atoms: Tensor, target: Tensor) -> Tensor:
    """The `v` of least `||target - v atoms||`, and of these the shortest: `[rows, n_a]` for atoms `[n_a, n]`.

    Directions that float32 coefficients cannot resolve are left out.
    """
    cut = torch.finfo(torch.float32).eps * max(atoms.shape)
    return torch.linalg.lstsq(atoms.T, target.T, rcond=cut, driver="gelsd").solution.T


def _source(recipe: fits.Dictionary, dictionary: str | Tensor, observer: object) -> Tensor | None:
    """What the atoms are built from besides the recipe."""
    if recipe.kind not in FROM_DATA:
        if observer is not None:
            raise ValueError(f'observer must be None with dictionary "{recipe.kind}", got {type(observer).__name__}')
        return dictionary if isinstance(dictionary, Tensor) else None
    if observer is None:
        return None
    if not isinstance(observer, fits.WeightInputCovariance):
        raise TypeError(f"observer must be an rdkernels.fits.WeightInputCovariance, got {type(observer).__name__}")
    if observer.squared != (recipe.kind == "emp2"):
        raise ValueError(f'observer must have squared={recipe.kind == "emp2"} for dictionary "{recipe.kind}"')
    if observer.size != recipe.inputs:
        raise ValueError(f"observer must be of {recipe.inputs} inputs, got {observer.size}")
    return observer.covariance()


def _weight_of(cls: type[Predicted], name: str, dense: Any) -> Tensor:
    """The weight of `dense`, which must be the layer's dense twin and have values."""
    if not isinstance(dense, cls._dense_type) or isinstance(dense.weight, nn.UninitializedParameter):
        kind = cls._dense_type.__name__
        raise TypeError(f"{name} must be an initialised nn.{kind}, got {type(dense).__name__}")
    if dense.weight.is_meta:
        raise ValueError(f"{name} must have values, got one on the meta device")
    return dense.weight.detach()


def _bits(value: float) -> int:
    (bits,) = struct.unpack("<q", struct.pack("<d", value))
    return bits


def _disagreements(own: Tensor, loaded: Tensor) -> list[str]:
    """One line for each field of `RECIPE_FIELDS` in which a loaded recipe differs from the layer's own."""
    if loaded.is_meta:
        return []
    if loaded.dtype != torch.int64 or loaded.shape != own.shape:
        return [f"recipe: must be int64 {list(own.shape)}, the state dict has {loaded.dtype} {list(loaded.shape)}"]

    def shown(field: str, value: int) -> object:
        if field == "dictionary":
            return _NAMES[value] if 0 <= value < len(_NAMES) else value
        return struct.unpack("<d", struct.pack("<q", value))[0] if field in ("ridge", "sigma") else value

    return [
        f"{field}: the layer has {shown(field, mine)}, the state dict {shown(field, theirs)}"
        for field, mine, theirs in zip(RECIPE_FIELDS, own.tolist(), loaded.tolist(), strict=True)
        if mine != theirs
    ]
