"""The Flax peer beside PyTorch on tiny networks, and once with an error; prints a list as JSON.

A process of its own: JAX starts threads, and warns of every fork in a process that has started it.
"""

from __future__ import annotations

import json

import jax
import torch

from fastres.bench import Comparison, cases
from fastres.bench.peers import FLAX, PEERS, Peer


def checked(workload, step) -> dict:
    comparison = Comparison(workload)
    comparison.prepare(Peer("Flax", lambda workload: step, lambda workload: None))
    comparison.check()
    entry = comparison.entries["Flax"]
    return {"status": entry.status, "reason": entry.reason, "peak_bytes": step.peak_bytes}


def main() -> None:
    torch.set_num_threads(1)
    training = cases.network("basic10", 4, 32, optimizer=True)
    step = PEERS[FLAX].make(training)
    start = jax.tree.map(lambda array: array.copy(), step._state)
    found = [checked(training, step)]
    # the same step once more, with an error in one layer
    step._state = start
    step._state.params["fc"]["kernel"] *= 1.05
    found.append(checked(training, step))
    inference = cases.inference("bottleneck14", 2, 32, "bf16")
    found.append(checked(inference, PEERS[FLAX].make(inference)))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
