"""Static bounds of the low-rank chains: what they count, and that the committed page is what the code says."""

from __future__ import annotations

import copy
import json

import pytest

from bench.static import bounds, chains, chains_report, cubin, cuda

LAYERS = list(chains.layers())
H100 = next(gpu for gpu in bounds.GPUS if gpu.name == "H100")


def name(layer: chains.Layer) -> str:
    return f"{layer.op}-{layer.name}-{layer.n}x{layer.h}"


def test_static_chains_layers_are_the_bench_cases():
    assert {layer.op for layer in LAYERS} == chains.ROOMS.keys()
    assert {layer.n for layer in LAYERS if layer.op != "lowrank_linear"} == set(chains.BATCHES)
    assert [layer.h for layer in LAYERS if layer.op == "lowrank_linear"] == [1, 8, 64, 512]


@pytest.mark.parametrize("layer", LAYERS, ids=name)
def test_static_chains_stages_do_the_multiply_adds_of_the_case(layer):
    assert sum(stage.macs for stage in layer.stages) == layer.macs
    assert layer.stages[0].x == layer.dense.x and layer.stages[-1].y == layer.dense.y
    assert all(a.y == b.x for a, b in zip(layer.stages, layer.stages[1:], strict=False))
    assert layer.reduction > 1.5


def test_static_chains_ideal_is_the_larger_of_arithmetic_and_bytes():
    flat = chains.Stage(1 << 20, 1024, 4096, 1 << 32, 1 << 30, 1 << 22)
    arithmetic = flat.macs / (H100.tensor / 2 * H100.sms)
    assert chains.ideal([flat], H100) == (arithmetic, arithmetic, "tensor")
    thin = chains.Stage(1 << 20, 16, 16, 1 << 24, 1 << 24, 1 << 8)
    moved = 2 * (2 * (1 << 24) + (1 << 8)) / H100.dram * H100.ghz * 1e9
    assert chains.ideal([thin], H100).least == pytest.approx(moved) and chains.ideal([thin], H100).by == "DRAM"
    small = chains.Stage(1 << 10, 16, 16, 1 << 14, 1 << 14, 1 << 8)
    alone, chained = chains.ideal([small], H100).least, chains.ideal([small, small], H100).least
    assert alone < chained < 2 * alone  # the map between them stays in L2


def test_static_chains_page_is_rendered_from_the_json():
    result = json.loads(chains_report.JSON.read_text())
    assert chains_report.PAGE.read_text() == chains_report.page(result), "run: python -m bench.static --render"
    assert len(result["chains"]) == len(LAYERS) * len(bounds.GPUS)


def test_static_chains_no_rival_beats_its_ideal():
    for row in json.loads(chains_report.JSON.read_text())["chains"]:
        for rival in ("dense", "unfused"):
            assert row[f"{rival}_ideal"][0] <= row[rival][0] <= row[rival][1], row
        assert row["ours"][0] <= row["ours"][1]


@pytest.fixture(scope="session")
def compiled(need) -> dict:
    need("nvcc", cuda.nvcc() is not None, "no nvcc: install a CUDA toolkit, or set CUDA_HOME (compiling needs no GPU)")
    need("nvcc", (cubin.TOOLS / "nvdisasm").exists(), "no nvdisasm: it comes with the triton package")
    return chains.chain_kernels()


def product_macs(work: list[chains.Phase]) -> float:
    return sum(times * cubin.flops(body, 4) / 2 for times, body in work)


def test_static_chains_loops_do_at_least_the_products_of_the_layer(compiled):
    """What a launch is charged for covers every product of the chain, without much more where its blocks are filled."""
    for gpu in bounds.GPUS:
        for layer, p in zip(LAYERS, chains.plans([(layer, gpu) for layer in LAYERS]), strict=True):
            code = chains.loops(compiled[chains.CHAIN.format(room=chains.ROOMS[layer.op])][gpu.arch])
            needed = sum(stage.macs for stage in layer.stages if not stage.depthwise)
            done = p.ctas * product_macs(chains.phases(layer, p, code))
            filled = layer.name.startswith("VGG-conv3") and layer.n == 64
            assert needed <= done < (3 if filled else 1e6) * needed, (layer.op, layer.name, layer.n, gpu.name)


@pytest.mark.parametrize("gpu", bounds.GPUS, ids=lambda gpu: gpu.name)
def test_static_chains_loops_are_told_apart(compiled, gpu):
    for room in set(chains.ROOMS.values()):
        code = chains.loops(compiled[chains.CHAIN.format(room=room)][gpu.arch])
        macs = [cubin.flops(body, 4) // 2 for body in (code.first, code.last)]
        assert macs == [64 * 64 * 64, 64 * 128 * 64]
        assert cubin.flops(code.middle, 4) // 2 == (64 * 64 * 64 if room == "Core" else 0)
        assert bool(code.down) == bool(code.over) == (room == "Depthwise")
        assert not any(i.pipe == "tensor" for i in (*code.down, *code.over))


def test_static_chains_committed_figures_are_these_kernels(compiled):
    committed = json.loads(chains_report.JSON.read_text())
    if cuda.nvcc() != committed["nvcc"]:
        pytest.skip(f"the figures are for nvcc {committed['nvcc']}, this is {cuda.nvcc()}")
    assert chains.measure(compiled) == committed, "run: python -m bench.static --chains"


def test_static_chains_control_a_dropped_phase_is_seen(compiled):
    layer = next(a for a in LAYERS if a.op == "tucker_conv2d" and a.name.startswith("VGG-conv3"))
    (p,) = chains.plans([(layer, H100)])
    code = chains.loops(compiled[chains.CHAIN.format(room="Core")][H100.arch])
    needed = sum(stage.macs for stage in layer.stages)
    whole = chains.phases(layer, p, code)
    assert p.ctas * product_macs(whole) >= needed
    assert p.ctas * product_macs([phase for phase in whole if phase[1] is not code.middle]) < needed


def test_static_chains_control_a_changed_figure_changes_the_page():
    result = json.loads(chains_report.JSON.read_text())
    other = copy.deepcopy(result)
    other["chains"][0]["ours"][0] *= 2
    assert chains_report.page(other) != chains_report.page(result)
