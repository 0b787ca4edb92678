"""Static evidence about GPU kernels, on a machine without a GPU: instructions, resources and bounds, never a time.

    python -m bench.static            the table of bounds, docs/measured/static.* with --write
    python -m bench.static.cuda       the budget of the CUDA kernels, tests/budget_cuda.json with --write

`cubin` reads compiled code, `bounds` turns a loop into a bracket of rates, `cuda` and `room` compile the kernels.
"""
