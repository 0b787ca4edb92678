"""The training loop and the error that the experiments share."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor], Tensor]


def train(
    net: nn.Module,
    x: Tensor,
    targets: Tensor,
    *,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    batch: int,
    seed: int,
    loss: Loss = F.cross_entropy,
    schedule: Callable[[float], float] | None = None,
) -> dict[str, float]:
    """Train for `epochs` over all rows of `x`, in batches drawn by a generator of `seed`; the last batch may be short.

    Args:
        schedule: the part of the training done, in [0, 1), to the factor of every learning rate; None: 1.

    Returns:
        `cpu_seconds` of this process (one thread: its work whatever else runs on the machine) and `steps`.
    """
    generator = torch.Generator().manual_seed(seed)
    rates = [group["lr"] for group in optimizer.param_groups]
    steps = epochs * -(-len(x) // batch)
    net.train()
    done, start = 0, time.process_time()
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(batch):
            if schedule is not None:
                factor = schedule(done / steps)
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
            optimizer.zero_grad(set_to_none=True)
            loss(net(x[rows]), targets[rows]).backward()
            optimizer.step()
            done += 1
    return {"cpu_seconds": time.process_time() - start, "steps": steps}


@torch.inference_mode()
def outputs(net: nn.Module, x: Tensor, batch: int = 2000) -> Tensor:
    """The net's outputs for every row of `x`, in its evaluation mode; the mode it was in is restored."""
    was = net.training
    net.eval()
    found = torch.cat([net(part) for part in x.split(batch)])
    net.train(was)
    return found


def error_rate(net: nn.Module, x: Tensor, y: Tensor, batch: int = 2000) -> float:
    """Per cent of the rows of `x` whose largest output is not their label."""
    return 100 * float((outputs(net, x, batch).argmax(1) != y).double().mean())
