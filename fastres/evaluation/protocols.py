"""How an image becomes the views a network scores: crops, whole images, several sizes.

Section 3.4 of the paper: 10 crops for comparisons; fully convolutional at several sizes for the
best results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastres.training.errors import UsageError

NAMES = ("center", "ten-crop", "fully-conv", "multi-scale")
SCALES = (224, 256, 384, 480, 640)  # section 3.4, for crops of 224
_PAPER_CROP, _PAPER_SIZE = 224, 256


@dataclass(frozen=True)
class Protocol:
    """One way of testing.

    Args:
        name: one of `NAMES`.
        sizes: the shorter side in pixels that an image is scaled to, one for each scale; None
            leaves the image as it is.
        crop: side of the crops in pixels; None for whole images.
        flip: score the mirror image of every view as well. "ten-crop" has its own mirror images.
    """

    name: str
    sizes: tuple[int | None, ...]
    crop: int | None
    flip: bool = False

    @property
    def count(self) -> int:
        """How many times an image goes through a network."""
        views = 10 if self.name == "ten-crop" else len(self.sizes)
        return views * (2 if self.flip else 1)

    @property
    def description(self) -> str:
        """In words, for a person and for the results file."""
        sizes = [str(size) for size in self.sizes if size is not None]
        scaled = f"shorter side {', '.join(sizes)}" if sizes else "images as they are"
        shapes = {
            "center": f"centre crop of {self.crop}",
            "ten-crop": f"four corners and centre of {self.crop}, and of the mirror image",
            "fully-conv": "whole image",
            "multi-scale": "whole image at each",
        }
        flips = ", and their mirror images" if self.flip else ""
        return f"{self.name}: {scaled}, {shapes[self.name]}{flips}"

    def views(self, image: Any) -> list[Tensor]:
        """The views of a PIL image or of a tensor uint8 [C, H, W]: tensors uint8 [C, h, w]."""
        scaled = [_resized(image, size) for size in self.sizes]
        if self.crop is None:
            return scaled
        (whole,) = scaled
        side = [self.crop, self.crop]
        if self.name == "center":
            if tuple(whole.shape[1:]) == tuple(side):
                return [whole]
            return [_functional().center_crop(whole, side)]
        return list(_functional().ten_crop(whole, side))


def make(
    name: str,
    *,
    crop: int,
    size: int | None = None,
    sizes: Sequence[int] | None = None,
    flip: bool = False,
    native: bool = False,
) -> Protocol:
    """The protocol called `name` for networks trained on crops of `crop` pixels.

    Args:
        size: the shorter side, for all but "multi-scale". By default 256 for crops of 224 and in
            proportion; where images are `native`, "center" and "fully-conv" take them as they are.
        sizes: the shorter sides of "multi-scale"; by default the paper's `SCALES`, in proportion.
        native: the images have the size that the network was trained on, as CIFAR-10's have.

    Raises:
        UsageError: an argument is out of its range or not one of this protocol's.
    """
    if name not in NAMES:
        raise UsageError(f"protocol must be one of {', '.join(NAMES)}, got {name!r}")
    if crop < 1:
        raise UsageError(f"crop must be at least 1, got {crop}")
    if flip and name == "ten-crop":
        raise UsageError("flip is part of the protocol 'ten-crop': leave it out")
    if name == "multi-scale":
        if size is not None:
            raise UsageError("size is not for the protocol 'multi-scale': give sizes")
        chosen = tuple(sizes or (round(crop * scale / _PAPER_CROP) for scale in SCALES))
        if min(chosen) < 1 or len(set(chosen)) != len(chosen):
            raise UsageError(f"sizes must be different numbers above 0, got {list(chosen)}")
        return Protocol(name, chosen, None, flip)
    if sizes is not None:
        raise UsageError(f"sizes are for the protocol 'multi-scale', protocol is {name!r}")
    if size is None and not (native and name != "ten-crop"):
        size = round(crop * _PAPER_SIZE / _PAPER_CROP)
    if name == "fully-conv":
        if size is not None and size < 1:
            raise UsageError(f"size must be at least 1, got {size}")
        return Protocol(name, (size,), None, flip)
    if size is not None and size < crop:
        raise UsageError(f"size must be at least the crop, {crop}, got {size}")
    return Protocol(name, (size,), crop, flip)


def _functional() -> Any:
    try:
        from torchvision.transforms.v2 import functional
    except ImportError as error:
        raise UsageError(
            f"scaling and cropping need torchvision: pip install 'fastres[data]' ({error})"
        ) from None
    return functional


def _resized(image: Any, size: int | None) -> Tensor:
    """uint8 [C, H, W], the shorter side `size`; the longer in proportion, as torchvision rounds."""
    if size is not None:
        image = _functional().resize(image, [size], antialias=True)
    return image if isinstance(image, torch.Tensor) else _functional().pil_to_tensor(image)
