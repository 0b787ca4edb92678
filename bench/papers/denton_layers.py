"""One layer of a trained net in its cheaper forms: how far each moves the net, what tuning mends, what it costs."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import rdkernels as rd
from rdkernels.benchmark import interleaved
from rdkernels.fits.budget import MultiplyAdds

from .denton_nets import Task, change
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
RANK_MULTIPLE = 8
VECTORS = 2  # per channel, at least, or there is no covariance to weigh by
BATCH = 32  # of the tuning


@dataclass(frozen=True, eq=False)
class Place:
    """A layer of a task's net, what it is given for each of the task's inputs, and what the whole net is to put out."""

    task: Task
    at: int
    observer: rd.fits.InputCovariance
    train: Tensor
    held: Tensor
    test: Tensor
    goals: tuple[Tensor, Tensor]  # for the inputs to tune on, to choose on
    wanted: Tensor  # the trained net's outputs for the test inputs

    @property
    def dense(self) -> Any:
        return self.task.net[self.at]

    @property
    def above(self) -> nn.Sequential:
        return self.task.net[self.at + 1 :]

    def held_loss(self, layer: nn.Module, above: nn.Module) -> float:
        found = outputs(nn.Sequential(layer, above), self.held, self.task.batch)
        return float(self.task.loss(found, self.goals[1]))


def places(task: Task, at: Sequence[int]) -> list[Place]:
    """The layers of these indices, ascending."""
    train, held, test = (stages(task.net, at, x, task.batch) for x in (task.train_x, task.held_x, task.test_x))
    goals = task.goal(train.pop()), task.goal(held.pop())
    wanted = test.pop()
    with rd.compress.calibrate(task.net, [str(k) for k in at]) as seen:
        outputs(task.net, task.calibration_x, task.batch)
    given = zip(at, seen.values(), train, held, test, strict=True)
    return [Place(task, *of_layer, goals, wanted) for of_layer in given]


def stages(net: nn.Sequential, at: Sequence[int], x: Tensor, batch: int) -> list[Tensor]:
    """What the layers of these indices are given for `x`, and the net's outputs."""
    found = []
    for first, last in itertools.pairwise([0, *at, len(net)]):
        x = outputs(net[first:last], x, batch)
        found.append(x)
    return found


def losses_by_rate(place: Place, case: Case, rates: Iterable[float], epochs: int) -> dict[float, float]:
    """The loss on the held-out inputs after tuning at each rate, of the layer fitted by "weight"."""
    layer = spec_of(*case, "weight").fit(place.dense)
    return {rate: place.held_loss(layer, tune(place, layer, rate, epochs)) for rate in rates}


def rows(place: Place, cases: Iterable[Case], rate: float, epochs: int, seconds: float) -> Iterator[dict[str, Any]]:
    """The layer in each form: its cost, what either metric changes, and the error after tuning.

    The metric of less loss on the held-out inputs is tuned. A cut that comes to the ranks of one before is left out.
    """
    task, dense, observer = place.task, place.dense, place.observer
    own = outputs(dense, place.test, task.batch)
    done = set()
    for form, cut in cases:
        layers = {
            metric: spec_of(form, cut, metric).fit(dense, observer if metric == "input_cov" else None)
            for metric in metrics_of(form, dense, observer.count)
        }
        reached = cut_of(form, layers["weight"], dense)
        if (form, reached) in done:
            continue
        done.add((form, reached))
        row: dict[str, Any] = {"form": form, "shape": list(dense.weight.shape), "error": task.error(place.wanted)}
        losses = {}
        for metric, layer in layers.items():
            given = outputs(layer, place.test, task.batch)
            found = outputs(place.above, given, task.batch)
            row[metric] = {
                "layer": change(given, own),
                "net": change(found, place.wanted),
                "error": task.error(found),
            }
            losses[metric] = place.held_loss(layer, place.above)
        best = min(losses, key=lambda m: losses[m])
        tuned = tune(place, layers[best], rate, epochs)
        found = outputs(nn.Sequential(layers[best], tuned), place.test, task.batch)
        row["tuned"] = {"metric": best, "net": change(found, place.wanted), "error": task.error(found)}
        row["tuned"] |= {"held loss": place.held_loss(layers[best], tuned), "held loss before": losses[best]}
        yield {**row, "cut": reached, **time(layers[best], dense, place.test[:1], seconds)}


def metrics_of(form: str, dense: Any, vectors: int) -> tuple[str, ...]:
    """Those that differ: a bicluster fit knows the weight alone, one channel or a few vectors have no covariance."""
    width = dense.weight.shape[1]
    return METRICS if form != "bicluster + SVD" and 1 < width <= vectors / VECTORS else METRICS[:1]


def spec_of(form: str, cut: float, metric: str) -> Any:
    options = {} if form == "bicluster + SVD" else {"metric": metric}
    return FORMS[form](ratio=cut, rank_multiple=RANK_MULTIPLE, **options)


def tune(place: Place, layer: nn.Module, rate: float, epochs: int) -> nn.Module:
    """What is above, trained on what `layer` puts out; as it is where it has nothing to train."""
    tuned = copy.deepcopy(place.above)
    parameters = [p.requires_grad_() for p in tuned.parameters()]
    if parameters:
        adam = torch.optim.Adam(parameters, lr=rate, fused=True)
        seen = outputs(layer, place.train, place.task.batch)
        common = {"epochs": epochs, "batch": min(BATCH, place.task.batch), "seed": 0, "loss": place.task.loss}
        train(tuned, seen, place.goals[0], optimizer=adam, schedule=lambda done: 1 - done, **common)
    return tuned.eval()


def cut_of(form: str, layer: Any, dense: Any) -> float:
    """The dense layer's multiply-adds over the layer's, of one output position."""
    shape = tuple(dense.weight.shape)
    if form == "SVD":
        return MultiplyAdds.dense(shape) / MultiplyAdds.linear(shape, layer.rank)
    count = {
        "separable": lambda: MultiplyAdds.separable(shape, dense.stride, layer.rank),
        "Tucker": lambda: MultiplyAdds.tucker(shape, dense.stride, *layer.rank),
        "outer product": lambda: MultiplyAdds.cp(shape, dense.stride, layer.rank),
        "bicluster + SVD": lambda: MultiplyAdds.bicluster(shape, dense.stride, layer.clusters, *layer.rank),
        "monochromatic": lambda: MultiplyAdds.monochromatic(shape, dense.stride, len(layer.colours)),
    }[form]
    return MultiplyAdds.dense(shape) / count()


def time(layer: Any, dense: nn.Module, x: Tensor, seconds: float) -> dict[str, Any]:
    """The layer's time for one input beside torch's dense layer in the faster of its memory formats."""
    with torch.inference_mode(), contextlib.redirect_stdout(io.StringIO()):
        rivals = [partial(dense, x)]
        if x.dim() == 4:
            last = copy.deepcopy(dense).to(memory_format=torch.channels_last)
            rivals.append(partial(last, x.to(memory_format=torch.channels_last)))
        layer(x)  # the first call measures which way is fastest
        timed = min((interleaved(partial(layer, x), rival, seconds) for rival in rivals), key=lambda t: t.ratio)
        taken = layer.explain(x).taken
    shown = {"speed-up": timed.ratio, "quartiles": [timed.low, timed.high]}
    return {**shown, "dense ms": 1e3 * timed.rival, "ms": 1e3 * timed.ours, "computed by": taken}


def lost(row: Mapping[str, Any]) -> float:
    """Points that the layer of a row costs after tuning."""
    return float(row["tuned"]["error"] - row["error"])


def nets_of(table: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(r["net"] for r in table))
