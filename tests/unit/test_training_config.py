"""Options of a run: defaults, ranges, and what a resumed run may change."""

from __future__ import annotations

import pytest

from fastres.training.config import DATASETS, TrainConfig
from fastres.training.errors import UsageError


@pytest.mark.parametrize("data", DATASETS)
def test_defaults_of_every_dataset_are_valid(data):
    config = TrainConfig.build(data)
    assert (config.momentum, config.weight_decay, config.lr) == (0.9, 1e-4, 0.1)


def test_cifar_defaults_are_the_papers():
    config = TrainConfig.build("cifar10")
    assert (config.batch_size, config.iterations, config.milestones) == (
        128, 64_000, (32_000, 48_000),
    )  # fmt: skip
    assert config.validation == 5_000
    assert TrainConfig.build("cifar10", model="resnet110").warmup_error == 80


def test_another_length_drops_the_default_milestones():
    config = TrainConfig.build("cifar10", epochs=3)
    assert (config.epochs, config.iterations, config.milestones) == (3, None, ())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"lr": 0.0}, "lr must be a number above 0, got 0.0"),
        ({"lr": float("nan")}, "lr must be a number above 0, got nan"),
        ({"momentum": 1.0}, "momentum must be below 1, got 1.0"),
        ({"amp": "fp8"}, "amp must be one of none, bf16, fp16, got 'fp8'"),
        ({"schedule": "linear"}, "schedule must be one of step, plateau, cosine, got 'linear'"),
        ({"schedule": "cosine", "milestones": (3,)}, "milestones are for the step schedule"),
        ({"label_smoothing": 1.0}, "label_smoothing must be 0 or more and below 1, got 1.0"),
        ({"ema_decay": -0.1}, "ema_decay must be 0 or more and below 1, got -0.1"),
        ({"lr_batch": 0}, "lr_batch must be at least 1, got 0"),
        ({"warmup": "slow"}, "warmup must be one of constant, linear, got 'slow'"),
        ({"warmup_epochs": 1, "warmup_iterations": 2}, "give warmup_iterations or warmup_epochs"),
        ({"warmup_error": 80.0, "warmup": "linear"}, "warmup_error has no length"),
        ({"warmup_error": 0.0}, "warmup_error must be a percentage above 0, got 0.0"),
        ({"color": "data"}, "color is for imagefolder and webdataset only, data is 'synthetic'"),
        ({"milestones": (5, 5)}, "milestones must be rising numbers above 0, got"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        (
            {"data_dir": "x"},
            "data_dir is for cifar10 and imagefolder and webdataset only, data is 'synthetic'",
        ),
        ({"validation": 3}, "validation is for cifar10 only, data is 'synthetic'"),
        ({"schedule": "plateau", "milestones": (3,)}, "milestones are for the step schedule"),
        ({"epochs": 1, "iterations": 1}, "give epochs or iterations, not both"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        TrainConfig.build("synthetic", **options)


def test_unknown_dataset():
    with pytest.raises(UsageError, match=r"data must be one of digits, .* got 'mnist'"):
        TrainConfig.build("mnist")


def test_compare_tells_forbidden_from_allowed_changes():
    saved = TrainConfig.build("synthetic").as_dict()
    now = TrainConfig.build("synthetic", batch_size=8, lr=0.01)
    assert now.compare(saved) == (["batch_size was 32, now 8"], ["lr was 0.1, now 0.01"])
