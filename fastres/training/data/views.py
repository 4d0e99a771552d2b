"""What is cut out of a decoded image, with torchvision's transforms: a PIL image -> bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastres.training.errors import UsageError

View = Callable[[Any], Tensor]  # a PIL image -> uint8 [3, H, W]


@dataclass(frozen=True)
class Geometry:
    """How crops are cut.

    Attributes:
        image_size: side of the crops.
        shorter_side: range that the shorter side is drawn from for crop "side", ends included; for
            tests the image is scaled to its lower end. Empty: [256, 480] for a size of 224
            (section 3.4 of the paper) and in proportion for others.
        crop: "side" scales by the shorter side and crops at random; "area" crops 8% to 100% of the
            area with sides 3:4 to 4:3 and scales that (Szegedy et al. 2015, section 6).
        flip: mirrors half of the training images.
    """

    image_size: int
    shorter_side: tuple[int, ...] = ()
    crop: str = "side"
    flip: bool = True

    @property
    def sides(self) -> tuple[int, int]:
        """The lower and the upper end of the range of shorter sides."""
        if self.shorter_side:
            return self.shorter_side[0], self.shorter_side[1]
        return round(self.image_size * 256 / 224), round(self.image_size * 480 / 224)

    def training(self) -> View:
        """A random crop; draws from torch's global generator. Raises UsageError: no torchvision."""
        v2 = _transforms()
        if self.crop == "area":
            parts = [v2.RandomResizedCrop(self.image_size, antialias=True)]
        else:
            low, high = self.sides
            parts = [
                v2.RandomShortestSize(list(range(low, high + 1)), antialias=True),
                v2.RandomCrop(self.image_size),
            ]
        if self.flip:
            parts.append(v2.RandomHorizontalFlip())
        return v2.Compose([*parts, v2.PILToTensor()])

    def testing(self) -> View:
        """The centre crop. Raises UsageError without torchvision."""
        v2 = _transforms()
        resize = v2.Resize(self.sides[0], antialias=True)
        return v2.Compose([resize, v2.CenterCrop(self.image_size), v2.PILToTensor()])


def _transforms() -> Any:
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise UsageError(
            f"data of image files needs torchvision: pip install 'fastres[data]' ({error})"
        ) from None
    return v2
