"""Tuned tables on disk: read, checked row by row, and where a user's own lie.

A table is JSON: `gpu` (a device's name, or a part of it; null serves every GPU), `versions` and
`rows`. A row names an operator, the GPU families and dtypes it serves, optionally whether a
prologue is fused and a shape class, and gives a provider and a config. `measured` is null where the
row is a judgement and not a measurement; `reason` says which.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from fastres.extension import cache as build_cache

CONFIGS = Path(__file__).with_name("configs")
FAMILIES = ("sm_80", "sm_90", "sm_100", "sm_120")
DTYPES = ("float16", "bfloat16", "float32", "float64", "tf32")
PROVIDERS = ("triton", "cudnn")
ENVIRONMENT = "FASTRES_CONFIGS"

_REQUIRED = ("operator", "families", "dtypes", "provider", "config", "measured", "reason")
_OPTIONAL = ("prologue", "shape")


class TableError(ValueError):
    """A tuned table cannot be read or holds what no table may hold; names the file and the row."""


class Table(NamedTuple):
    """One table as it was read; `text` is what the file held."""

    path: Path
    gpu: str | None
    rows: tuple[dict[str, Any], ...]
    text: str


def user_folder() -> Path:
    """Folder of the tables that `fastres tune` writes: $FASTRES_CONFIGS, else configs/ in the
    cache.

    Raises:
        fastres.extension.Unavailable: neither is set and the user has no home.
    """
    stated = os.environ.get(ENVIRONMENT)
    return Path(stated).expanduser() if stated else build_cache.folder() / "configs"


def user_path(gpu: str) -> Path:
    """The user's table for a GPU by its full name, whether or not there is one."""
    return user_folder() / f"{re.sub(r'[^a-z0-9]+', '-', gpu.lower()).strip('-')}.json"


def user_table(gpu: str) -> Table | None:
    """The user's table for this GPU, None where none was written.

    Raises:
        TableError: FASTRES_CONFIGS names no folder, or the table is malformed or of another GPU.
    """
    try:
        path = user_path(gpu)
    except build_cache.Unavailable:
        return None  # without a home nothing was ever written there
    if os.environ.get(ENVIRONMENT) and not path.parent.is_dir():
        raise TableError(f"{ENVIRONMENT} must name a folder, got {str(path.parent)!r}")
    if not path.exists():
        return None
    table = read(path)
    if table.gpu != gpu:
        raise TableError(f"{path}: gpu must be {gpu!r}, got {table.gpu!r}")
    return table


@cache
def read(path: Path) -> Table:
    """One table; the file is read once per process.

    Raises:
        TableError: it cannot be read or is malformed.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
    except (OSError, ValueError) as error:
        raise TableError(f"{path} is not a tuned table: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("rows"), list):
        raise TableError(f"{path} is not a tuned table: it must be an object with a list `rows`")
    gpu = content.get("gpu")
    if gpu is not None and not (isinstance(gpu, str) and gpu):
        raise TableError(f"{path}: gpu must be a device's name or null, got {gpu!r}")
    for number, row in enumerate(content["rows"], start=1):
        wrong = problem(row)
        if wrong is not None:
            named = f" ({row['operator']})" if _is_text(row, "operator") else ""
            raise TableError(f"{path}: row {number}{named}: {wrong}")
    return Table(path, gpu, tuple(content["rows"]), text)


def problem(row: object) -> str | None:
    """What is wrong with a row of a table, or None."""
    if not isinstance(row, dict):
        return f"a row must be an object, got {row!r}"
    missing = [name for name in _REQUIRED if name not in row]
    unknown = [name for name in row if name not in _REQUIRED + _OPTIONAL]
    if missing or unknown:
        return f"it lacks {', '.join(missing) or 'nothing'} and must not have {unknown}"
    for name in ("operator", "reason"):
        if not _is_text(row, name):
            return f"{name} must be text, got {row[name]!r}"
    for name, known in (("families", FAMILIES), ("dtypes", DTYPES)):
        value = row[name]
        if not isinstance(value, list) or not value or not all(item in known for item in value):
            return f"{name} must be a list out of {', '.join(known)}, got {value!r}"
    if row["provider"] not in PROVIDERS:
        return f"provider must be one of {', '.join(PROVIDERS)}, got {row['provider']!r}"
    if not isinstance(row.get("prologue", False), bool):
        return f"prologue must be true or false, got {row['prologue']!r}"
    return (
        _whole_numbers("config", row["config"], least=0)
        or _whole_numbers("shape", row.get("shape", {}), least=1)
        or _measurement(row["measured"])
    )


def _is_text(row: object, name: str) -> bool:
    return isinstance(row, dict) and isinstance(row.get(name), str) and bool(row[name])


def _whole_numbers(name: str, value: object, least: int) -> str | None:
    if not isinstance(value, dict):
        return f"{name} must be an object, got {value!r}"
    for key, number in value.items():
        if not isinstance(number, int) or number < least:
            return f"{name}.{key} must be a whole number of at least {least}, got {number!r}"
    return None


def _measurement(value: object) -> str | None:
    if value is None:
        return None
    time = value.get("microseconds") if isinstance(value, Mapping) else None
    if not isinstance(time, int | float) or isinstance(time, bool) or not time > 0:
        return f"measured must be null or an object with microseconds above 0, got {value!r}"
    return None
