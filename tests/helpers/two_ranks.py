"""What the two processes of test_syncbn.py do; here, because a spawned process imports it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import fastres
from fastres.layers import BasicBlock, Bottleneck, Stage, make_shortcut

# name: images on rank 0 and rank 1, convert the shortcut's BN too
CASES = {
    "unequal": ((3, 5), True),
    "empty": ((6, 0), True),
    "single value": ((1, 2), True),
    "shortcut of each rank": ((3, 5), False),
    "moment form": ((3, 5), True),
    "moment form, empty": ((6, 0), True),
    "all empty": ((0, 0), True),
    "moment form, all empty": ((0, 0), True),
}


def make_block(dtype: torch.dtype, name: str) -> nn.Module:
    """A strided block with a projection: every kind of statistics that a block has.

    In moment form: a run of two bottlenecks.
    """
    torch.manual_seed(3)
    if name.startswith("moment form"):
        shortcut = make_shortcut("B", 4, 8, 2, nn.BatchNorm2d, fused=True)
        options = {"fused": True, "memory": "low"}
        block = Stage(Bottleneck(4, 2, 2, shortcut, **options), Bottleneck(8, 2, **options))
    else:
        shortcut = make_shortcut("B", 4, 6, 2, nn.BatchNorm2d, fused=True)
        block = BasicBlock(4, 6, 2, shortcut, norm_layer=nn.BatchNorm2d, fused=True)
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return block.to(dtype)


def data(name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The whole batch of a case, and the gradient of its output."""
    generator = torch.Generator().manual_seed(5)
    images = sum(CASES[name][0])
    side = 2 if name == "single value" else 7
    x = torch.randn(images, 4, side, side, generator=generator, dtype=torch.float64)
    out = (side - 1) // 2 + 1
    channels = 8 if name.startswith("moment form") else 6
    dout = torch.randn(images, channels, out, out, generator=generator, dtype=torch.float64)
    return x.to(dtype), dout.to(dtype)


def step(block: nn.Module, x: Tensor, dout: Tensor) -> dict[str, Tensor]:
    """Two forwards and one backward: output, gradients and buffers."""
    block = copy.deepcopy(block).train()
    x = x.clone().requires_grad_()
    with torch.no_grad():
        block(x)
    out = block(x)
    out.backward(dout)
    found = {"out": out.detach(), "dx": x.grad}
    found |= {f"d{name}": p.grad for name, p in block.named_parameters()}
    return found | {name: b.clone() for name, b in block.named_buffers()}


def run(rank: int, folder: str) -> None:
    """Rank `rank` of two: every case with both dtypes; results go to `folder`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results: dict[str, Any] = {}
    for name, (sizes, all_of_it) in CASES.items():
        for dtype in (torch.float32, torch.float64):
            block = make_block(dtype, name)
            kept = None if all_of_it else block.downsample[1]
            block = nn.SyncBatchNorm.convert_sync_batchnorm(block)
            if kept is not None:
                block.downsample[1] = kept
            x, dout = (part.split(list(sizes))[rank] for part in data(name, dtype))
            fastres.backends.reset_counts()
            results[f"{name} {dtype}"] = step(block, x, dout)
            proof = "expand_reduce" if name.startswith("moment form") else "chain_backward"
            assert any(key.startswith(proof) for key in fastres.backends.counts())
    torch.save(results, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()
