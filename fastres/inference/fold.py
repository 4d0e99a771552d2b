"""A convolution and the normalisation after it as one convolution with a bias."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..layers.fusion import NORMS, is_plain


def is_foldable_convolution(module: nn.Module) -> bool:
    """Whether `module` is an untouched, zero-padded `nn.Conv2d`, with or without a bias."""
    return (
        is_plain(module, nn.Conv2d)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


def is_foldable_norm(module: nn.Module) -> bool:
    """Whether `module` is an untouched BN that normalises by its running statistics."""
    return is_plain(module, *NORMS) and module.running_mean is not None


def folded(conv: nn.Conv2d, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of norm(conv(x)) in fp64; the bias is there even where conv has none."""
    weight = conv.weight.detach().double()
    bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.detach().double()
    if norm is None:
        return weight, bias
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    return weight * scale[:, None, None, None], bias * scale + shift
