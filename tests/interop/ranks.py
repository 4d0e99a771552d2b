"""What the two processes of test_distributed.py do; here, because a spawned process imports it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from interop.networks import assert_close, fused_path, images, small
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import fastres
from fastres.layers import Block

BATCH = 2  # images of each rank


def batch(step: int) -> tuple[Tensor, Tensor]:
    """The images and labels of both ranks."""
    return images(2 * BATCH, dtype=torch.float64, seed=10 + step), torch.arange(2 * BATCH)


def network(library: str) -> nn.Module:
    """Three blocks in fp64: without the wide stages, which cost most and show nothing more."""
    model = small(library)
    model.layer3 = model.layer4 = nn.Identity()
    model.fc = nn.Linear(512, 10)
    return model.double()


def train(
    model: nn.Module, rows: slice, accumulate: Callable[[int], object] | None = None
) -> dict[str, Tensor]:
    """Parameters, gradients and buffers after two steps on these rows of the batches."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for step in range(2):
        optimizer.zero_grad()
        for part in range(2 if accumulate else 1):
            x, target = batch(2 * step + part)
            with accumulate(part) if accumulate else nullcontext():
                nn.functional.cross_entropy(model(x[rows]), target[rows]).backward()
        optimizer.step()
    found = dict(model.state_dict())
    found |= {f"d {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    whole = {key: t.full_tensor() if hasattr(t, "full_tensor") else t for key, t in found.items()}
    return {key.replace("module.", ""): t.detach().clone() for key, t in whole.items()}


def ddp(model: nn.Module, rows: slice, **options) -> dict[str, Tensor]:
    return train(DistributedDataParallel(model, **options), rows)


def averaged(model: nn.Module, rows: slice) -> dict[str, Tensor]:
    """Gradients averaged by hand: DDP refuses a SyncBatchNorm on CPUs."""

    def average(p: Tensor) -> None:
        dist.all_reduce(p.grad)
        p.grad /= 2

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(average)
    return train(model, rows)


def no_sync(model: nn.Module, rows: slice) -> dict[str, Tensor]:
    wrapped = DistributedDataParallel(model)
    return train(wrapped, rows, lambda part: nullcontext() if part else wrapped.no_sync())


def with_unused(model: nn.Module, rows: slice) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model.unused = nn.Linear(2, 2, dtype=torch.float64)
    model.layer1[0].conv2.requires_grad_(False)
    return ddp(model, rows, find_unused_parameters=True)


def sharded(model: nn.Module, rows: slice, *, inner: str) -> dict[str, Tensor]:
    """FSDP2 of every block, of every stage, or of single layers, and of what is left."""
    mesh = init_device_mesh("cpu", (2,))
    stages = (model.layer1, model.layer2)
    pieces = {
        "blocks": [block for stage in stages for block in stage],
        "stages": stages,
        "layers": [model.layer1[0].bn3, model.layer2[0].conv2],
    }[inner]
    for piece in pieces:
        fully_shard(piece, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if any(isinstance(module, Block) for module in model.modules()):
        whole = sum(row.path == "whole block" for row in fastres.explain(model).rows)
        assert whole == (1 if inner == "layers" else 3)
    return train(model, rows)


CASES: dict[str, Callable[[nn.Module, slice], dict[str, Tensor]]] = {
    "plain": ddp,
    "static_graph": lambda model, rows: ddp(
        model, rows, static_graph=True, gradient_as_bucket_view=True
    ),
    "find_unused_parameters": with_unused,
    "no_sync": no_sync,
    "fsdp blocks": lambda model, rows: sharded(model, rows, inner="blocks"),
    "fsdp stages": lambda model, rows: sharded(model, rows, inner="stages"),
    "fsdp layers": lambda model, rows: sharded(model, rows, inner="layers"),
}


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> str:
    """What is not the same after two steps in fp64, or between the ranks; "" if all is."""
    try:
        assert_close(found, expected, rtol=1e-6, atol=1e-8)
        for key, value in found.items():
            if key.startswith("d "):
                other = value.clone()
                dist.broadcast(other, src=0)
                assert torch.equal(value, other), f"{key} differs between the ranks"
    except AssertionError as error:
        return str(error)
    return ""


def run(rank: int, folder: str) -> None:
    """Rank `rank` of two: every case fused against unfused; what differs goes to `folder`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    rows = slice(rank * BATCH, (rank + 1) * BATCH)
    convert = nn.SyncBatchNorm.convert_sync_batchnorm
    results = {}
    for library in ("torchvision", "timm"):
        model = network(library)
        for name, case in CASES.items():
            if library == "timm" and name not in ("plain", "fsdp blocks"):
                continue
            plain = case(copy.deepcopy(model), rows)
            with fused_path():
                fused = case(fastres.fuse(copy.deepcopy(model)), rows)
            results[library, name] = difference(fused, plain)
        # torch has no SyncBatchNorm on CPUs: one unfused process with the batch of both
        whole = train(copy.deepcopy(model), slice(None))
        for name, change in {
            "sync before": lambda model: fastres.fuse(convert(model)),
            "sync after": lambda model: convert(fastres.fuse(model)),
        }.items():
            with fused_path():
                found = averaged(change(copy.deepcopy(model)), rows)
            results[library, name] = difference(found, whole)
    torch.save(results, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()
