"""The results file of a sweep: written after every case, and taken up again where it ends."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..training.errors import UsageError
from . import results, rows

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

_REMEDY = "give another --out, or --fresh to replace it"
_FORM = 1  # of what stands under "sweep"


class Store:
    """FILE.json with the cases measured so far, FILE.csv with a line for each implementation.

    Args:
        path: of the JSON.
        identity: the options that decide what is measured, and what with. A file with others is
            another sweep's.
        planned: names of all cases, in order.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], planned: Sequence[str]) -> None:
        self.path = path
        self.cases: dict[str, dict[str, Any]] = {}
        # searches by name, as `largest_batch` has them
        self.largest: dict[str, dict[str, Any]] = {}
        # cases of which only a part was measured when they were written
        self._partial: set[str] = set()
        # name: the reason why the time did not suffice
        self.not_reached: dict[str, str] = {}
        # name: [implementations, {implementation left out: reason}], as they were first chosen
        self.chosen: dict[str, list] = {}
        self._identity = json.loads(json.dumps(identity))
        self._planned = list(planned)

    def load(self, *, any_commit: bool = False) -> bool:
        """Take up what the file holds; False where there is none.

        Raises:
            UsageError: it holds something else; names the differences.
        """
        try:
            content = results.read(self.path)
        except ValueError as error:
            raise UsageError(
                f"out: {error}; give another --out, or --fresh to replace it"
            ) from None
        if not content:
            return False
        told = content.get("sweep") if isinstance(content, dict) else None
        if not isinstance(told, dict) or told.get("form") != _FORM:
            raise UsageError(f"out: {self.path} is not of `fastres bench`; {_REMEDY}")
        differences = _differences(told["options"], self._identity, any_commit)
        if differences:
            raise UsageError(
                f"out: {self.path} holds another sweep: {'; '.join(differences)}; {_REMEDY}"
            )
        self.cases = {
            name: content["cases"][name]
            for name in self._planned
            if name in content["cases"] and name not in told.get("partial", [])
        }
        self.largest = content.get("largest_batch", {})
        self.chosen = told["chosen"]
        return True

    def forget_failed(self) -> None:
        """Drop the cases of which nothing was measured, so that they are measured again."""
        self.cases = {
            name: case for name, case in self.cases.items() if rows.measured_names(case)
        }  # fmt: skip

    def missing(self) -> list[str]:
        """Planned cases without a row, in order."""
        return [name for name in self._planned if name not in self.cases]

    def put(self, name: str, case: dict[str, Any], *, partial: bool = False) -> None:
        """Write a case, which is taken up again after a kill where it is `partial`."""
        self.cases[name] = case
        (self._partial.add if partial else self._partial.discard)(name)
        self.not_reached.pop(name, None)
        self.write()

    def write(self) -> None:
        """Raises UsageError where it cannot be written."""
        ordered = {name: self.cases[name] for name in self._planned if name in self.cases}
        sweep = {
            "form": _FORM,
            "options": self._identity,
            "planned": self._planned,
            "chosen": self.chosen,
            "not_reached": self.not_reached,
            "partial": sorted(self._partial),
        }
        content = {"cases": ordered, "sweep": sweep}
        if self.largest:
            content["largest_batch"] = self.largest
        try:
            results.write(self.path, content)
            results.replace(self.path.with_suffix(".csv"), rows.csv_text(ordered))
        except OSError as error:
            raise UsageError(f"out: cannot write {self.path}: {error.strerror}") from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second sweep from the same file.

        Raises:
            UsageError: another process has it, or the folder cannot be written to.
        """
        if fcntl is None:
            yield
            return
        lock = self.path.with_name(f".{self.path.name}.lock")
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = lock.open("w")
        except OSError as error:
            raise UsageError(f"out: cannot write {self.path}: {error.strerror}") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UsageError(f"out: another sweep is writing {self.path}") from None
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    os.unlink(lock)


def _differences(there: Mapping[str, Any], here: Mapping[str, Any], any_commit: bool) -> list[str]:
    found = []
    for option in dict.fromkeys([*there, *here]):
        if option == "commit" and any_commit:
            continue
        was, wanted = there.get(option), here.get(option)
        if was != wanted:
            name = option.replace("_", " ")
            found.append(f"{name} was {_words(was)} and is {_words(wanted)}")
    if len(found) == 1 and found[0].startswith("commit"):
        found[0] += " (--any-commit goes on with it; every case says at which it was measured)"
    return found


def _words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def default_name(identity: Mapping[str, Any]) -> str:
    """A file name that says what is measured, and differs where anything does."""

    def part(option: str, many: str) -> str:
        values = identity[option] or ["default"]
        return str(values[0]) if len(values) == 1 else f"{len(values)}-{many}"

    words = [identity["kind"], part("model", "models"), part("dtype", "dtypes")]
    words.append(part("batch", "batches") if len(identity["batch"]) > 1 else
                 f"b{identity['batch'][0]}")  # fmt: skip
    text = json.dumps(identity, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return "-".join(words).replace("/", "-") + f"-{digest}.json"
