"""`python -m rdkernels info | bench`: what runs here, and how fast."""

from __future__ import annotations

import argparse
from functools import partial

from . import backends, benchmark, build_info, registry
from .benchmark import gpu, machine, plots, report


def info() -> None:
    """Print `build_info()` and the backends of every operation."""
    lines = {**build_info(), **{f"{op}": ", ".join(backends(op)) for op in registry.operations()}}
    for name, text in lines.items():
        print(f"{name:<20} {text}")


def _threads(text: str) -> tuple[int, ...]:
    counts = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    if not counts or min(counts) < 1:
        raise argparse.ArgumentTypeError(f"must be numbers >= 1 separated by commas, got {text!r}")
    return counts


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(dict.fromkeys(text.split(",")))
    if not set(kinds) <= set(gpu.KINDS):
        raise argparse.ArgumentTypeError(f"must be of {', '.join(gpu.KINDS)}, separated by commas, got {text!r}")
    return kinds


def bench(args: argparse.Namespace) -> None:
    """Time the problems, print the table, write what was asked for."""
    tqdm, console = report.optional("tqdm").tqdm, report.optional("rich.console").Console
    if args.plot:
        report.optional("matplotlib")
    on_cpu = args.device == "cpu"
    if on_cpu and args.dtype not in (None, ("fp32",)):
        raise SystemExit("bench: on the CPU the bench is in fp32; --dtype goes with --device cuda")
    if not on_cpu and args.threads:
        raise SystemExit("bench: --threads goes with --device cpu")
    try:
        chosen = benchmark.problems(args.op, quick=args.quick, only=args.only, device=args.device)
    except ValueError as error:
        raise SystemExit(f"bench: {error}") from None
    if not chosen:
        raise SystemExit("bench: no problem is left to time")
    progress = partial(tqdm, desc="bench", unit="problem")
    if on_cpu:
        threads = args.threads or tuple(n for n in (1, 2) if n <= machine.cores())
        result = benchmark.run(chosen, threads, quick=args.quick, progress=progress)
    else:
        try:
            device = gpu.Cuda()
        except RuntimeError as error:
            raise SystemExit(f"bench: {error}") from None
        kinds = args.dtype or ("bf16",)
        result = benchmark.run_gpu(chosen, kinds, quick=args.quick, progress=progress, on=device)
    printer = console(width=None if console().is_terminal else 150)
    printer.print(report.tables(result))
    printer.print(report.summary_table(result))
    if args.json:
        report.write_json(result, args.json)
    if args.plot:
        plots.plot(result, args.plot)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m rdkernels", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="info | bench")
    commands.add_parser("info", help="what runs here and why").set_defaults(run=lambda _: info())
    made = commands.add_parser("bench", help="ours and dense torch, timed in turn in this process")
    made.add_argument("--op", action="append", metavar="OP", help="this operation only; may be repeated")
    made.add_argument("--only", metavar="REGEX", help="only problems whose name matches, as 'tile-c64.*m1 forward'")
    made.add_argument("--quick", action="store_true", help="small problems, short timings: a smoke run, not a result")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where (default: cpu)")
    made.add_argument("--dtype", type=_kinds, metavar="bf16,fp16,tf32,fp32", help="on a GPU (default: bf16)")
    made.add_argument("--threads", type=_threads, metavar="1,2", help="on the CPU (default: 1,2)")
    made.add_argument("--json", metavar="F", help="write the result with the machine's name")
    made.add_argument("--plot", metavar="F", help="write a plot of the ratios")
    made.set_defaults(run=bench)
    args = parser.parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    main()
