"""One backend for the forward and the backward pass of a step.

On a GPU autograd runs the backward pass on a thread of its own, where a `with fastres.backend(...)`
of the calling thread is not in force.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from .. import backends
from .._checks import uncast


def hold_backend(ctx: Any) -> None:
    """Remember on `ctx` which backend is forced, if any. `same_backend` wraps the backward."""
    # statistics have no gradients, and zeros in their place would be launches
    ctx.set_materialize_grads(False)
    # a compiled graph calls opaque operators, which choose when they run
    ctx.forced_backend = None if torch.compiler.is_compiling() else backends.forced()


def same_backend(backward: Callable) -> Callable:
    """A backward under its forward's backend, without autocast; no gradient in, none out."""

    @wraps(backward)
    def held(ctx, *gradients):
        if gradients[0] is None:
            return (None,) * len(ctx.needs_input_grad)
        with uncast(gradients[0].device.type):
            if ctx.forced_backend is None:
                return backward(ctx, *gradients)
            with backends.holding(ctx.forced_backend):
                return backward(ctx, *gradients)

    return held
