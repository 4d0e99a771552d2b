"""The README's table and picture of training steps, made from results files and nothing else.

What stands between the README's two marks of a file is replaced. A test holds the README against
the file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...training.errors import UsageError
from .. import results
from ..peers import EAGER
from . import figures, load, pictures, select
from .environments import command
from .records import Case, Results, Run

BEGIN, END = "<!-- results: {name} -->", "<!-- end of results -->"
_PICTURE = r"\s*!\[[^\]]*\]\((?P<picture>[^)\s]+\.png)\)"


def training_cases(found: Results) -> list[Case]:
    """The measured training step of each network, dtype and image size.

    Raises:
        UsageError: there is none.
    """
    cases = [
        case
        for device in found.devices
        for case in select.representative(select.latest(found, "train", device))
    ]
    if not cases:
        raise UsageError("the results must hold a training case, got none that was measured")
    return cases


def table(found: Results) -> str:
    """Markdown of the training cases of one file; errors as `training_cases`."""
    lines = [
        "| training step | images | batch | fused | over eager channels_last | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    cases = training_cases(found)
    for case in cases:
        run = select.ours(case)
        size = "–" if case.image_size is None else f"{case.image_size}×{case.image_size}"
        ends = run.quartiles if run.noisy else (run.seconds,)
        step = " to ".join(f"{end * 1e3:.0f}" for end in ends)
        row = [f"{case.model} {case.dtype}", size, str(case.batch), f"{step} ms"]
        row += [str(run.ratio), _memory(run, case.runs[EAGER])]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    conditions = dict.fromkeys(_conditions(case) for case in cases)
    return "\n".join([*lines, "", *conditions])


def picture(found: Results, path: Path) -> None:
    """Draw the ratios of the table, with their 95% intervals, as a PNG."""
    title = f"Training step, {'; '.join(found.devices)}"
    pictures.draw(figures.overview("readme", title, training_cases(found)), path)


def _memory(ours: Run, eager: Run) -> str:
    if ours.peak_bytes is None or not eager.peak_bytes:
        return "–"
    return f"{ours.peak_bytes / eager.peak_bytes:.2f}× eager's"


def _conditions(case: Case) -> str:
    environment = case.environment
    said = [case.device]
    for key, name, characters in (("torch", "torch ", 40), ("commit", "commit ", 12)):
        if environment.get(key):
            said.append(f"{name}{str(environment[key])[:characters]}")
    said.append(str(environment.get("date", ""))[:10])
    typed = command(environment)
    return ", ".join(part for part in said if part) + (f": `{typed}`" if typed else "")


def replaced(readme: str, name: str, found: Results) -> str:
    """`readme` with the table of results file `name` between its marks.

    Raises:
        UsageError: the marks of this file are not there.
    """
    begin = BEGIN.format(name=name)
    pattern = _pattern(name)
    if not re.search(pattern, readme, re.DOTALL):
        raise UsageError(f"the README must hold {begin!r} and {END!r}, got neither or one")
    new = f"{begin}\n{table(found)}\n{END}"
    return re.sub(pattern, lambda _: new, readme, count=1, flags=re.DOTALL)


def _pattern(name: str) -> str:
    return re.escape(BEGIN.format(name=name)) + r"\n.*?" + re.escape(END)


def update(path: Path, sources: Sequence[Path]) -> list[Path]:
    """Rewrite the tables of results files in the README at `path`, and the PNG that it shows right
    after a table; returns what was written. Of a folder those that the README has marks for.

    Raises:
        UsageError: the README cannot be read or lacks the marks of a file or of all files of the
            folders, or a file holds no training case.
        OSError: it cannot be written.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the README {path}: {error}") from None
    files = [
        file
        for source in sources
        for file in load.files_at(source)
        if not source.is_dir() or BEGIN.format(name=file.name) in text
    ]
    if not files:
        names = ", ".join(map(str, sources))
        raise UsageError(f"the README {path} must hold marks of a file in {names}, got none")
    drawn: dict[Path, Any] = {}
    for file in files:
        found = load.read([file])
        text = replaced(text, file.name, found)
        shown = re.search(_pattern(file.name) + _PICTURE, text, re.DOTALL)
        if shown:
            drawn[path.parent / shown["picture"]] = found
    results.replace(path, text)
    for target, found in drawn.items():
        picture(found, target)
    return [path, *drawn]
