"""Small networks, folders of images and checkpoints for the tests of `fastres eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastres import cli, models
from fastres.training import checkpoint

CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox")
CROP = 16
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def make_folder(root: Path, side: str = "val", images: int = 2) -> Path:
    """Noise images of several sizes in six classes: ROOT/SIDE/<class>/<number>.png."""
    from PIL import Image

    generator = np.random.default_rng(len(side))
    for label, name in enumerate(CLASSES):
        (root / side / name).mkdir(parents=True)
        for number in range(images):
            shape = (20 + 4 * (label % 3), 22 + 6 * number, 3)
            pixels = generator.integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(root / side / name / f"{number}.png")
    return root


def network(name: str = "resnet20", classes: int = len(CLASSES), seed: int = 0) -> nn.Module:
    """A network whose outputs differ from image to image, in eval mode: its BN has seen some."""
    torch.manual_seed(seed)
    model = models.create(name, num_classes=classes)
    with torch.no_grad():
        model.fc.weight.mul_(4)
        model.train()(torch.randn(8, 3, CROP, CROP))
    return model.eval()


def save_checkpoint(path: Path, model: nn.Module, **changes: Any) -> Path:
    """What `fastres train --data imagefolder` writes, as far as a test reads it."""
    config = {
        "data": "imagefolder", "data_dir": None, "model": "resnet20", "image_size": CROP,
        "shortcut": None, "variant": None, "seed": 0,
    }  # fmt: skip
    state = {key: {} for key in ("optimizer", "schedule", "scaler", "progress", "rng", "logs")}
    state |= {"model": model.state_dict(), "config": {**config, **changes.pop("config", {})}}
    checkpoint.save(path, {**state, **changes})
    return path


def evaluate(folder: Path, *arguments: str | Path) -> dict[str, Any]:
    """Runs `fastres eval` in plain PyTorch on the CPU; the content of its result.json."""
    out = folder / "out"
    words = [str(word) for word in arguments]
    options = ["--no-fused", "--device", "cpu", "--out", str(out)]
    assert cli.main(["eval", *options, *words]) == 0
    return json.loads((out / "result.json").read_text())


def prepared(view: Tensor, mean: Any = MEAN, std: Any = STD) -> Tensor:
    """Bytes [C, H, W] as the networks here were trained on them: [1, C, H, W]."""
    from torchvision.transforms.v2 import functional

    return functional.normalize(view.float() / 255, list(mean), list(std))[None]
