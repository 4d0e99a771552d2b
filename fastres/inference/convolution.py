"""A convolution with bias, shortcut and ReLU as one call, prepared once for each size of input.

On a CPU it is oneDNN's, with post-operations and a weight that is reordered once; in fp32, for a
3x3 at stride 1, Winograd's where that takes fewer operations. On a GPU it is our Triton kernel or
cuDNN's fused convolution + bias (+ shortcut) + ReLU, as the tuned table says for the size. Where
none serves: PyTorch's convolution, then an addition and a ReLU in place.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .. import backends
from ..backends import triton_inference
from ..backends.reference import conv_bias_act

# sizes of input that a weight is kept for at a time; another one takes what the nearest has, which
# oneDNN then reorders in every call
SIZES = 4
# Winograd's filters are 16/9 of the weight: a few tiles do not repay reading more than the cache
# holds of them (measured on two cores: 512 channels gain from 48 tiles on, 128 always)
_LEAST_TILES, _SMALL_FILTERS = 48, 128 * 128
_WINOGRAD_CHANNELS = 32

Kernel = Callable[..., Tensor]


class Convolution(nn.Module):
    """relu(convolution of x + bias + shortcut), each of the last three where it is asked for.

    Args:
        weight, bias: fp64, or any dtype; rounded to `dtype` here.
        conv: stride, padding, dilation and groups.
        dtype: of the activations.
        relu: whether it ends with a ReLU.
        in_place: the shortcut is nobody else's and may be overwritten.
        strange: x or the shortcut may have any strides, else they come from another of these.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        conv: nn.Conv2d,
        dtype: torch.dtype,
        *,
        relu: bool,
        in_place: bool = False,
        strange: bool = True,
    ) -> None:
        super().__init__()
        dense = weight.to(dtype).contiguous(memory_format=torch.channels_last)
        self.register_buffer("weight", dense)
        self.register_buffer("bias", bias.to(dtype))
        self.stride, self.padding = list(conv.stride), list(conv.padding)
        self.dilation, self.groups = list(conv.dilation), conv.groups
        self.relu, self.in_place, self.strange = relu, in_place, strange
        self._kernels: dict[torch.Size, Kernel] = {}
        self._filters: Tensor | None = None

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        kernel = self._kernels.get(x.shape)
        if kernel is None:
            kernel = self._kernel(x, shortcut)
        if self.strange:
            x = x.contiguous(memory_format=torch.channels_last)
            if shortcut is not None:
                shortcut = shortcut.contiguous(memory_format=torch.channels_last)
        return kernel(x) if shortcut is None else kernel(x, shortcut)

    def extra_repr(self) -> str:
        out, into, *kernel = self.weight.shape
        kernel = "x".join(map(str, kernel))
        return f"{into * self.groups}, {out}, {kernel}, stride={self.stride}, relu={self.relu}"

    def release(self) -> None:
        """Forget what was prepared."""
        self._kernels.clear()
        self._filters = None

    def _apply(self, fn, recurse: bool = True):
        self.release()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *arguments) -> None:
        self.release()  # of the weights as they were
        super()._load_from_state_dict(*arguments)

    def __getstate__(self):
        # what is prepared holds oneDNN's own tensors, which cannot be copied
        return {**self.__dict__, "_kernels": {}, "_filters": None}

    def _kernel(self, x: Tensor, shortcut: Tensor | None) -> Kernel:
        """The kernel for x, kept for its size if there is room."""
        if x.dim() != 4:
            raise ValueError(f"x must be [N, C, H, W], got {list(x.shape)}")
        if x.dtype != self.weight.dtype:
            raise RuntimeError(
                f"x must have the dtype of the weights, {self.weight.dtype}, got {x.dtype}"
            )
        if x.numel() == 0:
            return self._plain
        if len(self._kernels) >= SIZES:
            nearest = min(self._kernels, key=lambda size: abs(size.numel() - x.numel()))
            return self._kernels[nearest]
        kernel = self._prepare(x, shortcut)
        self._kernels[x.shape] = kernel
        return kernel

    def _prepare(self, x: Tensor, shortcut: Tensor | None) -> Kernel:
        if self._triton_serves(x):
            return self.launched
        if x.device.type == "cpu" and _onednn_takes(x.dtype):
            return self._winograd() if self._winograd_serves(x) else self._onednn(x)
        if triton_inference.cudnn_takes(x, self.relu):
            return self._cudnn(x, shortcut)
        return self._plain

    def _plain(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        return conv_bias_act(x, self.weight, self.bias, shortcut, *self._geometry(), self.relu)

    def launched(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """The launch operator's result; it asks the tuned table at every call."""
        return backends.launch.conv_bias_act(
            x, self.weight, self.bias, shortcut, *self._geometry(), self.relu
        )

    def _triton_serves(self, x: Tensor) -> bool:
        """Whether the tables choose our kernel for x, on a GPU or where Triton is forced."""
        if backends.chosen(x.device, x.dtype) != "triton":
            return False
        return triton_inference.chosen(x, self.weight, *self._geometry(), self.relu) is not None

    def _geometry(self) -> tuple[list[int], list[int], list[int], int]:
        return self.stride, self.padding, self.dilation, self.groups

    def _onednn(self, x: Tensor) -> Kernel:
        geometry = (self.padding, self.stride, self.dilation, self.groups)
        ops = torch.ops.mkldnn
        # without the size of x it may choose another order, and reorder again in every call
        weight = ops._reorder_convolution_weight(self.weight, *geometry, list(x.shape))
        bias, relu = self.bias, self.relu
        alone = ops._convolution_pointwise.default
        attribute = "relu" if relu else "none"
        ending = ("add", None, "relu" if relu else None, [], "")
        into, beside = ops._convolution_pointwise_.binary, ops._convolution_pointwise.binary
        in_place = self.in_place

        def kernel(x: Tensor, shortcut: Tensor | None = None) -> Tensor:
            if shortcut is None:
                return alone(x, weight, bias, *geometry, attribute, [], "")
            if in_place:
                return into(shortcut, x, weight, bias, *geometry, *ending)
            return beside(x, shortcut, weight, bias, *geometry, *ending)

        return kernel

    def _winograd_serves(self, x: Tensor) -> bool:
        out, into, *kernel = self.weight.shape
        if (
            (kernel, self.stride, self.padding, self.dilation) != ([3, 3], [1, 1], [1, 1], [1, 1])
            or self.groups != 1
            or x.dtype != torch.float32
            or out % _WINOGRAD_CHANNELS
            or into % _WINOGRAD_CHANNELS
            or backends.chosen(x.device, x.dtype) != "native"
        ):
            return False
        images, _, height, width = x.shape
        tiles = images * ((height + 1) // 2) * ((width + 1) // 2)
        # tiles that reach over the edge waste what others gain
        few = tiles < _LEAST_TILES and out * into > _SMALL_FILTERS
        return not few and 8 * tiles <= 3 * images * height * width

    def _winograd(self) -> Kernel:
        ops = torch.ops.fastres_native
        if self._filters is None:
            self._filters = ops.winograd_filters(self.weight)
        run, filters, bias, relu = ops.winograd.default, self._filters, self.bias, self.relu

        def kernel(x: Tensor, shortcut: Tensor | None = None) -> Tensor:
            return run(x, filters, bias, shortcut, relu)

        return kernel

    def _cudnn(self, x: Tensor, shortcut: Tensor | None) -> Kernel:
        weight, bias, geometry = self.weight, self.bias, self._geometry()

        def kernel(x: Tensor, shortcut: Tensor | None = None) -> Tensor:
            return triton_inference.cudnn(x, weight, bias, shortcut, *geometry)

        dense = [
            None if t is None else t.contiguous(memory_format=torch.channels_last)
            for t in (x, shortcut)
        ]
        try:
            kernel(*dense)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # cuDNN has no such kernel for this geometry or device
            return self._plain
        return kernel


def _onednn_takes(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return False
    ops = torch.ops.mkldnn
    if not hasattr(ops, "_convolution_pointwise_"):
        return False
    if dtype == torch.float32:
        return True
    asked = {
        torch.bfloat16: "_is_mkldnn_bf16_supported",
        torch.float16: "_is_mkldnn_fp16_supported",
    }
    return dtype in asked and hasattr(ops, asked[dtype]) and getattr(ops, asked[dtype])()
