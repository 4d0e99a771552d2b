"""`fastres info`: what is installed, which backends work here, and why the others do not."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fastres import backends, extension
from fastres.extension import cache, toolchain
from fastres.version import __version__

# extra of pyproject.toml -> the modules it brings
EXTRAS = {
    "data": ("torchvision",),
    "progress": ("rich",),
    "logs": ("tensorboard",),
    "plots": ("matplotlib",),
    "demo": ("sklearn", "matplotlib", "rich", "torchvision"),
}
_DISTRIBUTIONS = {"sklearn": "scikit-learn"}


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _or_reason(describe: Callable[[], Any]) -> Any:
    """What `describe` says, or the reason why it cannot: a report must not fail on what it is
    about."""
    try:
        return describe()
    except (RuntimeError, OSError) as error:
        return f"none: {error}"


def _gpus() -> list[dict[str, Any]]:
    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        found.append(
            {
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_gib": round(properties.total_memory / 2**30, 1),
                "multiprocessors": properties.multi_processor_count,
            }
        )
    return found


def _toolkit() -> str:
    toolkit = toolchain.find_cuda_toolkit()
    return f"CUDA {'.'.join(map(str, toolkit.version))} in {toolkit.root}"


def collect() -> dict[str, Any]:
    """The facts of the report. Looking at the backends compiles the native kernels if that has not
    been done yet."""
    available = backends.available()
    extension.has_cuda()
    libraries = extension.describe()
    libraries["cuda"]["reason"] = extension.cuda_unavailable_reason()
    return {
        "fastres": {"version": __version__, "path": str(Path(__file__).resolve().parent)},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": {
            "version": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,
        },
        "triton": _version("triton"),
        "numpy": _version("numpy"),
        "cpu": {
            "capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
        },
        "gpus": _gpus(),
        "compilers": {
            "c++": _or_reason(lambda: toolchain.find_compiler().version),
            "ninja": _or_reason(toolchain.find_ninja),
            "nvcc": _or_reason(_toolkit),
        },
        "backends": available,
        "extension": {"cache": str(cache.folder()), **libraries},
        "extras": {
            extra: {module: _version(_DISTRIBUTIONS.get(module, module)) for module in modules}
            for extra, modules in EXTRAS.items()
        },
    }


def _library(described: dict[str, str | None]) -> str:
    if described["path"] is None:
        return f"not loaded: {described['reason']}"
    return f"{described['path']} ({described['origin']}, {described['key']})"


def _extra(modules: dict[str, str | None]) -> str:
    missing = [module for module, version in modules.items() if version is None]
    if missing:
        return f"missing {', '.join(missing)}"
    return ", ".join(f"{module} {version}" for module, version in modules.items())


def report(facts: dict[str, Any] | None = None) -> str:
    """The facts as text, a section of aligned lines each."""
    facts = facts or collect()
    torch_facts, gpus = facts["torch"], facts["gpus"]
    sections: dict[str, dict[str, Any]] = {
        "versions": {
            "fastres": f"{facts['fastres']['version']} in {facts['fastres']['path']}",
            "python": facts["python"],
            "torch": f"{torch_facts['version']} (built for CUDA {torch_facts['cuda']})"
            if torch_facts["cuda"]
            else f"{torch_facts['version']} (CPU build)",
            "triton": facts["triton"] or "not installed",
            "numpy": facts["numpy"] or "not installed",
        },
        "machine": {
            "system": facts["platform"],
            "cpu": f"{facts['cpu']['capability']}, {facts['cpu']['threads']} threads",
            **{
                f"gpu {index}": f"{gpu['name']}, compute capability {gpu['capability']}, "
                f"{gpu['memory_gib']} GiB"
                for index, gpu in enumerate(gpus)
            },
            **({} if gpus else {"gpu": "none"}),
        },
        "compilers": facts["compilers"],
        "backends": {
            name: "works" if reason is None else f"no: {reason}"
            for name, reason in facts["backends"].items()
        },
        "native kernels": {
            "cpu": _library(facts["extension"]["cpu"]),
            "cuda": _library(facts["extension"]["cuda"]),
            "cache": facts["extension"]["cache"],
        },
        "extras": {extra: _extra(modules) for extra, modules in facts["extras"].items()},
    }
    width = max(len(name) for lines in sections.values() for name in lines)
    text = []
    for title, lines in sections.items():
        text.append(title)
        text += [f"  {name:<{width}}  {value}" for name, value in lines.items()]
    return "\n".join(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `fastres info`."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def main(args: argparse.Namespace) -> int:
    """Print the report; 0, whatever it says."""
    facts = collect()
    sys.stdout.write((json.dumps(facts, indent=2) if args.json else report(facts)) + "\n")
    return 0
