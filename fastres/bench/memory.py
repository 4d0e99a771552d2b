"""Peak memory of a step, and how much of it is kept from the forward to the backward pass.

On a CPU the peak is that of a fresh process per implementation: `python -m fastres.bench.memory`.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from . import cases, peers
from .peers import Peer
from .workload import Step, Workload

_STATUS = Path("/proc/self/status")
_REFERENCES = Path("/proc/self/clear_refs")


def saved_bytes(step: Step) -> int:
    """Bytes that autograd keeps from a forward to its backward pass, parameters, buffers and the
    inputs themselves not counted; storages that are shared count once.

    Only what goes through `save_for_backward` is seen, which is all that fastres keeps.
    """
    given = {t.untyped_storage().data_ptr() for t in step.module.state_dict().values()}
    for batch in step.batches:
        given.update(t.untyped_storage().data_ptr() for t in (*batch.inputs, batch.target))
    # the tensors are held, so that no address is used twice
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in given:
            kept[address] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step.forward_pass(step.batches[0])
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def cuda_peak(step: Step) -> dict[str, Any]:
    """Peak growth of allocated device memory over one step, in bytes.

    Over what is allocated before it: weights, momentum, buffers and whatever else the process
    holds. Gradients belong to the step. A step that knows what it takes is asked: a CUDA graph
    allocates nothing as it is replayed, and JAX has an allocator of its own.
    """
    planned = getattr(step, "peak_bytes", None)
    if planned is not None:
        return {"peak_bytes": planned}
    device = step.workload.device
    step.release_gradients()
    gc.collect()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step(0)
    torch.cuda.synchronize(device)
    return {"peak_bytes": torch.cuda.max_memory_allocated(device) - before}


def _kib(field: str) -> int | None:
    found = re.search(rf"^{field}:\s*(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    return int(found[1]) if found else None


def cpu_unavailable() -> str | None:
    """The reason why a process's peak cannot be measured here, or None."""
    if not _STATUS.exists() or _kib("VmHWM") is None:
        return "needs /proc/self/status with VmHWM (Linux)"
    return None


def growth(workload: Workload, peer: Peer, steps: int) -> dict[str, Any]:
    """In this process, which should have run nothing yet. Bytes."""
    step = peer.make(workload)
    gc.collect()
    saved = None
    before = _kib("VmRSS")
    try:
        _REFERENCES.write_text("5")  # the peak starts again from here
    except OSError:
        before = max(before, _kib("VmHWM"))
    for index in range(steps):
        step(index)
    growth = (_kib("VmHWM") - before) * 1024
    if step.forward is step.module:
        saved = saved_bytes(step)
    return {"peak_bytes": growth, "saved_bytes": saved, "resident_before_bytes": before * 1024}


def cpu_peak(
    implementation: str, network: str, batch: int, image_size: int, dtype: str, *,
    threads: int, steps: int = 3, timeout: float = 300,
) -> dict[str, Any]:  # fmt: skip
    """Growth of resident memory over the first steps of a fresh process: {"peak_bytes", ...}.

    All that the steps bring along counts: activations, gradients, scratch memory of libraries,
    and memory that an allocator keeps.

    Raises:
        RuntimeError: the process failed; holds the end of what it said.
    """
    arguments = [implementation, network, str(batch), str(image_size), dtype]
    arguments += ["--threads", str(threads), "--steps", str(steps)]
    done = subprocess.run(
        [sys.executable, "-m", "fastres.bench.memory", *arguments],
        check=False, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(
            f"measuring the memory of {implementation} on {network} failed: "
            f"{done.stderr.strip()[-500:]}"
        )
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: list[str] | None = None) -> int:
    """Print the growth as one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m fastres.bench.memory", description=__doc__)
    parser.add_argument("implementation", choices=list(peers.PEERS))
    parser.add_argument("network")
    parser.add_argument("batch", type=int)
    parser.add_argument("image_size", type=int)
    parser.add_argument("dtype", choices=list(cases.DTYPES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    workload = cases.network(options.network, options.batch, options.image_size, options.dtype)
    found = growth(workload, peers.get(options.implementation), options.steps)
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
