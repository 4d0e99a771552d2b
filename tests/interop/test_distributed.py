"""Two gloo processes: fused networks under DDP, FSDP2 and SyncBatchNorm against unfused ones."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from interop import ranks
from interop.networks import LIBRARIES, small, torchvision
from interop.works_with import works_with
from torch import nn

import fastres

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch has no gloo"
)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict[tuple[str, str], str]]:
    """What differs, on each rank."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(ranks.run, (str(folder),), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


def assert_same(results, library: str, case: str) -> None:
    assert [of_rank[library, case] for of_rank in results] == ["", ""]


@works_with("DDP: plain, `static_graph`, `gradient_as_bucket_view`, `find_unused_parameters`")
@pytest.mark.parametrize("case", ["plain", "static_graph", "find_unused_parameters"])
def test_ddp(results, case):
    assert_same(results, "torchvision", case)


@works_with("DDP of timm's networks")
def test_ddp_of_timm(results):
    assert_same(results, "timm", "plain")


@works_with("DDP's `no_sync`")
def test_ddp_no_sync(results):
    assert_same(results, "torchvision", "no_sync")


@works_with("FSDP2: `fully_shard` of blocks, of stages, of single layers, after fusing")
@pytest.mark.parametrize(
    ("library", "case"),
    [
        ("torchvision", "fsdp blocks"),
        ("torchvision", "fsdp stages"),
        ("torchvision", "fsdp layers"),
        ("timm", "fsdp blocks"),
    ],
)
def test_fsdp(results, library, case):
    assert_same(results, library, case)


@works_with("`SyncBatchNorm.convert_sync_batchnorm`, before and after fusing")
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_sync_batch_norm(results, library, when):
    assert_same(results, library, f"sync {when}")


def test_conversion_keeps_blocks_whole():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(fastres.fuse(small()))
    assert {row.path for row in fastres.explain(model).rows} == {"whole stem", "whole block"}
    assert type(fastres.unfuse(model)) is torchvision.models.ResNet


@works_with("a message that says so when a wrapped network is fused")
def test_fusing_what_is_wrapped(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = small()
        wrapped = nn.parallel.DistributedDataParallel(model)
        with pytest.raises(TypeError, match="fused before it is wrapped in DistributedData"):
            fastres.fuse(wrapped)
        ranks.fully_shard(model, mesh=ranks.init_device_mesh("cpu", (1,)))
        with pytest.raises(TypeError, match="fused before it is sharded: it is a FSDPResNet"):
            fastres.fuse(model)
    finally:
        dist.destroy_process_group()
