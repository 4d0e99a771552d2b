"""One process among those torchrun started, or the only one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from fastres.training.errors import TrainingError, UsageError

T = TypeVar("T")

# in what gloo says of a connection that ended; the second is all that a later operation on it hears
_LOST = ("gloo", "application timeout caused pair closure", "closed by peer", "reset by peer")


@dataclass
class World:
    """This process's place. `control` is a gloo group for flags and objects, so that asking the
    others something never waits for a GPU."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    control: Any = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum_(self, values: torch.Tensor) -> torch.Tensor:
        """Adds `values` over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def largest(self, value: int) -> int:
        """The largest `value` of any process."""
        if self.size == 1:
            return value
        box = torch.tensor([value])
        dist.all_reduce(box, op=dist.ReduceOp.MAX, group=self.control)
        return int(box)

    def gather(self, value: Any) -> list[Any]:
        """Every process's `value`, by rank."""
        if self.size == 1:
            return [value]
        box: list[Any] = [None] * self.size
        dist.all_gather_object(box, value, group=self.control)
        return box

    def from_main(self, function: Callable[[], T]) -> T:
        """What `function` returns on rank 0, on every rank; only rank 0 calls it.

        So the folder of a run needs to be there on rank 0's machine only. A TrainingError that it
        raises is raised on every rank.
        """
        if self.size == 1:
            return function()
        box: list[Any] = [None, None]
        if self.is_main:
            try:
                box[0] = function()
            except TrainingError as error:
                box[1] = error
        dist.broadcast_object_list(box, src=0, group=self.control)
        if box[1] is not None:
            raise box[1]
        return box[0]

    @contextmanager
    def naming_lost_peers(self) -> Iterator[None]:
        """Turns what a collective raises because another process is gone into a TrainingError."""
        try:
            yield
        except RuntimeError as error:
            if self.size > 1 and _is_lost_peer(error):
                reason = str(error).splitlines()[0].split(" This is typically")[0]
                raise TrainingError(
                    f"rank {self.rank}: another process is gone or does not answer: {reason}"
                ) from None
            raise

    def share_buffers(self, module: nn.Module) -> None:
        """Gives every process rank 0's buffers, as DDP does before each training step."""
        if self.size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)

    def close(self) -> None:
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def choose_device(name: str, local_rank: int) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N`. Raises UsageError if this machine does not have it."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UsageError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cpu":
        return device
    if not torch.cuda.is_available():
        raise UsageError(f"device {name!r} was asked for, but torch finds no usable CUDA device")
    index = local_rank if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise UsageError(
            f"device cuda:{index} was asked for, but there are {torch.cuda.device_count()}"
        )
    return torch.device("cuda", index)


def join_world(device_name: str, timeout: float) -> tuple[World, torch.device]:
    """Joins the processes torchrun started (nccl on GPUs, gloo on CPUs), if it did.

    After `timeout` seconds without an answer from another process a collective raises: a rank that
    died ends the run and does not hang it. Raises TrainingError if the others do not come.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = choose_device(device_name, local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size == 1:
        return World(), device
    limit = timedelta(seconds=timeout)
    try:
        store, rank, _ = next(dist.rendezvous("env://", timeout=limit))
        store.set_timeout(limit)
        place = {
            "store": dist.PrefixStore(_attempt(size), store), "rank": rank, "world_size": size,
            "timeout": limit,
        }  # fmt: skip
        if device.type == "cuda":
            dist.init_process_group("nccl", device_id=device, **place)
            control = dist.new_group(backend="gloo", timeout=limit)
        else:
            dist.init_process_group("gloo", **place)
            control = dist.group.WORLD
    except (RuntimeError, ValueError) as error:  # a variable of torchrun's that is not set: Value
        raise TrainingError(
            f"cannot join the {size} processes of WORLD_SIZE: {str(error).splitlines()[0]}"
        ) from None
    return World(dist.get_rank(), size, local_rank, control), device


def _attempt(size: int) -> str:
    """What the processes of one start of a run have in common, and no earlier ones.

    torchrun keeps its store over a restart (torch 2.15), where new processes would find the
    addresses of the dead and wait for those. On several nodes nothing tells the starts apart: each
    counts its own.
    """
    one_node = os.environ.get("LOCAL_WORLD_SIZE") == str(size)
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if one_node else "0"


def _is_lost_peer(error: RuntimeError) -> bool:
    """Whether a collective failed because another process is gone or does not answer."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(words in text for words in _LOST)
