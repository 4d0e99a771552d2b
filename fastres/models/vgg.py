"""VGG-16 and VGG-19 (arXiv 1409.1556, configurations D and E), which the paper compares with."""

from __future__ import annotations

from torch import nn

_CONVOLUTIONS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}


def vgg(name: str, num_classes: int = 1000) -> nn.Sequential:
    """Images [N, 3, 224, 224] to scores [N, num_classes]: five stages of 3x3 convolutions with a
    max pooling after each, then three fully connected layers.

    A network to count, not one of `fastres.models.names()`: nothing in it is fused.

    Raises:
        ValueError: `name` is neither "vgg16" nor "vgg19".
    """
    if name not in _CONVOLUTIONS:
        raise ValueError(f"name must be one of {', '.join(_CONVOLUTIONS)}, got {name!r}")
    layers: list[nn.Module] = []
    channels = 3
    for stage, convolutions in enumerate(_CONVOLUTIONS[name]):
        width = min(64 * 2**stage, 512)
        for _ in range(convolutions):
            layers += [nn.Conv2d(channels, width, kernel_size=3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
    layers.append(nn.Flatten())
    inputs = channels * 7 * 7
    for _ in range(2):
        layers += [nn.Linear(inputs, 4096), nn.ReLU(inplace=True), nn.Dropout()]
        inputs = 4096
    return nn.Sequential(*layers, nn.Linear(inputs, num_classes))
