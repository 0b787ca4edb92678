"""Layers that own their parameters; forward is one call of an operation."""

from .hashed import HashedLinear, WeightBank

__all__ = ["HashedLinear", "WeightBank"]
