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
from .alternate import Phase, alternate
from .convert import convert
from .hashed import Hashed
from .lowrank import CP, Bicluster, LowRank, Monochromatic, Separable, Tucker
from .palette import Palette
from .predicted import Predicted
from .report import Report, Row
from .size import LayerSize, Size, size
from .spec import Spec
from .strip import strip

__all__ = [
    "CP",
    "Bicluster",
    "Budget",
    "CPDegenerate",
    "Hashed",
    "InputCovariance",
    "LayerSize",
    "LowRank",
    "Monochromatic",
    "Palette",
    "Phase",
    "Predicted",
    "Report",
    "Row",
    "Separable",
    "Size",
    "Spec",
    "Tucker",
    "alternate",
    "bicluster",
    "calibrate",
    "convert",
    "cp",
    "linear",
    "monochromatic",
    "separable",
    "size",
    "strip",
    "tucker",
]
