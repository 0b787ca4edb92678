"""What every experiment shares: its command line, its runs (resumed where they stopped), claims, tables, plot, files.

A run is one call of a function in a process of its own with a fixed number of threads, so that it gives the same
numbers whatever runs beside it. What it returned is kept in a file, with the day and the commit it was made at: an
experiment that was interrupted goes on where it stopped. A kept run is used again only if its function and arguments
are the same; after a change of what it computes, delete its line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm

from rdkernels.benchmark.machine import cores, stamp

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench/papers/results"
QUICK_RESULTS = ROOT / "demo-output/papers"
DATA = ROOT / ".data"


@dataclass(frozen=True)
class Run:
    """One call of a top-level function with JSON-able arguments, under a key that names it in tables and files."""

    key: str
    function: Callable[..., dict[str, Any]]
    arguments: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Of what the run computes: its function's name and its arguments."""
        text = json.dumps([self.function.__qualname__, self.arguments], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Claim:
    """A statement, whether it holds, and the numbers that say so."""

    claim: str
    holds: bool
    numbers: Mapping[str, Any]

    def __str__(self) -> str:
        shown = ", ".join(f"{name} {_shown(value)}" for name, value in self.numbers.items())
        return f"{self.claim}: {'holds' if self.holds else 'does not hold'} - {shown}"


@dataclass(frozen=True)
class Grid:
    """A table: printed, and written as Markdown."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def rich(self) -> Table:
        table = Table(title=self.title)
        for n, name in enumerate(self.columns):
            table.add_column(escape(name), justify="right" if n else "left")
        for row in self.rows:
            table.add_row(*(escape(_shown(cell)) for cell in row))
        return table

    def markdown(self) -> str:
        lines = [
            f"| {' | '.join(map(_shown, row))} |" for row in (self.columns, ["---"] * len(self.columns), *self.rows)
        ]
        return "\n".join([f"**{self.title}**", "", *lines])


@dataclass
class Experiment:
    """One paper's experiment: made from the command line, run, finished."""

    name: str
    title: str
    quick: bool = False
    jobs: int = 1
    threads: int = 1
    only: str = ""
    output: pathlib.Path = RESULTS
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    made: set[tuple[str, str]] = field(default_factory=set)  # the days and commits of the runs

    @classmethod
    def from_command_line(cls, name: str, doc: str | None, arguments: Sequence[str] | None = None) -> Experiment:
        """By the arguments of the process; `doc` is the script's docstring, its first line the title."""
        parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--quick", action="store_true", help="every path in half a minute; judges no claim")
        parser.add_argument("--jobs", type=int, default=cores(), help="runs side by side (default: the cores)")
        parser.add_argument("--threads", type=int, default=1, help="threads of a run (default 1)")
        parser.add_argument(
            "--only", default="", help="make only the runs whose key has this in it, and finish nothing"
        )
        parser.add_argument("--output", type=pathlib.Path, help="folder of the results")
        given = parser.parse_args(arguments)
        if given.jobs < 1 or given.threads < 1:
            parser.error(f"--jobs and --threads must be >= 1, got {given.jobs} and {given.threads}")
        if DATA.is_dir():
            os.environ.setdefault("RDKERNELS_DATA", str(DATA))
        output = given.output or (QUICK_RESULTS if given.quick else RESULTS)
        title = (doc or name).strip().splitlines()[0]
        return cls(name, title, given.quick, given.jobs, given.threads, given.only, output)

    @property
    def _kept(self) -> pathlib.Path:
        return self.output / f".{self.name}.runs.jsonl"

    def run(self, runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
        """What each run returned, by key, in the order of `runs`; a failed run is raised with its key.

        With `--only` the process ends here, so that parts of an experiment can be made one after the other.
        """
        keys = [run.key for run in runs]
        if len(set(keys)) != len(keys):
            raise ValueError(f"{self.name}: runs must have different keys, got {sorted(keys)}")
        self.output.mkdir(parents=True, exist_ok=True)
        found, made = ({}, {}) if self.quick else self._load()
        now = stamp()
        today = (str(now["date"])[:10], str(now["commit"]))
        todo = [r for r in runs if r.digest not in found and self.only in r.key]
        workers = min(self.jobs, len(todo))
        if workers:
            with (
                ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start, (self.threads,)) as pool,
                tqdm(total=len(runs), initial=len(runs) - len(todo), desc=self.name, unit="run") as bar,
                self._kept.open("a") as kept,
            ):
                waiting = {pool.submit(_timed, run.function, dict(run.arguments)): run for run in todo}
                for future in as_completed(waiting):
                    run = waiting[future]
                    try:
                        result = future.result()
                    except Exception as error:
                        pool.shutdown(wait=False, cancel_futures=True)
                        raise RuntimeError(f"{self.name}: run {run.key!r} failed: {error}") from error
                    found[run.digest] = result
                    made[run.digest] = today
                    line = {"digest": run.digest, "key": run.key, "made": today, "result": result}
                    kept.write(json.dumps(line) + "\n")
                    kept.flush()
                    bar.set_postfix_str(run.key)
                    bar.update()
        if self.only:
            raise SystemExit(f"{self.name}: made the runs with {self.only!r} in their keys")
        self.made |= {made[run.digest] for run in runs}
        self.results = {**self.results, **{run.key: found[run.digest] for run in runs}}
        return {key: self.results[key] for key in keys}

    def _load(self) -> tuple[dict[str, dict[str, Any]], dict[str, tuple[str, str]]]:
        """Results, and days and commits, of kept runs by digest."""
        if not self._kept.exists():
            return {}, {}
        lines = [json.loads(line) for line in self._kept.read_text().splitlines() if line.endswith("}")]
        return {x["digest"]: x["result"] for x in lines}, {x["digest"]: tuple(x["made"]) for x in lines}

    def finish(
        self,
        *,
        settings: Mapping[str, Any],
        grids: Sequence[Grid],
        claims: Sequence[Claim],
        plot: Callable[[pathlib.Path], None] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        """Print tables and claims; write `<name>.json`, `.md` and `.png`, each beside itself first, then renamed."""
        record = {
            "experiment": self.name,
            "title": self.title,
            "quick": self.quick,
            "machine": {**stamp(), "threads": self.threads},
            "made": sorted(self.made),
            "cpu_seconds": sum(r.get("run_cpu_seconds", 0) for r in self.results.values()),
            "settings": settings,
            "claims": [asdict(claim) for claim in claims],
            "notes": list(notes),
            "runs": self.results,
        }
        _replace(self.output / f"{self.name}.json", lambda p: p.write_text(json.dumps(record, indent=1) + "\n"))
        _replace(self.output / f"{self.name}.md", lambda p: p.write_text(_page(record, grids, claims)))
        if plot is not None:
            _replace(self.output / f"{self.name}.png", plot)
        console = Console(width=None if Console().is_terminal else 130)
        for grid in grids:
            console.print(grid.rich())
        for note in notes:
            console.print(f"note: {note}", markup=False, highlight=False)
        for claim in claims:
            said = "not judged by so short a run - " * self.quick
            console.print(f"claim: {said}{claim}", markup=False, highlight=False)


def mean(results: Sequence[Mapping[str, Any]], name: str) -> float:
    return statistics.fmean(float(r[name]) for r in results)


def spread(results: Sequence[Mapping[str, Any]], name: str) -> float:
    """The standard deviation over seeds; 0 of one seed."""
    values = [float(r[name]) for r in results]
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _start(threads: int) -> None:
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A run that nobody waits for any more would compute on to its end."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _timed(function: Callable[..., dict[str, Any]], arguments: dict[str, Any]) -> dict[str, Any]:
    start = time.process_time()
    return {**function(**arguments), "run_cpu_seconds": round(time.process_time() - start, 2)}


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _page(record: Mapping[str, Any], grids: Sequence[Grid], claims: Sequence[Claim]) -> str:
    machine = record["machine"]
    where = f"{machine['cpu']} ({machine['cpu_capability']}), {machine['threads']} thread(s) a run"
    days = sorted({day for day, _ in record["made"]}) or [machine["date"][:10]]
    commits = list(dict.fromkeys(commit for _, commit in record["made"]))
    at = f"run at commit {' and '.join(commits)}, written at {machine['commit']}"
    made = f"{' to '.join(dict.fromkeys((days[0], days[-1])))}, {where}, torch {machine['torch']}, {at}"
    parts = [f"*{made}; {record['cpu_seconds'] / 60:.0f} CPU minutes.*"]
    parts += [grid.markdown() for grid in grids]
    parts += ["\n".join(f"* {claim}" for claim in claims)] if claims else []
    parts += ["\n".join(f"* {note}" for note in record["notes"])] if record["notes"] else []
    return "\n\n".join(parts) + "\n"


def _replace(path: pathlib.Path, write: Callable[[pathlib.Path], Any]) -> None:
    """Write beside `path`, then rename: what was there is never half overwritten."""
    aside = path.with_name(f".{path.stem}.new{path.suffix}")
    write(aside)
    aside.replace(path)
