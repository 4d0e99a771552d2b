"""A stage of a network: blocks in a row, which run as one step wherever nobody looks between."""

from __future__ import annotations

from torch import Tensor, nn
from torch.fx import Proxy

from .. import functional
from .blocks import Block
from .fusion import module_obstacle


class Stage(nn.Sequential):
    """An `nn.Sequential` of blocks, whose neighbours hand over to each other what they can.

    A block that is hooked, replaced or not fused is called as it stands.
    """

    def forward(self, x: Tensor) -> Tensor:
        # a tracer wants to see every block by its name
        if isinstance(x, Proxy):
            return super().forward(x)
        for run in self.runs():
            x = run[0](x) if len(run) == 1 else run_of(run, x)
        return x

    def runs(self) -> list[list[nn.Module]]:
        """The blocks in order, those that run as one step together."""
        runs: list[list[nn.Module]] = []
        before: str | None = None
        for block in self:
            memory = None if run_obstacle(block) is not None else block.memory
            if memory is not None and memory == before:
                runs[-1].append(block)
            else:
                runs.append([block])
            before = memory
        return runs


def run_of(blocks: list[Block], x: Tensor) -> Tensor:
    """x through whole blocks in one step."""
    return functional.residual_blocks(
        x, tuple(block.describe() for block in blocks), memory=blocks[0].memory
    )


def run_obstacle(block: nn.Module) -> str | None:
    """Why a block must be called by itself, None if it may be part of a run."""
    kind = type(block)
    if not isinstance(block, Block) or kind.forward is not Block.forward:
        return f"the block is a {kind.__name__}"
    return module_obstacle("the block", block, kind) or block.obstacle()
