"""Layer responses: how far each 3x3 layer's output spreads (figure 7 of the paper)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastres import models
from fastres.experiments.one_run import config_of
from fastres.layers import Block
from fastres.training import checkpoint
from fastres.training.config import TrainConfig
from fastres.training.data import open_source
from fastres.training.data.source import Batch, Split
from fastres.training.errors import CheckpointError, UsageError

COLUMNS = ("checkpoint", "network", "layer", "name", "std")
_BATCH = 50


@dataclass(frozen=True)
class Response:
    """A BN's name in the network, and the standard deviation of all its outputs together."""

    name: str
    std: float


@torch.no_grad()
def layer_responses(model: nn.Module, batches: Iterable[Tensor]) -> list[Response]:
    """The spread of every 3x3 layer's response over batches of images, in the network's order.

    A response is the output of the BN after a 3x3 convolution, before the ReLU and the addition;
    its standard deviation is the biased one, over images, channels and positions, summed in fp64.
    The model runs in eval mode, as modules rather than fused operators where it is fused, and is
    left in the mode it was in. Raises UsageError if the model has no such layer.
    """
    layers = normalised_3x3(model)
    if not layers:
        raise UsageError(f"model must have BNs after 3x3 convolutions, got {type(model).__name__}")
    # count, mean and sum of squared differences, merged batch by batch (Chan's formula)
    moments = dict.fromkeys(layers, (0, 0.0, 0.0))
    training = model.training
    model.eval()
    try:
        with _watching(layers, moments):
            for images in batches:
                model(images)
    finally:
        model.train(training)
    if not all(count for count, _, _ in moments.values()):
        raise UsageError("batches must hold at least one image, got none")
    return [Response(name, (m2 / count) ** 0.5) for name, (count, _, m2) in moments.items()]


def normalised_3x3(model: nn.Module) -> dict[str, nn.Module]:
    """The BN after each 3x3 convolution of a network by its name, in the network's order."""
    found = {}
    modules = dict(model.named_modules())
    pairs = [("conv1", "bn1")]
    for name, module in modules.items():
        if isinstance(module, Block):
            pairs += [(f"{name}.{conv}", f"{name}.{norm}") for conv, norm, _ in module.layer_names]
    for conv, norm in pairs:
        if getattr(modules.get(conv), "kernel_size", None) == (3, 3) and norm in modules:
            found[norm] = modules[norm]
    return found


@contextmanager
def _watching(
    layers: dict[str, nn.Module], moments: dict[str, tuple[int, float, float]]
) -> Iterator[None]:
    def watch(name: str) -> Any:
        def take(module: nn.Module, inputs: Any, output: Tensor) -> None:
            # now: an in-place ReLU is about to overwrite it
            values = output.double()
            count, centre, m2 = moments[name]
            added, middle = values.numel(), float(values.mean())
            total = count + added
            if added:
                gap = middle - centre
                m2 += float((values - middle).square().sum()) + gap**2 * count * added / total
                moments[name] = (total, centre + gap * added / total, m2)

        return take

    handles = [module.register_forward_hook(watch(name)) for name, module in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def load_network(path: Path) -> tuple[nn.Module, TrainConfig]:
    """A checkpoint's network and its run's options.

    Raises CheckpointError for a file that is none, or whose network cannot be made.
    """
    state = checkpoint.load(path)
    config = config_of(state["config"])
    given = {"shortcut": config.shortcut, "variant": config.variant}
    try:
        model = models.create(
            config.model,
            num_classes=len(state["model"]["fc.weight"]),
            fused=False,
            **{name: value for name, value in given.items() if value is not None},
        )
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: model {config.model!r}: {error}") from None
    checkpoint.check_same_network(path, state["model"], model.state_dict())
    model.load_state_dict(state["model"])
    return model, config


def test_images(config: TrainConfig, data_dir: str | None) -> Split:
    """What a run was tested on, from `data_dir` if that is not None.

    Raises UsageError or DataError for what is missing.
    """
    source = open_source(config if data_dir is None else replace(config, data_dir=data_dir))
    return source.test or source.held_out


def responses_to(
    model: nn.Module, split: Split, images: int, device: torch.device
) -> list[Response]:
    """A network's responses to the first `images` images of a split, in fp32."""
    model.to(device, memory_format=torch.channels_last)
    return layer_responses(model, batches_of(split, images, device))


def batches_of(split: Split, images: int, device: torch.device) -> Iterator[Tensor]:
    """The first `images` images of a split, or all where there are fewer, in batches."""
    count = min(images, len(split))
    for start in range(0, count, _BATCH):
        keys = [(0, index) for index in range(start, min(start + _BATCH, count))]
        batch: Batch = split.__getitems__(keys)
        yield batch[0].to(device, memory_format=torch.channels_last)


def rows(path: Path, network: str, found: Sequence[Response]) -> list[dict[str, Any]]:
    """Rows of COLUMNS, layers counted from 1."""
    return [
        {
            "checkpoint": str(path),
            "network": network,
            "layer": layer,
            "name": response.name,
            "std": response.std,
        }
        for layer, response in enumerate(found, 1)
    ]


def mean_over(runs: Sequence[Sequence[Response]]) -> list[Response]:
    """The mean over several runs of one network, layer by layer."""
    return [
        Response(layer[0].name, sum(response.std for response in layer) / len(layer))
        for layer in zip(*runs, strict=True)
    ]
