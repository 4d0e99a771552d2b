"""`fastres bench memory --largest`: the largest batch of each implementation, one after the other.

Written after every implementation, and taken up again where the file ends.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from . import largest_batch
from .plan import Spec
from .progress import Progress
from .store import Store
from .sweep import Options

_ATTEMPT = 600.0  # seconds for one batch size
_LEAST = 5.0  # seconds below which no implementation is begun


def run(
    specs: Sequence[Spec],
    names: Sequence[str],
    cap: int | None,
    options: Options,
    store: Store,
    progress: Progress,
) -> None:
    """Search for every spec, from its batch up, and every implementation in `names`."""
    end = None if options.seconds is None else time.monotonic() + options.seconds
    for number, spec in enumerate(specs):
        title = name_of(spec)
        for name in names:
            found = store.largest.get(title, {"implementations": {}})
            if name in found["implementations"]:
                continue
            left = None if end is None else end - time.monotonic()
            if left is not None and left < _LEAST:
                store.not_reached[f"{title}: {name}"] = f"{max(left, 0):.0f} s were left"
                progress.skip(f"{title}: {name}", f"{max(left, 0):.0f} s were left")
                continue
            progress.start(f"{title}: {name}", number, left)
            new = largest_batch.search(
                [name], spec.model, spec.image_size, spec.dtype, device=spec.device,
                optimizer=spec.optimizer, start=min(spec.batch, cap), cap=cap,
                threads=options.threads,
                timeout=_ATTEMPT if left is None else min(left, _ATTEMPT),
                on_attempt=lambda who, one: progress.event(
                    "preparing", f"batch {one.batch}: {'fits' if one.ok else one.reason}"
                ),
            )  # fmt: skip
            merged = {**found["implementations"], **new["implementations"]}
            store.largest[title] = {**new, "implementations": merged}
            store.write()
            progress.finish(title, [[row[0], row[1] or row[2]] for row in largest_batch.rows(new)])
    store.write()


def name_of(spec: Spec) -> str:
    """A search as results files name it."""
    return f"largest batch, {spec.model} {spec.dtype}, {spec.image_size}px"


def table_rows(found: dict[str, Any]) -> list[list[str]]:
    """By `largest_batch.HEADER`, under a line for each search."""
    told = []
    for title, one in found.items():
        told.append([title, "", ""])
        told.extend([f"  {row[0]}", *row[1:]] for row in largest_batch.rows(one))
    return told
