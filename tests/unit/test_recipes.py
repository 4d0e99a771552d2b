"""The named recipes: the paper's constants, complete, with sources, and overridden by options."""

from __future__ import annotations

from dataclasses import fields

import pytest

from fastres import cli
from fastres.training import recipes
from fastres.training.config import DATASETS, TrainConfig
from fastres.training.errors import UsageError
from fastres.training.recipes.command import option_of

# how a run is done, not what it computes: no recipe's matter
MECHANICAL = {
    "recipe", "data_dir", "statistics", "out", "fused", "amp", "channels_last", "cuda_graph",
    "device", "sync_bn", "deterministic", "seed", "workers", "save_every", "log_every",
    "tensorboard", "timeout", "skip_broken",
}  # fmt: skip
# they have no meaning beside what a recipe does set, or belong to the network
ELSEWHERE = {
    "epochs", "iterations", "milestones", "gamma", "patience", "warmup", "warmup_iterations",
    "warmup_epochs", "warmup_error", "warmup_lr", "ema_every", "shortcut", "variant", "color_std",
    "shorter_side", "num_images", "data_seed", "image_size", "validation", "padding", "flip",
    "mean", "color", "crop",
}  # fmt: skip


@pytest.mark.parametrize("name", recipes.NAMES)
def test_a_recipe_is_a_run_and_every_constant_has_a_source(name):
    recipe = recipes.get(name)
    config = TrainConfig.build(recipe=name)
    for option, (value, source) in recipe.constants.items():
        assert getattr(config, option) == value, option
        assert len(source) > 3, option
    assert recipe.summary
    assert config.recipe == name
    with_meaning = {field.name for field in fields(TrainConfig)} - MECHANICAL - ELSEWHERE
    missing = with_meaning - set(recipe.constants)
    if name == "digits":  # the demo's: what it leaves out is off
        missing -= {"lr_batch", "norm_decay", "label_smoothing", "ema_decay"}
    assert missing == set()


def test_the_papers_imagenet_recipe():
    values = recipes.get("imagenet").values()
    assert (values["batch_size"], values["lr"], values["iterations"]) == (256, 0.1, 600_000)
    assert (values["momentum"], values["weight_decay"]) == (0.9, 1e-4)
    assert (values["schedule"], values["gamma"]) == ("plateau", 0.1)
    assert (values["image_size"], values["shorter_side"]) == (224, (256, 480))
    assert (values["mean"], values["color"], values["color_std"]) == ("pixel", "alexnet", 0.1)
    assert values["flip"] is True


def test_the_papers_cifar_recipe_is_the_datasets_default():
    values = recipes.get("cifar10").values()
    assert (values["batch_size"], values["lr"], values["iterations"]) == (128, 0.1, 64_000)
    assert (values["milestones"], values["gamma"]) == ((32_000, 48_000), 0.1)
    assert (values["padding"], values["flip"], values["validation"]) == (4, True, 5_000)
    assert (values["momentum"], values["weight_decay"], values["mean"]) == (0.9, 1e-4, "pixel")
    one, other = (TrainConfig.build(**given).as_dict() for given in (
        {"recipe": "cifar10"}, {"data": "cifar10"},
    ))  # fmt: skip
    assert {**one, "recipe": None} == other


def test_depth_110_warms_up_until_the_error_is_below_80_percent():
    config = TrainConfig.build(recipe="cifar10", model="resnet110")
    assert (config.warmup_error, config.warmup_iterations, config.warmup_lr) == (80.0, 0, None)
    assert TrainConfig.build(recipe="cifar10", model="resnet56").warmup_error is None
    off = TrainConfig.build(recipe="cifar10", model="resnet110", warmup_iterations=0)
    assert off.warmup_error is None
    other = TrainConfig.build(recipe="cifar10", model="resnet110", warmup_epochs=2)
    assert (other.warmup_error, other.warmup_epochs) == (None, 2)


def test_options_override_a_recipe():
    config = TrainConfig.build(
        recipe="modern", lr=0.2, epochs=30, norm_decay=True, model="resnet18"
    )
    assert (config.lr, config.epochs, config.norm_decay) == (0.2, 30, True)
    assert (config.schedule, config.label_smoothing, config.model) == ("cosine", 0.1, "resnet18")
    stepped = TrainConfig.build(recipe="modern", schedule="step", milestones=(30, 60))
    assert (stepped.milestones, stepped.epochs) == ((30, 60), 120)
    shorter = TrainConfig.build(recipe="cifar10", iterations=100)
    assert (shorter.iterations, shorter.milestones) == (100, ())


def test_a_recipe_on_other_data_takes_what_that_looks_at():
    config = TrainConfig.build("synthetic", recipe="cifar10")
    assert (config.data, config.iterations, config.validation) == ("synthetic", 64_000, 0)
    assert TrainConfig.build("webdataset", recipe="imagenet").shorter_side == (256, 480)


def test_the_rate_grows_with_the_batch():
    config = TrainConfig.build(recipe="modern", batch_size=1024)
    assert config.scaled_lr == pytest.approx(0.4)
    assert TrainConfig.build(recipe="imagenet", batch_size=1024).scaled_lr == 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "best"}, "recipe must be one of imagenet, cifar10, modern, digits, got 'best'"),
        ({}, "give data or recipe"),
        ({"recipe": "modern", "epochs": 5}, "warmup_epochs must be below epochs, 5, got 5"),
        ({"recipe": "imagenet", "shorter_side": (480, 256)}, "shorter_side must be two numbers"),
        ({"recipe": "imagenet", "shorter_side": (100, 300)}, "shorter_side must be at least image"),
        ({"recipe": "cifar10", "shorter_side": (256, 480)}, "shorter_side is for imagefolder and"),
        ({"recipe": "imagenet", "mean": "none"}, "mean must be one of pixel, channel, got 'none'"),
    ],
)
def test_what_does_not_fit_is_named(options, message):
    with pytest.raises(UsageError, match=message):
        TrainConfig.build(**options)


def test_datasets_without_a_computed_mean_still_start():
    config = TrainConfig.build("imagefolder")
    assert (config.mean, config.color, config.iterations) == ("channel", "none", 600_000)
    assert {"imagefolder", "webdataset", "cifar10"} <= set(DATASETS)


def test_recipes_are_listed_and_printed(capsys):
    assert cli.main(["recipes"]) == 0
    out = capsys.readouterr().out
    assert all(f"{name} " in out for name in recipes.NAMES)
    for name in recipes.NAMES:
        assert cli.main(["recipes", name]) == 0
        out = capsys.readouterr().out
        assert all(f"{option_of(option)} " in out for option in recipes.get(name).constants)
        assert all(len(line) <= 100 for line in out.splitlines())
    assert "section 3.4" in out or "section 4.2" in out
    assert cli.main(["recipes", "best"]) == 2
    assert "recipe must be one of" in capsys.readouterr().err


def test_every_printed_option_is_one_of_the_command(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    known = capsys.readouterr().out
    for name in recipes.NAMES:
        for option in recipes.get(name).constants:
            assert option_of(option) in known


def test_train_asks_for_data_or_recipe(capsys):
    assert cli.main(["train"]) == 2
    assert "give data or recipe" in capsys.readouterr().err
