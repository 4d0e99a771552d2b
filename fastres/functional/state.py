"""What every fused function does with a batch normalisation's state, and with autocast."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .._checks import autocasting, pair
from ..autograd import Geometry, Normalisation


class BatchNormState(NamedTuple):
    """Parameters, buffers and constants of one batch normalisation over C channels.

    weight, bias, running_mean, running_var are [C] or None; `training` means: normalise with
    the batch's statistics; `momentum` None is the cumulative average; `process_group` shares
    the statistics among its ranks.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None = None
    training: bool = True
    momentum: float | None = 0.1
    eps: float = 1e-5
    process_group: Any = None

    @classmethod
    def of(cls, module: nn.Module) -> BatchNormState:
        """The state of an nn.BatchNorm2d or nn.SyncBatchNorm in its present mode, or of a frozen
        BN whose four vectors are buffers."""
        if not isinstance(module, nn.modules.batchnorm._NormBase):
            return cls(
                module.weight, module.bias, module.running_mean, module.running_var,
                training=False, eps=module.eps,
            )  # fmt: skip
        group = None
        if isinstance(module, nn.SyncBatchNorm) and module.training and dist.is_initialized():
            group = module.process_group or dist.group.WORLD
            if dist.get_world_size(group) == 1:
                group = None
        tracked = not module.training or module.track_running_stats
        return cls(
            module.weight,
            module.bias,
            module.running_mean if tracked else None,
            module.running_var if tracked else None,
            module.num_batches_tracked,
            module.training or module.running_mean is None,
            module.momentum,
            module.eps,
            group,
        )


def normalisation_of(bn: BatchNormState) -> Normalisation:
    """The constants of a state."""
    return Normalisation(bn.training, bn.eps, bn.process_group)


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the dtype that autocast gives convolutions; unchanged outside of it.

    A weight stays as it is: the operators convert it where they use it, so that no converted copy
    is kept for the backward pass.
    """
    device = tensors[0].device.type
    if not autocasting(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors
    )


def geometry_of(stride, padding, dilation, groups: int) -> Geometry:
    """The geometry of a convolution, every entry a pair."""
    return Geometry(
        pair("stride", stride), pair("padding", padding), pair("dilation", dilation), groups
    )


def check_transforms(name: str) -> None:
    """Raise RuntimeError inside the transforms of torch.func.

    They rewrite PyTorch's own operators one by one, while the derivative of a fused step is a step
    of its own. torch's error, of the Function inside, says nothing that a user could act upon.
    """
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            f"fastres.functional.{name} cannot be transformed by torch.func (grad, vmap, jvp, "
            "jacrev, ...). Take gradients with backward() or torch.autograd.grad, around "
            "torch.func.functional_call where parameters are passed in; or let a network transform "
            "its modules: models fused by fastres.fuse do so by themselves"
        )


def recomputing() -> bool:
    """Whether this forward runs inside a backward pass: gradient checkpointing computes it again.

    Its batch has been counted in the running statistics the first time. A compiled graph cannot
    ask; there, torch.compile decides what a checkpoint computes again.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def take_measured(
    statistics: Iterator[Tensor], bn: BatchNormState
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(mean, var, count) of the next BN, from what a step returned of those that measured.

    None where the step returns nothing: see `reported` in autograd/batch_norm.py.
    """
    if not bn.training:
        return None, None, None
    mean, var = next(statistics), next(statistics)
    return mean, var, None if bn.process_group is None else next(statistics)


@torch.no_grad()
def update_running(bn: BatchNormState, mean, var, count, size: Sequence[int]) -> None:
    """running <- running + factor * (batch - running), with the unbiased batch variance.

    Nothing happens inside a backward pass, where a forward is computed again. An empty batch
    changes neither, but is counted, as in torch. Where the count is known only on the device
    (statistics over several ranks) the clamp keeps a single value from dividing by zero. `size`
    [N, C, H, W] is that of the BN's input.
    """
    if mean is None or bn.running_mean is None or recomputing():
        return
    factor: float | Tensor | None = bn.momentum
    if bn.num_batches_tracked is not None:
        bn.num_batches_tracked.add_(1)
        if factor is None:
            factor = 1.0 / bn.num_batches_tracked.to(mean.dtype)
    if count is not None:
        unbiased = var * (count / (count - 1).clamp(min=1))
    else:
        here = size[0] * size[2] * size[3]
        if here == 0:
            return
        unbiased = var * (here / (here - 1))
    if factor is None:
        factor = 0.0
    for running, batch in ((bn.running_mean, mean), (bn.running_var, unbiased)):
        if isinstance(factor, Tensor):
            factor = factor.to(running.dtype)
        batch = batch.to(running.dtype)
        if count is not None:  # the batches of all ranks may be empty
            batch = torch.where(count > 0, batch, running)
        running.lerp_(batch, factor)


class Measured(NamedTuple):
    """A BN's state, the batch statistics to update it with, and its input's size [N, C, H, W]."""

    bn: BatchNormState
    mean: Tensor | None
    var: Tensor | None
    count: Tensor | None
    size: Sequence[int]


@torch.no_grad()
def update_all_running(measured: Sequence[Measured]) -> None:
    """`update_running` for many BNs, those with one momentum in a few launches together."""
    if recomputing():
        return
    together: dict[float, list[Measured]] = {}
    for one in measured:
        if _ordinary(one):
            together.setdefault(one.bn.momentum, []).append(one)
        else:
            update_running(*one)
    for momentum, group in together.items():
        if len({id(one.bn.running_mean) for one in group}) < len(group):  # a BN that ran twice
            for one in group:
                update_running(*one)
            continue
        here = [one.size[0] * one.size[2] * one.size[3] for one in group]
        unbiased = torch._foreach_mul([one.var for one in group], [n / (n - 1) for n in here])
        batch = [*(one.mean for one in group), *unbiased]
        running = [one.bn.running_mean for one in group] + [one.bn.running_var for one in group]
        torch._foreach_lerp_(running, batch, momentum)
        counters = [one.bn.num_batches_tracked for one in group]
        counters = [counter for counter in counters if counter is not None]
        if counters:
            torch._foreach_add_(counters, 1)


def _ordinary(one: Measured) -> bool:
    """Whether the update is running.lerp_(batch, momentum) with a count known here."""
    bn = one.bn
    return (
        one.mean is not None
        and one.count is None
        and bn.running_mean is not None
        and bn.momentum is not None
        and bn.running_mean.dtype == bn.running_var.dtype == one.mean.dtype
        and one.size[0] * one.size[2] * one.size[3] > 1
    )
