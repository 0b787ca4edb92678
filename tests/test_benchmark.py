"""The bench measures what it says: the right work on both sides, in turn, with honest counts. No speed is asserted."""

import gzip
import importlib.util
import json
import pathlib
import struct
import sys

import pytest
import torch

from rdkernels import __main__ as cli
from rdkernels import registry
from rdkernels.benchmark import interleaved, machine, problems, report, timing
from rdkernels.ops.hashed_linear.cases import HashedLinearCase
from rdkernels.testing import Problem

ROOT = pathlib.Path(__file__).resolve().parents[1]
CASE = HashedLinearCase("small", 3, 48, 64, 4, "chunk", bias="tensor")


def problem(work: str = "forward", rival: str = "dense") -> Problem:
    return Problem(CASE, "panel", "chunk", 3, work, rival, 1.0)


def test_calls_alternate_and_the_first_of_a_pair_changes():
    order = []
    timed = interleaved(lambda: order.append("a"), lambda: order.append("b"), seconds=0, least=4)
    assert "".join(order) == "abab" + "abba" * 2
    assert timed.pairs == 4


def test_ratio_is_the_median_of_the_pairwise_ratios():
    timed = timing.summary([(1.0, 2.0), (2.0, 8.0), (1.0, 30.0), (4.0, 4.0), (1.0, 3.0)])
    assert (timed.ratio, timed.low, timed.high) == (3.0, 2.0, 4.0)
    assert timing.summary([(2.0, 3.0)]).ratio == 1.5


def test_gather_is_the_same_function_as_ours():
    tensors = CASE.tensors(torch.float64)
    ours, gather = CASE.layer(tensors), CASE.gather(tensors)
    assert torch.allclose(ours(tensors["x"]), gather(tensors["x"]))


@pytest.mark.parametrize("rival", ("dense", "gather"))
def test_backward_gives_every_gradient_and_a_step_moves_every_weight(rival):
    tensors = CASE.tensors(torch.float32)
    x = tensors["x"]
    for layer in (CASE.layer(tensors), getattr(CASE, rival)(tensors)):
        dy = torch.ones(3, 48)
        gradients = timing.workload("forward+backward", layer, x, dy)()
        assert [g.shape for g in gradients] == [t.shape for t in (x, *layer.weights)]
        before = [w.detach().clone() for w in layer.weights]
        timing.workload("training step", layer, x, dy)()
        assert all(not torch.equal(w, b) for w, b in zip(layer.weights, before, strict=True))
        assert all(w.grad is None for w in layer.weights)


def test_counts():
    forward, backward, step = (problem(work) for work in timing.FLOP_FACTOR)
    assert [timing.flops(p) for p in (forward, backward, step)] == [f * 2 * 3 * 48 * 64 for f in (1, 3, 3)]
    once = 4 * (3 * (64 + 48) + 4 * 16)
    assert [timing.moved(p, 10) for p in (forward, backward, step)] == [once, 2 * once, 2 * once + 7 * 4 * 10]


def test_a_row_says_which_backend_ran():
    with registry.use("reference"):
        (row,) = timing.measure(problem(), (1,), 0.0)
    assert row["backend"] == "reference"


def test_thread_count_is_restored():
    before = torch.get_num_threads()
    timing.measure(problem(), (1, 2), 0.0)
    machine.limits((1,), 0.0)
    assert torch.get_num_threads() == before


def test_every_problem_of_every_operation_is_named_once():
    names = [str(p) for p in problems()]
    assert len(names) == len(set(names)) > 0
    assert 0 < len(problems(quick=True)) < len(names)


@pytest.mark.parametrize(
    "argv", (["bench", "--op", "nothing"], ["bench", "--only", "^nothing$"], ["bench", "--threads", "0"])
)
def test_bad_arguments_end_the_program(argv):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code not in (0, None)


def test_bench_writes_json_and_plot(tmp_path, capsys):
    pytest.importorskip("rich"), pytest.importorskip("tqdm"), pytest.importorskip("matplotlib")
    json_file, plot_file = tmp_path / "deep" / "r.json", tmp_path / "r.png"
    only = "chunk-c64-n1024-m[18] forward vs dense"
    cli.main(["bench", "--quick", "--only", only, "--threads", "1", "--json", str(json_file), "--plot", str(plot_file)])
    result = json.loads(json_file.read_text())
    assert [r["at"] for r in result["results"]] == [1, 8]
    assert {"cpu", "cores", "date", "torch", "cpu_capability", "commit"} <= set(result["machine"])
    assert list(json_file.parent.iterdir()) == [json_file]  # nothing left aside
    assert plot_file.read_bytes()[:4] == b"\x89PNG"
    shown = capsys.readouterr().out
    assert "of limit" in shown and "2.34" in shown  # the goal


def test_a_missing_extra_names_the_command():
    with pytest.raises(SystemExit, match=r"pip install 'rdkernels\[bench\]'"):
        report.optional("a_module_that_is_not_there")


def test_info(capsys):
    cli.main(["info"])
    shown = capsys.readouterr().out
    assert "cpu_capability" in shown and "hashed_linear" in shown


@pytest.fixture
def data(monkeypatch):
    spec = importlib.util.spec_from_file_location("bench_data", ROOT / "bench" / "papers" / "data.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


def test_idx_files_are_read_strictly(data, tmp_path):
    path = tmp_path / "a.gz"

    def written(raw: bytes) -> pathlib.Path:
        path.write_bytes(gzip.compress(raw))
        return path

    head = struct.pack(">HBBII", 0, 8, 2, 2, 3)
    assert data.read_idx(written(head + bytes(range(6)))).tolist() == [[0, 1, 2], [3, 4, 5]]
    for raw in (
        b"",
        b"\x00\x00",
        head,
        head + bytes(5),
        head + bytes(7),
        struct.pack(">HBBII", 0, 9, 2, 2, 3) + bytes(6),
    ):
        with pytest.raises(ValueError, match="IDX|header"):
            data.read_idx(written(raw))


def test_data_folder_is_found_through_the_environment(data, tmp_path, monkeypatch):
    monkeypatch.setenv("RDKERNELS_DATA", str(tmp_path))
    for pair in data.FILES.values():
        for name in pair:
            (tmp_path / name).touch()
    assert data.find() == tmp_path
