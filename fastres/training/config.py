"""What a training run is made of: its options, the paper's defaults per dataset, the checks."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from fastres.training import recipes
from fastres.training.errors import UsageError
from fastres.training.recipes import cifar10

AMP_MODES = ("none", "bf16", "fp16")
SCHEDULES = ("step", "plateau", "cosine")
WARMUPS = ("constant", "linear")
MEANS = ("pixel", "channel")
COLORS = ("none", "alexnet", "data")
CROPS = ("side", "area")

# a file for each that is a recipe: its constants with their sections of the paper
_DEFAULTS: dict[str, dict[str, Any]] = {
    "digits": recipes.get("digits").values(),
    "cifar10": recipes.get("cifar10").values(),
    # without what must be computed from the images first
    "imagefolder": {**recipes.get("imagenet").values(), "mean": "channel", "color": "none"},
    "synthetic": {"model": "resnet20", "epochs": 4, "batch_size": 32, "milestones": (3,)},
    "procedural": {
        "model": "resnet20",
        "iterations": 6_000,
        "batch_size": 128,
        "milestones": (3_000, 4_500),
        "num_images": 20_000,
    },
}
_DEFAULTS["imagefolder"]["shorter_side"] = ()  # in proportion to image_size
_DEFAULTS["webdataset"] = dict(_DEFAULTS["imagefolder"])
DATASETS = tuple(_DEFAULTS)

_FILES = ("imagefolder", "webdataset")

# options that only some datasets look at
_ONLY_FOR = {
    "data_dir": ("cifar10", *_FILES),
    "validation": ("cifar10",),
    "image_size": (*_FILES, "synthetic"),
    "num_images": ("synthetic", "procedural"),
    "data_seed": ("procedural",),
    "padding": ("cifar10",),
    "flip": ("cifar10", *_FILES),
    "mean": ("cifar10", *_FILES),
    "statistics": _FILES,
    "color": _FILES,
    "color_std": _FILES,
    "crop": _FILES,
    "shorter_side": _FILES,
    "skip_broken": _FILES,
}

# they decide which images a step sees and what of them, or how many tensors a checkpoint holds: a
# resumed run with others would not be the same run
_FIXED_ON_RESUME = (
    "data", "seed", "batch_size", "validation", "image_size", "num_images", "data_seed", "padding",
    "flip", "mean", "color", "color_std", "crop", "shorter_side", "norm_decay",
)  # fmt: skip


@dataclass(frozen=True)
class TrainConfig:
    """Options of one run. `batch_size` counts the images of one step over all processes together.

    The length is `epochs` or `iterations`, whichever is not None; `milestones` are in its unit.
    What the warm-up lasts is one of `warmup_iterations`, `warmup_epochs` and `warmup_error` (until
    the training error, in percent, is below it).
    """

    data: str
    model: str
    batch_size: int
    epochs: int | None = None
    iterations: int | None = None
    recipe: str | None = None
    data_dir: str | None = None
    out: str = "out/train"
    fused: bool = True
    shortcut: str | None = None
    variant: str | None = None
    image_size: int = 32
    num_images: int = 512
    data_seed: int = 0
    validation: int = 0
    padding: int = 4
    flip: bool = True
    mean: str = "channel"
    statistics: str | None = None
    color: str = "none"
    color_std: float = 0.1
    crop: str = "side"
    shorter_side: tuple[int, ...] = ()
    skip_broken: bool = False
    lr: float = 0.1
    lr_batch: int | None = None
    momentum: float = 0.9
    weight_decay: float = 1e-4
    norm_decay: bool = True
    label_smoothing: float = 0.0
    ema_decay: float = 0.0
    ema_every: int = 1
    schedule: str = "step"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    patience: int = 5
    warmup: str = "constant"
    warmup_iterations: int = 0
    warmup_epochs: int = 0
    warmup_error: float | None = None
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
    def build(cls, data: str | None = None, **given: Any) -> TrainConfig:
        """The recipe's or the dataset's defaults under the options given.

        None stands for "not given". Of a recipe for another dataset, what `data` looks at is taken.
        Raises UsageError naming the option, what was expected and what came.
        """
        chosen = {name: value for name, value in given.items() if value is not None}
        recipe = recipes.get(chosen["recipe"]).values() if "recipe" in chosen else None
        if data is None:
            if recipe is None:
                raise UsageError("give data or recipe")
            data = recipe["data"]
        if data not in _DEFAULTS:
            raise UsageError(f"data must be one of {', '.join(DATASETS)}, got {data!r}")
        for name, datasets in _ONLY_FOR.items():
            if name in chosen and data not in datasets:
                raise UsageError(f"{name} is for {' and '.join(datasets)} only, data is {data!r}")
        defaults = _DEFAULTS[data] if recipe is None else recipe
        values = {
            name: value
            for name, value in defaults.items()
            if name != "data" and data in _ONLY_FOR.get(name, (data,))
        }
        schedule = chosen.get("schedule", values.get("schedule", "step"))
        if schedule != "step":
            if "milestones" in chosen:
                raise UsageError(f"milestones are for the step schedule, schedule is {schedule!r}")
            values.pop("milestones", None)
        if "epochs" in chosen and "iterations" in chosen:
            raise UsageError("give epochs or iterations, not both")
        if "epochs" in chosen or "iterations" in chosen:
            values.pop("epochs", None)
            values.pop("iterations", None)
            # milestones of another length mean nothing
            values.pop("milestones", None)
        _settle_warm_up(values, chosen)
        values.update(chosen)
        config = cls(data=data, **values)
        config.check()
        return config

    @property
    def scaled_lr(self) -> float:
        """The rate a run starts from: lr, in proportion to the batch if it is for `lr_batch`."""
        return self.lr if self.lr_batch is None else self.lr * self.batch_size / self.lr_batch

    def check(self) -> None:
        """Raises UsageError for the first option out of its range."""
        for name in (
            "batch_size", "image_size", "num_images", "log_every", "patience", "ema_every",
        ):  # fmt: skip
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("epochs", "iterations", "lr_batch"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, "at least 1", value)
        for name in (
            "validation",
            "warmup_iterations",
            "warmup_epochs",
            "padding",
            "workers",
            "save_every",
            "seed",
            "data_seed",
        ):
            _require(getattr(self, name) >= 0, name, "0 or more", getattr(self, name))
        for name in ("lr", "gamma", "timeout"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value > 0, name, "a number above 0", value)
        for name in ("momentum", "weight_decay", "color_std"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value >= 0, name, "0 or more", value)
        _require(self.seed < 2**32, "seed", "below 2**32", self.seed)
        _require(self.momentum < 1, "momentum", "below 1", self.momentum)
        for name in ("label_smoothing", "ema_decay"):
            value = getattr(self, name)
            _require(0 <= value < 1, name, "0 or more and below 1", value)
        _require(
            self.warmup_lr is None or (math.isfinite(self.warmup_lr) and self.warmup_lr > 0),
            "warmup_lr",
            "a number above 0",
            self.warmup_lr,
        )
        _require(
            self.warmup_error is None or 0 < self.warmup_error <= 100,
            "warmup_error",
            "a percentage above 0",
            self.warmup_error,
        )
        for name, choices in (
            ("amp", AMP_MODES), ("schedule", SCHEDULES), ("warmup", WARMUPS), ("mean", MEANS),
            ("color", COLORS), ("crop", CROPS),
        ):  # fmt: skip
            value = getattr(self, name)
            _require(value in choices, name, f"one of {', '.join(choices)}", value)
        lengths = ("warmup_iterations", "warmup_epochs", "warmup_error")
        several = [name for name in lengths if getattr(self, name)]
        if len(several) > 1:
            raise UsageError(f"give {' or '.join(several)}, not both")
        if self.warmup_error is not None and self.warmup == "linear":
            raise UsageError("warmup_error has no length: it needs the constant warmup, not linear")
        _require(
            self.epochs is None or self.warmup_epochs < self.epochs,
            "warmup_epochs",
            f"below epochs, {self.epochs}",
            self.warmup_epochs,
        )
        side = self.shorter_side
        _require(
            len(side) in (0, 2) and list(side) == sorted(side) and all(n >= 1 for n in side),
            "shorter_side",
            "two numbers, the smaller first",
            side,
        )
        _require(
            not side or side[0] >= self.image_size,
            "shorter_side",
            f"at least image_size, {self.image_size}",
            side,
        )
        rising = all(a < b for a, b in zip((0, *self.milestones), self.milestones, strict=False))
        _require(rising, "milestones", "rising numbers above 0", self.milestones)

    def as_dict(self) -> dict[str, Any]:
        """Plain values only, so that a checkpoint of them loads with weights_only=True."""
        values = asdict(self)
        values["milestones"] = list(self.milestones)
        values["shorter_side"] = list(self.shorter_side)
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


def _settle_warm_up(values: dict[str, Any], chosen: dict[str, Any]) -> None:
    """Depths that do not start at 0.1 warm up (section 4.2), and a length given replaces another.

    Zero iterations given mean no warm-up.
    """
    lengths = ("warmup_iterations", "warmup_epochs", "warmup_error")
    if any(name in chosen for name in lengths):
        for name in lengths:
            values.pop(name, None)
        return
    deep = chosen.get("model", values["model"]) in cifar10.DEEP
    if deep and not any(values.get(name) for name in lengths):
        values.update({name: value for name, (value, _) in cifar10.WARM_UP.items()})


def _require(holds: bool, name: str, expected: str, got: object) -> None:
    if not holds:
        raise UsageError(f"{name} must be {expected}, got {got!r}")
