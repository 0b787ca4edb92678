"""The accuracy rule and the case type, for tests of this library and of operations built on it."""

from .accuracy import assert_accurate
from .case import Case

__all__ = ["Case", "assert_accurate"]
