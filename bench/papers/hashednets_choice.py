"""The learning rates of `hashednets.py`: each net's is the best of a few on images held out of the training.

Every method at every depth and compression has rates of its own, doublings around where a first study saw the best one.
The baselines' ranges are as wide as HashedNet's or wider, the dense teacher's, of whom nothing is claimed, is narrower.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .experiment import Experiment, Grid, Run
from .hashednets_nets import DARK
from .hashednets_runs import RECIPE, validate

Net = tuple[int, str, int]  # layers, method, compression

DATA, EPOCHS, COMPRESSIONS = "MNIST-10k", 10, (64, 8)
RATES: dict[str, tuple[float, ...]] = {
    "NN": (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2),
    "LRD": (4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2, 1.28e-1),
    "LRD-small": (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2),
    "HashedNet": (2e-3, 4e-3, 8e-3, 1.6e-2),
    "RER": (8e-3, 1.6e-2, 3.2e-2, 6.4e-2),
    "dense": (1e-3, 2e-3, 4e-3),
}
DEEP = {"HashedNet": (2e-3, 4e-3, 8e-3), "RER": (8e-3, 1.6e-2, 3.2e-2)}  # at 5 layers, where one run takes 16 seconds
NETS: list[Net] = [(n, m, c) for n in (3, 5) for m in RATES for c in (COMPRESSIONS if m != "dense" else (1,))]


def rates_of(net: Net) -> tuple[float, ...]:
    layers, method, _ = net
    return DEEP.get(method, RATES[method]) if layers == 5 else RATES[method]


def candidates(quick: bool) -> dict[Net, tuple[float, ...]]:
    """The rates that each net tries; in a quick run two of two methods, and only one, which is not tried, of others."""
    if not quick:
        return {net: rates_of(net) for net in NETS}
    tried = {(3, "NN", 64), (3, "HashedNet", 64)}
    return {net: rates_of(net)[1:3] if net in tried else rates_of(net)[1:2] for net in NETS}


def key(net: Net, rate: float) -> str:
    layers, method, compression = net
    return f"rate {rate:g}: {method} 1/{compression}, {layers} layers"


def plan(quick: bool) -> list[Run]:
    runs = []
    for net, rates in candidates(quick).items():
        layers, method, compression = net
        arguments = {"data": DATA, "layers": layers, "method": method, "compression": compression, "recipe": RECIPE}
        arguments |= {"epochs": 1, "first": 200} if quick else {"epochs": EPOCHS}
        runs += [Run(key(net, rate), validate, {**arguments, "rate": rate}) for rate in rates if len(rates) > 1]
    return runs


def best(errors: Mapping[float, float]) -> float:
    """The rate of the least error; of several the smallest."""
    return min(sorted(errors), key=errors.__getitem__)


class Choice:
    """What the held-out images say: the error of each net at each of its rates, and the best one."""

    def __init__(self, results: Mapping[str, Mapping[str, Any]], quick: bool = False) -> None:
        self.errors = {
            net: {rate: results[key(net, rate)]["error"] if len(rates) > 1 else float("nan") for rate in rates}
            for net, rates in candidates(quick).items()
        }

    def rate(self, layers: int, method: str, compression: int) -> float:
        """A net that learns from a teacher takes the rate of the same net without."""
        return best(self.errors[layers, method.removesuffix(DARK), compression])

    def at_an_end(self) -> list[str]:
        """Nets whose best rate is the smallest or the largest that they tried: a better one may lie beyond."""
        found = {net: (best(errors), min(errors), max(errors)) for net, errors in self.errors.items()}
        return [key(net, rate) for net, (rate, *ends) in found.items() if rate in ends and len(self.errors[net]) > 1]

    def grid(self) -> Grid:
        ladder = sorted({rate for errors in self.errors.values() for rate in errors})
        rows = [
            [f"{m}, {n} layers, 1/{c}", *(errors.get(rate, "-") for rate in ladder), f"{best(errors):g}"]
            for (n, m, c), errors in self.errors.items()
        ]
        title = f"The choice of the rates: error, %, on training images of {DATA} held out, one seed"
        return Grid(title, ["net", *(f"{rate:g}" for rate in ladder), "chosen"], rows)


def choose(experiment: Experiment) -> Choice:
    """Make the runs of the choice, on which all others depend: whole, unless `--only` names some of them."""
    runs, only = plan(experiment.quick), experiment.only
    if not any(only in run.key for run in runs):
        experiment.only = ""
    choice = Choice(experiment.run(runs), experiment.quick)
    experiment.only = only
    return choice
