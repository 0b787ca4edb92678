"""Small problems on every CUDA backend, for `compute-sanitizer`: no pytest, no poisoned memory, one process.

    python tests/gpu_smoke.py [native triton]  forward and every gradient, held to the accuracy rule
    python tests/gpu_smoke.py --broken store   a kernel that writes out of bounds (read: reads what nobody wrote)
    python tests/gpu_smoke.py --list           what would run

The last line of a run says how many checks passed. Torch must not cache memory, or an access out of bounds falls into
another block of the cache: PYTORCH_NO_CUDA_MEMORY_CACHING=1.
"""

from __future__ import annotations

import argparse
import os

import torch
from contract import Lane, check, inputs, lanes

import rdkernels as rd
from rdkernels.ops.hashed_linear import cases

OP = "hashed_linear"
SMOKE = (
    "element-gemv", "element-few", "element-many", "chunk-gemv", "chunk-few", "chunk-medium", "chunk-many",
    "tile-gemv", "tile-few", "tile-many", "tile16-many", "tile2x16-few", "tile64-few",
)  # fmt: skip
KINDS = ("fp32", "bf16", "fp16")
BACKENDS = ("native", "triton")


def planned(backends: list[str]) -> list[tuple[Lane, cases.HashedLinearCase]]:
    found = [case for case in cases.CORRECTNESS if case.name in SMOKE]
    return [(Lane(backend, "cuda", kind), case) for backend in backends for kind in KINDS for case in found]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("backends", nargs="*", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--broken", choices=("store", "read"))
    args = parser.parse_args()
    if args.list:
        print(*(f"{lane}-{case.name}" for lane, case in planned(args.backends)), sep="\n")
        return
    if not torch.cuda.is_available():
        raise SystemExit("smoke: no GPU")
    if not os.environ.get("PYTORCH_NO_CUDA_MEMORY_CACHING"):
        raise SystemExit("smoke: set PYTORCH_NO_CUDA_MEMORY_CACHING=1")
    if args.broken:
        import gpu_broken

        getattr(gpu_broken, args.broken)()
        torch.cuda.synchronize()
        print(f"smoke: the broken kernel ran: {args.broken}")
        return
    here = set(lanes(OP))
    for lane, case in planned(args.backends):
        if lane not in here:
            raise SystemExit(f"smoke: {lane} does not serve {OP}: {rd.build_info()}")
        tensors, grad = inputs(case, lane.dtype)
        check(OP, lane, case, tensors, grad)
    torch.cuda.synchronize()
    print(f"smoke: {len(planned(args.backends))} checks passed")


if __name__ == "__main__":
    main()
