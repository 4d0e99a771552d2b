"""Trained networks for inference: BN folded into the convolutions, the rest in their epilogues."""

from .optimize import Difference, Optimized, optimize

__all__ = ["Difference", "Optimized", "optimize"]
