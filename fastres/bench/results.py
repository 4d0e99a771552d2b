"""Results files: JSON that is either the old one or the new one, whatever happens in between."""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any


def write(path: str | os.PathLike, content: Any) -> None:
    """Replace the file at `path` by `content` as JSON, in one step; makes its folder.

    Raises:
        TypeError: `content` holds something that JSON does not; the file is left alone.
        OSError: the file cannot be written; it is left alone.
    """
    text = json.dumps(_strict(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    replace(Path(path), text)


def replace(path: Path, text: str) -> None:
    """Replace the file at `path` by `text`, in one step; makes its folder.

    Raises:
        OSError: the file cannot be written; it is left alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read(path: str | os.PathLike) -> Any:
    """The content of a results file, {} where there is none.

    Raises:
        ValueError: the file is not JSON; names it.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not a results file: {error}") from None


def merge(path: str | os.PathLike, cases: dict[str, Any], environment: dict[str, Any]) -> None:
    """Put measured cases into a results file, each with the environment it was measured in; cases
    that were not measured again stay."""
    put(path, "cases", {name: {**case, "environment": environment} for name, case in cases.items()})


def put(path: str | os.PathLike, section: str, entries: dict[str, Any]) -> None:
    """Put entries into a section of a results file: "cases", "profiles" or "largest_batch".

    Whatever else the file holds stays.

    Raises:
        ValueError: the file is not JSON, or no results file; names it.
    """
    content = read(path)
    check(content, path, section)
    together = {**content.get(section, {}), **entries}
    write(path, {**content, section: dict(sorted(together.items()))})


def check(content: Any, path: str | os.PathLike, section: str) -> None:
    """Raises ValueError unless `content` of the file at `path` may have entries in `section`."""
    if not isinstance(content, dict) or not isinstance(content.get(section, {}), dict):
        raise ValueError(f"{path} is not a results file: it must be an object of sections")


def _strict(value: Any) -> Any:
    """Infinities and NaN as text: JSON has neither."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value
