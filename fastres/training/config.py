"""What a training run is made of: its options, the paper's defaults per dataset, the checks."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from fastres.training.errors import UsageError

AMP_MODES = ("none", "bf16", "fp16")
SCHEDULES = ("step", "plateau")

# section 4.2 of the paper for CIFAR-10, section 3.4 for ImageNet; digits is tuned for the demo
_DEFAULTS: dict[str, dict[str, Any]] = {
    "digits": {"model": "resnet20", "epochs": 20, "batch_size": 64, "milestones": (12, 17)},
    "cifar10": {
        "model": "resnet20",
        "iterations": 64_000,
        "batch_size": 128,
        "milestones": (32_000, 48_000),
        "validation": 5_000,
    },
    "imagefolder": {
        "model": "resnet50",
        "iterations": 600_000,
        "batch_size": 256,
        "schedule": "plateau",
        "image_size": 224,
    },
    "synthetic": {"model": "resnet20", "epochs": 4, "batch_size": 32, "milestones": (3,)},
    "procedural": {
        "model": "resnet20",
        "iterations": 6_000,
        "batch_size": 128,
        "milestones": (3_000, 4_500),
        "num_images": 20_000,
    },
}
DATASETS = tuple(_DEFAULTS)

# options that only some datasets look at
_ONLY_FOR = {
    "data_dir": ("cifar10", "imagefolder"),
    "validation": ("cifar10",),
    "image_size": ("imagefolder", "synthetic"),
    "num_images": ("synthetic", "procedural"),
    "data_seed": ("procedural",),
}

# they decide which images a step sees: a resumed run with others would not be the same run
_FIXED_ON_RESUME = (
    "data", "seed", "batch_size", "validation", "image_size", "num_images", "data_seed",
)  # fmt: skip


@dataclass(frozen=True)
class TrainConfig:
    """Options of one run. `batch_size` counts the images of one step over all processes together.

    The length is `epochs` or `iterations`, whichever is not None; `milestones` are in its unit.
    """

    data: str
    model: str
    batch_size: int
    epochs: int | None = None
    iterations: int | None = None
    data_dir: str | None = None
    out: str = "out/train"
    fused: bool = True
    shortcut: str | None = None
    variant: str | None = None
    image_size: int = 32
    num_images: int = 512
    data_seed: int = 0
    validation: int = 0
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = "step"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    patience: int = 5
    warmup_iterations: int = 0
    warmup_lr: float | None = None
    amp: str = "none"
    channels_last: bool = True
    cuda_graph: bool = False
    device: str = "auto"
    sync_bn: bool = False
    deterministic: bool = False
    seed: int = 0
    workers: int = 0
    save_every: int = 0
    log_every: int = 10
    tensorboard: bool = False
    timeout: float = 600.0

    @classmethod
    def build(cls, data: str, **given: Any) -> TrainConfig:
        """The dataset's defaults under the options given; None stands for "not given".

        Raises UsageError naming the option, what was expected and what came.
        """
        if data not in _DEFAULTS:
            raise UsageError(f"data must be one of {', '.join(DATASETS)}, got {data!r}")
        chosen = {name: value for name, value in given.items() if value is not None}
        for name, datasets in _ONLY_FOR.items():
            if name in chosen and data not in datasets:
                raise UsageError(f"{name} is for {' and '.join(datasets)} only, data is {data!r}")
        if chosen.get("schedule") == "plateau" and "milestones" in chosen:
            raise UsageError("milestones are for the step schedule, schedule is 'plateau'")
        values = dict(_DEFAULTS[data])
        if "epochs" in chosen and "iterations" in chosen:
            raise UsageError("give epochs or iterations, not both")
        if "epochs" in chosen or "iterations" in chosen:
            values.pop("epochs", None)
            values.pop("iterations", None)
            # milestones of another length mean nothing
            values.pop("milestones", None)
        values.update(chosen)
        # section 4.2: depth 110 does not start at 0.1; about 400 iterations at a tenth
        if values["model"] in ("resnet110", "resnet1202") and "warmup_iterations" not in chosen:
            values["warmup_iterations"] = 400
        config = cls(data=data, **values)
        config.check()
        return config

    def check(self) -> None:
        """Raises UsageError for the first option out of its range."""
        for name in ("batch_size", "image_size", "num_images", "log_every", "patience"):
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("epochs", "iterations"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, "at least 1", value)
        for name in (
            "validation",
            "warmup_iterations",
            "workers",
            "save_every",
            "seed",
            "data_seed",
        ):
            _require(getattr(self, name) >= 0, name, "0 or more", getattr(self, name))
        for name in ("lr", "gamma", "timeout"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value > 0, name, "a number above 0", value)
        for name in ("momentum", "weight_decay"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value >= 0, name, "0 or more", value)
        _require(self.seed < 2**32, "seed", "below 2**32", self.seed)
        _require(self.momentum < 1, "momentum", "below 1", self.momentum)
        _require(
            self.warmup_lr is None or (math.isfinite(self.warmup_lr) and self.warmup_lr > 0),
            "warmup_lr",
            "a number above 0",
            self.warmup_lr,
        )
        _require(self.amp in AMP_MODES, "amp", f"one of {', '.join(AMP_MODES)}", self.amp)
        _require(
            self.schedule in SCHEDULES, "schedule", f"one of {', '.join(SCHEDULES)}", self.schedule
        )
        rising = all(a < b for a, b in zip((0, *self.milestones), self.milestones, strict=False))
        _require(rising, "milestones", "rising numbers above 0", self.milestones)

    def as_dict(self) -> dict[str, Any]:
        """Plain values only, so that a checkpoint of them loads with weights_only=True."""
        values = asdict(self)
        values["milestones"] = list(self.milestones)
        return values

    def compare(self, saved: dict[str, Any]) -> tuple[list[str], list[str]]:
        """Differences from a checkpoint's options as (forbidden, allowed), in words."""
        forbidden, allowed = [], []
        now = self.as_dict()
        for field in fields(self):
            name = field.name
            if name not in saved or saved[name] == now[name]:
                continue
            words = f"{name} was {saved[name]!r}, now {now[name]!r}"
            (forbidden if name in _FIXED_ON_RESUME else allowed).append(words)
        return forbidden, allowed


def _require(holds: bool, name: str, expected: str, got: object) -> None:
    if not holds:
        raise UsageError(f"{name} must be {expected}, got {got!r}")
