"""What the layers share whose weight a fixed dictionary predicts from few trained values."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from .. import fits
from ..fits.dictionary import FROM_DATA, STORED, clean
from .entry import Described
from .hashed import draw_seed
from .recipe import RECIPE_FIELDS, encode, shown

Order = Literal["expand", "pool"]
Layer = TypeVar("Layer", bound="Predicted")


class Predicted(Described):
    """`W = [U_1 V_1, ..., U_J V_J]^T`: the atoms U are fixed, the coefficients V are trained.

    Buffers: `atoms` `[J, n_a, positions]`, one channel's block of the U^T; of the dictionary "identity" instead `index`
    `[J, n_a]`, the inputs that a column sees. They are in the state dict only where the recipe cannot make them again.
    """

    _entry, _fields = "recipe", RECIPE_FIELDS
    _dense_type: Any  # nn.Linear or nn.Conv2d
    _gathers = 0  # whether pooling by an identity multiplies
    _pool_weight = 1.0  # time of one of pooling's multiply-adds over that of a dense layer's

    bias: nn.Parameter | None
    dictionary: fits.Dictionary
    atoms: Tensor
    index: Tensor

    def _register(
        self,
        inputs: int,
        outputs: int,
        bias: bool,
        device: Any,
        dtype: torch.dtype | None,
        dictionary: str | Tensor,
        fraction: float,
        seed: int | None,
        observer: fits.WeightInputCovariance | None,
        **settings: Any,
    ) -> None:
        if not isinstance(bias, bool):
            raise TypeError(f"bias must be True or False, got {bias!r}")
        seed = draw_seed() if seed is None else seed
        made = fits.Dictionary.of(inputs, outputs, dictionary, fraction, seed=seed, **settings)
        self._outputs, self._runs = outputs, _runs(outputs, made.columns)
        self.dictionary = made
        dtype = dtype or torch.get_default_dtype()
        if not dtype.is_floating_point:
            raise TypeError(f"dtype must be floating, got {dtype}")
        sets = (made.columns, made.atoms)
        if made.kind == "identity":
            self.register_buffer("index", torch.empty(sets, dtype=torch.int64, device=device), persistent=False)
        else:
            block = torch.empty(*sets, made.inputs // made.channels, dtype=dtype, device=device)
            self.register_buffer("atoms", block, persistent=made.kind in STORED)
        self._build(_source(made, dictionary, observer))
        self.coefficients = nn.Parameter(torch.empty(outputs, made.per_unit, dtype=dtype, device=device))
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
        return encode(self.dictionary)

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
        after = self._fixed
        if self.dictionary.kind in STORED or after.is_meta:
            return self
        if before.is_meta or after.dtype != before.dtype or not torch.equal(before.to(after.device), after):
            self._build()  # a cast and its way back lose nothing; what left the meta device or was emptied has values
        return self

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw coefficients and bias anew, uniform: the weight gets the dense twin's variance, `1 / (3 * fan_in)`."""
        inputs = self.dictionary.inputs
        for (first, count, width), rows in zip(self._runs, self._rows(), strict=True):
            if self.coefficients.is_meta:
                break
            if self.dictionary.kind == "identity":
                gain = torch.full((count,), self.fraction, dtype=torch.float64, device="cpu")
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
        if torch.compiler.is_exporting():  # a choice by rows would fix their number
            return "expand"
        grad = torch.is_grad_enabled()
        weight_grad = grad and self.coefficients.requires_grad
        return self.order(rows, weight_grad=weight_grad, input_grad=grad and x.requires_grad)

    def materialize(self) -> Tensor:
        """The weight of the dense twin, in its shape; differentiable with respect to the coefficients."""
        raise NotImplementedError

    @torch.no_grad()
    def relative_error(self, dense: nn.Module) -> float:
        """`||W - materialize()||_F / ||W||_F`, norms in float64, with W the weight of the layer `dense`."""
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

    @classmethod
    def _shown(cls, values):
        return shown(values)

    def _load_from_state_dict(self, *arguments):
        super()._load_from_state_dict(*arguments)
        if self.dictionary.kind not in STORED:
            self._follow()

    def _follow(self) -> None:
        """Make the buffer anew where `load_state_dict(assign=True)` gave the coefficients another device or dtype."""
        name = "index" if self.dictionary.kind == "identity" else "atoms"
        own, beside = self._fixed, self.coefficients
        dtype = beside.dtype if name == "atoms" else own.dtype
        if (own.device, own.dtype) != (beside.device, dtype):
            self._buffers[name] = torch.empty_like(own, device=beside.device, dtype=dtype)
            self._build()


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


def weight_of(cls: type[Predicted], name: str, dense: Any) -> Tensor:
    """The weight of `dense`, which must be the layer's dense twin and have values."""
    if not isinstance(dense, cls._dense_type) or isinstance(dense.weight, nn.UninitializedParameter):
        kind = cls._dense_type.__name__
        raise TypeError(f"{name} must be an initialised nn.{kind}, got {type(dense).__name__}")
    if dense.weight.is_meta:
        raise ValueError(f"{name} must have values, got one on the meta device")
    return dense.weight.detach()
