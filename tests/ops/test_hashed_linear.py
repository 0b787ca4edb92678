"""`hashed_linear`: the contract, and what only this operation promises."""

from contract import Contract

from rdkernels.ops.hashed_linear import cases


class TestContract(Contract):
    op = "hashed_linear"
    cases = cases.CORRECTNESS
    smoke = ("element-few", "chunk-medium", "tile-many")
