"""`import fastres.auto`: torchvision's and timm's ResNets are fused as they are constructed."""

from .interop.construction import install

install()
