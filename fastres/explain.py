"""Which path each piece of a model runs, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from . import backends
from .functional.blocks import least_rows
from .interop import left_alone
from .layers import Block, Stage, stem_obstacle
from .layers.fusion import can_fuse
from .layers.sequence import FusedSequential, has_fused_layers

# kinds of rows that are no blocks
_PARTS = ("stem", "sequence")


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
        blocks = f"{sum(row.kind not in _PARTS for row in self.rows)} blocks run whole"
        return "\n".join(
            (*(line.rstrip() for line in lines), f"{whole} of {blocks}; {self.backend}")
        )

    __repr__ = __str__


def explain(model: nn.Module) -> Explanation:
    """Say for the stem and for every block of `model` which path its next forward takes.

    "whole block": one step for all of it (level 2). "operators": a fused operator for each layer
    that nobody hooked or replaced. "modules": PyTorch's modules, one by one.

    Args:
        model: any module with blocks of fastres's, torchvision's or timm's in it.

    Raises:
        TypeError: `model` is not a module.
        ValueError: there is no such block in it.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    rows = []
    runs, left = _runs(model), {one.name: one for one in left_alone(model)}
    for name, module in model.named_modules():
        if isinstance(module, Block):
            rows.append(_block(name, module, runs.get(module, "")))
        elif name in left:
            rows.append(Row(name, left[name].kind, "modules", left[name].why))
        elif isinstance(module, FusedSequential):
            rows.append(Row(name, "sequence", *_sequence(module)))
        elif hasattr(module, "maxpool") and hasattr(module, "fused"):
            rows.append(_stem(f"{name}." if name else "", module))
    if not any(row.kind != "stem" for row in rows):
        raise ValueError(
            f"model must hold a block that fastres knows, fused or not, got {type(model).__name__}"
        )
    return Explanation(tuple(rows), _backend(model))


def _backend(model: nn.Module) -> str:
    parameter = next(model.parameters(), None)
    if parameter is None:
        return "no parameters"
    name = backends.chosen(parameter.device, parameter.dtype)
    return f"backend {name} for {parameter.dtype} on {parameter.device}"


def _stem(prefix: str, model: nn.Module) -> Row:
    names = getattr(model, "stem_names", ("conv1", "bn1", "relu", "maxpool"))
    pieces = [getattr(model, name) for name in names]
    obstacle = stem_obstacle(*pieces) if model.fused else "made with fused=False"
    name = prefix + names[0]
    if obstacle is None:
        return Row(name, "stem", "whole stem", "BN and ReLU inside the pooling")
    fused = model.fused and can_fuse(*pieces[:3])
    return Row(name, "stem", "operators" if fused else "modules", obstacle)


def _sequence(row: FusedSequential) -> tuple[str, str]:
    if has_fused_layers(list(row)):
        return "operators", "convolution, BN and ReLU in a row"
    return "modules", "no convolution with a BN after it that nobody touched"


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
    path = "operators" if block.fuses_layers() else "modules"
    return Row(name, kind, path, obstacle)


def _form(block: Block) -> str:
    rows = least_rows(block.describe().layers, block.memory, block.conv1.weight)
    if rows is None:
        return ""
    return f"moment form from N*H*W = {rows}" if rows else "moment form"
