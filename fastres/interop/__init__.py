"""Other libraries' networks, run by fastres's operators."""

from .fuse import Left, fuse, left_alone, register_timm, unfuse

__all__ = ["Left", "fuse", "left_alone", "register_timm", "unfuse"]
