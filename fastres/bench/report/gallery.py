"""All figures of some results, section by section, for the page and for documents alike."""

from __future__ import annotations

from . import figures, select
from .figures import Figure
from .markup import slug
from .records import Case, Profile, Results

TITLES = {
    "train": "Training: every implementation",
    "infer": "Inference: every implementation",
    "block": "Residual blocks: fastres",
    "op": "Fused operators: fastres",
}


def prefix(results: Results, device: str) -> str:
    """What the keys of a device's figures start with; nothing where there is one device."""
    return "" if len(results.devices) == 1 else f"{slug(device)}-"


def compared(results: Results, kind: str, device: str) -> list[Figure]:
    """Cases of a kind against eager: networks with all implementations, parts with fastres."""
    found = select.latest(results, kind, device)
    key = f"{prefix(results, device)}{kind}"
    if kind in ("block", "op"):
        return _some(figures.overview(key, TITLES[kind], found, dots=True))
    return _some(figures.speeds(key, TITLES[kind], select.apart(found)))


def memory_cases(results: Results, device: str) -> list[Case]:
    """Networks whose peak is known; of one that was measured for it, that measurement."""
    found: dict[tuple[bool, str], Case] = {}
    for kind in ("train", "memory", "infer"):
        for case in select.latest(results, kind, device):
            if any(run.peak_bytes is not None for run in case.runs.values()):
                found[kind == "infer", case.title] = case
    return list(found.values())


def memory(results: Results, device: str) -> list[Figure]:
    """Peaks of all networks."""
    found = select.apart(memory_cases(results, device))
    key = f"{prefix(results, device)}memory"
    return _some(figures.memories(key, "Peak memory of a step", found))


def scaling(results: Results, device: str) -> list[Figure]:
    """Curves of all sweeps."""
    found = []
    for kind in ("train", "infer", "memory"):
        for number, sweep in enumerate(select.sweeps(select.latest(results, kind, device))):
            key = f"{prefix(results, device)}{kind}-sweep{number}"
            found += _some(figures.throughput(f"{key}-speed", kind, sweep))
            found += _some(figures.peaks(f"{key}-memory", kind, sweep))
    return found


def profiles(results: Results, device: str) -> list[tuple[Profile, list[Figure]]]:
    """Each profile with its roofline and with what only moves data."""
    found = []
    here = (profile for profile in results.profiles if profile.device == device)
    for number, profile in enumerate(here):
        key = f"{prefix(results, device)}profile{number}"
        drawings = _some(
            figures.roofline(key, profile),
            figures.movers(f"{key}-moves", profile),
            figures.gaps(f"{key}-time", profile),
        )
        found.append((profile, drawings))
    return found


def history(results: Results, device: str) -> list[Figure]:
    """Cases that were measured more than once."""
    groups = select.history(results, device)
    key = f"{prefix(results, device)}history"
    return _some(figures.over_time(key, "The same case over time", groups))


def everything(results: Results) -> list[Figure]:
    """All of them."""
    found: list[Figure] = []
    for device in results.devices:
        for kind in TITLES:
            found += compared(results, kind, device)
        found += memory(results, device) + scaling(results, device)
        found += [one for _, drawings in profiles(results, device) for one in drawings]
        found += history(results, device)
    return found


def _some(*drawings: Figure | None) -> list[Figure]:
    return [drawing for drawing in drawings if drawing is not None]
