"""One process of a two-process training run in which something happens to rank 1.

    distributed_run.py die|sigterm OUT        with RANK, WORLD_SIZE and so on in the environment

`die`: rank 1 ends without a word at its third step. `sigterm`: rank 1 alone gets SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys

from training_runs import COMMAND

from fastres import cli
from fastres.training.engine import Trainer


def main() -> int:
    event, out = sys.argv[1:]
    step = Trainer._step

    def eventful(self, images, labels):
        if self.world.rank == 1 and self.progress.iteration == 2:
            if event == "die":
                os._exit(9)
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, images, labels)

    Trainer._step = eventful
    return cli.main([*COMMAND, "--timeout", "60", "--out", out])


if __name__ == "__main__":
    sys.exit(main())
