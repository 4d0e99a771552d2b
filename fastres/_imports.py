"""What is imported when: something to do once a module has been, and whether this is a command."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType


def is_command() -> bool:
    """Whether this process was started as `fastres ...` or `python -m fastres ...`."""
    if "torch" in sys.modules:
        return False
    started = getattr(sys, "argv", [])[:1]
    if started == ["-m"]:  # as long as the packages above a __main__ are imported
        words = sys.orig_argv
        return "-m" in words and words[words.index("-m") + 1 :][:1] == ["fastres"]
    return bool(started) and Path(started[0]).stem == "fastres"


def after_import(name: str, action: Callable[[ModuleType], object]) -> None:
    """Call `action` with the module `name`: now if it is imported, else right after it is."""
    if sys.modules.get(name) is not None:
        action(sys.modules[name])
    else:
        sys.meta_path.insert(0, _Finder(name, action))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing by itself: it has the others find the module, and adds the action."""

    def __init__(self, name: str, action: Callable[[ModuleType], object]) -> None:
        self._name, self._action = name, action

    def find_spec(
        self, fullname: str, path, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            # an import that fails may be tried again
            sys.meta_path.insert(0, self)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                self._action(module)

        spec.loader.exec_module = exec_module
        return spec
