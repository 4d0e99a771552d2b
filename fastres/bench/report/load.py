"""Results files, old and new, read into one form; what a file lacks is None, nothing is guessed.

Files from before `fastres bench` lack a case's kind, model and image size; its workload's name
holds them.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...training.errors import UsageError
from ..compare import MEASURED
from .records import NETWORKS, Case, Fit, Largest, Operator, Profile, Ratio, Results, Run
from .units import memory

PARTS = ("cases", "profiles", "largest_batch")
DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "float64": "fp64"}
_NETWORK = re.compile(r"(?P<model>\S+) \S+, batch \d+, (?P<size>\d+)x\d+")
_FILLER = (
    "training", "step", "sgd", "inference", "cifar", "batch", "image",
    "images", "size", "px", "device", "cpu", "gpu", "cuda", "on", "of", "at", "with", "and",
    "channels_last",
)  # fmt: skip


def read(paths: Sequence[Path]) -> Results:
    """The files at `paths`; a folder stands for the .json files in it.

    Raises:
        UsageError: a file is missing or not a results file; names it and what was expected.
    """
    files = [file for path in paths for file in files_at(path)]
    cases, profiles, largest, not_reached = [], [], [], []
    for file in files:
        content = _content(file)
        place = _Place(file)
        here = [
            _case(place, name, place.object(case, f"case {name!r}"))
            for name, case in place.object(content.get("cases", {}), "cases").items()
        ]
        # two of one title differ in what only their names say
        titles = Counter((case.kind, case.device, case.title) for case in here)
        for case in here:
            double = titles[case.kind, case.device, case.title] > 1
            cases.append(replace(case, note=case.name) if double else case)
        for name, one in place.object(content.get("profiles", {}), "profiles").items():
            profiles.append(_profile(place, name, place.object(one, f"profile {name!r}")))
        for name, one in place.object(content.get("largest_batch", {}), "largest_batch").items():
            found = place.object(one, f"largest_batch {name!r}")
            largest.append(_largest(place, name, found))
        sweep = content.get("sweep")
        left = sweep.get("not_reached") if isinstance(sweep, dict) else None
        for name, reason in (left if isinstance(left, dict) else {}).items():
            not_reached.append((place.name, name, str(reason)))
    names = tuple(dict.fromkeys(str(file.name) for file in files))
    return Results(names, tuple(cases), tuple(profiles), tuple(largest), tuple(not_reached))


def files_at(path: Path) -> list[Path]:
    """The file, or the .json files of a folder; raises UsageError for a folder without."""
    if not path.is_dir():
        return [path]
    found = sorted(path.glob("*.json"))
    if not found:
        raise UsageError(f"results must be files or folders with .json files, {path} has none")
    return found


def _content(path: Path) -> dict[str, Any]:
    wanted = f"a JSON object with {', '.join(PARTS[:-1])} or {PARTS[-1]}"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read results from {path}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{path} is not a results file: {wanted} expected, {error}") from None
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise UsageError(f"{path} is not a results file: {wanted} expected, got a {kind}")
    if not any(part in content for part in PARTS):
        got = ", ".join(map(repr, list(content)[:5])) or "an empty one"
        raise UsageError(f"{path} is not a results file: {wanted} expected, got {got}")
    return content


class _Place:
    """Where in which file a value is, for the errors of values that are not what they must be."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name

    def object(self, value: Any, what: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise UsageError(f"{self.path}: {what} must be an object, got {_short(value)}")
        return value

    def integer(self, value: Any, what: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UsageError(f"{self.path}: {what} must be an integer above 0, got {_short(value)}")
        return value

    def list(self, value: Any, what: str) -> list[Any]:
        if not isinstance(value, list):
            raise UsageError(f"{self.path}: {what} must be a list, got {_short(value)}")
        return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def number(value: Any) -> float | None:
    """A finite number of at least 0, as all that is measured is, or None; files hold infinities and
    NaN as text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and value >= 0 else None


def device_name(environment: dict[str, Any], default: str) -> str:
    """The device and, of a CPU, its threads."""
    device = environment.get("device")
    if not isinstance(device, dict):
        return default
    name = str(device.get("name", default))
    cpu = device.get("cpu")
    if device.get("type") == "cpu" and isinstance(cpu, dict) and "threads" in cpu:
        threads = cpu["threads"]
        name += f", {threads} thread" if threads == 1 else f", {threads} threads"
    return name


def _environment(entry: dict[str, Any]) -> dict[str, Any]:
    found = entry.get("environment")
    return found if isinstance(found, dict) else {}


def _case(place: _Place, name: str, case: dict[str, Any]) -> Case:
    where = f"case {name!r}"
    workload = str(case.get("workload", name))
    kind = case.get("kind") or _kind(workload)
    model, size = case.get("model"), case.get("image_size")
    network = _NETWORK.search(workload)
    if "kind" not in case and network and kind in ("train", "infer"):
        model, size = network["model"], int(network["size"])
    dtype = str(case.get("dtype", ""))
    dtype = DTYPES.get(dtype, dtype)
    batch = place.integer(case.get("batch"), f"batch of {where}")
    implementations = place.object(case.get("implementations"), f"implementations of {where}")
    floor = case.get("floor") if isinstance(case.get("floor"), dict) else {}
    machine = floor.get("machine")
    environment = _environment(case)
    return Case(
        file=place.name,
        name=name,
        kind=str(kind),
        model=_text(model),
        dtype=dtype,
        batch=batch,
        image_size=None if size is None else place.integer(size, f"image_size of {where}"),
        note=_note(name, str(kind), str(model), dtype, (batch, size)) if kind in NETWORKS else "",
        device=device_name(environment, place.name),
        floor_seconds=number(floor.get("seconds")),
        machine=_text(machine.get("name") if isinstance(machine, dict) else machine),
        optimizer=bool(case.get("optimizer")),
        runs={
            who: _run(who, place.object(row, f"{who!r} of {where}"))
            for who, row in implementations.items()
        },
        environment=environment,
    )


def _kind(workload: str) -> str:
    if workload.startswith("inference of "):
        return "infer"
    if re.match(r"(conv_bn|bn)_(add_)?act ", workload):
        return "op"
    return "block" if " block " in workload else "train"


def _note(name: str, kind: str, model: str, dtype: str, numbers: Sequence[int | None]) -> str:
    """What a case's name says beyond its model, dtype, batch and image size."""
    kept = []
    name = name.removeprefix(kind)
    known = {*_FILLER, dtype, model, *model.split("."), *DTYPES}
    for word in re.split(r"[\s,;:/]+", name):
        digits = [int(found) for found in re.findall(r"\d+", word)]
        of_size = bool(digits) and all(found in numbers for found in digits)
        if word and word.lower() not in known and not of_size:
            kept.append(word)
    return " ".join(kept)


def _run(name: str, row: dict[str, Any]) -> Run:
    seconds = row.get("seconds") if isinstance(row.get("seconds"), dict) else {}
    taken = row.get("memory") if isinstance(row.get("memory"), dict) else {}
    against = row.get("times_faster_than")
    ratios = {}
    for peer, found in (against if isinstance(against, dict) else {}).items():
        found = found if isinstance(found, dict) else {}
        ends = [number(found.get(key)) for key in ("median", "low95", "high95")]
        if None not in ends:
            ratios[peer] = Ratio(*ends, noisy=bool(found.get("noisy")))
    low, high = (number(seconds.get(f"{which}_quartile")) for which in ("lower", "upper"))
    rounds = seconds.get("rounds", [])
    return Run(
        name=name,
        status=str(row.get("status", MEASURED)),
        reason=_text(row.get("reason")),
        seconds=number(seconds.get("median")),
        quartiles=None if low is None or high is None else (low, high),
        rounds=len(rounds) if isinstance(rounds, list) else int(number(rounds) or 0),
        per_second=number(row.get("per_second")),
        make_seconds=number(row.get("make_seconds")),
        first_call_seconds=number(row.get("first_call_seconds")),
        peak_bytes=number(taken.get("peak_bytes")),
        saved_bytes=number(taken.get("saved_bytes")),
        faster_than=ratios,
    )


def _described(entry: dict[str, Any], name: str, *, batch: bool) -> str:
    dtype = DTYPES.get(str(entry.get("dtype")), entry.get("dtype"))
    parts = [" ".join(str(part) for part in (entry.get("model", name), dtype) if part)]
    if batch and entry.get("batch") is not None:
        parts.append(f"batch {entry['batch']}")
    if entry.get("image_size") is not None:
        parts.append(f"{entry['image_size']}×{entry['image_size']}")
    return ", ".join(parts)


def _searched(entry: dict[str, Any], name: str) -> str:
    parts = [_described(entry, name, batch=False)]
    if "inference" in entry:
        parts.append("inference" if entry["inference"] else "training")
    if entry.get("optimizer"):
        parts.append("SGD")
    limit = number(entry.get("limit_bytes"))
    return ", ".join([*parts, f"within {memory(limit)}"] if limit else parts)


def _profile(place: _Place, name: str, entry: dict[str, Any]) -> Profile:
    machine = entry.get("machine") if isinstance(entry.get("machine"), dict) else {}
    environment = _environment(entry)
    return Profile(
        file=place.name,
        name=name,
        title=", ".join(
            part
            for part in (
                _described(entry, name, batch=True),
                "inference" if entry.get("kind") == "infer" else None,
                _text(entry.get("implementation")),
            )
            if part
        ),
        device=device_name(environment, place.name),
        step_seconds=number(entry.get("step_seconds")),
        machine=_text(machine.get("name")),
        source=_text(machine.get("source")),
        bandwidth=number(machine.get("bytes_per_second")),
        rate=number(machine.get("flops_per_second")),
        operators=_operators(place, name, entry, "operators"),
        parts=_operators(place, name, {"parts": [], **entry}, "parts"),
        plain_seconds=number(entry.get("unprofiled_seconds")),
        trace=_text(entry.get("trace")),
        environment=environment,
    )


def _operators(place: _Place, name: str, entry: dict[str, Any], key: str) -> tuple[Operator, ...]:
    found = []
    for row in place.list(entry.get(key), f"{key} of profile {name!r}"):
        row = place.object(row, f"one of the {key} of profile {name!r}")
        figures = (number(row.get(key)) for key in ("seconds", "bytes", "flops", "floor_seconds"))
        label = str(row.get(key.removesuffix("s")))
        found.append(Operator(label, int(number(row.get("calls")) or 0), *figures))
    return tuple(sorted(found, key=lambda one: -(one.seconds or 0)))


def _largest(place: _Place, name: str, entry: dict[str, Any]) -> Largest:
    where = f"largest_batch {name!r}"
    found = place.object(entry.get("implementations"), f"implementations of {where}")
    fits = {}
    for who, row in found.items():
        row = place.object(row, f"{who!r} of {where}")
        batch = number(row.get("batch"))
        attempts = row.get("tried")
        tried = tuple(
            (int(one[0]), bool(one[1]), _text(one[2]))
            for one in (attempts if isinstance(attempts, list) else [])
            if isinstance(one, list) and len(one) == 3 and number(one[0]) is not None
        )
        fits[who] = Fit(
            who,
            None if batch is None else int(batch),
            _text(row.get("limit")),
            _text(row.get("reason")),
            tried,
        )
    environment = _environment(entry)
    return Largest(
        file=place.name,
        name=name,
        title=_searched(entry, name),
        device=device_name(environment, place.name),
        fits=fits,
        environment=environment,
    )
