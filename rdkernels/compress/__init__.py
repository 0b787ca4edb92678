"""How a model's dense weights become compressed ones: specs, `convert`, `size`, `strip`, `alternate`.

With the fits under them (`rdkernels.fits`), which are functions of tensors.
"""

from ..fits import (
    Budget,
    CPDegenerate,
    InputCovariance,
    bicluster,
    calibrate,
    cp,
    linear,
    monochromatic,
    separable,
    tucker,
)
from .spec import Spec

__all__ = [
    "Budget",
    "CPDegenerate",
    "InputCovariance",
    "Spec",
    "bicluster",
    "calibrate",
    "cp",
    "linear",
    "monochromatic",
    "separable",
    "tucker",
]
