"""Which path each piece of a model runs, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from . import backends
from .functional.blocks import least_rows
from .layers import Block, Stage, stem_obstacle
from .layers.fusion import can_fuse


class Row(NamedTuple):
    """One piece of a model: its name, kind, the path it runs, and the reason."""

    name: str
    kind: str
    path: str
    why: str


@dataclass(frozen=True)
class Explanation:
    """What `explain` found; printing it gives a table."""

    rows: tuple[Row, ...]
    backend: str

    def __str__(self) -> str:
        widths = [max(len(row[i]) for row in (*self.rows, Row._fields)) for i in range(3)]
        lines = [
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=False))
            + f"  {row[3]}"
            for row in (Row._fields, *self.rows)
        ]
        whole = sum(row.path == "whole block" for row in self.rows)
        blocks = f"{sum(row.kind != 'stem' for row in self.rows)} blocks run whole"
        return "\n".join(
            (*(line.rstrip() for line in lines), f"{whole} of {blocks}; {self.backend}")
        )

    __repr__ = __str__


def explain(model: nn.Module) -> Explanation:
    """Say for the stem and for every block of `model` which path its next forward takes.

    "whole block": one step for all of it (level 2). "operators": a fused operator for each layer
    that nobody hooked or replaced. "modules": PyTorch's modules, one by one.

    Args:
        model: any module with fastres's blocks in it.

    Raises:
        TypeError: `model` is not a module.
        ValueError: there is no block of fastres's in it.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    rows = [_stem(model)] if hasattr(model, "maxpool") and hasattr(model, "fused") else []
    runs = _runs(model)
    for name, module in model.named_modules():
        if isinstance(module, Block):
            rows.append(_block(name, module, runs.get(module, "")))
    if not any(row.kind != "stem" for row in rows):
        raise ValueError(f"model must hold a block of fastres.layers, got {type(model).__name__}")
    return Explanation(tuple(rows), _backend(model))


def _backend(model: nn.Module) -> str:
    parameter = next(model.parameters(), None)
    if parameter is None:
        return "no parameters"
    name = backends.chosen(parameter.device, parameter.dtype)
    return f"backend {name} for {parameter.dtype} on {parameter.device}"


def _stem(model: nn.Module) -> Row:
    pieces = (model.conv1, model.bn1, model.relu)
    obstacle = "made with fused=False"
    if model.fused:
        obstacle = stem_obstacle(*pieces, model.maxpool)
    if obstacle is None:
        return Row("conv1", "stem", "whole stem", "BN and ReLU inside the pooling")
    fused = model.fused and can_fuse(*pieces)
    return Row("conv1", "stem", "operators" if fused else "modules", obstacle)


def _runs(model: nn.Module) -> dict[nn.Module, str]:
    """For every block that runs together with its neighbours, with how many."""
    found: dict[nn.Module, str] = {}
    for stage in model.modules():
        if not isinstance(stage, Stage):
            continue
        for run in stage.runs():
            for index, block in enumerate(run):
                if len(run) > 1:
                    found[block] = f"{index + 1} of {len(run)} in a run"
    return found


def _block(name: str, block: Block, run: str) -> Row:
    kind = type(block).__name__
    obstacle = block.obstacle()
    if obstacle is None:
        return Row(name, kind, "whole block", "; ".join(filter(None, (_form(block), run))))
    path = "operators" if block.fused and _any_layer_fuses(block) else "modules"
    return Row(name, kind, path, obstacle)


def _form(block: Block) -> str:
    rows = least_rows(block.describe().layers, block.memory, block.conv1.weight.device)
    if rows is None:
        return ""
    return f"moment form from N*H*W = {rows}" if rows else "moment form"


def _any_layer_fuses(block: Block) -> bool:
    return any(
        can_fuse(getattr(block, f"conv{i}"), getattr(block, f"bn{i}"), block.relu)
        for i in range(1, block.pairs + 1)
    )
