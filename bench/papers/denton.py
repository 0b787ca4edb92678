"""Denton et al.: layers of trained nets made cheaper by their linear structure, the layers above tuned.

Emily Denton, Wojciech Zaremba, Joan Bruna, Yann LeCun, Rob Fergus, "Exploiting Linear Structure Within Convolutional
Networks for Efficient Evaluation", NIPS 2014. The paper's net and ImageNet are not to be had here. In their place:
english_g2, a reader of words (error: rendered words not read letter by letter), crepe, an estimator of pitch, full and
tiny (synthetic tones missed by more than 50 cents), a convnet of 5 x 5 filters trained here on Fashion-MNIST, and, for
the monochromatic form, which needs a first layer of three colours, the first blocks of CRAFT, a finder of text, which
have no labels: their error is the part of the outputs' squares that changes.

One layer of a net is replaced at a time, by `rd.convert`'s specs, at a given cut of its multiply-adds: every
convolution of more than one input channel in two forms at two cuts, and some layers in the others. Not taken:
english_g2's first convolution, half a per cent of its multiply-adds; CRAFT's others, without labels; sums of outer
products in layers where a cut leaves hundreds of them, whose fit takes minutes to hours.

Both metrics fit at the same ranks: "weight", the squares of the weight's error, and "input_cov", those weighted by the
covariance of the layer's input channels over inputs of a seed of their own. It takes many: with 64 tones crepe's conv5
follows chance and is worse on other tones than by "weight", and its error still falls from 350 to 700 of them. They are
judged before tuning by the relative squared change of the net's outputs (logits) on the test inputs, over all
convolutions: "input_cov" beats "weight" if its change is less in the geometric mean and in at least two thirds of the
cases. A layer of more than half as many channels as it was given vectors has no covariance, and no "input_cov".

The metric of less loss on held-out inputs is tuned: the new layer and all below stay, all above learn the trained net's
outputs (cross-entropy against its probabilities) on inputs of another seed. Batch normalisation keeps its statistics.
Adam, its rate falling linearly to 0. Where it starts is the same for all layers of a net: of three, the one of least
loss on held-out inputs in a middle layer.

Time is that of one input, as this layer sees it in the net, beside torch's dense layer in the faster of its two memory
formats: medians of calls in turn.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from .denton_layers import BATCH, METRICS, RANK_MULTIPLE, VECTORS, Case, losses_by_rate, lost, nets_of, places, rows
from .denton_nets import CONVNET_RECIPE, NETS
from .denton_plot import plot
from .experiment import Claim, Experiment, Grid, Run

Layers = Mapping[str, tuple[int, Sequence[Case]]]  # name -> its place in the net, in which forms

RATES = {
    "english_g2": (3e-5, 1e-4, 3e-4),
    "crepe": (3e-4, 1e-3, 3e-3),
    "crepe tiny": (1e-3, 3e-3, 1e-2),
    "convnet": (1e-4, 3e-4, 1e-3),
    "CRAFT": (3e-5, 1e-4, 3e-4),
}
#: net -> inputs to calibrate on (convnet: to train it and to choose), to tune on, to choose on, to test on; passes
SIZES = {
    "english_g2": (1024, 192, 64, 240, 2),
    "crepe": (1536, 192, 64, 300, 2),
    "crepe tiny": (2048, 256, 64, 400, 2),
    "convnet": (60_000, 12_000, 2_000, 10_000, 2),
    "CRAFT": (48, 48, 16, 24, 2),
}
FACTORED = [("separable", 2.5), ("separable", 4.0), ("Tucker", 2.5), ("Tucker", 4.0)]
CLUSTERED = [("bicluster + SVD", 2.5)]
CREPE: Layers = {
    "conv1": (2, [("separable", 4.0)]),
    **{f"conv{n}": (5 * n - 3, FACTORED) for n in range(2, 7)},
    "linear": (32, [("SVD", 2.5), ("SVD", 5.0)]),
}
PLAN: Mapping[str, Layers] = {
    "crepe": CREPE,
    "crepe tiny": CREPE,
    "english_g2": {
        "conv2": (3, [*FACTORED, ("outer product", 2.0)]),
        "conv3": (6, FACTORED),
        "conv4": (8, [*FACTORED, *CLUSTERED]),
        "conv5": (11, FACTORED),
        "conv6": (14, [*FACTORED, *CLUSTERED]),
        "conv7": (18, FACTORED),
        "linear": (23, [("SVD", 2.0)]),
    },
    "convnet": {
        "conv1": (0, [("separable", 2.0)]),
        "conv2": (3, [*FACTORED, ("outer product", 4.0), *CLUSTERED]),
        "linear": (7, [("SVD", 5.0), ("SVD", 10.0)]),
    },
    "CRAFT": {"conv1": (0, [("monochromatic", 2.5), ("monochromatic", 2.0)])},
}
#: the layer that the rate is chosen in
RATED = {"crepe": "conv4", "crepe tiny": "conv4", "english_g2": "conv5", "convnet": "conv2", "CRAFT": "conv1"}
PRETRAINED = ("english_g2", "crepe", "crepe tiny")  # with labels
QUICK_SIZES = {
    "english_g2": (2, 1, 1, 2, 1),
    "crepe tiny": (8, 4, 2, 4, 1),
    "convnet": (320, 64, 32, 64, 1),
    "CRAFT": (1, 1, 1, 1, 1),
}
QUICK_PLAN: Mapping[str, Layers] = {
    "crepe tiny": {"conv4": (17, [("separable", 4.0)])},
    "english_g2": {"conv5": (11, [("Tucker", 4.0)]), "linear": (23, [("SVD", 2.0)])},
    "convnet": {"conv2": (3, CLUSTERED)},
    "CRAFT": {"conv1": (0, [("monochromatic", 2.0)])},
}
#: From the LaTeX of the submission of June 2014 (in wojzaremba/reg), not compared with the printed paper: what, cut by
#: its formula, speed-up, points of top-5 error on ImageNet lost in the plain metric, in data covariance, after tuning
PAPER = [
    ("conv1, monochromatic, 4 colours", "2.97", "2 to 2.5", "24.1", "5.9", "1.9"),
    ("conv1, monochromatic, 6 colours", "2.95", "2 to 2.5", "16.1", "2.4", "0.4"),
    ("conv1, monochromatic, 12 colours", "2.91", "2 to 2.5", "3.5", "0.7", "0"),
    ("conv1 of 6 colours, conv2 bicluster + SVD of ranks 19, 64", "-", "2 to 2.5", "-", "-", "1.2"),
    ("conv1 of 6 colours, conv2 bicluster + outer product, K 8", "-", "2 to 2.5", "-", "-", "1.0"),
    ("FC1, SVD, rank 250", "13.4", "-", "0.84", "-", "-"),
    ("FC2, SVD, rank 350", "5.8", "-", "0.19", "-", "-"),
]


def plan(quick: bool) -> list[Run]:
    sizes, layers = (QUICK_SIZES, QUICK_PLAN) if quick else (SIZES, PLAN)

    def arguments(net: str) -> dict[str, Any]:
        rates = {"rated": RATED[net], "rates": RATES[net][:1] if quick else RATES[net]}
        return {"net": net, "layers": layers[net], "sizes": sizes[net], **rates, "seconds": 0.0 if quick else 0.5}

    return [Run(net, examine, arguments(net)) for net in layers]


def examine(
    net: str, layers: Layers, rated: str, sizes: Sequence[int], rates: Sequence[float], seconds: float
) -> dict[str, Any]:
    """Rows of these layers, and the losses on held-out inputs by rate: of `rated`, in its last Tucker form."""
    *inputs, epochs = sizes
    task = NETS[net](*inputs)
    found = dict(zip(layers, places(task, [at for at, _ in layers.values()]), strict=True))
    case = next((c for c in reversed(layers[rated][1]) if c[0] == "Tucker"), layers[rated][1][-1])
    losses = losses_by_rate(found[rated], case, rates, epochs)
    rate = min(losses, key=lambda r: losses[r])
    table = [
        {"net": net, "layer": layer, **row}
        for layer, (_, cases) in layers.items()
        for row in rows(found[layer], cases, rate, epochs, seconds)
    ]
    batch = min(BATCH, task.batch)
    tuning = {"rate": rate, "losses by rate": list(losses.items()), "batch": batch}
    return {"rows": table, "measure": task.measure, **tuning}


def claims(table: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """A fast layer of a net pretrained by others, with labels, that costs little; and the better metric."""
    convolutions = [r for r in table if len(r["shape"]) == 4]
    pretrained = [r for r in convolutions if r["net"] in PRETRAINED]
    good = [r for r in pretrained if lost(r) < 1]
    best = max(good, key=lambda r: r["speed-up"], default=None)
    shown: dict[str, Any] = {"cases": len(pretrained), "of them within a point": len(good)}
    shown["and 2 times faster"] = sum(r["speed-up"] >= 2 for r in good)
    if best:
        shown["the fastest"] = f"{best['net']} {best['layer']}, {best['form']}"
        shown |= {"speed-up": best["speed-up"], "computed by": best["computed by"], "points lost": lost(best)}
    pairs = [r for r in convolutions if "input_cov" in r]
    less = sum(r["input_cov"]["net"] < r["weight"]["net"] for r in pairs)
    mean = geometric_mean(pairs, "net")
    numbers = {"cases": len(pairs), "less in": less, "geometric mean of the ratios": mean}
    numbers |= {f"of {n}": geometric_mean([r for r in pairs if r["net"] == n], "net") for n in nets_of(pairs)}
    numbers |= {"of the layer's own output": geometric_mean(pairs, "layer")}
    numbers |= {f"mean error, {m}": statistics.fmean(r[m]["error"] for r in pairs) for m in METRICS if pairs}
    return [
        Claim(
            "a convolution of a pretrained net runs at least 2 times faster, less than 1 point lost after tuning",
            best is not None and best["speed-up"] >= 2,
            shown,
        ),
        Claim(
            "input_cov changes the net's outputs less than weight before tuning: in the geometric mean and in at least "
            "two thirds of the convolutions' cases",
            mean < 1 and 3 * less >= 2 * len(pairs),
            numbers,
        ),
    ]


def geometric_mean(pairs: Sequence[Mapping[str, Any]], of: str) -> float:
    """Of the changes by input_cov over those by weight; nan of no pair."""
    if not pairs:
        return math.nan
    return statistics.geometric_mean(max(r["input_cov"][of], 1e-30) / max(r["weight"][of], 1e-30) for r in pairs)


def grids(table: Sequence[Mapping[str, Any]]) -> list[Grid]:
    def name(r: Mapping[str, Any]) -> list[Any]:
        return [f"{r['net']} {r['layer']} {'x'.join(map(str, r['shape']))}", r["form"], float(r["cut"])]

    def percent(r: Mapping[str, Any], metric: str, of: str) -> str:
        return f"{100 * r[metric][of]:.3g}" if metric in r else "-"

    fitted = [
        [
            *name(r),
            *(percent(r, m, of) for of in ("layer", "net") for m in METRICS),
            float(r["error"]),
            *(float(r[m]["error"]) if m in r else "-" for m in METRICS),
        ]
        for r in table
    ]
    tuned = [
        [
            *name(r),
            float(r["speed-up"]),
            f"{r['dense ms']:.3g}",
            f"{r['ms']:.3g}",
            r["computed by"],
            r["tuned"]["metric"],
            float(r["error"]),
            float(r[r["tuned"]["metric"]]["error"]),
            float(r["tuned"]["error"]),
        ]
        for r in table
    ]
    layer = ["layer", "form", "MACs /"]
    changes = [f"{of} %: {m}" for of in ("layer's change", "net's change") for m in METRICS]
    return [
        Grid(
            "Before tuning: the squared change of the layer's and of the net's outputs, the error in per cent",
            [*layer, *changes, "error: dense", *METRICS],
            fitted,
        ),
        Grid(
            "One input's time as a factor of torch's dense layer's, and the error in per cent",
            [*layer, "time /", "dense ms", "ms", "computed by", "metric", "error: dense", "fitted", "tuned"],
            tuned,
        ),
        Grid(
            "The paper's net on ImageNet, by the LaTeX of the submission of 2014: points of top-5 error lost",
            ["layer, form", "MACs /", "time /", "weight", "data covariance", "tuned"],
            PAPER,
        ),
    ]


def main() -> None:
    experiment = Experiment.from_command_line("denton", __doc__)
    results = experiment.run(plan(experiment.quick))
    table = [row for result in results.values() for row in result["rows"]]
    experiment.finish(
        settings={
            "inputs to calibrate on, to tune on, to choose on, to test on; passes": QUICK_SIZES
            if experiment.quick
            else SIZES,
            "rates": {net: result["rate"] for net, result in results.items()},
            "loss on held-out inputs by rate": {net: result["losses by rate"] for net, result in results.items()},
            "batch of the tuning": {net: result["batch"] for net, result in results.items()},
            "ranks are multiples of": RANK_MULTIPLE,
            "vectors a channel, at least, for input_cov": VECTORS,
            "convnet": CONVNET_RECIPE,
            "error": {net: result["measure"] for net, result in results.items()},
        },
        grids=grids(table),
        claims=claims(table),
        plot=partial(plot, table),
        notes=[
            "The monochromatic form is for first layers of three colours: CRAFT's; the other nets have one channel.",
            "Times: the paper says 2 to 2.5, on CPU and GPU, of conv1 and conv2, below a point of error; not by row.",
        ],
    )


if __name__ == "__main__":
    main()
