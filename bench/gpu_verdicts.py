"""What the output of a step of `gpu_check.py` amounts to. Each decision has its negative control in the tests."""

from __future__ import annotations

import collections
import json
import pathlib
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

PASSED, FAILED, NOT_RUN = "passed", "FAILED", "NOT RUN"
ERRORS_FOUND = 86  # the exit code the sanitizers are asked for


@dataclass(frozen=True)
class Outcome:
    """A verdict, what was seen, and what stays unconfirmed although nothing failed."""

    verdict: str
    detail: str
    left: tuple[str, ...] = ()


@dataclass(frozen=True)
class Done:
    """A command that ended (or ran out of time: code None) and what it printed."""

    code: int | None
    text: str


def tests(done: Done, report: pathlib.Path, wanted: tuple[str, ...] = ()) -> Outcome:
    """Of a pytest run with its junit file: passed if some test passed, none failed, and every `wanted` name is there.

    A wanted name ("native-cuda-fp32") must stand in a test that passed: a backend that is not there has no tests.
    """
    if not report.exists():
        return Outcome(FAILED, f"pytest broke off: {_ended(done)}")
    passed, failed, skips = [], [], collections.Counter()
    for case in ElementTree.parse(report).iter("testcase"):
        skip = case.find("skipped")
        if skip is not None:
            skips[skip.get("message", "no reason given")] += 1
        elif case.find("failure") is not None or case.find("error") is not None:
            failed.append(case.get("name", ""))
        else:
            passed.append(case.get("name", ""))
    detail = f"{len(passed)} passed, {len(failed)} failed, {sum(skips.values())} skipped"
    left = tuple(f"{count} tests skipped: {reason}" for reason, count in skips.items())
    missing = [name for name in wanted if not any(name in test for test in passed)]
    if failed or done.code != 0:
        return Outcome(FAILED, f"{detail}; {', '.join(failed[:5]) or _ended(done)}", left)
    if missing or not passed:
        return Outcome(FAILED, f"{detail}; nothing passed of {', '.join(missing) or 'all'}", left)
    return Outcome(PASSED, detail, left)


def sanitizer(done: Done, control: Done | None) -> Outcome:
    """Of a sanitizer's run on the smoke problems, and of its run on a kernel with a known fault, if it has one.

    Passed if the fault was found, and on the smoke problems every check passed and nothing was found.
    """
    if control is not None and not (control.code == ERRORS_FOUND and (_found(control.text) or 0) > 0):
        return Outcome(FAILED, f"the kernel with a known fault was not found out: {_ended(control)}")
    checks = re.search(r"^smoke: (\d+) checks passed$", done.text, re.M)
    found = _found(done.text)
    detail = f"{checks[1] if checks else 'no'} checks, {'no summary' if found is None else f'{found} reports'}"
    if done.code != 0 or not checks or int(checks[1]) == 0 or found != 0:
        return Outcome(FAILED, f"{detail}; {_ended(done)}")
    known = "the known fault was found" if control is not None else "this tool is not shown a known fault"
    return Outcome(PASSED, f"{detail}; {known}")


def _found(text: str) -> int | None:
    counts = [int(n) for n in re.findall(r"^=+ (?:ERROR|RACECHECK) SUMMARY: (\d+)", text, re.M)]
    return sum(counts) if counts else None


def bench(done: Done, path: pathlib.Path) -> Outcome:
    """Of the bench: passed if it wrote a result of which no row ran on the reference. No time is judged."""
    if done.code != 0 or not path.exists():
        return Outcome(FAILED, _ended(done))
    rows = json.loads(path.read_text())["results"]
    ran = collections.Counter(row["backend"] for row in rows)
    detail = f"{len(rows)} rows: " + ", ".join(f"{count} {name}" for name, count in ran.items())
    if not rows or any("reference" in name for name in ran):
        return Outcome(FAILED, f"{detail}; the reference is not what is to be measured")
    starved = sum(row["starved"] > 0 for row in rows)
    left = (f"{starved} rows hold the host's time (starved), not the GPU's alone",) if starved else ()
    return Outcome(PASSED, detail, left)


def exit_code(outcomes: dict[str, Outcome]) -> int:
    """0: every step ran and passed; 1: one failed; 3: none failed, but one did not run."""
    verdicts = {outcome.verdict for outcome in outcomes.values()}
    return 1 if FAILED in verdicts or not verdicts else 3 if NOT_RUN in verdicts else 0


def _ended(done: Done) -> str:
    last = next((line.strip() for line in reversed(done.text.splitlines()) if line.strip()), "no output")
    return f"{'ran out of time' if done.code is None else f'exit code {done.code}'}: {last[:300]}"
