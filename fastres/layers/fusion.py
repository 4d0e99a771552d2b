"""Which modules may run as one fused operator, and the operators called with modules.

A fused operator reads the parameters of the inner modules and never calls them. That is the same
thing only while calling them would do nothing else, so the question is asked at every forward:
a module that was replaced, hooked or parametrised is called as it stands.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from .. import functional
from ..functional import BatchNormState
from .shortcuts import PadShortcut


def is_plain(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether calling `module` is exactly the forward of one of `kinds`, global hooks aside.

    Subclasses do not count: `torch.nn.utils.parametrize` works by changing the class, and legacy
    weight norm and pruning by a forward pre-hook.
    """
    return type(module) in kinds and not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def is_plain_convolution(module: nn.Module) -> bool:
    """Whether `module` is an untouched, zero-padded `nn.Conv2d` without a bias."""
    return (
        is_plain(module, nn.Conv2d)
        and module.bias is None
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


def can_fuse(conv: nn.Module, norm: nn.Module, relu: nn.Module) -> bool:
    """Whether relu(norm(conv(x))) may run as one operator."""
    return (
        is_plain_convolution(conv)
        and is_plain(norm, nn.BatchNorm2d, nn.SyncBatchNorm)
        and is_plain(relu, nn.ReLU)
        and not _has_any_global_hook()
    )


def conv_norm_act(
    x: Tensor, conv: nn.Module, norm: nn.Module, relu: nn.Module, *, fused: bool
) -> Tensor:
    """relu(norm(conv(x))), as one operator if `fused` and the modules allow it."""
    if fused and can_fuse(conv, norm, relu):
        return functional.conv_bn_act(
            x, conv.weight, BatchNormState.of(norm), **_geometry(conv), relu=True
        )
    return relu(norm(conv(x)))


def conv_norm_add_act(
    out: Tensor,
    conv: nn.Module,
    norm: nn.Module,
    relu: nn.Module,
    x: Tensor,
    shortcut: nn.Module | None,
    *,
    fused: bool,
) -> Tensor:
    """relu(norm(conv(out)) + shortcut(x)), as one operator if `fused` and the modules allow it.

    `shortcut` None is the identity. A zero-padded shortcut and a projection (convolution, BN) go
    into the same operator as well, each as long as nobody touched it.
    """
    if fused and can_fuse(conv, norm, relu):
        return functional.conv_bn_add_act(
            out,
            conv.weight,
            BatchNormState.of(norm),
            **_shortcut_operands(x, shortcut),
            **_geometry(conv),
            relu=True,
        )
    out = norm(conv(out))
    identity = x if shortcut is None else shortcut(x)
    # a fused network comes here because of a hook or a foreign module, which may hold on to its
    # output: adding in place would then be an error in backward
    out = out + identity if fused else out.add_(identity)
    return relu(out)


def max_pool(x: Tensor, pool: nn.Module, *, fused: bool) -> Tensor:
    """pool(x), through the fused allocator if `fused` and `pool` is an ordinary `nn.MaxPool2d`."""
    if (
        fused
        and is_plain(pool, nn.MaxPool2d)
        and pool.dilation == 1
        and not pool.ceil_mode
        and not pool.return_indices
        and not _has_any_global_hook()
    ):
        return functional.max_pool2d(x, pool.kernel_size, pool.stride, pool.padding)
    return pool(x)


def _geometry(conv: nn.Module) -> dict[str, Any]:
    return {
        "stride": conv.stride,
        "padding": conv.padding,
        "dilation": conv.dilation,
        "groups": conv.groups,
    }


def _shortcut_operands(x: Tensor, shortcut: nn.Module | None) -> dict[str, Any]:
    """The shortcut as arguments of `functional.conv_bn_add_act`."""
    if shortcut is None:
        return {"shortcut": x}
    if is_plain(shortcut, PadShortcut):
        return {"shortcut": x, "shortcut_stride": shortcut.stride}
    if is_plain(shortcut, nn.Sequential) and len(shortcut) == 2:
        conv, norm = shortcut
        if is_plain_convolution(conv) and is_plain(norm, nn.BatchNorm2d, nn.SyncBatchNorm):
            projected = functional.conv2d(x, conv.weight, **_geometry(conv))
            return {"shortcut": projected, "shortcut_bn": BatchNormState.of(norm)}
    return {"shortcut": shortcut(x)}
