"""The launch operators as C++ kernels on the CPU, around oneDNN's convolutions (csrc/cpu).

Takes float32 and bfloat16. Signatures are those of `ops.SCHEMAS`.
"""

from __future__ import annotations

import torch

from .. import extension
from . import reference

_DTYPES = (torch.float32, torch.bfloat16)
# inference's convolution, for which `fastres.inference` prepares oneDNN's
_REFERENCES = frozenset({"conv_bias_act"})


def usable(device: torch.device, dtype: torch.dtype) -> str | None:
    """None if the C++ kernels serve this device and dtype, else the reason why not."""
    if device.type != "cpu":
        return f"the native backend runs on cpu, got a tensor on {device.type}"
    if dtype not in _DTYPES:
        return f"the native backend takes float32 and bfloat16, got {dtype}"
    return extension.unavailable_reason()


def release_memory() -> None:
    """Give the memory that the CPU operators keep for their next tensors back to the system."""
    if extension.load():
        torch.ops.fastres_native.pool_release()


def __getattr__(name: str):
    """The operator of the extension, looked up once it is loaded, or the reference's."""
    from .ops import SCHEMAS

    if name not in SCHEMAS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _REFERENCES:
        operator = getattr(reference, name)
    else:
        extension.load()
        operator = getattr(torch.ops.fastres_native, name).default
    globals()[name] = operator
    return operator
