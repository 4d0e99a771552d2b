"""The network in Flax: NHWC, the same layers and names of parameters, written for jit.

BN follows Flax: fp32 statistics, momentum as 1 - PyTorch's, and the biased variance in its running
statistics, where PyTorch keeps the unbiased one. Imported only where JAX and Flax are.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from .architecture import Architecture


class ResNet(nn.Module):
    """Images [N, H, W, 3] to scores [N, classes].

    Attributes:
        architecture: of the PyTorch network whose parameters it takes.
        dtype: of activations; parameters and statistics are fp32.
        train: BN uses the statistics of the batch, and updates the running ones.
    """

    architecture: Architecture
    dtype: Any
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = self.architecture
        x = x.astype(self.dtype)
        x = nn.relu(self._bn("bn1")(self._conv("conv1", 64, 7, stride=2)(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage, blocks in enumerate(shape.layers):
            for index in range(blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                x = self._block(f"layer{stage + 1}.{index}", x, 64 * 2**stage, stride)
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(shape.classes, dtype=self.dtype, name="fc")(x)

    def _block(self, name: str, x: jax.Array, planes: int, stride: int) -> jax.Array:
        shape = self.architecture
        if shape.bottleneck:
            width = planes * shape.base_width // 64 * shape.groups
            first, second = (stride, 1) if shape.first_strides else (1, stride)
            layers = ((width, 1, first, 1), (width, 3, second, shape.groups), (4 * planes, 1, 1, 1))
        else:
            layers = ((planes, 3, stride, 1), (planes, 3, 1, 1))
        out = x
        for number, (channels, kernel, step, groups) in enumerate(layers, 1):
            out = self._conv(f"{name}.conv{number}", channels, kernel, step, groups)(out)
            out = self._bn(f"{name}.bn{number}")(out)
            if number < len(layers):
                out = nn.relu(out)
        channels = layers[-1][0]
        if stride != 1 or x.shape[-1] != channels:
            x = self._conv(f"{name}.downsample.0", channels, 1, stride)(x)
            x = self._bn(f"{name}.downsample.1")(x)
        return nn.relu(out + x)

    def _conv(self, name: str, channels: int, kernel: int, stride: int = 1, groups: int = 1):
        return nn.Conv(
            channels,
            (kernel, kernel),
            (stride, stride),
            padding=((kernel // 2, kernel // 2),) * 2,
            feature_group_count=groups,
            use_bias=False,
            dtype=self.dtype,
            name=name,
        )

    def _bn(self, name: str):
        return nn.BatchNorm(
            use_running_average=not self.train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
            name=name,
        )
