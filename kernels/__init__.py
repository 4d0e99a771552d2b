"""Triton kernels and their launchers. Importing this package does not import Triton."""
