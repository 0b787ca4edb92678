"""What a conversion did, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_HEAD = ("layer", "from", "to", "parameters", "error")


@dataclass(frozen=True)
class Row:
    """One layer of a report.

    Args:
        name: as in `named_modules()`, all of them where a layer has several, joined by " = ".
        before, after: the classes' names; `after` is None where the layer was left.
        parameters: how many values its parameters hold, before and after.
        error: `||W - W~||_F / ||W||_F` of a fit; None for a fresh layer.
        reason: why the layer was left.
    """

    name: str
    before: str
    after: str | None = None
    parameters: tuple[int, int] | None = None
    error: float | None = None
    reason: str | None = None

    def _cells(self) -> tuple[str, ...]:
        if self.parameters is None:
            return self.name, self.before, f"left: {self.reason}"
        count = "{:,} -> {:,}".format(*self.parameters)
        return self.name, self.before, self.after or "", count, "" if self.error is None else f"{self.error:.4f}"


@dataclass(frozen=True)
class Report:
    """The layers of a model with parameters, in its order: what became of each. `str()` is a table."""

    rows: tuple[Row, ...]

    @property
    def changed(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.reason is None)

    @property
    def left(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.reason is not None)

    def __getitem__(self, name: str) -> Row:
        """The row of a layer, by any of its names."""
        for row in self.rows:
            if name in row.name.split(" = "):
                return row
        raise KeyError(f"no layer {name!r} in the report")

    def __str__(self) -> str:
        return _table([_HEAD, *(row._cells() for row in self.rows)])


def _table(lines: Sequence[Sequence[str]]) -> str:
    """Columns of equal width; a line of fewer cells ends free."""
    full = [line for line in lines if len(line) == len(_HEAD)]
    widths = [max(len(line[n]) for line in (lines if n < 2 else full)) for n in range(len(_HEAD))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=False)).rstrip() for line in lines)
