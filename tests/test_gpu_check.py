"""`make gpu-check` decides rightly: what passes, what fails, what did not run. Every decision has its wrong input."""

import json
import pathlib
import shutil
import sys

import gpu_check
import gpu_steps
import gpu_verdicts as verdicts
import pytest
from gpu_steps import Command, Machine
from gpu_verdicts import FAILED, NOT_RUN, PASSED, Done, Outcome

pytest.importorskip("matplotlib")

CASE = '<testcase name="{}">{}</testcase>'
BAD = "<failure message='off'/>"
SKIP = "<skipped message='cuda: no GPU'/>"
GOOD = [("test_accuracy[native-cuda-fp32-one]", ""), ("test_accuracy[triton-cuda-fp32-one]", "")]
WANTED = ("native-cuda-fp32", "triton-cuda-fp32")
SMOKE = "========= COMPUTE-SANITIZER\nsmoke: 78 checks passed\n========= ERROR SUMMARY: 0 errors\n"
FOUND = Done(86, "========= Invalid __global__ write of size 4 bytes\n========= ERROR SUMMARY: 32 errors\n")


def junit(path: pathlib.Path, cases: list[tuple[str, str]]) -> pathlib.Path:
    path.write_text(f"<testsuites><testsuite>{''.join(CASE.format(*case) for case in cases)}</testsuite></testsuites>")
    return path


@pytest.mark.parametrize(
    ("cases", "code", "verdict"),
    [
        (GOOD, 0, PASSED),
        ([*GOOD, ("test_two_gpus", SKIP)], 0, PASSED),
        ([*GOOD, ("test_other[triton-cuda-bf16-one]", BAD)], 1, FAILED),
        ([*GOOD, ("test_other", "<error message='set-up'/>")], 1, FAILED),
        (GOOD, 1, FAILED),
        (GOOD, -11, FAILED),
        (GOOD, None, FAILED),
        (GOOD[:1], 0, FAILED),  # a backend without tests
        ([GOOD[0], (GOOD[1][0], SKIP)], 0, FAILED),  # or with skipped ones only
        ([], 5, FAILED),
    ],
)
def test_verdict_of_tests(tmp_path, cases, code, verdict):
    outcome = verdicts.tests(Done(code, "...\nlast line\n"), junit(tmp_path / "x.xml", cases), WANTED)
    assert outcome.verdict == verdict
    assert ("1 tests skipped: cuda: no GPU" in outcome.left) == any(SKIP in case for case in cases)


def test_verdict_of_tests_that_broke_off(tmp_path):
    outcome = verdicts.tests(Done(3, "boom\n\n"), tmp_path / "none.xml")
    assert (outcome.verdict, outcome.detail) == (FAILED, "pytest broke off: exit code 3: boom")


@pytest.mark.parametrize(
    ("code", "text", "control", "verdict"),
    [
        (0, SMOKE, FOUND, PASSED),
        (0, SMOKE, None, PASSED),
        (0, SMOKE.replace("ERROR SUMMARY: 0 errors", "RACECHECK SUMMARY: 0 hazards displayed"), None, PASSED),
        (0, SMOKE.replace("ERROR SUMMARY: 0 errors", "RACECHECK SUMMARY: 2 hazards displayed"), None, FAILED),
        (86, SMOKE.replace("SUMMARY: 0", "SUMMARY: 1"), FOUND, FAILED),
        (0, SMOKE.replace("78", "0"), FOUND, FAILED),
        (0, SMOKE.replace("smoke: 78 checks passed\n", ""), FOUND, FAILED),
        (0, "smoke: 78 checks passed\n", FOUND, FAILED),  # the sanitizer did not speak
        (255, "smoke: no GPU\n========= Error: process didn't terminate successfully\n", FOUND, FAILED),
        (None, SMOKE, FOUND, FAILED),
        (0, SMOKE, Done(0, SMOKE), FAILED),  # blind to the known fault
        (0, SMOKE, Done(86, "========= ERROR SUMMARY: 0 errors\n"), FAILED),
        (0, SMOKE, Done(255, FOUND.text), FAILED),
    ],
)
def test_verdict_of_a_sanitizer(code, text, control, verdict):
    assert verdicts.sanitizer(Done(code, text), control).verdict == verdict


def rows(*backends: str, starved: int = 0) -> dict:
    return {"results": [{"backend": backend, "starved": starved} for backend in backends]}


@pytest.mark.parametrize(
    ("result", "code", "verdict"),
    [
        (rows("native", "native+triton"), 0, PASSED),
        (rows("native", starved=2), 0, PASSED),
        (rows("native", "native+reference"), 0, FAILED),
        (rows(), 0, FAILED),
        (rows("native"), 1, FAILED),
        (None, 0, FAILED),
    ],
)
def test_verdict_of_the_bench(tmp_path, result, code, verdict):
    path = tmp_path / "r.json"
    if result is not None:
        path.write_text(json.dumps(result))
    outcome = verdicts.bench(Done(code, "bench: no GPU"), path)
    assert outcome.verdict == verdict
    assert bool(outcome.left) == (result == rows("native", starved=2))


@pytest.mark.parametrize(
    ("seen", "code"),
    [((PASSED, PASSED), 0), ((PASSED, NOT_RUN), 3), ((FAILED, NOT_RUN), 1), ((PASSED, FAILED), 1), ((), 1)],
)
def test_exit_code(seen, code):
    assert verdicts.exit_code({str(n): Outcome(verdict, "") for n, verdict in enumerate(seen)}) == code


# -- the steps ---------------------------------------------------------------------------------------------------------

HERE = Machine("Some GPU 80GB", "/opt/a toolkit/bin/compute-sanitizer", ())
NAMES = ["contract", "triton", "gpu", "memcheck", "racecheck", "synccheck", "initcheck", "bench"]


@pytest.fixture
def out(tmp_path, monkeypatch):
    """Everything that a check writes goes below a temporary root."""
    for module in (gpu_steps, gpu_check):
        monkeypatch.setattr(module, "ROOT", tmp_path)
        monkeypatch.setattr(module, "OUT", tmp_path / "build")
    return tmp_path


class Runner:
    """Answers every command as a machine would on which all is well, except the steps in `broken`."""

    def __init__(self, root: pathlib.Path, broken: tuple[str, ...] = ()) -> None:
        self.root, self.broken, self.ran = root, broken, []

    def __call__(self, command: Command, log: pathlib.Path) -> Done:
        self.ran.append((log.stem, command))
        words = [*command.prefix, *command.arguments]
        if "--collect-only" in words:
            return Done(int(log.stem in self.broken), "7/9 tests collected (2 deselected)\n")
        if "--list" in words:
            return Done(int(log.stem in self.broken), "a\nb\n")
        if "^$" in words:
            return Done(1, "error" if log.stem in self.broken else "bench: no problem is left to time\n")
        if "--broken" in words:
            return FOUND
        if "--tool" in words:
            return Done(0, SMOKE if log.stem.rstrip("1") not in self.broken else "nothing")
        if "--json" in words:
            (self.root / words[words.index("--json") + 1]).parent.mkdir(parents=True, exist_ok=True)
            (self.root / words[words.index("--json") + 1]).write_text(json.dumps(rows("native")))
            return Done(int("bench" in self.broken), "")
        (xml,) = (self.root / word.partition("=")[2] for word in words if word.startswith("--junitxml="))
        xml.parent.mkdir(parents=True, exist_ok=True)
        names = [f"test[{b}-cuda-{k}]" for b in gpu_steps.BACKENDS for k in ("fp32", "bf16", "fp16")]
        bad = log.stem in (*self.broken, "missing")
        junit(xml, [(name, BAD if bad else "") for name in names])
        return Done(int(bad), "")


def start(monkeypatch, here: Machine, runner: Runner, *argv: str) -> int:
    monkeypatch.setattr(gpu_check, "look", lambda: here)
    return gpu_check.main(list(argv), runner)


def test_all_is_well(out, monkeypatch, capsys):
    runner = Runner(out)
    assert start(monkeypatch, HERE, runner) == 0
    assert list(dict.fromkeys(name.rstrip("1") for name, _ in runner.ran)) == NAMES
    assert [name for name, command in runner.ran if "--broken" in command.arguments] == ["memcheck", "initcheck"]
    signed = json.loads((out / "bench" / "results" / "some-gpu-80gb.json").read_text())
    assert list(signed["checks"]) == NAMES and {c["verdict"] for c in signed["checks"].values()} == {PASSED}
    shown = capsys.readouterr().out
    assert all(f"== {name}: " in shown for name in NAMES)
    assert str(pathlib.Path(sys.executable).parent) not in shown and "/opt/a toolkit" not in shown  # no machine's paths


@pytest.mark.parametrize("broken", NAMES)
def test_one_step_that_fails_fails_the_check_and_keeps_the_bench_away(out, monkeypatch, capsys, broken):
    runner = Runner(out, (broken,))
    assert start(monkeypatch, HERE, runner) == 1
    assert ("bench" in [name for name, _ in runner.ran]) == (broken == "bench")
    if broken != "bench":
        assert "a speed is not reported beside a failed check" in capsys.readouterr().out


def test_what_did_not_run_is_no_success(out, monkeypatch, capsys):
    assert start(monkeypatch, Machine("G", None, ()), Runner(out)) == 3
    assert capsys.readouterr().out.count("pip install nvidia-cuda-sanitizer-api") == 2 * len(gpu_steps.TOOLS)
    assert start(monkeypatch, HERE, Runner(out), "--steps", "contract") == 3


def test_a_backend_not_asked_for_is_not_required(out, monkeypatch):
    runner = Runner(out)
    assert start(monkeypatch, HERE, runner, "--backends", "triton", "--quick") == 0
    assert runner.ran[0][1].environment["RDK_REQUIRE"] == "cuda,triton-cuda"
    assert not (out / "bench" / "results").exists()  # a quick bench is no result


@pytest.mark.parametrize("argv", (["--steps", "contract,nothing"], ["--backends", "reference"]))
def test_bad_arguments(out, monkeypatch, argv):
    with pytest.raises(SystemExit) as stop:
        start(monkeypatch, HERE, Runner(out), *argv)
    assert stop.value.code == 2


@pytest.mark.parametrize(
    ("gpu", "argv", "broken", "code"),
    [
        (None, [], (), 2),
        (None, ["--dry-run"], (), 0),
        ("G", ["--dry-run"], (), 0),
        (None, [], ("contract",), 1),
        (None, ["--dry-run"], ("memcheck",), 1),
        (None, ["--dry-run"], ("bench",), 1),
    ],
)
def test_rehearsal(out, monkeypatch, capsys, gpu, argv, broken, code):
    runner = Runner(pathlib.Path("/"), broken)
    assert start(monkeypatch, Machine(gpu, None, ()), runner, *argv) == code
    assert not any(command.prefix for _, command in runner.ran)  # nothing that needs a GPU was started
    shown = capsys.readouterr().out
    assert "compute-sanitizer --tool racecheck" in shown and "nothing was confirmed" in shown
    assert ("a missing GPU fails" in shown) == (gpu is None)
    assert not list(out.rglob("*.json"))


def test_a_missing_gpu_that_passes_fails_the_rehearsal(out, monkeypatch):
    """Negative control: RDK_REQUIRE without effect."""
    runner = Runner(pathlib.Path("/"))

    def lenient(command: Command, log: pathlib.Path) -> Done:
        done = runner(command, log)
        if log.stem == "missing":
            junit(log.with_suffix(".xml"), GOOD)
            return Done(0, "")
        return done

    assert start(monkeypatch, Machine(None, None, ()), lenient) == 1


def test_the_real_runner(out, monkeypatch):
    monkeypatch.setenv("RDKERNELS_BACKEND", "reference")
    code = "import os; print(os.environ['A'], os.environ.get('RDKERNELS_BACKEND')); raise SystemExit(4)"
    done = gpu_check.run(Command(("-c", code), {"A": "1"}), out / "deep" / "x.log")
    assert done == Done(4, "1 None\n")
    monkeypatch.setattr(gpu_check, "LIMIT", 0.2)
    assert gpu_check.run(Command(("-c", "import time; time.sleep(9)")), out / "y.log").code is None


def test_the_sanitizer_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_steps.sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(gpu_steps, "TOOLKIT", str(tmp_path / "toolkit"))
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    assert gpu_steps.find_sanitizer() is None
    for place in ("nvidia/cu13/bin", "toolkit/bin", "home/bin", "."):
        tool = tmp_path / place / "compute-sanitizer"
        tool.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("/bin/sh", tool)
        if place == "home/bin":
            monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
            (tmp_path / "toolkit" / "bin" / "compute-sanitizer").unlink()
        assert gpu_steps.find_sanitizer() == str(tool)


def test_names_of_files():
    assert gpu_steps.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert gpu_steps.slug("AMD Instinct(TM) MI300X/") == "amd-instinct-tm-mi300x"
