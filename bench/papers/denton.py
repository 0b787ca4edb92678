"""Denton et al.: layers of trained nets made cheaper by their linear structure, the layers above tuned.

Emily Denton, Wojciech Zaremba, Joan Bruna, Yann LeCun, Rob Fergus, "Exploiting Linear Structure Within Convolutional
Networks for Efficient Evaluation", NIPS 2014. The paper's net and ImageNet are not to be had here. In their place:
english_g2, a reader of words (error: rendered words not read letter by letter), crepe, an estimator of pitch
(synthetic tones missed by more than 50 cents), a convnet of 5 x 5 filters trained here on Fashion-MNIST, and, for the
monochromatic form, which needs a first layer of three colours, the first blocks of CRAFT, a finder of text, which have
no labels: their error is the part of the outputs' squares that changes.

One layer of a net is replaced at a time, by `rd.convert`'s specs, at a given cut of its multiply-adds, in two metrics:
"weight", the squares of the weight's error, and "input_cov", those weighted by the covariance of the layer's input
channels over the training inputs. The one of less error on the training inputs' outputs (in the loss of the tuning) is
tuned as in the paper: the new layer and all below stay, all above are trained. The two readers learn their original's
outputs on inputs made from another seed (cross-entropy against its probabilities), the convnet its labels. Batch
normalisation keeps its statistics. Adam, the same rate for every layer of a net, falling linearly to 0.

Time is that of one input, as this layer sees it in the net, beside torch's dense layer in the faster of its two memory
formats: medians of calls in turn.
"""

from __future__ import annotations

import contextlib
import copy
import io
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import rdkernels as rd
from rdkernels.benchmark import interleaved

from .denton_nets import CONVNET_RECIPE, NETS, TUNED, Task
from .experiment import Claim, Experiment, Grid, Run
from .training import outputs, train

Case = tuple[str, float]  # form, cut of the multiply-adds
FORMS = {
    "SVD": rd.LowRank,  # of a linear layer
    "separable": rd.Separable,
    "Tucker": rd.Tucker,
    "outer product": rd.CP,
    "bicluster + SVD": rd.Bicluster,
    "monochromatic": rd.Monochromatic,
}
METRICS = ("weight", "input_cov")
RATES = {"english_g2": 2e-4, "crepe": 2e-4, "CRAFT": 5e-5, "convnet": 3e-4}
#: net -> inputs to tune on and to test on, passes of the tuning
SIZES = {"english_g2": (256, 300, 3), "crepe": (256, 400, 3), "CRAFT": (48, 24, 4), "convnet": (60_000, 10_000, 2)}
QUICK = {"english_g2": (4, 4, 1), "crepe": (4, 4, 1), "CRAFT": (2, 2, 1), "convnet": (128, 64, 1)}
FACTORED = [("separable", 2.5), ("Tucker", 2.5), ("Tucker", 4.0)]
CLUSTERED = [("bicluster + SVD", 2.5)]
PAPER = [  # of its sections 3 and 4 and table 1, errors in points of top-5 on ImageNet: (what, cut, speed-up, errors)
    ("conv1, monochromatic, 4 colours", "2.97", "2 to 2.5 (CPU, GPU)", "24.1", "5.9", "1.9"),
    ("conv1, monochromatic, 6 colours", "2.95", "2 to 2.5 (CPU, GPU)", "16.1", "2.4", "0.4"),
    ("conv1, monochromatic, 12 colours", "2.91", "2 to 2.5 (CPU, GPU)", "3.5", "0.7", "0"),
    ("conv1 + conv2, bicluster + SVD, K 19, 64", "-", "2 to 2.5 (CPU)", "-", "-", "1.2"),
    ("conv1 + conv2, outer product, K 8", "-", "2 to 2.5 (GPU)", "-", "-", "1.0"),
    ("FC1, SVD, rank 250", "13.4", "-", "0.84", "-", "-"),
    ("FC2, SVD, rank 350", "5.8", "-", "0.19", "-", "-"),
]


def plan(quick: bool) -> list[Run]:
    """Which layers, named by their place in the net, in which forms: those the claims need first."""

    def run(net: str, **layers: tuple[int, Sequence[Case]]) -> Run:
        train_rows, test_rows, epochs = (QUICK if quick else SIZES)[net]
        sizes = {"train": train_rows, "test": test_rows, "epochs": epochs, "seconds": 0.02 if quick else 0.5}
        name = net if len(layers) > 1 else f"{net}, {next(iter(layers))}"
        return Run(
            name, examine, {"net": net, "layers": {k: [at, cases] for k, (at, cases) in layers.items()}, **sizes}
        )

    if quick:
        return [
            run("english_g2", conv2=(3, [("Tucker", 2.0)]), linear=(23, [("SVD", 2.0)])),
            run("crepe", conv1=(2, [("separable", 4.0)])),
            run("convnet", conv2=(3, CLUSTERED)),
            run("CRAFT", conv1=(0, [("monochromatic", 2.0)])),
        ]
    return [
        run("crepe", conv2=(7, FACTORED)),
        run("crepe", conv6=(27, FACTORED[:2])),
        run("crepe", conv1=(2, [("separable", 4.0)])),
        run("crepe", linear=(32, [("SVD", 2.5), ("SVD", 5.0)])),
        run("english_g2", conv2=(3, [("outer product", 2.0), ("separable", 2.0)])),
        run("english_g2", conv4=(8, [*FACTORED[:2], *CLUSTERED])),
        run("english_g2", conv6=(14, [*FACTORED[:2], *CLUSTERED])),
        run("english_g2", linear=(23, [("SVD", 2.0)])),
        run(  # one run: the net is trained in it
            "convnet",
            conv1=(0, [("separable", 2.0)]),
            conv2=(3, [*FACTORED, ("outer product", 4.0), *CLUSTERED]),
            linear=(7, [("SVD", 5.0), ("SVD", 10.0)]),
        ),
        run("CRAFT", conv1=(0, [("monochromatic", 2.5), ("monochromatic", 2.0)])),
    ]


def examine(
    net: str, layers: Mapping[str, tuple[int, Sequence[Case]]], train: int, test: int, epochs: int, seconds: float
) -> dict[str, Any]:
    """The rows of these layers of a net: `{layer: [at, [(form, cut), ...]]}`."""
    task = NETS[net](train, test)
    rows = []
    for layer, (at, cases) in layers.items():
        rows += [{"net": net, "layer": layer, **row} for row in of_layer(task, at, cases, RATES[net], epochs, seconds)]
    return {"rows": rows, "measure": task.measure}


def of_layer(
    task: Task, at: int, cases: Iterable[Case], rate: float, epochs: int, seconds: float
) -> Iterable[dict[str, Any]]:
    """One layer in each form: cut, time, error of each metric before tuning, error after it."""
    below, dense, above = task.net[:at], task.net[at], task.net[at + 1 :]
    seen, tested = (outputs(below, x, task.batch) for x in (task.train_x, task.test_x))
    observer = rd.fits.InputCovariance.of(dense)
    for part in seen.split(task.batch):
        observer.update(part)
    original = task.error(outputs(task.net[at:], tested, task.batch))
    for form, cut in cases:
        found: dict[str, Any] = {"form": form, "shape": list(dense.weight.shape), "error": original}
        candidates = {}
        for metric in metrics_of(form, dense):
            layer = spec_of(form, cut, metric).fit(dense, observer if metric == "input_cov" else None)
            found[f"{metric} error"] = task.error(outputs(nn.Sequential(layer, above), tested, task.batch))
            candidates[metric] = layer
        best = min(candidates, key=lambda m: training_loss(task, candidates[m], above, seen))  # not by the test set
        tuned = tune(task, candidates[best], above, seen, rate, epochs)
        after = task.error(outputs(nn.Sequential(candidates[best], tuned), tested, task.batch))
        yield {
            **found,
            "tuned metric": best,
            "tuned error": after,
            **cost(candidates[best], dense, tested[:1], seconds),
        }


def metrics_of(form: str, dense: nn.Module) -> tuple[str, ...]:
    """Those that differ: a bicluster fit knows the weight alone, and one channel has nothing to weigh."""
    width = dense.in_channels if isinstance(dense, nn.Conv2d) else 2
    return METRICS if form != "bicluster + SVD" and width > 1 else METRICS[:1]


def spec_of(form: str, cut: float, metric: str) -> Any:
    options = {} if form == "bicluster + SVD" else {"metric": metric}
    return FORMS[form](ratio=cut, rank_multiple=8, **options)


def training_loss(task: Task, layer: nn.Module, above: nn.Module, seen: Tensor) -> float:
    found = outputs(nn.Sequential(layer, above), seen, task.batch)
    return float(task.loss(found, task.targets))


def tune(task: Task, layer: nn.Module, above: nn.Module, seen: Tensor, rate: float, epochs: int) -> nn.Module:
    """`above`, trained on what `layer` now puts out; given back as it is where it has nothing to train."""
    tuned = copy.deepcopy(above)
    parameters = [p.requires_grad_() for p in tuned.parameters()]
    if parameters:
        adam = torch.optim.Adam(parameters, lr=rate, fused=True)
        rows = outputs(layer, seen, task.batch).clone()  # outside inference mode
        common = {"epochs": epochs, "batch": min(32, task.batch), "seed": 0, "loss": task.loss}
        train(tuned, rows, task.targets, optimizer=adam, schedule=lambda done: 1 - done, **common)
    return tuned.eval()


def cost(layer: Any, dense: nn.Module, x: Tensor, seconds: float) -> dict[str, Any]:
    """Multiply-adds of the dense layer over the layer's, and its time likewise, for one input."""
    own, full = layer._sizes()
    with torch.inference_mode(), contextlib.redirect_stdout(io.StringIO()):
        rivals = [partial(dense, x)]
        if x.dim() == 4:
            last = copy.deepcopy(dense).to(memory_format=torch.channels_last)
            rivals.append(partial(last, x.to(memory_format=torch.channels_last)))
        layer(x)  # the first call measures which way is fastest
        timed = min((interleaved(partial(layer, x), rival, seconds) for rival in rivals), key=lambda t: t.ratio)
        taken = layer.explain(x).taken
    shown = {"cut": full / own, "speed-up": timed.ratio, "quartiles": [timed.low, timed.high]}
    return {**shown, "dense ms": 1e3 * timed.rival, "ms": 1e3 * timed.ours, "computed by": taken}


def claims(rows: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """Of the pretrained nets with labels: a fast layer that costs little, and the better metric."""
    pretrained = [r for r in rows if r["net"] in ("english_g2", "crepe") and len(r["shape"]) == 4]
    good = [r for r in pretrained if r["tuned error"] - r["error"] < 1]
    best = max(good, key=lambda r: r["speed-up"], default=None)
    shown: dict[str, Any] = {"convolutions within a point": len(good), "of": len(pretrained)}
    if best:
        layer = f"{best['net']} {best['layer']}, {best['form']}"
        shown |= {
            "the fastest": layer,
            "speed-up": best["speed-up"],
            "points lost": best["tuned error"] - best["error"],
        }
    pairs = [(r["weight error"], r["input_cov error"]) for r in rows if "input_cov error" in r and r["net"] != "CRAFT"]
    counts = {"pairs": len(pairs), "better": sum(c < w for w, c in pairs), "worse": sum(c > w for w, c in pairs)}
    means = {f"mean error, {m}": sum(p[k] for p in pairs) / max(1, len(pairs)) for k, m in enumerate(METRICS)}
    beats = means["mean error, input_cov"] < means["mean error, weight"] and counts["better"] >= 2 * counts["worse"]
    return [
        Claim(
            "a convolution of a pretrained net runs at least 2 times faster, less than 1 point lost after tuning",
            best is not None and best["speed-up"] >= 2,
            shown,
        ),
        Claim(
            "input_cov beats weight before tuning: less error in the mean over layers and forms, better at least twice "
            "as often as worse",
            bool(beats),
            {**counts, **means},
        ),
    ]


def grids(rows: Sequence[Mapping[str, Any]]) -> list[Grid]:
    columns = ["layer", "form", "MACs /", "time /", "error %: dense", "weight", "input_cov", "tuned", "computed by"]
    table = [
        [
            f"{r['net']} {r['layer']} {'x'.join(map(str, r['shape']))}",
            r["form"],
            *(float(r[name]) for name in ("cut", "speed-up", "error", "weight error")),
            r.get("input_cov error", "-"),
            f"{r['tuned error']:.2f} ({r['tuned metric']})",
            r["computed by"],
        ]
        for r in rows
    ]
    title = "The paper's net on ImageNet (2014): points of top-5 error lost"
    return [
        Grid("One layer replaced; multiply-adds and time of one input as factors of the dense layer's", columns, table),
        Grid(title, ["layer, form", "MACs /", "time /", "weight", "data covariance", "tuned"], PAPER),
    ]


def plot(rows: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
    """Points lost against the measured speed-up, a panel a net; before tuning hollow, after it filled."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    nets = list(dict.fromkeys(r["net"] for r in rows))
    figure, axes = plt.subplots(1, len(nets), figsize=(3.6 * len(nets), 3.8), squeeze=False, layout="constrained")
    for axis, net in zip(axes.flat, nets, strict=True):
        for r in (r for r in rows if r["net"] == net):
            colour = f"C{list(FORMS).index(r['form'])}"
            before = r[f"{r['tuned metric']} error"] - r["error"]
            after = r["tuned error"] - r["error"]
            axis.plot([r["speed-up"]] * 2, [before, after], color=colour, linewidth=0.8, alpha=0.6)
            axis.plot(r["speed-up"], before, "o", color=colour, fillstyle="none")
            axis.plot(r["speed-up"], after, "o", color=colour)
            axis.annotate(r["layer"], (r["speed-up"], after), fontsize=6, xytext=(3, 3), textcoords="offset points")
        axis.axhline(1, color="black", linewidth=0.6, linestyle=":")
        axis.axvline(2, color="black", linewidth=0.6, linestyle=":")
        axis.set_yscale("symlog", linthresh=1)
        axis.set(title=net, xlabel="torch's dense layer's time / ours")
        axis.grid(alpha=0.3)
    axes.flat[0].set_ylabel("points lost (hollow: before tuning)")
    used = [form for form in FORMS if any(r["form"] == form for r in rows)]
    marks = [plt.Line2D([], [], marker="o", linestyle="", color=f"C{list(FORMS).index(form)}") for form in used]
    figure.legend(marks, used, loc="outside lower center", ncols=len(used), fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    experiment = Experiment.from_command_line("denton", __doc__)
    results = experiment.run(plan(experiment.quick))
    rows = [row for result in results.values() for row in result["rows"]]
    experiment.finish(
        settings={
            "inputs to tune on, to test on, passes": QUICK if experiment.quick else SIZES,
            "images the convnet is tuned on": TUNED,
            "rates": RATES,
            "convnet": CONVNET_RECIPE,
            "error": {result["rows"][0]["net"]: result["measure"] for result in results.values()},
        },
        grids=grids(rows),
        claims=claims(rows),
        plot=partial(plot, rows),
        notes=[
            "The monochromatic form is for first layers of three colours: CRAFT's; the other nets have one channel.",
            "The paper's speed-ups are those of its table's forms at those cuts, not of one layer beside one of ours.",
        ],
    )


if __name__ == "__main__":
    main()
