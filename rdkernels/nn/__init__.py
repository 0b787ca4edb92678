"""Layers that own their parameters; forward is one call of an operation."""

from .hashed import HashedLinear, WeightBank
from .lowrank import LowRankLinear
from .lowrank_forms import BiclusterConv2d, CPConv2d, MonochromaticConv2d, SeparableConv2d, TuckerConv2d
from .palette import PaletteConv2d, PaletteLinear
from .predicted_conv import PredictedConv2d
from .predicted_linear import PredictedLinear

__all__ = [
    "BiclusterConv2d",
    "CPConv2d",
    "HashedLinear",
    "LowRankLinear",
    "MonochromaticConv2d",
    "PaletteConv2d",
    "PaletteLinear",
    "PredictedConv2d",
    "PredictedLinear",
    "SeparableConv2d",
    "TuckerConv2d",
    "WeightBank",
]
