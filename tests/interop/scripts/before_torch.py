# ruff: noqa: E402
"""Sets what torch reads as it is imported; says what was there, and what fastres has to offer."""

import json
import os
import sys

before = "torch" in sys.modules
os.environ["OMP_NUM_THREADS"] = "1"

import fastres

light = "torch" not in sys.modules

import torch
import torchvision

from fastres import *  # noqa: F403
from fastres import layers

block = torchvision.models.resnet18().layer1[0]
said = {
    "before": before,
    "light": light,
    "threads": torch.get_num_threads(),
    "fused": isinstance(block, layers.Block),
    "names": sorted(fastres.__all__),
    "callable": all(callable(getattr(fastres, name)) for name in ("explain", "fuse", "resnet18")),
    "star": "resnet18" in globals(),
    "nonsense": hasattr(fastres, "nonsense"),
}
print(json.dumps(said))
