"""Where and when everything was measured, and the exact commands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .markup import Markup, element, join
from .records import Results

_FIRST = ("date", "commit", "fastres", "torch", "triton", "cuda", "cudnn", "python", "system")
_APART = ("device", "command")


def command(environment: Mapping[str, Any]) -> str | None:
    """As it is typed: what was recorded lacks the interpreter."""
    recorded = environment.get("command")
    if not recorded:
        return None
    recorded = str(recorded)
    script = recorded.startswith("-m ") or recorded.split()[0].endswith(".py")
    return f"python {recorded}" if script else recorded


def environments(results: Results) -> Markup:
    """One description a file and environment, with how much was measured in it."""
    parts = []
    for file, device, environment in results.environments:
        count = sum(
            part.file == file and part.environment == environment
            for part in (*results.cases, *results.profiles, *results.largest)
        )
        date = str(environment.get("date", ""))[:10]
        title = ", ".join(part for part in (file, date) if part)
        entries = "1 entry" if count == 1 else f"{count} entries"
        parts.append(element("h3", f"{title}: {entries}"))
        parts.append(_facts(device, environment))
        typed = command(environment)
        if typed is not None:
            parts.append(element("pre", element("code", typed)))
    return join(parts)


def _facts(device: str, environment: Mapping[str, Any]) -> Markup:
    facts: list[tuple[str, object]] = [("device", device)]
    told = environment.get("device")
    if isinstance(told, Mapping):
        facts += [(key, value) for key, value in told.items() if key not in ("name", "cpu")]
        cpu = told.get("cpu")
        if isinstance(cpu, Mapping):
            facts += [(f"cpu {key.replace('_', ' ')}", value) for key, value in cpu.items()]
    order = [key for key in _FIRST if key in environment]
    order += [key for key in environment if key not in (*order, *_APART)]
    facts += [(key, environment[key]) for key in order]
    pairs = []
    for key, value in facts:
        if value is not None:
            pairs += [element("dt", key.replace("_", " ")), element("dd", _shown(value))]
    return element("dl", *pairs)


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_shown(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return str(value)
