"""ResNet v1 with fused convolution + BN + ReLU and residual add + ReLU, for training."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ._imports import is_command
from .version import __version__ as __version__

if TYPE_CHECKING or not is_command():
    from ._public import *  # noqa: F403
    from ._public import __all__ as __all__
else:
    # a command imports what it needs, and `fastres run` not even torch before the script does

    def __getattr__(name: str) -> Any:
        missing = AttributeError(f"module {__name__!r} has no attribute {name!r}")
        private = name.startswith("_") and name != "__all__"
        # `from fastres import layers` asks here first; explain is a function as well as a module
        if private or (name != "explain" and find_spec(f"{__name__}.{name}") is not None):
            raise missing
        from . import _public

        names = _public.__all__
        globals().update({known: getattr(_public, known) for known in names}, __all__=names)
        if name not in globals():
            raise missing
        return globals()[name]
