"""`make gpu-check`: the kernels for GPUs, confirmed on one. Correctness, sanitizers, graphs and memory, then speed.

    python bench/gpu_check.py [--dry-run] [--steps contract,bench] [--quick]

Exit code 0: every step ran and passed; 1: one failed; 2: no GPU here; 3: none failed but one did not run. Without a
GPU, and with --dry-run on any machine, it names every command and rehearses what needs no GPU. Logs: build/gpu-check/.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable

import gpu_verdicts as verdicts
from fake_gpu import FakeGpu
from gpu_steps import BACKENDS, GET_SANITIZER, OUT, ROOT, TOOLS, Command, Machine, Step, look, slug, steps
from gpu_verdicts import FAILED, NOT_RUN, PASSED, Done, Outcome

import rdkernels as rd
from rdkernels import benchmark
from rdkernels.benchmark import gpu, plots, report
from rdkernels.ops.hashed_linear.cases import HashedLinearCase
from rdkernels.testing import Problem

LIMIT = 2 * 3600  # seconds of one command


def run(command: Command, log: pathlib.Path) -> Done:
    """Run it with everything it prints in `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    kept = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "RDKERNELS_BACKEND", "RDK_REQUIRE")}
    line = [*command.prefix, sys.executable, *command.arguments]
    with log.open("w") as out:
        try:
            done = subprocess.run(
                line, cwd=ROOT, env={**kept, **command.environment}, stdout=out, stderr=subprocess.STDOUT, timeout=LIMIT
            )
            code = done.returncode
        except subprocess.TimeoutExpired:
            code = None
    return Done(code, log.read_text(errors="replace"))


Run = Callable[[Command, pathlib.Path], Done]


def check(here: Machine, todo: list[Step], runner: Run) -> dict[str, Outcome]:
    """Run the steps in order; the bench only beside steps that did not fail."""
    outcomes: dict[str, Outcome] = {}
    for step in todo:
        print(f"\n== {step.name}: {step.proves}", flush=True)
        if step.name in TOOLS and here.sanitizer is None:
            outcome = Outcome(NOT_RUN, f"compute-sanitizer is not here: {GET_SANITIZER}")
        elif step.name == "bench" and any(o.verdict == FAILED for o in outcomes.values()):
            outcome = Outcome(NOT_RUN, "a speed is not reported beside a failed check")
        else:
            done = []
            (OUT / f"{step.name}.xml").unlink(missing_ok=True)  # an earlier run's
            for number, command in enumerate(step.commands):
                log = OUT / f"{step.name}{number or ''}.log"
                print(f"   $ {command}\n     -> {log.relative_to(ROOT)}", flush=True)
                done.append(runner(command, log))
            outcome = step.judge(done)
            if outcome.verdict == FAILED:
                print(*(f"   | {line}" for line in done[-1].text.splitlines()[-25:]), sep="\n")
        outcomes[step.name] = outcome
        print(f"   {outcome.verdict}: {outcome.detail}", *(f"   left: {line}" for line in outcome.left), sep="\n")
    return outcomes


def sign(path: pathlib.Path, outcomes: dict[str, Outcome]) -> None:
    """Write the verdicts into the result file: a reader of the times sees what was checked beside them."""
    result = json.loads(path.read_text())
    result["checks"] = {
        name: {"verdict": o.verdict, "detail": o.detail, "left": o.left} for name, o in outcomes.items()
    }
    report.write_json(result, path)


# -- without a GPU -----------------------------------------------------------------------------------------------------


def made_up(folder: pathlib.Path) -> Outcome:
    """The whole way of a result with made-up times: problems, rows, JSON, plot; in `folder`, labelled, then gone."""
    chosen = [
        Problem(HashedLinearCase.square(64, rows, granule, 8), "made up, 64 x 64", f"{granule} 1/8", rows)
        for granule in ("tile", "chunk", "element")
        for rows in (1, 8)
    ]
    with rd.use("reference"):
        result = benchmark.run_gpu(chosen, tuple(gpu.KINDS), quick=True, on=FakeGpu(step=1e-2, mark=1e-6))
    result["fake"] = True
    report.write_json(result, folder / "made-up.json")
    plots.plot(result, folder / "made-up.png")
    sign(folder / "made-up.json", {"rehearsal": Outcome(NOT_RUN, report.FAKE)})
    read = json.loads((folder / "made-up.json").read_text())
    refused = verdicts.bench(Done(0, ""), folder / "made-up.json").verdict == FAILED
    sound = read["fake"] and len(read["results"]) == 24 and (folder / "made-up.png").stat().st_size > 1000
    detail = f"{len(read['results'])} rows of {report.FAKE}: JSON and plot in a temporary folder, refused as a result"
    return Outcome(PASSED if sound and refused else FAILED, detail)


def rehearse(here: Machine, todo: list[Step], runner: Run) -> dict[str, Outcome]:
    """Name every command; run what of it needs no GPU; show that a missing backend fails."""
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for step in todo:
            print(f"\n== {step.name}: {step.proves}\n   would run:", flush=True)
            print(*(f"   $ {command}" for command in step.commands), sep="\n", flush=True)
            done = runner(Command(step.rehearsal), folder / f"{step.name}.log")
            counted = re.search(r"^(\d+)(?:/\d+)? tests? collected", done.text, re.M)
            if step.name == "bench":
                sound, detail = "no problem is left to time" in done.text, "its arguments are understood"
            elif step.name in TOOLS:
                sound, detail = done.code == 0, f"{len(done.text.splitlines())} problems are listed"
            else:
                sound = done.code == 0 and counted is not None and int(counted[1]) > 0
                detail = f"{counted[1] if counted else 'no'} tests are collected here"
            outcomes[step.name] = Outcome(PASSED if sound else FAILED, f"rehearsed, {detail}")
            print(f"   {outcomes[step.name].verdict}: {outcomes[step.name].detail}")
        if here.gpu is None:
            print("\n== a missing GPU fails: the contract's own question, asked here")
            xml = folder / "missing.xml"
            line = ("-m", "pytest", "tests/ops", "-k", "is_here_on_cuda", "-q", f"--junitxml={xml}")
            done = runner(Command(line, {"RDK_REQUIRE": "native-cuda,triton-cuda"}), folder / "missing.log")
            seen = verdicts.tests(done, xml)
            outcomes["missing"] = Outcome(PASSED if seen.verdict == FAILED else FAILED, f"it said: {seen.detail}")
            print(f"   {outcomes['missing'].verdict}: {outcomes['missing'].detail}")
        print("\n== a result with made-up times")
        outcomes["made up"] = made_up(folder)
        print(f"   {outcomes['made up'].verdict}: {outcomes['made up'].detail}")
    return outcomes


def main(argv: list[str] | None = None, runner: Run = run) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="rehearse everything that needs no GPU")
    parser.add_argument("--steps", metavar="A,B", help="only these of: contract, triton, gpu, the sanitizers, bench")
    parser.add_argument("--backends", default="native,triton", help="that must be here (default: native,triton)")
    parser.add_argument("--dtype", default=",".join(gpu.KINDS), help="of the bench (default: all)")
    parser.add_argument("--quick", action="store_true", help="a short bench: a smoke run, not a result")
    args = parser.parse_args(argv)
    backends = tuple(args.backends.split(","))
    if not set(backends) <= set(BACKENDS):
        parser.error(f"--backends must be of {', '.join(BACKENDS)}, got {args.backends!r}")
    here = look()
    print("== environment", *(f"   {line}" for line in here.lines), sep="\n", flush=True)
    todo = steps(here, backends, args.quick, args.dtype)
    wanted = args.steps.split(",") if args.steps else [step.name for step in todo]
    unknown = set(wanted) - {step.name for step in todo}
    if unknown:
        parser.error(f"--steps knows {', '.join(step.name for step in todo)}, got {', '.join(sorted(unknown))}")
    left_out = [step.name for step in todo if step.name not in wanted]
    todo = [step for step in todo if step.name in wanted]
    if args.dry_run or here.gpu is None:
        outcomes = rehearse(here, todo, runner)
        bad = [name for name, outcome in outcomes.items() if outcome.verdict == FAILED]
        print(f"\nrehearsal: {len(outcomes) - len(bad)} parts in order, {len(bad)} not: {', '.join(bad) or '-'}")
        print("nothing was confirmed: no kernel ran on a GPU")
        return 1 if bad else 0 if args.dry_run else 2
    outcomes = check(here, todo, runner)
    outcomes |= {name: Outcome(NOT_RUN, "left out by --steps") for name in left_out}
    if outcomes["bench"].verdict == PASSED and not args.quick:
        sign(ROOT / "bench" / "results" / f"{slug(here.gpu)}.json", outcomes)
    print("\n== summary", *(f"   {name:<10} {o.verdict:<8} {o.detail}" for name, o in outcomes.items()), sep="\n")
    print(*(f"   unconfirmed: {line}" for o in outcomes.values() for line in o.left), sep="\n")
    return verdicts.exit_code(outcomes)


if __name__ == "__main__":
    sys.exit(main())
