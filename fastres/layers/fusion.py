"""Which modules may run as one fused operator, and the operators called with modules.

A fused operator reads the parameters of the inner modules and never calls them. That is the same
thing only while calling them would do nothing else, so the question is asked at every forward:
a module that was replaced, hooked or parametrised is called as it stands.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .. import functional
from ..functional import BatchNormState
from .around import obstacle_around
from .shortcuts import PadShortcut

# what `BatchNormState.of` knows; `fastres.interop` adds to it
NORMS: list[type[nn.Module]] = [nn.BatchNorm2d, nn.SyncBatchNorm]


def module_obstacle(name: str, module: nn.Module, *kinds: type[nn.Module]) -> str | None:
    """Why calling `module` is more than the forward of one of `kinds`, global hooks aside.

    None if it is not. Subclasses are: `torch.nn.utils.parametrize` works by changing the class,
    and legacy weight norm and pruning by a forward pre-hook.
    """
    if type(module) not in kinds:
        return f"{name} is a {type(module).__name__}"
    if (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    ):
        return f"{name} has a hook"
    if "forward" in module.__dict__:
        return f"{name} has a forward of its own"
    return None


def is_plain(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether calling `module` is exactly the forward of one of `kinds`, global hooks aside."""
    return module_obstacle("", module, *kinds) is None


def convolution_obstacle(name: str, module: nn.Module) -> str | None:
    """Why `module` is not an untouched, zero-padded `nn.Conv2d` without a bias; None if it is."""
    found = module_obstacle(name, module, nn.Conv2d)
    if found is not None:
        return found
    if module.bias is not None:
        return f"{name} has a bias"
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        return f"{name} pads with {module.padding_mode}, {module.padding}"
    return None


def is_plain_convolution(module: nn.Module) -> bool:
    """Whether `module` is an untouched, zero-padded `nn.Conv2d` without a bias."""
    return convolution_obstacle("", module) is None


def can_normalise(conv: nn.Module, norm: nn.Module) -> bool:
    """Whether norm(conv(x)) may run as one operator."""
    return is_plain_convolution(conv) and is_plain(norm, *NORMS) and obstacle_around() is None


def can_fuse(conv: nn.Module, norm: nn.Module, relu: nn.Module) -> bool:
    """Whether relu(norm(conv(x))) may run as one operator."""
    return is_plain(relu, nn.ReLU) and can_normalise(conv, norm)


def conv_norm_act(
    x: Tensor, conv: nn.Module, norm: nn.Module, relu: nn.Module, *, fused: bool
) -> Tensor:
    """relu(norm(conv(x))), as one operator if `fused` and the modules allow it."""
    if fused and can_fuse(conv, norm, relu):
        return functional.conv_bn_act(
            x, conv.weight, BatchNormState.of(norm), **geometry(conv), relu=True
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
            **geometry(conv),
            relu=True,
        )
    out = norm(conv(out))
    identity = x if shortcut is None else shortcut(x)
    # a fused network comes here because of a hook or a foreign module, which may hold on to its
    # output: adding in place would then be an error in backward
    out = out + identity if fused else out.add_(identity)
    return relu(out)


def pool_obstacle(name: str, pool: nn.Module) -> str | None:
    """Why `pool` is not an untouched `nn.MaxPool2d` that a fused operator can stand for."""
    found = module_obstacle(name, pool, nn.MaxPool2d)
    if found is not None:
        return found
    if pool.dilation != 1 or pool.ceil_mode or pool.return_indices:
        return f"{name} has a dilation, ceil_mode or return_indices"
    return None


def max_pool(x: Tensor, pool: nn.Module, *, fused: bool) -> Tensor:
    """pool(x), through the fused allocator if `fused` and `pool` is an ordinary `nn.MaxPool2d`."""
    if fused and pool_obstacle("", pool) is None and obstacle_around() is None:
        return functional.max_pool2d(x, pool.kernel_size, pool.stride, pool.padding)
    return pool(x)


def stem_obstacle(conv: nn.Module, norm: nn.Module, relu: nn.Module, pool: nn.Module) -> str | None:
    """Why pool(relu(norm(conv(x)))) does not run as one step; None if it does."""
    return (
        obstacle_around()
        or convolution_obstacle("conv1", conv)
        or module_obstacle("bn1", norm, *NORMS)
        or module_obstacle("relu", relu, nn.ReLU)
        or pool_obstacle("maxpool", pool)
    )


def stem(
    x: Tensor, conv: nn.Module, norm: nn.Module, relu: nn.Module, pool: nn.Module, *, fused: bool
) -> Tensor:
    """pool(relu(norm(conv(x)))), as one step if `fused` and the modules allow it."""
    if not fused or stem_obstacle(conv, norm, relu, pool) is not None:
        return max_pool(conv_norm_act(x, conv, norm, relu, fused=fused), pool, fused=fused)
    return functional.conv_bn_max_pool(
        x,
        conv.weight,
        BatchNormState.of(norm),
        **geometry(conv),
        pool_kernel=pool.kernel_size,
        pool_stride=pool.stride,
        pool_padding=pool.padding,
    )


def geometry(conv: nn.Module) -> dict[str, Any]:
    """Stride, padding, dilation and groups of a convolution, as arguments by name."""
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
        if is_plain_convolution(conv) and is_plain(norm, *NORMS):
            projected = functional.conv2d(x, conv.weight, **geometry(conv))
            return {"shortcut": projected, "shortcut_bn": BatchNormState.of(norm)}
    return {"shortcut": shortcut(x)}
