"""The accuracy rule and the case type, for tests of this library and of operations built on it."""

from .accuracy import assert_accurate
from .case import Case, Layer, Problem

__all__ = ["Case", "Layer", "Problem", "assert_accurate"]
