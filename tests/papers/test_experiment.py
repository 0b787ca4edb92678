"""The experiments' harness: runs resume, claims are judged, files are whole; the training loop trains."""

import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
import torch
from papers import experiment as harness
from papers.experiment import Claim, Experiment, Grid, Run, mean, spread
from papers.training import error_rate, outputs, train
from torch import nn


def square(value: int, log: str) -> dict[str, object]:
    with open(log, "a") as calls:
        calls.write(f"{value}\n")
    if value == 13:
        raise ValueError("unlucky")
    return {"square": value**2, "threads": torch.get_num_threads()}


@pytest.fixture
def log(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "calls"


def runs(log: pathlib.Path, *values: int) -> list[Run]:
    return [Run(f"number {v}", square, {"value": v, "log": str(log)}) for v in values]


def test_runs_resume_where_they_stopped(tmp_path: pathlib.Path, log: pathlib.Path) -> None:
    first = Experiment("e", "E", output=tmp_path)
    with pytest.raises(RuntimeError, match="e: run 'number 13' failed: unlucky"):
        first.run(runs(log, 2, 13))
    found = Experiment("e", "E", output=tmp_path).run(runs(log, 2, 3))
    assert list(found) == ["number 2", "number 3"]
    assert [found[key]["square"] for key in found] == [4, 9]
    assert all(r["threads"] == 1 and r["run_cpu_seconds"] >= 0 for r in found.values())
    assert sorted(log.read_text().split()) == ["13", "2", "3"]  # 2 was not computed again


def test_a_kept_run_of_other_arguments_is_not_used(tmp_path: pathlib.Path, log: pathlib.Path) -> None:
    """Negative control: the same key, other arguments."""
    Experiment("e", "E", output=tmp_path).run([Run("same", square, {"value": 2, "log": str(log)})])
    found = Experiment("e", "E", output=tmp_path).run([Run("same", square, {"value": 3, "log": str(log)})])
    assert found["same"]["square"] == 9


KILLED = """
import sys
from papers.experiment import Experiment, Run
from papers.test_experiment import slow
import pathlib

if __name__ == "__main__":
    log = sys.argv[1]
    Experiment("e", "E", output=pathlib.Path(log).parent).run([Run("slow", slow, {"log": log})])
"""


def slow(log: str) -> dict[str, object]:
    pathlib.Path(log).write_text(str(os.getpid()))
    time.sleep(60)
    return {}


def test_runs_end_with_the_experiment(tmp_path: pathlib.Path, log: pathlib.Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    paths = os.pathsep.join(str(pathlib.Path(__file__).parents[n]) for n in (1, 2)) + os.pathsep
    paths += str(pathlib.Path(harness.__file__).parents[1])
    started = subprocess.Popen([sys.executable, script, log], env={**os.environ, "PYTHONPATH": paths})
    try:
        wait_until(lambda: log.exists() and log.read_text())
        run = int(log.read_text())
        started.kill()
        started.wait()
        wait_until(lambda: not pathlib.Path(f"/proc/{run}/exe").exists())
    finally:
        started.kill()


def wait_until(true: Callable[[], object], seconds: float = 50) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_keys_must_differ(tmp_path: pathlib.Path, log: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="different keys"):
        Experiment("e", "E", output=tmp_path).run(runs(log, 2, 2))


def test_only_makes_a_part_and_finishes_nothing(tmp_path: pathlib.Path, log: pathlib.Path) -> None:
    with pytest.raises(SystemExit, match="'number 2'"):
        Experiment("e", "E", only="number 2", output=tmp_path).run(runs(log, 2, 3))
    assert log.read_text().split() == ["2"]
    assert not list(tmp_path.glob("e.*"))


def test_finish_writes_whole_files_and_says_each_claim(tmp_path: pathlib.Path, log: pathlib.Path, capsys) -> None:
    made = Experiment("e", "Squares", output=tmp_path)
    found = made.run(runs(log, 2, 3))
    claims = [
        Claim("nine is more than four", found["number 3"]["square"] > found["number 2"]["square"], {"nine": 9}),
        Claim("four is more than nine", found["number 2"]["square"] > found["number 3"]["square"], {"ratio": 4 / 9}),
    ]
    grid = Grid("squares", ["number", "square"], [[key, r["square"]] for key, r in found.items()])
    made.finish(
        settings={"seed": 0}, grids=[grid], claims=claims, plot=lambda p: p.write_bytes(b"png"), notes=["a note"]
    )
    said = capsys.readouterr().out
    assert "claim: nine is more than four: holds - nine 9" in said
    assert "claim: four is more than nine: does not hold - ratio 0.44" in said
    record = json.loads((tmp_path / "e.json").read_text())
    assert [c["holds"] for c in record["claims"]] == [True, False]
    assert record["runs"]["number 3"]["square"] == 9 and record["machine"]["torch"] == torch.__version__
    page = (tmp_path / "e.md").read_text()
    assert "| number 3 | 9 |" in page and "* a note" in page
    assert (tmp_path / "e.png").read_bytes() == b"png"
    assert sorted(p.name for p in tmp_path.glob("*new*")) == []
    assert record["made"] == [[record["machine"]["date"][:10], str(record["machine"]["commit"])]]


def test_a_kept_run_says_when_it_was_made_not_when_the_page_was(tmp_path: pathlib.Path, log: pathlib.Path) -> None:
    Experiment("e", "E", output=tmp_path).run(runs(log, 2))
    kept = tmp_path / ".e.runs.jsonl"
    line = json.loads(kept.read_text())
    kept.write_text(json.dumps({**line, "made": ["1999-12-31", "abc"]}) + "\n")
    later = Experiment("e", "E", output=tmp_path)
    later.run(runs(log, 2, 3))
    later.finish(settings={}, grids=[], claims=[])
    today = json.loads((tmp_path / "e.json").read_text())["machine"]["date"][:10]
    page = (tmp_path / "e.md").read_text()
    assert page.startswith(f"*1999-12-31 to {today}, ") and "run at commit abc and " in page


def test_a_plot_that_fails_leaves_the_old_one(tmp_path: pathlib.Path) -> None:
    made = Experiment("e", "E", output=tmp_path)
    (tmp_path / "e.png").write_bytes(b"old")

    def half(path: pathlib.Path) -> None:
        path.write_bytes(b"ha")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        made.finish(settings={}, grids=[], claims=[], plot=half)
    assert (tmp_path / "e.png").read_bytes() == b"old"


def test_quick_judges_nothing_and_keeps_apart(tmp_path: pathlib.Path, capsys) -> None:
    made = Experiment.from_command_line("e", "Title.\n\nMore.", ["--quick", "--output", str(tmp_path)])
    assert made.quick and made.title == "Title."
    made.finish(settings={}, grids=[], claims=[Claim("x", True, {})])
    assert "not judged by so short a run" in capsys.readouterr().out
    assert Experiment.from_command_line("e", "T", ["--quick"]).output == harness.QUICK_RESULTS
    assert Experiment.from_command_line("e", "T", []).output == harness.RESULTS


def test_command_line_refuses_nonsense(capsys) -> None:
    with pytest.raises(SystemExit):
        Experiment.from_command_line("e", "T", ["--jobs", "0"])
    assert "--jobs and --threads must be >= 1, got 0 and 1" in capsys.readouterr().err


def test_data_folder_of_the_repository_is_passed_on(monkeypatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setattr(harness, "DATA", tmp_path)
    monkeypatch.delenv("RDKERNELS_DATA", raising=False)
    Experiment.from_command_line("e", "T", [])
    assert os.environ["RDKERNELS_DATA"] == str(tmp_path)
    monkeypatch.setenv("RDKERNELS_DATA", "mine")
    Experiment.from_command_line("e", "T", [])
    assert os.environ["RDKERNELS_DATA"] == "mine"


def test_mean_and_spread() -> None:
    rows = [{"e": 1.0}, {"e": 2.0}, {"e": 3.0}]
    assert mean(rows, "e") == 2.0 and spread(rows, "e") == 1.0 and spread(rows[:1], "e") == 0.0


def test_training_learns_by_the_seed_and_the_schedule() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(301, 5, generator=generator)
    y = (x[:, 0] > 0).long()

    def trained(seed: int, factor: float) -> nn.Module:
        torch.manual_seed(1)
        net = nn.Linear(5, 2)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
        done = train(net, x, y, optimizer=optimizer, epochs=8, batch=50, seed=seed, schedule=lambda part: factor)
        assert done["steps"] == 8 * 7 and done["cpu_seconds"] > 0
        assert optimizer.param_groups[0]["lr"] == 0.5 * factor
        return net

    net = trained(0, 1.0)
    assert error_rate(net, x, y, batch=100) < 5
    assert torch.equal(net.weight, trained(0, 1.0).weight)
    assert not torch.equal(net.weight, trained(1, 1.0).weight)
    assert error_rate(trained(0, 0.0), x, y) > 5  # negative control: a rate of 0 learns nothing


def test_outputs_are_those_of_evaluation() -> None:
    net = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2))
    x = torch.randn(7, 3)
    assert torch.equal(outputs(net, x, batch=2), net[1](x))
    assert net.training
