"""Where and when a measurement was taken."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .. import backends
from ..version import __version__

_ROOT = Path(__file__).resolve().parents[2]


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in found.items()}
    name = facts.get("model name", platform.machine())
    family = facts.get("cpu family")
    # virtual machines often hide the name but not the family
    if family and not re.search(r"\d", name):
        name += f" (family {family}, model {facts.get('model', '?')})"
    return name


def commit() -> str | None:
    """The checkout's commit, with "+changes" if files differ from it; None outside a checkout."""
    try:
        head = _git("rev-parse", "HEAD")
        return f"{head}+changes" if _git("status", "--porcelain") else head
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(_ROOT), *arguments],
        check=True, capture_output=True, text=True, timeout=20,
    )  # fmt: skip
    return done.stdout.strip()


def load_average() -> list[float] | None:
    """Processes that ran or waited over the last 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None


def command() -> str:
    """The command line, without the folder of the interpreter and of the script."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        program = Path(f"-m {program.parent.name}")
    elif program.parent.name in ("bin", "Scripts"):  # an installed command, however it was found
        program = Path(program.name)
    elif program.is_absolute():
        is_ours = program.is_relative_to(_ROOT)
        program = program.relative_to(_ROOT) if is_ours else Path(program.name)
    return " ".join([str(program), *(shlex.quote(argument) for argument in sys.argv[1:])])


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def device_facts(device: torch.device) -> dict[str, Any]:
    """Name and size of a device."""
    cpu = {
        "model": cpu_model(),
        "logical_cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }
    if device.type != "cuda":
        return {"type": "cpu", "name": cpu["model"], "cpu": cpu}
    properties = torch.cuda.get_device_properties(device)
    return {
        "type": "cuda",
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "driver": _nvidia_smi("driver_version"),
        "sm_clock": _nvidia_smi("clocks.sm"),
        "memory_clock": _nvidia_smi("clocks.mem"),
        "cpu": cpu,
    }


def _nvidia_smi(field: str) -> str | None:
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"],
            check=True, capture_output=True, text=True, timeout=20,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else None


def slug(device: torch.device) -> str:
    """A file name for results from this device, such as "nvidia-h200" or "amd-epyc-2-threads"."""
    facts = device_facts(device)
    name = facts["name"]
    if device.type != "cuda":
        name += f" {torch.get_num_threads()} threads"
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((R|TM|C)\)", "", name).lower()).strip("-")


def record(device: torch.device) -> dict[str, Any]:
    """All that a reader needs to judge or repeat a measurement."""
    return {
        "fastres": __version__,
        "commit": commit(),
        "command": command(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": device_facts(device),
        "load_average": load_average(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,
        "triton": _version("triton"),
        "backend": {
            str(dtype).removeprefix("torch."): backends.chosen(device, dtype)
            for dtype in (torch.float32, torch.bfloat16, torch.float16)
        },
    }
