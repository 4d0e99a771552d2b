"""`fastres run SCRIPT`: a training script as it is, with its ResNets fused."""

from __future__ import annotations

import argparse
import builtins
import multiprocessing.spawn
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from .._imports import after_import
from .errors import UsageError

AMP = {"bf16": "bfloat16", "fp16": "float16"}
NOTHING = "fastres: nothing was fused (no ResNet of torchvision or timm was made)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options; everything after SCRIPT belongs to the script."""
    parser.add_argument(
        "--amp",
        choices=AMP,
        help="run the networks' forward passes under autocast; outputs are fp32 as before. fp16 "
        "has no GradScaler unless the script brings one",
    )
    parser.add_argument("script", metavar="SCRIPT", help="a Python file")
    parser.add_argument("arguments", metavar="ARGS", nargs=argparse.REMAINDER, help="its arguments")


def main(args: argparse.Namespace) -> int:
    """Run the script as `python SCRIPT ARGS` would, then say in one line what was fused."""
    if not Path(args.script).is_file():
        raise UsageError(f"SCRIPT must be a Python file, got {args.script}")
    fuse_from_here(args.amp)
    children = _install_in_children(args.amp)
    sys.argv = [args.script, *args.arguments]
    sys.path.insert(0, str(Path(args.script).resolve().parent))
    try:
        _execute(args.script)
    finally:
        # torchrun starts one process a GPU
        if os.environ.get("RANK", "0") == "0":
            print(_summary(children), file=sys.stderr, flush=True)
    return 0


def fuse_from_here(amp: str | None) -> None:
    """Have the networks of this process fused, from when their libraries are imported on.

    Nothing is imported here: the script may set environment variables that torch reads as it is
    imported.
    """

    def install(library: ModuleType) -> None:
        import torch

        from ..interop import construction

        construction.install(amp=getattr(torch, AMP[amp]) if amp else None)

    for name in ("torchvision", "timm"):
        after_import(name, install)


def _execute(script: str) -> None:
    """Run a file as the program's main module.

    It stays that after its last line, unlike with `runpy`: exit handlers and threads still find it.
    """
    path = os.path.abspath(script)
    main_module = ModuleType("__main__")
    main_module.__file__ = path
    main_module.__builtins__ = builtins
    sys.modules["__main__"] = main_module
    code = compile(Path(path).read_bytes(), path, "exec", dont_inherit=True)
    exec(code, main_module.__dict__)


class _Children:
    """How many processes have been started, and what each does first: it travels with the data
    that a spawned process is prepared with, and unpickling it installs."""

    def __init__(self, amp: str | None) -> None:
        self.amp = amp
        self.started = 0

    def __reduce__(self) -> tuple:
        return fuse_from_here, (self.amp,)


def _install_in_children(amp: str | None) -> _Children:
    """Have processes that the script spawns, `torch.multiprocessing.spawn`'s too, fuse as well.

    Forked ones do anyway.
    """
    children = _Children(amp)
    prepare = multiprocessing.spawn.get_preparation_data

    def get_preparation_data(name: str) -> dict[str, Any]:
        children.started += 1
        return {**prepare(name), "fastres": children}

    multiprocessing.spawn.get_preparation_data = get_preparation_data
    return children


def _summary(children: _Children) -> str:
    construction = sys.modules.get("fastres.interop.construction")
    if children.started and not (construction and construction.done.networks):
        return f"fastres: no ResNet in this process; {children.started} that it spawned fuse theirs"
    return str(construction.done) if construction else NOTHING
