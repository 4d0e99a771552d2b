"""Loss, top-1 and top-5 of a network on a split, over all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from fastres.training.data.source import Batch
from fastres.training.distributed import World
from fastres.training.errors import DataError


@dataclass(frozen=True)
class Metrics:
    """Mean cross-entropy; percentages of images with their class first, and in the first five."""

    loss: float
    top1: float
    top5: float
    images: int


@torch.no_grad()
def evaluate(
    module: nn.Module,
    batches: Iterable[Batch],
    place: Callable[[torch.Tensor], torch.Tensor],
    autocast: Callable[[], torch.autocast],
    world: World,
    check: Callable[[], None],
) -> Metrics:
    """Evaluates in eval mode; the module's mode is put back.

    `place` brings images to the device, `autocast` makes the run's autocast context, and `check`
    is called before every batch and may raise to give up.
    """
    training = module.training
    module.eval()
    device = next(module.parameters()).device
    totals = torch.zeros(4, dtype=torch.float64, device=device)
    try:
        for images, labels in batches:
            check()
            labels = labels.to(device, non_blocking=True)
            with autocast():
                logits = module(place(images))
            logits = logits.float()
            loss = F.cross_entropy(logits, labels, reduction="sum")
            hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
            totals += torch.stack(
                [loss, hits[:, 0].sum(), hits.sum(), loss.new_tensor(len(labels))]
            ).double()
    finally:
        module.train(training)
    loss_sum, top1, top5, count = world.sum_(totals).tolist()
    count = int(count)
    if not count:
        raise DataError("no image of the split that is evaluated could be read")
    return Metrics(loss_sum / count, 100 * top1 / count, 100 * top5 / count, count)
