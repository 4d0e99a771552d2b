"""Scores of an image: a network's outputs averaged over its views, over their mirror images, and
over the networks of an ensemble."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastres.evaluation.networks import Network
from fastres.training.data.normalize import Normalize
from fastres.training.errors import TrainingError

AVERAGES = ("probabilities", "scores")


class Scorer:
    """Averages one network's outputs over views.

    Args:
        average: "probabilities" averages after the softmax, "scores" before it.
        normalize: what the network sees of bytes. A mean image is scaled to the size of a view: so
            a scaled image is the scaled difference of image and mean.
        amp: the dtype of autocast, None for none.
    """

    def __init__(
        self,
        network: Network,
        normalize: Normalize,
        device: torch.device,
        average: str,
        amp: torch.dtype | None,
        flip: bool,
    ) -> None:
        self.network, self._normalize = network, normalize.to(device)
        self._device, self._average, self._flip = device, average, flip
        self._amp = amp

    @torch.inference_mode()
    def __call__(self, views: Sequence[Tensor]) -> Tensor:
        """Views uint8 [n, C, h, w] on the device -> fp32 [n, classes].

        Raises:
            TrainingError: an output is NaN or infinite.
        """
        outputs = []
        for view in views:
            outputs.append(self._score(view))
            if self._flip:
                outputs.append(self._score(view.flip(-1)))
        total = torch.stack(outputs).mean(0) if len(outputs) > 1 else outputs[0]
        if not torch.isfinite(total).all():
            raise TrainingError(f"{self.network.path}: the network's outputs are not finite")
        return total

    def _score(self, view: Tensor) -> Tensor:
        x = _for_size(self._normalize, view.shape[-2:])(view, torch.channels_last)
        with torch.autocast(self._device.type, dtype=self._amp, enabled=self._amp is not None):
            scores = self.network.module(x)
        scores = scores.float()
        return scores.softmax(1) if self._average == "probabilities" else scores


def _for_size(normalize: Normalize, size: torch.Size) -> Normalize:
    """`normalize` for views of a size [h, w].

    The paper does not say what becomes of its mean image at other sizes. The mean of each channel
    alone is no substitute where images resemble each other: with it ResNet-20, trained on the
    digits of scikit-learn, gets a sixth of them right at 37 pixels in the place of 32, and with the
    scaled mean image nine in ten (docs/evaluation.md).
    """
    if not normalize.per_pixel or normalize.mean.shape[1:] == size:
        return normalize
    mean = F.interpolate(normalize.mean[None], size=tuple(size), mode="bilinear", antialias=True)
    return Normalize(mean[0], normalize.std)


def losses(average: str, scores: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each image, from averaged probabilities or from averaged scores."""
    if average == "probabilities":
        return F.nll_loss(scores.clamp_min(1e-30).log(), labels, reduction="none")
    return F.cross_entropy(scores, labels, reduction="none")


def score_map(model: nn.Module, images: Tensor) -> Tensor:
    """The class scores at every place of the last feature map: [N, classes, h, w].

    The fully convolutional form of a ResNet: its fc as a 1x1 convolution. Pooling and fc are both
    linear, so in exact arithmetic the mean of these scores over all places is what the network
    itself gives for images of any size. `fastres eval` takes the network's own order: pooling first
    costs less, and at the training size it is the crop's result bit for bit.

    Args:
        model: a network with `avgpool` and `fc`, as fastres's and torchvision's have.
        images: [N, C, H, W], as the network takes them.

    Raises:
        ValueError: the model has no `avgpool` or `fc`.
    """
    pool, fc = getattr(model, "avgpool", None), getattr(model, "fc", None)
    if not isinstance(pool, nn.Module) or not isinstance(fc, nn.Linear):
        raise ValueError(f"model must have an avgpool and a linear fc, got {type(model).__name__}")
    features: list[Tensor] = []
    hook = pool.register_forward_pre_hook(lambda _, given: features.append(given[0]))
    try:
        model(images)
    finally:
        hook.remove()
    return F.conv2d(features[0], fc.weight[:, :, None, None], fc.bias)
