"""One room per operation."""

from . import hashed_linear  # noqa: F401
