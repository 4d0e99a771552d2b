"""What goes on around a forward pass, and asks for modules that are called as they stand."""

from __future__ import annotations

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.fx import Proxy
from torch.nn.modules.module import _has_any_global_hook


def obstacle_around() -> str | None:
    """Why every module is called as it stands at present, whatever it is; None: none need be.

    Global hooks are to see every call. torch.export, with it torch.onnx.export, and torch.jit.trace
    write down a graph of PyTorch's own operators, which runs where fastres is not installed. The
    transforms of torch.func and forward-mode derivatives have rules for those operators only.
    """
    if _has_any_global_hook():
        return "a global module hook is registered"
    # not is_exporting(): in torch 2.11 Dynamo takes it for True under torch.compile as well
    if torch.compiler._is_exporting_flag:
        return "torch.export follows the forward"
    if torch.jit.is_tracing():
        return "torch.jit.trace follows the forward"
    if torch._C._are_functorch_transforms_active():
        return "torch.func transforms the forward"
    if forward_ad._current_level >= 0:
        return "forward-mode derivatives are taken"
    return None


def as_node(module: nn.Module, x: Proxy) -> Proxy | None:
    """`module` as one node of a graph being traced by torch.fx; None: it is the root of the trace.

    The node calls the module, which asks for its mode, and updates statistics, when the graph runs.
    """
    if module is x.tracer.root:
        return None
    return x.tracer.create_proxy("call_module", x.tracer.path_of_module(module), (x,), {})
