"""The bench measures what it says: the right work on both sides, in turn, with honest counts. No speed is asserted."""

import functools
import importlib
import importlib.util
import io
import json
import pathlib
import sys

import pytest
import torch
from fake_gpu import FakeGpu

from rdkernels import __main__ as cli
from rdkernels import registry
from rdkernels.benchmark import gpu, interleaved, machine, plots, problems, report, run_gpu, suite, timing
from rdkernels.ops.hashed_linear.cases import HashedLinearCase
from rdkernels.testing import Layer, Problem

LOWRANK_CONVOLUTIONS = tuple(op for op in registry.operations() if op.endswith("_conv2d"))
ROOT = pathlib.Path(__file__).resolve().parents[1]
CASE = HashedLinearCase("small", 3, 48, 64, 4, "chunk", bias="tensor")


def cases_of(op: str):
    return importlib.import_module(f"rdkernels.ops.{op}.cases")


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


class Recorder:
    """A layer that notes the layout of its x and whether a graph is recorded."""

    def __init__(self, memory_format: torch.memory_format) -> None:
        self.seen: list[tuple[bool, bool]] = []
        self.weight = torch.ones(1, requires_grad=True)
        self.layer = Layer(self, (self.weight,), memory_format)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        last = x.is_contiguous(memory_format=torch.channels_last)
        self.seen.append((last, torch.is_grad_enabled()))
        return x * self.weight


@pytest.mark.parametrize("given", (torch.contiguous_format, torch.channels_last))
def test_x_and_dy_come_in_the_layers_format_and_a_forward_records_no_graph(given):
    x = torch.randn(2, 3, 4, 5).to(memory_format=given)
    for kind, last in ((torch.contiguous_format, False), (torch.channels_last, True)):
        recorder = Recorder(kind)
        result = timing.workload("forward", recorder.layer, x, x)()
        assert not result.requires_grad and recorder.seen == [(last, False)]
        dx, dw = timing.workload("forward+backward", recorder.layer, x, x)()
        assert recorder.seen[1:] == [(last, True)]
        assert dx.is_contiguous(memory_format=kind) and dw.shape == (1,)
    assert not x.requires_grad  # each side has an x of its own


def test_the_fastest_variant_is_the_rival():
    order, now = [], iter(range(100))
    took = {"slow": 3.0, "fast": 1.0, "middle": 2.0}

    def time_of(call):
        call()
        return took[order[-1]]

    rivals = {name: functools.partial(order.append, name) for name in took}
    assert timing.fastest(rivals, 2, time_of, lambda: next(now)) == "fast"
    assert "".join(name[0] for name in order) == "sfm" * 5  # warm, then in turn until the clock passes 2
    order.clear()
    assert timing.fastest({"only": rivals["slow"]}, 9.0) == "only" and not order


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=f"{op}-{case.name}")
        for op in LOWRANK_CONVOLUTIONS
        for case in cases_of(op).CORRECTNESS
        if case.name in ("plain", "strided", "same-even", "valid", "grouped")
    ],
)
def test_every_variant_of_the_unfused_chain_is_the_same_function_as_ours(case):
    tensors = case.tensors(torch.float64)
    expected = case.run(tensors)
    unfused = case.unfused(tensors)
    assert set(unfused) == {"NCHW", "channels_last"} == set(case.dense(tensors))
    for layer in unfused.values():
        assert torch.allclose(layer(tensors["x"].to(memory_format=layer.memory_format)), expected, atol=1e-10)
        assert sum(w.numel() for w in layer.weights) == sum(w.numel() for w in case.layer(tensors).weights)


@pytest.mark.parametrize("op", LOWRANK_CONVOLUTIONS)
def test_a_layer_of_the_bench_packs_its_factors_once(op, monkeypatch):
    """Indices that were new in each call would be packed in each call."""
    case = next(c for c in cases_of(op).CORRECTNESS if c.name == "plain")
    tensors = case.tensors(torch.float32)
    given: list[tuple[torch.Tensor, ...]] = []
    monkeypatch.setattr(type(case), "function", staticmethod(lambda x, *rest, **_: given.append(rest)))
    layer = case.layer(tensors)
    layer(tensors["x"]), layer(tensors["x"])
    assert len(given) == 2 and len(given[0]) == len(case.shapes()) + len(case.indices())
    assert all(first is second for first, second in zip(*given, strict=True))


def test_where_outputs_are_grouped_by_colour_the_chain_is_two_convolutions():
    case = next(c for c in cases_of("monochromatic_conv2d").CORRECTNESS if c.name == "grouped")
    assert [type(stage).__name__ for stage in case.stages(case.tensors(torch.float32))] == ["Conv", "Conv"]


@pytest.mark.parametrize("op", (*LOWRANK_CONVOLUTIONS, "lowrank_linear"))
def test_lowrank_problems(op):
    """Each layer and batch thrice; the captured fraction where the rival is dense, and only there."""
    bench = cases_of(op).BENCH
    kinds = [(p.work, p.rival) for p in bench]
    count = len(cases_of(op).BENCH_CASES)
    assert {kind: kinds.count(kind) for kind in kinds} == {
        ("forward", "dense"): count,
        ("forward", "unfused"): count,
        ("forward+backward", "unfused"): count,
    }
    for p in bench:
        assert p.case.op == op and (p.reduction is not None) == (p.rival == "dense")
        assert p.reduction is None or p.reduction == pytest.approx(2 * p.case.dense_macs() / p.case.flops())
    assert len({(p.panel, p.line, p.at) for p in bench}) == len(bench)


def captured_row(panel: str, line: str, ratio: float, reduction: float | None, goal: float | None, **more) -> dict:
    made = Problem(CASE, panel, line, 1, "forward", "dense", goal, 0.9, reduction)
    return timing.row(made, timing.Timing(1.0, ratio, ratio, ratio, ratio, 1), {"threads": 1, "variant": "", **more}, 9)


def test_captured_is_the_ratio_over_the_reduction():
    assert captured_row("p", "a", 3.0, 4.0, 0.8)["captured"] == 0.75
    assert captured_row("p", "a", 3.0, None, 0.8)["captured"] is None


def test_summaries_are_geometric_means_with_the_worst():
    rows = [
        captured_row("p", "a", 4.0, 4.0, 0.8),
        captured_row("p", "b", 1.0, 4.0, 0.8),
        captured_row("p", "a", 4.0, 4.0, 0.8, threads=2),
        captured_row("q", "a", 2.0, None, None),
        captured_row("q", "b", 8.0, None, None),
    ]
    one, two, ratios = suite.summaries(rows, "threads")
    assert (one["figure"], one["mean"], one["worst"], one["worst_name"]) == (
        "captured",
        pytest.approx(0.5),
        0.25,
        "b, 1",
    )
    assert (one["count"], one["judged"], one["missed"]) == (2, 2, 1)
    assert (one["mean_goal"], one["worst_goal"]) == (0.9, 0.8)
    assert (two["threads"], two["count"], two["missed"]) == (2, 1, 0)
    assert (ratios["figure"], ratios["mean"], ratios["judged"]) == ("ratio", pytest.approx(4.0), 0)


def test_what_the_unfused_chain_captures():
    dense = {**captured_row("p", "a", 3.0, 4.0, None), "case": "a"}
    unfused = {**captured_row("p", "a", 1.5, None, None), "case": "a", "against": "unfused"}
    assert plots.unfused_captured([dense, unfused]) == {("a", 1, None): 0.5}
    assert plots.unfused_captured([dense]) == {}


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
    "argv",
    (
        ["bench", "--op", "nothing"],
        ["bench", "--only", "^nothing$"],
        ["bench", "--threads", "0"],
        ["bench", "--dtype", "bf16"],
        ["bench", "--device", "cuda", "--dtype", "bf16,int8"],
        ["bench", "--device", "cuda", "--threads", "1"],
    ),
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


def test_lowrank_bench_names_the_variant_and_summarises(tmp_path, measured, monkeypatch, capsys):
    """Two operations in one file: the table, the plot and the pages of each; an operation without a result says so."""
    pytest.importorskip("rich"), pytest.importorskip("tqdm"), pytest.importorskip("matplotlib")
    results, out = tmp_path / "results", tmp_path / "out"
    argv = ["bench", "--quick", "--op", "cp_conv2d", "--op", "lowrank_linear", "--threads", "1"]
    only = r"(@28-r144-n1 forward vs|-m[18] forward vs unfused)"
    cli.main([*argv, "--only", only, "--json", str(results / "m-lowrank.json"), "--plot", str(tmp_path / "m.png")])
    shown = capsys.readouterr().out
    assert "captured" in shown and "geometric means" in shown and "below goal" in shown
    result = json.loads((results / "m-lowrank.json").read_text())
    assert [(r["op"], r["against"], r["captured"] is None) for r in result["results"]] == [
        ("cp_conv2d", "dense", False),
        ("cp_conv2d", "unfused", True),
        ("lowrank_linear", "unfused", True),
        ("lowrank_linear", "unfused", True),
    ]
    assert [r["variant"] in ("NCHW", "channels_last") for r in result["results"]] == [True, True, False, False]
    assert [s["panel"] for s in result["summaries"]] == list(dict.fromkeys(r["panel"] for r in result["results"]))
    monkeypatch.setattr(measured, "RESULTS", results)
    monkeypatch.setattr(measured, "OUT", out)
    measured.main()
    assert {p.name for p in out.glob("*.png")} == {"m-lowrank-cp_conv2d.png", "m-lowrank-lowrank_linear.png"}
    cp, linear = ((out / f"{op}.md").read_text() for op in ("cp_conv2d", "lowrank_linear"))
    assert "/measured/m-lowrank-cp_conv2d.png" in cp and "| ResNet-50-3x3@28-r144 | 1 | 1 |" in cp
    assert "| cp_conv2d forward, against dense | 1 | captured | **" in cp and "4096 -> 256" not in cp
    assert "| 4096 -> 256 -> 4096 | 8 | 1 |" in linear and "captured" not in linear
    for op in ("hashed_linear", "tucker_conv2d"):
        assert (out / f"{op}.md").read_text().startswith("No result is committed yet")


def test_results_that_do_not_name_their_operation_are_read(tmp_path, measured, monkeypatch):
    pytest.importorskip("matplotlib")
    old = json.loads((ROOT / "bench" / "results" / "epyc-avx2.json").read_text())
    assert "op" not in old["results"][0]
    monkeypatch.setattr(measured, "RESULTS", tmp_path)
    monkeypatch.setattr(measured, "OUT", tmp_path / "out")
    report.write_json(old, tmp_path / "old.json")
    measured.main()
    page = (tmp_path / "out" / "hashed_linear.md").read_text()
    assert page.count("| native |") == len(old["results"]) and (tmp_path / "out" / "old.png").exists()


def test_a_missing_extra_names_the_command():
    with pytest.raises(SystemExit, match=r"pip install 'rdkernels\[bench\]'"):
        report.optional("a_module_that_is_not_there")


def test_info(capsys):
    cli.main(["info"])
    shown = capsys.readouterr().out
    assert "cpu_capability" in shown and "hashed_linear" in shown


# -- on a GPU, simulated -----------------------------------------------------------------------------------------------

WORK = 5e-6  # seconds of a kernel shorter than the 10 us its launch takes


def two_kernels(on: FakeGpu) -> None:
    on.kernel(WORK)
    on.kernel(WORK)


def test_behind_a_backlog_the_time_is_the_gpus():
    on = FakeGpu()
    timed = gpu.interleaved(on, lambda: two_kernels(on), lambda: on.kernel(4 * WORK), seconds=0.01)
    assert (timed.ours, timed.rival, timed.ratio) == pytest.approx((2 * WORK, 4 * WORK, 2.0))
    assert timed.ours_host == pytest.approx(20e-6, rel=0.2) and timed.rival_host == pytest.approx(10e-6, rel=0.2)
    assert timed.starved == 0 and timed.pairs >= 7


def test_without_a_backlog_the_time_is_the_hosts_and_is_seen_as_such():
    """Negative control: the same calls, the GPU idle before each."""
    on = FakeGpu()
    seconds, _, dry = gpu.seconds_of(on, lambda: two_kernels(on), writes=0)
    assert dry and seconds > 2 * WORK + 9e-6
    seconds, _, dry = gpu.seconds_of(on, lambda: two_kernels(on), writes=4)
    assert not dry and seconds == pytest.approx(2 * WORK)


def test_a_host_slower_than_the_longest_backlog_is_counted():
    on = FakeGpu(write=4e-6)
    slow = gpu.WRITES * on.write * 8
    timed = gpu.interleaved(on, lambda: on.kernel(WORK, host=slow), lambda: on.kernel(WORK), 0.0, least=3)
    assert timed.starved == 3 and timed.ours > slow / 2


def test_a_backlog_too_short_is_lengthened_and_the_call_taken_again():
    on = FakeGpu()
    side = gpu._Side(lambda: on.kernel(WORK, host=300e-6), writes=1)
    assert gpu._timed(on, side) == pytest.approx(WORK)
    assert side.writes == 8 and side.starved == 0 and len(side.host) == 1


def test_backlog_is_bounded():
    assert [gpu.backlog(host, 50e-6) for host in (0.0, 50e-6, 1e-3, 9.0)] == [1, 2, 40, gpu.WRITES]


def test_every_timed_call_meets_a_cold_cache():
    on = FakeGpu()
    timed = gpu.interleaved(on, lambda: on.kernel(WORK, warm=1e-6), lambda: on.kernel(WORK, warm=1e-6), 0.0)
    assert (timed.ours, timed.rival) == pytest.approx((WORK, WORK))
    assert gpu.seconds_of(on, lambda: on.kernel(WORK, host=0.0, warm=1e-6), 0)[0] < WORK  # negative control: no flush


def test_gpu_calls_alternate_and_the_first_of_a_pair_changes():
    on = FakeGpu()
    gpu.interleaved(on, lambda: on.kernel(WORK, name="a"), lambda: on.kernel(WORK, name="b"), 0.0, least=4)
    assert "".join(on.launches[-8:]) == "abba" * 2


def test_gpu_quantiles():
    on = FakeGpu()
    times = iter([1e-3] * 6 + [k * 1e-3 for k in (1, 2, 3, 4, 5)])
    timed = gpu.interleaved(on, lambda: on.kernel(next(times)), lambda: on.kernel(6e-3), 0.0, least=5)
    assert (timed.ours_low, timed.ours, timed.ours_high) == pytest.approx((2e-3, 3e-3, 4e-3))
    assert (timed.low, timed.ratio, timed.high) == pytest.approx((1.5, 2.0, 3.0))


@pytest.mark.parametrize("kind", gpu.KINDS)
def test_precision_is_set_for_both_sides_and_put_back(kind, monkeypatch):
    seen = []
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = kind != "tf32"

    def timed(on, ours, rival, seconds):
        seen.append(matmul.allow_tf32)
        return gpu.GpuTiming(*[1.0] * 5, 1, *[1.0] * 6, 0)

    monkeypatch.setattr(gpu, "interleaved", timed)
    row = gpu.measure(FakeGpu(), problem(), kind, 0.0)
    after, matmul.allow_tf32 = matmul.allow_tf32, before
    assert seen == [kind == "tf32"] and after == (kind != "tf32")
    assert row["dtype"] == kind and row["panel"] == f"panel, {kind}"
    assert row["bytes"] == timing.moved(problem(), 0, gpu.KINDS[kind].itemsize)


def test_the_fastest_variant_is_the_rival_on_a_gpu_too():
    case = next(c for c in cases_of("cp_conv2d").CORRECTNESS if c.name == "plain")
    made = Problem(case, "panel", "line", 2, reduction=4.0)
    with registry.use("reference"):
        row = gpu.measure(FakeGpu(step=1e-3, mark=1e-6), made, "fp32", 0.0)
    assert row["variant"] in ("NCHW", "channels_last") and row["captured"] == row["ratio"] / 4


def test_precision_refuses_another_name():
    with pytest.raises(ValueError, match=r"dtype must be one of .*tf32.*, got 'fp64'"), gpu.precision("fp64"):
        pass


def test_problems_of_a_gpu():
    found = problems(device="cuda")
    assert {p.at for p in found} == {1, 8, 16, 64, 512, 1024, 2048, 4096, 8192}
    assert {p.line for p in found} == {f"{g} 1/{c}" for g in ("tile", "chunk", "element") for c in (8, 64)}
    assert {p.work for p in found} == {"forward", "forward+backward"} and {p.rival for p in found} == {"dense"}
    assert {p.goal for p in found} == {None} and len({str(p) for p in found}) == len(found) == 9 * 6 * 2


def small(rows: int) -> Problem:
    case = HashedLinearCase.square(64, rows, "chunk", 8)
    return Problem(case, "forward, 64 x 64", "chunk 1/8", rows)


def test_a_gpu_result_is_shown_written_and_plotted(tmp_path):
    console = pytest.importorskip("rich.console")
    with registry.use("reference"):
        result = run_gpu([small(1), small(8)], ("bf16", "tf32"), quick=True, on=FakeGpu(step=1e-3, mark=1e-6))
    assert {r["backend"] for r in result["results"]} == {"reference"}
    assert {"gpu", "driver", "cuda", "torch", "commit", "capability", "l2_bytes", "flush_bytes"} <= set(
        result["machine"]
    )
    assert set(result["limits"]) == {"bf16", "tf32"} and all(r["goal"] is None for r in result["results"])
    assert [r["panel"] for r in result["results"]] == ["forward, 64 x 64, bf16"] * 2 + ["forward, 64 x 64, tf32"] * 2
    shown = io.StringIO()
    console.Console(width=200, file=shown).print(report.tables(result))
    text = shown.getvalue()
    assert "simulated GPU, driver none, CUDA none" in text and "reference" in text and "goal" not in text
    report.write_json(result, tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text()) == result
    plots.plot(result, tmp_path / "r.png")
    assert (tmp_path / "r.png").read_bytes()[:4] == b"\x89PNG"


def test_a_made_up_result_says_so_and_is_no_result(tmp_path, measured, monkeypatch):
    result = run_gpu([small(1), small(8)], ("bf16",), quick=True, on=FakeGpu(step=1e-3, mark=1e-6))
    assert not report.machine_line(result).startswith(report.FAKE)
    result["fake"] = True
    assert report.machine_line(result).startswith(report.FAKE)
    monkeypatch.setattr(measured, "RESULTS", tmp_path)
    monkeypatch.setattr(measured, "OUT", tmp_path / "out")
    report.write_json(result, tmp_path / "r.json")
    with pytest.raises(SystemExit, match=r"r\.json holds NOT MEASURED"):
        measured.main()
    report.write_json({**result, "fake": False}, tmp_path / "r.json")
    measured.main()
    page = (tmp_path / "out" / "hashed_linear.md").read_text()
    assert "### simulated GPU" in page and "| chunk 1/8 | 8 |" in page and "host us" in page


def loaded(path: pathlib.Path, monkeypatch):
    spec = importlib.util.spec_from_file_location(f"loaded_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # a dataclass looks its module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def measured(monkeypatch):
    return loaded(ROOT / "docs" / "measured.py", monkeypatch)
