"""The ranks of test_distributed_equal.py: training runs in fp64 on four and on two processes.

    training_ranks.py FOLDER

Writes FOLDER/SIZE/... with the folder of every run and what else the tests look at.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist
import torch.nn.functional as F
from helpers.forked import run_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from training_runs import tiny_config

import fastres
from fastres.models.cifar import CifarResNet
from fastres.training.config import TrainConfig
from fastres.training.data import open_source
from fastres.training.distributed import World, join_world
from fastres.training.engine import Trainer
from fastres.training.reporter import Silent

SIZES = (4, 2)
CPU = torch.device("cpu")
IMAGES = 105  # six steps of 16 images and one of 9, which is 4 + 5 or 2 + 2 + 2 + 3


class Doubled(nn.Module):
    """A fused ResNet-8 in fp64 on float32 images: what is left of a difference is the order of
    sums in fp64, and the loss, which the engine takes in fp32."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.network = CifarResNet(8, shortcut="B", fused=True).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.double())


def config(out: Path, **options: Any) -> TrainConfig:
    """Two epochs at 0.025 for 8 images, so 0.05 for 16, after an epoch of warm-up; averaged."""
    values = {
        "num_images": IMAGES, "epochs": 2, "milestones": None, "timeout": 60, "lr": 0.025,
        "lr_batch": 8, "warmup": "linear", "warmup_epochs": 1, "ema_decay": 0.9,
    }  # fmt: skip
    return tiny_config(out, **{**values, **options})


def trainer_of(options: TrainConfig, world: World) -> Trainer:
    """Rank 0 alone makes the folder: no other rank may need it."""
    if world.is_main:
        Path(options.out).mkdir(parents=True, exist_ok=True)
    return Trainer(options, Doubled(), open_source(options), world, CPU, Silent())


@contextmanager
def fused_path() -> Iterator[None]:
    """Fails unless the fused blocks ran, forward and backward."""
    fastres.backends.reset_counts()
    yield
    counted = fastres.backends.counts()
    assert any(key.startswith("chain_backward") for key in counted), counted


def layouts(trainer: Trainer) -> dict[str, tuple]:
    """Of every parameter with four dimensions: strides of it, its gradient and its momentum (of a
    dimension of size 1: None, as it means nothing), and how many values lie in the storage of its
    gradient."""

    def strides(t: Tensor) -> tuple:
        return tuple(s if n > 1 else None for n, s in zip(t.shape, t.stride(), strict=True))

    found = {}
    for name, p in trainer.module.named_parameters():
        if p.dim() == 4:
            momentum = trainer.optimizer.state[p]["momentum_buffer"]
            values = p.grad.untyped_storage().nbytes() // p.grad.element_size()
            found[name] = (strides(p), strides(p.grad), strides(momentum), values)
    return found


def run_trainers(world: World, here: Path) -> None:
    """With and without SyncBN; on every rank but 0 `out` is a folder that is not there."""
    out = here if world.is_main else here / "nowhere"
    with fused_path():
        trainer = trainer_of(config(out / "sync", sync_bn=True), world)
        trainer.run()
    local = trainer_of(config(out / "local"), world)
    local.run()
    if world.is_main:
        torch.save(layouts(local), here / "layouts.pt")
    first = trainer_of(config(out / "resized", sync_bn=True), world)
    if world.size == 4:  # an epoch on four processes, the rest on two
        first.total = first.steps_per_epoch
    else:
        first.resume(here.parent / "4" / "resized" / "last.pt" if world.is_main else out)
    first.run()


def sharded_losses(rows: slice, shard: bool, sync: bool) -> list[float]:
    """Losses of three steps on these rows of a batch, with FSDP2 if `shard`."""
    model: nn.Module = Doubled().network
    if sync:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if shard:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for stage in (model.layer1, model.layer2, model.layer3):
            fully_shard(stage, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(2)
    losses = []
    for _ in range(3):
        x = torch.randn(8, 3, 8, 8, generator=generator, dtype=torch.float64)
        labels = torch.randint(10, (8,), generator=generator)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[rows]), labels[rows])
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def work(rank: int, folder: Path) -> int:
    torch.set_num_threads(1)
    world, _ = join_world("cpu", 60)
    here = folder / str(world.size)
    try:
        run_trainers(world, here)
        share = 8 // world.size
        with fused_path():
            losses = sharded_losses(slice(rank * share, (rank + 1) * share), True, True)
        gathered = world.gather(losses)
        if world.is_main:
            torch.save(gathered, here / "fsdp.pt")
    finally:
        world.close()
    return 0


def main() -> int:
    folder = Path(sys.argv[1])
    for size in SIZES:
        for rank, ended in enumerate(run_ranks(size, lambda rank: work(rank, folder), folder)):
            if ended.code:
                print(f"rank {rank} of {size} ended with {ended.code}: {ended.error}")
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
