"""What the fused Functions share: statistics, across ranks too, and the two backward passes.

A branch is a raw convolution output on its way through one batch normalisation. It is frozen
when it normalises with given statistics (eval mode), which then are constants of the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ..backends import launch
from ..backends.fakes import statistics_dtype


class Normalisation(NamedTuple):
    """Constants of one batch normalisation. `training`: measure the batch's own statistics."""

    training: bool
    eps: float
    process_group: Any = None


class Join(NamedTuple):
    """Constants of act(bn(y) + shortcut). `s_bn` is None where the shortcut has no BN."""

    bn: Normalisation
    s_bn: Normalisation | None
    shortcut_stride: int
    relu: bool


class Branch(NamedTuple):
    """[C] statistics of a branch and the number of values behind them (0-d tensor over ranks)."""

    mean: Tensor
    var: Tensor
    invstd: Tensor
    count: Tensor | int


class Saved(NamedTuple):
    """The tensors a join keeps for its backward pass; the ReLU's mask is not among them.

    The mask is recomputed from y, or read off `out` where a shortcut feeds the ReLU.
    """

    out: Tensor | None
    y: Tensor
    mean: Tensor
    invstd: Tensor
    weight: Tensor | None
    bias: Tensor | None
    shortcut: Tensor | None
    s_mean: Tensor | None
    s_invstd: Tensor | None
    s_weight: Tensor | None


class Reduced(NamedTuple):
    """Gradients of gamma and beta, and the means from which dy is computed (None: frozen)."""

    dweight: Tensor | None
    dbias: Tensor | None
    s_dweight: Tensor | None
    mean_g: Tensor | None
    mean_gx: Tensor | None
    mean_gx_s: Tensor | None


def measured(mean: Tensor, var: Tensor, y: Tensor, bn: Normalisation) -> Branch:
    """The branch of a batch whose biased statistics are given, merged over the ranks if any."""
    count: Tensor | int = y.numel() // y.shape[1]
    if bn.process_group is not None:
        mean, var, count = merge_over_ranks(mean, var, count, bn.process_group)
    return Branch(mean, var, torch.rsqrt(var + bn.eps), count)


def frozen(running_mean: Tensor, running_var: Tensor, y: Tensor, bn: Normalisation) -> Branch:
    """The branch that normalises with running statistics.

    They are copied: a later training step updates them in place, and the gradient of this
    forward must still be taken with the values it used.
    """
    dtype = statistics_dtype(y.dtype)
    mean = running_mean.to(dtype, copy=True)
    var = running_var.to(dtype, copy=True)
    return Branch(mean, var, torch.rsqrt(var + bn.eps), 0)


def merge_over_ranks(
    mean: Tensor, var: Tensor, count: int, group: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Chan's formula over the ranks of `group`, whose batches may differ in size or be empty.

    Returns the [C] mean, the [C] biased variance (zeros where all batches are empty), and the total
    count as a 0-d tensor.
    """
    local = torch.cat([mean, var, mean.new_full((1,), count)])
    gathered = [torch.empty_like(local) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, local, group=group)
    channels = mean.numel()
    means, variances, counts = torch.stack(gathered).split([channels, channels, 1], dim=1)
    total = counts.sum()
    share = counts / at_least_one(total)
    merged = (share * means).sum(0)
    spread = (share * (variances + (means - merged).square())).sum(0)
    return merged, spread, total


def join_forward(
    y: Tensor,
    branch: Branch,
    weight: Tensor | None,
    bias: Tensor | None,
    shortcut: Tensor | None,
    s_weight: Tensor | None,
    s_bias: Tensor | None,
    s_running_mean: Tensor | None,
    s_running_var: Tensor | None,
    join: Join,
) -> tuple[Tensor, Branch | None, Saved]:
    """out = act(bn(y) + shortcut), the shortcut's own statistics, and what backward needs."""
    s_branch = None
    if join.s_bn is not None and join.s_bn.training:
        s_branch = measured(*launch.bn_stats(shortcut), shortcut, join.s_bn)
    elif join.s_bn is not None:
        s_branch = frozen(s_running_mean, s_running_var, shortcut, join.s_bn)
    s_mean, s_invstd = (None, None) if s_branch is None else (s_branch.mean, s_branch.invstd)
    out = launch.bn_apply(
        y, branch.mean, branch.invstd, weight, bias,
        shortcut, s_mean, s_invstd, s_weight, s_bias, join.shortcut_stride, join.relu,
    )  # fmt: skip
    saved = Saved(
        out if join.relu and shortcut is not None else None, y, branch.mean, branch.invstd,
        weight, bias, shortcut if s_branch is not None else None, s_mean, s_invstd, s_weight,
    )  # fmt: skip
    return out, s_branch, saved


def reported(branch: Branch, bn: Normalisation) -> tuple[Tensor, ...]:
    """mean, var and count: what running statistics are made from; empty where not measured.

    A count is given only over several ranks, where it is a tensor. Otherwise the caller knows it,
    and Dynamo refuses a number that is constant in one graph and symbolic in the next. Nor is a
    None given: Dynamo leaves it out of the outputs, but counts it in the places of those that are
    not differentiable, and so marks others.
    """
    if not bn.training:
        return ()
    if isinstance(branch.count, Tensor):
        return branch.mean, branch.var, branch.count
    return branch.mean, branch.var


def over_ranks(sums: Sequence[Tensor], group: Any) -> Sequence[Tensor]:
    """The vectors summed over the ranks of `group`, in one message; None: as they are."""
    if group is None:
        return sums
    flat = torch.cat(list(sums))
    dist.all_reduce(flat, group=group)
    return flat.split([vector.numel() for vector in sums])


def at_least_one(count: Tensor | int) -> Tensor | int:
    """What to divide a sum by: an empty batch has a sum of zero."""
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)


def means(
    sums: Sequence[Tensor] | None, count: Tensor | int, bn: Normalisation
) -> tuple[Tensor | None, Tensor | None]:
    """The means of g and of g * xhat over all ranks, of which `sums` are this one's; (None, None)
    for a frozen BN."""
    if sums is None or not bn.training:
        return None, None
    # one launch for both
    mean_g, mean_gx = torch._foreach_div(
        list(over_ranks(sums, bn.process_group)), at_least_one(count)
    )
    return mean_g, mean_gx


def join_reduce(
    dout: Tensor, saved: Saved, counts: tuple[Tensor | int, Tensor | int], join: Join
) -> Reduced:
    """One pass over dout and y: the sums that are dbeta and dgamma, and their means.

    Over several ranks the means are global and the gradients of gamma and beta stay local,
    as DistributedDataParallel expects them.
    """
    s = saved
    sums = launch.bn_backward_reduce(
        dout, s.out, s.y, s.mean, s.invstd, s.weight, s.bias,
        s.shortcut, s.s_mean, s.s_invstd, join.relu,
    )  # fmt: skip
    dbias, dweight, s_dweight = sums
    group = join.bn.process_group or (join.s_bn.process_group if join.s_bn else None)
    sum_g, sum_gx, sum_gx_s = over_ranks(sums, group)
    mean_g = mean_gx = mean_gx_s = None
    if join.s_bn is not None and join.s_bn.training:
        values = at_least_one(counts[1])
        mean_g, mean_gx_s = sum_g / values, sum_gx_s / values
    if join.bn.training:
        values = at_least_one(counts[0])
        mean_g, mean_gx = sum_g / values, sum_gx / values
    return Reduced(
        dweight, dbias, s_dweight if join.s_bn is not None else None, mean_g, mean_gx, mean_gx_s
    )


def join_backward_arguments(
    dout: Tensor, saved: Saved, reduced: Reduced, join: Join, shortcut_size: tuple[int, ...]
) -> tuple:
    """The arguments of `bn_backward`; an empty `shortcut_size` asks for no such gradient."""
    s, r = saved, reduced
    return (
        dout, s.out, s.y, s.mean, s.invstd, s.weight, s.bias, r.mean_g, r.mean_gx,
        s.shortcut, s.s_mean, s.s_invstd, s.s_weight, r.mean_gx_s,
        shortcut_size, join.shortcut_stride, join.relu,
    )  # fmt: skip


NOT_REDUCED = Reduced(None, None, None, None, None, None)


def parameter_gradient(
    gradient: Tensor | None, parameter: Tensor | None, wanted: bool
) -> Tensor | None:
    """The gradient of gamma or beta in the parameter's own dtype, if wanted."""
    if not wanted or gradient is None or parameter is None:
        return None
    # asked first: nearly always there is nothing to convert
    return gradient if gradient.dtype == parameter.dtype else gradient.to(parameter.dtype)
