"""Numbers as a reader wants them: three digits and a unit."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Three digits in s, ms or µs."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 0.9995 or unit == "µs":
            return f"{digits(seconds * scale)} {unit}"
    raise AssertionError(seconds)


def digits(value: float) -> str:
    """Three significant digits, all of them before the point where there are more."""
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}"


def memory(count: float) -> str:
    """Bytes in MiB or GiB."""
    if count < 0.9995 * 2**30:
        return f"{digits(count / 2**20)} MiB"
    return f"{digits(count / 2**30)} GiB"


def scaled(value: float, unit: str) -> str:
    """With a decimal prefix, as data sheets have it: 4.80 TB/s."""
    for prefix, scale in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 0.9995 * scale:
            return f"{digits(value / scale)} {prefix}{unit}"
    return f"{digits(value)} {unit}"
