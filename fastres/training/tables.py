"""All processes of a run must have read the same tuned tables, or they run different kernels."""

from __future__ import annotations

import torch

from fastres.kernels import tables, tuned
from fastres.training.distributed import World
from fastres.training.errors import UsageError


def check_same_tables(world: World, device: torch.device) -> None:
    """Compare the tables of all processes whose GPUs have one name, by a hash over their text.

    A process reads them once, here at the latest: what is written later changes no run.

    Raises:
        UsageError: a table is malformed, or two processes have read different ones.
    """
    try:
        mine: object = tuned.fingerprint(device)
    except tables.TableError as error:
        mine = str(error)
    # an error is shared as well, so that no process waits for one that has left
    everyone = world.gather(mine)
    for rank, found in enumerate(everyone):
        if isinstance(found, str):
            raise UsageError(f"rank {rank}: {found}")
    first: dict[str | None, tuple[int, str, list[str]]] = {}
    for rank, (gpu, text, paths) in enumerate(everyone):
        other, expected, others = first.setdefault(gpu, (rank, text, paths))
        if text != expected:
            raise UsageError(
                f"ranks {other} and {rank}, both on {gpu or 'no GPU'}, read different tuned "
                f"tables: {', '.join(others)} and {', '.join(paths)}; give them the same "
                f"{tables.ENVIRONMENT}"
            )
