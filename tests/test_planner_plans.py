"""The planner: what a plan depends on, how it is measured and kept, and the dense weight."""

import copy
import json
import multiprocessing
import os
import pathlib
import sys
import timeit
import warnings
from types import SimpleNamespace

import pytest
import torch
from planner_suite import CHANNELS_LAST, batch, built, cache_fixture, ran, timed_fixture, torch_calls_fixture  # noqa: F401
from torch import Tensor, nn

from rdkernels import planner
from rdkernels.nn import CPConv2d, LowRankLinear, SeparableConv2d
from rdkernels.planner import candidates, device, store

# -- what a plan depends on, and the dense weight ----------------------------------------------------------------------


@torch.no_grad()
def test_each_kind_of_call_is_measured_once(timed, threads) -> None:
    told = timed(dense=1.0, fused=2.0)
    layer = built(CPConv2d)
    x = batch(layer)
    threads(1)
    y = layer(x)
    kinds = [
        lambda: layer(x.contiguous(memory_format=CHANNELS_LAST)),
        lambda: layer(batch(layer, n=3)),
        lambda: layer(x, y),
        lambda: built(CPConv2d, stride=2)(x),
        lambda: built(CPConv2d, dilation=2)(x),
        lambda: built(CPConv2d, padding=0)(x),
        lambda: built(CPConv2d, bias=False)(x),
        lambda: built(CPConv2d, activation="relu")(x),
        lambda: built(CPConv2d, torch.float64)(x.double()),
        lambda: CPConv2d(6, 8, (3, 2), padding=1, rank=8)(x),
        lambda: SeparableConv2d(6, 8, (3, 2), padding=1, rank=7)(x),
        lambda: (threads(2), layer(x), threads(1)),
    ]
    for number, call in enumerate(kinds, 2):
        call()
        assert told.count == number, f"kind {number} was not measured"
        call()
    layer(x)
    built(CPConv2d)(x.clone())  # another layer, the same kind
    copy.deepcopy(layer)(x)
    assert told.count == len(kinds) + 1


@torch.no_grad()
def test_written_and_replaced_factors_refresh_the_dense_weight() -> None:
    layer = built(CPConv2d)
    x = batch(layer)

    def check() -> Tensor:
        with planner.plan("dense"):
            y = layer(x.to(layer.bias.dtype))
        torch.testing.assert_close(y, layer._fused(x.to(layer.bias.dtype), None))
        return y

    first = check()
    layer.inner.mul_(2)
    assert not torch.equal(first, check())
    layer.outer = nn.Parameter(torch.randn_like(layer.outer))
    check()
    layer.inner.data = torch.randn_like(layer.inner)  # the same object of the same version
    check()
    layer.load_state_dict({k: v + 1 for k, v in layer.state_dict().items()}, assign=True)
    check()
    layer.double()
    assert check().dtype == torch.float64
    changed = {k: v * 3 for k, v in layer.named_parameters()}
    with planner.plan("dense"):
        y = torch.func.functional_call(layer, changed, (x.double(),))
    expected = torch.func.functional_call(layer, changed, (x.double(),))
    torch.testing.assert_close(y, expected)
    check()


@torch.no_grad()
def test_the_dense_weight_is_kept_only_where_it_is_taken(timed) -> None:
    layer = built(SeparableConv2d)
    timed(dense=2.0, unfused=3.0, fused=1.0)
    layer(batch(layer))
    assert layer not in candidates._weights
    timed(dense=1.0, unfused=3.0, fused=2.0)
    layer(batch(layer, n=1))
    made = candidates.dense_weight(layer, layer._factors(), torch.float32, torch.contiguous_format)
    layer(batch(layer, n=1))
    again = candidates.dense_weight(layer, layer._factors(), torch.float32, torch.contiguous_format)
    assert again is made  # composed once


@torch.no_grad()
def test_inference_tensors_are_never_stale() -> None:
    with torch.inference_mode():
        layer = built(SeparableConv2d)
        x = batch(layer)
        with planner.plan("dense"):
            first = layer(x)
            layer.vertical.mul_(2)
            torch.testing.assert_close(layer(x) - layer.bias[:, None, None], 2 * (first - layer.bias[:, None, None]))


# -- memory ------------------------------------------------------------------------------------------------------------


def forget_in_memory() -> None:
    """As a new process would start."""
    store._known.clear()
    store._warned.clear()
    planner._plans.clear()


@torch.no_grad()
def test_plans_outlive_the_process(cache: pathlib.Path, timed, torch_calls: list) -> None:
    told = timed(dense=1.0, unfused=2.0, fused=3.0)
    layer = built(SeparableConv2d)
    layer(batch(layer))
    (file,) = cache.glob("plans-*.json")
    content = json.loads(file.read_text())
    assert content["device"] == device.device_name(torch.device("cpu"))
    ((key, times),) = content["plans"].items()
    assert times == told.times and key.startswith("separable_conv2d 5x6x3 8x5x2; ")
    for part in ("x 2x6x9x7 torch.float32", f"threads {torch.get_num_threads()}", f"torch {torch.__version__}"):
        assert part in key
    forget_in_memory()
    assert ran(layer, torch_calls, batch(layer)) == "dense" and told.count == 1
    assert not list(cache.glob("*.tmp"))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"plans": 3}', '{"plans": {"KEY": {"dense": "fast"}}}', '{"plans": {"KEY": {}}}', "\xff"]
)
def test_corrupt_files_are_measured_over(cache: pathlib.Path, text: str) -> None:
    forget_in_memory()
    cache.mkdir()
    path = store.path_of("a device")
    path.write_bytes(text.replace("KEY", "some key").encode("latin-1"))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert store.find("a device", "some key") is None
        store.keep("a device", "some key", {"fused": 1.0})
        store.keep("a device", "other key", {"fused": 2.0})
    assert len(told) == ("KEY" not in text)
    assert all("is no file of plans" in str(w.message) and str(path) in str(w.message) for w in told)
    forget_in_memory()
    assert store.find("a device", "some key") == {"fused": 1.0}
    assert store.find("a device", "other key") == {"fused": 2.0}


@torch.no_grad()
def test_unwritable_folder_is_one_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, timed) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RDKERNELS_CACHE", str(tmp_path / "file" / "below"))
    told = timed(dense=1.0, fused=2.0)
    layer = built(SeparableConv2d)
    with pytest.warns(RuntimeWarning, match="cannot be ") as seen:
        for n in (1, 2, 3, 1, 2, 3):
            layer(batch(layer, n=n))
    assert len(seen) == 1 and told.count == 3


def write(start, who: str) -> None:
    start.wait(60)
    for n in range(30):
        store.keep("a device", f"{who} {n}", {"fused": 1.0 + n})


@pytest.mark.skipif(store.fcntl is None, reason="no lock on this system")
def test_two_processes_keep_each_others_plans(cache: pathlib.Path) -> None:
    fork = multiprocessing.get_context("fork")
    start = fork.Event()
    writers = [fork.Process(target=write, args=(start, who)) for who in ("one", "two")]
    for writer in writers:
        writer.start()
    start.set()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    found = json.loads(store.path_of("a device").read_text())["plans"]
    assert found == {f"{who} {n}": {"fused": 1.0 + n} for who in ("one", "two") for n in range(30)}


@pytest.mark.skipif(sys.platform != "linux", reason="the folder of this system")
def test_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.folder() == pathlib.Path(os.environ["RDKERNELS_CACHE"])
    monkeypatch.delenv("RDKERNELS_CACHE")
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert store.folder() == pathlib.Path("/elsewhere/rdkernels")
    for unset in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert store.folder() == pathlib.Path("/home/someone/.cache/rdkernels")
    assert store.path_of("A (TM) x, y").name != store.path_of("A TM x y").name


# -- measuring ---------------------------------------------------------------------------------------------------------


def test_measure_takes_medians_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only the calls move."""
    now, order = [0.0], []
    monkeypatch.setattr(device, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(device, "BUDGET", 0.1)
    steps = {
        "a": iter([9.0, 0.001, 0.01, 0.0008] + [0.001] * 99),
        "b": iter([9.0] + [0.002] * 99),
        "c": iter([9.0] + [0.01] * 99),
    }

    def call(name: str):
        def run() -> None:
            order.append(name)
            now[0] += next(steps[name])

        return run

    def broken() -> None:
        raise RuntimeError("why")

    times, errors = device.measure({"a": call("a"), "b": call("b"), "c": call("c"), "d": broken})
    assert times == pytest.approx({"a": 0.001, "b": 0.002, "c": 0.01}) and errors == {"d": "RuntimeError: why"}
    rounds = [*"abc", *"bca", *"cab", *"abc", *"bca"]  # after them c is hopeless, 0.0262 s are left
    assert order == [*"abc", *rounds, *"ab", *"ba", *"ab", *"ba", *"ab", *"ba", *"ab", *"ba", *"ab"]


def test_a_known_plan_is_found_quickly(monkeypatch: pytest.MonkeyPatch, timed) -> None:
    """The goal is 5 us; the bound leaves room for a busy machine."""
    timed(dense=1.0, fused=2.0)
    layer = built(LowRankLinear)
    x = batch(layer)
    with torch.no_grad():
        layer(x)
        monkeypatch.setattr(candidates, "run", lambda *_: None)
        seconds = min(timeit.repeat(lambda: planner.run(layer, x, None), number=500, repeat=20)) / 500
    assert seconds < 15e-6
