"""The Triton kernels' PTX proved free of races by sentryward, for fixed small launches; see `races.py`.

Only the verdict "race_free" passes. "unsupported", a timeout and a missing sentryward are skips, named, and so is the
one finding that it cannot judge: lanes that store copies of a value to the same word. The convolutions' kernels get no
further than these, or are unsupported or out of time; a deleted barrier is seen in them all the same.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import races

HOW = "not installed; pip install --no-deps sentryward==0.1.1"
CONTROL = "fwd-chunk-sm_80"  # cp.async, its waits, and barriers between decode, ldmatrix and the next copy


@pytest.fixture(scope="session")
def folder(need, tmp_path_factory) -> pathlib.Path:
    """The PTX of every case."""
    need("triton", importlib.util.find_spec("triton") is not None, "not installed")
    need("sentryward", importlib.util.find_spec("sentryward") is not None, HOW)
    made = tmp_path_factory.mktemp("ptx")
    kept = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, races.__file__, str(made)]
    done = subprocess.run(command, cwd=races.ROOT, env=kept, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return made


def judged(folder: pathlib.Path, texts: dict[str, str], case: str = CONTROL) -> dict[str, tuple[str, str]]:
    """The verdict on each variant of the case's PTX."""
    for name, text in texts.items():
        (folder / f"{name}.ptx").write_text(text)
    given = folder / f"{case}.json"
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(texts, pool.map(lambda name: races.verdict(folder / f"{name}.ptx", given), texts), strict=True))


@pytest.fixture(scope="session")
def verdicts(folder) -> dict[str, tuple[str, str]]:
    names = [f"{case}-{target}" for case in races.CASES for target in races.TARGETS]
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda n: races.verdict(folder / f"{n}.ptx", folder / f"{n}.json"), names)
    return dict(zip(names, found, strict=True))


@pytest.mark.parametrize("target", races.TARGETS)
@pytest.mark.parametrize("case", races.CASES)
def test_triton_race_free(verdicts, case, target):
    result, text = verdicts[f"{case}-{target}"]
    if result not in ("race_free", "potential_race"):
        pytest.skip(f"sentryward: {case} on {target}: {result}: {text}")
    assert result == "race_free", text


def test_triton_races_control_a_deleted_barrier_is_seen(folder):
    ptx = (folder / f"{CONTROL}.ptx").read_text()
    barriers = [m.span() for m in re.finditer(r"bar\.sync\s+0;", ptx)]
    found = judged(folder, {f"barrier{n}": ptx[:a] + ptx[b:] for n, (a, b) in enumerate(barriers)})
    results = [result for result, _ in found.values()]
    print(CONTROL, "without one of its barriers:", results)
    assert len(barriers) >= 3 and results.count("potential_race") >= 2, found


def test_triton_races_control_a_deleted_barrier_of_a_convolution_is_seen(folder):
    case = "cp_conv2d-convolution-sm_80"
    without, count = re.subn(r"bar\.sync\s+0;", "", (folder / f"{case}.ptx").read_text(), count=1)
    assert count == 1
    assert judged(folder, {"convolution": without}, case)["convolution"][0] == "potential_race"


def test_triton_races_control_deleted_waits_are_seen(folder):
    ptx = (folder / f"{CONTROL}.ptx").read_text()
    without, count = re.subn(r"cp\.async\.wait_group\s+\d+;", "", ptx)
    assert count >= 2
    assert judged(folder, {"waits": without})["waits"][0] == "potential_race"


def test_triton_races_control_what_is_not_understood_is_no_pass(folder):
    ptx = (folder / f"{CONTROL}.ptx").read_text()
    unknown = re.sub(r"add\.s64(\s+%rd\d+, %rd\d+, %rd\d+;)", r"xor.b64\1", ptx)
    assert judged(folder, {"unknown": unknown})["unknown"][0] != "race_free"
