"""PCA colour augmentation: all of an image's pixels shifted along the data's colour axes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

WORDS = 4  # random words an image's shift takes

# eigenvalues and eigenvectors (columns; rows are R, G, B) of ImageNet's RGB values in [0, 1] as
# they have been handed on since fb.resnet.torch, for AlexNet's augmentation
ALEXNET_VALUES = (0.2175, 0.0188, 0.0045)
ALEXNET_VECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)


@dataclass(frozen=True, eq=False)
class ColorPCA:
    """Adds vectors · (alpha * values) to each pixel, alpha drawn from N(0, std) for each image.

    values: float64 [3], eigenvalues of the covariance of RGB values in [0, 1]; vectors: float64
    [3, 3], an eigenvector in each column. Source: AlexNet (Krizhevsky et al. 2012), section 4.1,
    which draws alpha once for each time an image is used, with std 0.1.
    """

    values: np.ndarray
    vectors: np.ndarray
    std: float

    @classmethod
    def alexnet(cls, std: float) -> ColorPCA:
        return cls(np.array(ALEXNET_VALUES), np.array(ALEXNET_VECTORS), std)

    def shifts(self, words: np.ndarray) -> torch.Tensor:
        """words uint64 [n, WORDS] -> what is added to R, G and B, in [0, 1]: float32 [n, 3]."""
        alpha = self.std * normals(words)[:, :3]
        return torch.from_numpy(((alpha * self.values) @ self.vectors.T).astype(np.float32))


def normals(words: np.ndarray) -> np.ndarray:
    """Standard normal numbers from random words, by Box and Muller: float64 of the same shape.

    words: uint64 [n, an even number].
    """
    uniform = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53  # never 0 or 1
    radius = np.sqrt(-2 * np.log(uniform[:, 0::2]))
    angle = 2 * np.pi * uniform[:, 1::2]
    out = np.empty_like(uniform)
    out[:, 0::2], out[:, 1::2] = radius * np.cos(angle), radius * np.sin(angle)
    return out


def principal_components(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues [3], largest first, and eigenvectors [3, 3] in columns, of a covariance.

    An eigenvector's sign means nothing; its largest entry is made positive.
    """
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[::-1], vectors[:, ::-1]
    largest = vectors[np.abs(vectors).argmax(0), np.arange(vectors.shape[1])]
    return values.copy(), vectors * np.sign(largest)
