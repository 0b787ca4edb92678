"""How a dense weight becomes the factors of a low-rank operation: closed forms, iterations, ranks, input covariances.

Pure tensor functions, in float64 on the CPU and without global random state; `rdkernels.nn` makes layers of them.
"""

from .als import CPDegenerate, cp
from .budget import Budget
from .clusters import bicluster, monochromatic
from .covariance import InputCovariance, WeightInputCovariance, calibrate
from .dictionary import Dictionary
from .hooi import tucker
from .palette import palette
from .svd import linear, separable

__all__ = [
    "Budget",
    "CPDegenerate",
    "Dictionary",
    "InputCovariance",
    "WeightInputCovariance",
    "bicluster",
    "calibrate",
    "cp",
    "linear",
    "monochromatic",
    "palette",
    "separable",
    "tucker",
]
