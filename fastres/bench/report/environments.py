"""Where and when everything was measured, and the exact commands."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .load import number
from .markup import Markup, element, join
from .records import Results

_FIRST = (
    "device",
    "date",
    "commit",
    "fastres",
    "torch",
    "triton",
    "cuda",
    "cudnn",
    "python",
    "system",
)
_CHANGING = ("date", "load_average")  # from one case of a sweep to the next
_CLOCKS = ("sm clock", "memory clock")


def command(environment: Mapping[str, Any]) -> str | None:
    """As it is typed: what was recorded lacks the interpreter."""
    recorded = str(environment.get("command") or "").strip()
    if not recorded:
        return None
    script = recorded.startswith("-m ") or recorded.split()[0].endswith(".py")
    return f"python {recorded}" if script else recorded


@dataclass
class _Place:
    """What was measured under the same conditions, save those that change by the minute."""

    file: str
    device: str
    environments: list[Mapping[str, Any]]

    @property
    def days(self) -> str:
        return _range(str(one["date"])[:10] for one in self.environments if one.get("date"))

    def facts(self) -> list[tuple[str, str]]:
        """(name, value) of everything that is known; what changed is a range or a list."""
        first = self.environments[0]
        found = {"device": self.device, **_flat(first)}
        for key in ("name", "command"):  # the one is in `device`, the other stands below
            found.pop(key, None)
        if "date" in first:
            found["date"] = _range(str(one.get("date", "")) for one in self.environments)
        loads = [one.get("load_average") for one in self.environments]
        busy = [number(one[0]) for one in loads if isinstance(one, list) and one]
        if busy and None not in busy:
            found["load average"] = f"{_range(busy)}, of a minute"
        for key in _CLOCKS:
            seen = dict.fromkeys(_flat(one).get(key) for one in self.environments)
            if any(seen):
                found[key] = ", ".join(str(value) for value in seen if value is not None)
        order = [key for key in _FIRST if key in found]
        order += [key for key in found if key not in order]
        return [(key, str(found[key])) for key in order if found[key] is not None]


def environments(results: Results) -> Markup:
    """One description for each file and conditions, with how much was measured under them."""
    places: dict[Any, _Place] = {}
    for part in (*results.cases, *results.profiles, *results.largest):
        if part.environment:
            key = (part.file, part.device, json.dumps(_steady(part.environment), sort_keys=True))
            place = places.setdefault(key, _Place(part.file, part.device, []))
            place.environments.append(part.environment)
    parts = []
    for place in places.values():
        count = len(place.environments)
        title = ", ".join(part for part in (place.file, place.days) if part)
        entries = "1 entry" if count == 1 else f"{count} entries"
        parts.append(element("h3", f"{title}: {entries}"))
        pairs = [(element("dt", key), element("dd", value)) for key, value in place.facts()]
        parts.append(element("dl", *(one for pair in pairs for one in pair)))
        typed = command(place.environments[0])
        if typed is not None:
            parts.append(element("pre", element("code", typed)))
    return join(parts)


def _steady(environment: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in environment.items() if key not in _CHANGING}
    device = kept.get("device")
    if isinstance(device, Mapping):
        kept["device"] = {
            key: value for key, value in device.items() if key.replace("_", " ") not in _CLOCKS
        }
    return kept


def _flat(environment: Mapping[str, Any]) -> dict[str, object]:
    """One level: what is known of the device and of its CPU stands beside the rest."""
    found: dict[str, object] = {}
    for key, value in environment.items():
        if key == "device" and isinstance(value, Mapping):
            cpu = value.get("cpu")
            rest = {name: item for name, item in value.items() if name != "cpu"}
            found.update(_flat(rest))
            if isinstance(cpu, Mapping):
                found.update({f"cpu {name}": item for name, item in _flat(cpu).items()})
        else:
            found[key.replace("_", " ")] = None if value is None else _shown(value)
    return found


def _range(values: Iterable[Any]) -> str:
    """The least and the largest, or the one that there is."""
    ordered = sorted(dict.fromkeys(values))
    if len(ordered) < 2:
        return str(ordered[0]) if ordered else ""
    return f"{ordered[0]} to {ordered[-1]}"


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_shown(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return str(value)
