"""Two gloo processes on this machine train as one does, and exchange the bank, not the matrix."""

import os
import pathlib

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from rdkernels.nn import HashedLinear, WeightBank

STEPS, ROWS = 5, 16


def build() -> nn.Module:
    """Own banks, a shared bank, two granules; nothing but the seed fixes it."""
    torch.manual_seed(3)
    bank = WeightBank(512, bound=0.2)
    return nn.Sequential(
        HashedLinear(48, 64, compression=4),
        nn.Tanh(),
        HashedLinear(64, 64, bank=bank),
        HashedLinear(64, 64, bank=bank, granule="element", scale=0.5),
        HashedLinear(64, 8, compression=4, granule="element", bias="hashed"),
    )


def train(model: nn.Module, rank: int, world: int) -> list[float]:
    """The mean loss over the whole batch at each step, this process having its share of the rows."""
    data = torch.Generator().manual_seed(5)
    x, target = torch.randn(ROWS, 48, generator=data), torch.randn(ROWS, 8, generator=data)
    mine = slice(rank * ROWS // world, (rank + 1) * ROWS // world)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-2), []
    for _ in range(STEPS):
        loss = nn.functional.mse_loss(model(x[mine]), target[mine])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total = loss.detach().clone()
        if world > 1:
            dist.all_reduce(total)
        losses.append(total.item() / world)
    return losses


def wrap_ddp(model: nn.Module, sent: list[int]) -> nn.Module:
    wrapped = DistributedDataParallel(model)

    def counted(group, bucket):
        sent.append(bucket.buffer().numel() * bucket.buffer().element_size())
        return allreduce_hook(group, bucket)

    wrapped.register_comm_hook(None, counted)
    return wrapped


def wrap_fsdp(model: nn.Module, sent: list[int]) -> nn.Module:
    fully_shard(model)
    assert all(isinstance(p, DTensor) and p.to_local().numel() < p.numel() for p in model.parameters())
    return model


def worker(rank: int, wrap, folder: pathlib.Path) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    sent: list[int] = []
    losses = train(wrap(build(), sent), rank, 2)
    torch.save((losses, sent), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("wrap", [wrap_ddp, wrap_fsdp], ids=["ddp", "fsdp2"])
def test_two_processes_train_as_one(wrap, tmp_path: pathlib.Path) -> None:
    torch.multiprocessing.spawn(worker, (wrap, tmp_path), nprocs=2)
    (losses, sent), (others, _) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    model = build()
    alone = train(model, 0, 1)
    torch.testing.assert_close(losses, alone, rtol=1e-5, atol=1e-6)
    assert losses == others and alone[-1] < alone[0]
    if wrap is wrap_ddp:
        stored = sum(p.numel() * p.element_size() for p in model.parameters())
        dense = sum(4 * m.in_features * m.out_features for m in model if isinstance(m, HashedLinear))
        print(f"gradient traffic: {sum(sent) // STEPS} bytes a step (banks and biases {stored}, dense weights {dense})")
        assert sum(sent) == STEPS * stored < STEPS * dense


def test_comparison_sees_another_map(tmp_path: pathlib.Path) -> None:
    """Negative control: one layer with another seed trains to other losses."""
    model = build()
    model[0].seed ^= 1
    assert pytest.approx(train(build(), 0, 1), rel=1e-5) != train(model, 0, 1)
