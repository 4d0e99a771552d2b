"""The largest batch that fits: doubled until it does not, then halved in between.

Each attempt is two steps in a fresh process, so that none inherits another's memory and a process
that the system kills takes nothing with it. `search` is what commands call; `title` and `rows` show
what it returns.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from . import cases, environment, peers
from .compare import describe
from .workload import Workload

OOM, CAP = "oom", "cap"
# what allocators say: PyTorch's on a CPU and on a GPU, oneDNN, C++, cuDNN and cuBLAS, XLA
_NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|not enough memory|bad_?alloc|"
    r"could not (create|execute) a primitive|could not create a memory|ALLOC_FAILED|"
    r"RESOURCE_EXHAUSTED|unable to allocate",
    re.IGNORECASE,
)
_SHARE_OF_FREE_MEMORY = 0.8  # beyond it a CPU's system would end other processes
_STEPS = 2  # the second has the optimiser's state beside the gradients


@dataclass(frozen=True)
class Request:
    """What is attempted at one batch size after the other; the arguments of `search`."""

    model: str
    image_size: int
    dtype: str = "fp32"
    device: str = "cpu"
    optimizer: bool = True
    inference: bool = False
    threads: int | None = None
    limit_bytes: int | None = None

    def workload(self, batch: int) -> Workload:
        device = torch.device(self.device)
        if self.inference:
            found = cases.inference(self.model, batch, self.image_size, self.dtype, device=device)
        else:
            found = cases.network(
                self.model, batch, self.image_size, self.dtype,
                device=device, optimizer=self.optimizer,
            )  # fmt: skip
        return replace(found, buffers=1)


@dataclass(frozen=True)
class Attempt:
    """One batch size in one process.

    Attributes:
        ok: it fitted.
        reason: why it did not.
        memory: the reason is memory; if not, no other batch size is tried.
    """

    batch: int
    ok: bool
    reason: str | None = None
    memory: bool = True


@dataclass
class Found:
    """What one implementation can do. `limit` is None where it could not run at all."""

    batch: int | None = None
    tried: list[Attempt] = field(default_factory=list)
    limit: str | None = None
    reason: str | None = None

    def as_dict(self) -> dict[str, Any]:
        row: dict[str, Any] = {
            "batch": self.batch,
            "tried": [[one.batch, one.ok, one.reason] for one in self.tried],
            "limit": self.limit,
        }
        if self.reason is not None:
            row["reason"] = self.reason
        return row


def search(
    implementations: Sequence[str],
    model: str,
    image_size: int,
    dtype: str = "fp32",
    *,
    device: torch.device | str = "cpu",
    optimizer: bool = True,
    inference: bool = False,
    start: int = 1,
    cap: int | None = None,
    limit_bytes: int | None = None,
    precision: float = 0.03,
    threads: int | None = None,
    timeout: float = 600,
    on_attempt: Callable[[str, Attempt], object] = lambda name, attempt: None,
) -> dict[str, Any]:
    """The largest batch of each implementation, as an entry of a results file's "largest_batch".

    Args:
        implementations: names of `peers.PEERS`.
        model, image_size, dtype, optimizer: as for `cases.network`.
        device: on which the steps run.
        inference: a forward pass in eval mode instead of a training step.
        start: the first batch that is tried, which is doubled.
        cap: no batch above it is tried.
        limit_bytes: on a CPU what a process may take beside what its libraries hold (Linux); 80%
            of what is free by default. On a GPU the part of the device memory that PyTorch or JAX
            may take; all of it by default.
        precision: how close, relatively, the batch is to one that does not fit: 0 is exact.
        threads: of a CPU; PyTorch's present number by default.
        timeout: seconds for one attempt. One that takes longer caps the search.
        on_attempt: told of each attempt once it is over.

    Returns:
        {"model", "dtype", "image_size", "device", "inference", "optimizer", "limit_bytes",
        "implementations": {name: {"batch": int or None, "tried": [[batch, ok, reason or None]],
        "limit": "oom", "cap" or None, "reason"}}, "environment"}. `limit` is None, and `reason`
        there, where an implementation could not run for another reason than memory.

    Raises:
        ValueError: an argument is outside what is listed here.
    """
    if start < 1:
        raise ValueError(f"start must be at least 1, got {start}")
    if cap is not None and cap < start:
        raise ValueError(f"cap must be at least start, {start}, got {cap}")
    if not 0 <= precision < 1:
        raise ValueError(f"precision must be in [0, 1), got {precision}")
    if limit_bytes is not None and limit_bytes < 1:
        raise ValueError(f"limit_bytes must be above 0, got {limit_bytes}")
    where = torch.device(device)
    request = Request(
        model, image_size, dtype, str(where), optimizer and not inference, inference,
        threads or torch.get_num_threads(),
        _free_memory() if limit_bytes is None and where.type == "cpu" else limit_bytes,
    )  # fmt: skip
    request.workload(start)  # a model or dtype that there is not is an error here, and not later
    rows = {}
    for name in implementations:
        peer = peers.get(name)
        reason = peer.unavailable(request.workload(start))
        if reason is not None:
            rows[name] = Found(reason=reason).as_dict()
            continue

        def attempt(batch: int, name: str = name) -> Attempt:
            done = _attempt(request, name, batch, timeout)
            on_attempt(name, done)
            return done

        rows[name] = largest(attempt, start=start, cap=cap, precision=precision).as_dict()
    return {
        "model": model,
        "dtype": dtype,
        "image_size": image_size,
        "device": request.device,
        "inference": inference,
        "optimizer": request.optimizer,
        "limit_bytes": request.limit_bytes,
        "implementations": rows,
        "environment": environment.record(where),
    }


def largest(
    attempt: Callable[[int], Attempt], *, start: int = 1, cap: int | None = None,
    precision: float = 0.0,
) -> Found:  # fmt: skip
    """The largest batch that `attempt` finds to fit, with at most `precision` of it to one that
    does not."""
    found = Found()
    batch, too_large = start, None
    while too_large is None:
        done = attempt(batch)
        found.tried.append(done)
        if not done.ok:
            too_large = batch
            break
        found.batch = batch
        if batch == cap:
            found.limit = CAP
            return found
        batch = 2 * batch if cap is None else min(2 * batch, cap)
    # below the first batch there may be one that fits
    low = found.batch or 0
    while done.memory and too_large - low > max(1, precision * low):
        middle = (low + too_large) // 2
        done = attempt(middle)
        found.tried.append(done)
        if done.ok:
            low = found.batch = middle
        else:
            too_large = middle
    if all(one.ok or one.memory for one in found.tried):
        found.limit = OOM
    elif found.batch is not None:
        found.limit = CAP
    else:
        found.reason = found.tried[-1].reason
    return found


def title(found: dict[str, Any]) -> str:
    """What was searched, as a results file names it."""
    what = "inference of" if found["inference"] else "training"
    size = found["image_size"]
    return f"{what} {found['model']} {found['dtype']}, {size}x{size}, on {found['device']}"


HEADER = ["implementation", "largest batch", "because"]


def rows(found: dict[str, Any]) -> list[list[str]]:
    """What `search` returned as rows of a table under `HEADER`."""
    table = []
    for name, row in found["implementations"].items():
        failed = [(batch, reason) for batch, ok, reason in row["tried"] if not ok]
        because = row.get("reason") or "no larger one was tried"
        if failed and row.get("reason") is None:
            batch, reason = min(failed)
            because = f"{batch}: {reason}"
        table.append([name, "" if row["batch"] is None else str(row["batch"]), because])
    return table


def _attempt(request: Request, implementation: str, batch: int, timeout: float) -> Attempt:
    """`_run` in a fresh process."""
    what = {"request": asdict(request), "implementation": implementation, "batch": batch}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "fastres.bench.largest_batch", json.dumps(what)],
            check=False, capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Attempt(batch, False, f"not finished within {timeout:.0f} s", memory=False)
    if done.returncode == 0:
        return Attempt(batch, **json.loads(done.stdout.splitlines()[-1]))
    said = (done.stderr.strip().splitlines() or [""])[-1][-300:]
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        # the system kills for memory; a library under a limit may fall over where it has none
        memory = (
            name == "SIGKILL"
            or bool(_NO_MEMORY.search(done.stderr))
            or (request.limit_bytes is not None and name in ("SIGSEGV", "SIGABRT", "SIGBUS"))
        )
        return Attempt(batch, False, f"ended by {name} {said}".strip(), memory=memory)
    memory = bool(_NO_MEMORY.search(done.stderr))
    return Attempt(batch, False, f"exit code {done.returncode}: {said}", memory=memory)


def _run(request: Request, implementation: str, batch: int) -> dict[str, Any]:
    """Two steps in this process: {"ok", "reason", "memory"}."""
    workload = request.workload(batch)
    device = workload.device
    if request.threads:
        torch.set_num_threads(request.threads)
    try:
        with _limited(device, request.limit_bytes):
            step = peers.get(implementation).make(workload)
            for index in range(_STEPS):
                step(index)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
    except Exception as error:
        memory = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or bool(
            _NO_MEMORY.search(str(error))
        )
        return {"ok": False, "reason": describe(error), "memory": memory}
    return {"ok": True, "reason": None, "memory": True}


@contextmanager
def _limited(device: torch.device, limit: int | None) -> Iterator[None]:
    """No more memory than `limit` bytes beside what is in use."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        share = 1.0 if limit is None else min(1.0, limit / total)
        torch.cuda.set_per_process_memory_fraction(share, device)
        # JAX, which starts later, leaves a quarter of the memory alone by default
        os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{min(share, 0.98):.4f}"
        yield
        return
    _die_first()
    # of private memory: of address space libraries reserve far more than they use
    used = _bytes_of("/proc/self/status", "VmData")
    if limit is None or used is None:
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (used + limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _die_first() -> None:
    """Should memory run out all the same, let the system end this process and no other."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _free_memory() -> int | None:
    """Bytes of a CPU's memory to be used at most; None where the system does not tell."""
    free = _bytes_of("/proc/meminfo", "MemAvailable")
    return None if free is None else int(_SHARE_OF_FREE_MEMORY * free)


def _bytes_of(path: str, field: str) -> int | None:
    try:
        text = Path(path).read_text()
    except OSError:
        return None
    found = re.search(rf"^{field}:\s*(\d+) kB", text, re.MULTILINE)
    return 1024 * int(found[1]) if found else None


def main(arguments: list[str] | None = None) -> int:
    """Make one attempt and print what came of it as one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m fastres.bench.largest_batch")
    parser.add_argument("attempt", type=json.loads, help="as `_attempt` writes it")
    what = parser.parse_args(arguments).attempt
    found = _run(Request(**what["request"]), what["implementation"], what["batch"])
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
