"""A small SVG writer: shapes with the page's CSS classes, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

FONT = 13  # px of text, which is drawn at its real size

_WIDTHS = {**dict.fromkeys("iljtfr.,:;|'()[] ", 0.38), **dict.fromkeys("mwMWGNOQ%@×…–", 0.95)}


def text_width(text: str, size: float = FONT) -> float:
    """Pixels that a text takes at most, in the widest of the page's fonts."""
    return size * sum(_WIDTHS.get(letter, 0.64) for letter in text)


def shortened(text: str, width: float, size: float = FONT) -> str:
    """`text`, cut with an ellipsis where it is wider than `width` pixels."""
    if text_width(text, size) <= width:
        return text
    while text and text_width(text + "…", size) > width:
        text = text[:-1]
    return text.rstrip() + "…"


def nice_ticks(highest: float, count: int) -> list[float]:
    """About `count` round numbers from 0 to at least `highest`; [0, 1] if that is 0."""
    if highest <= 0:
        return [0.0, 1.0]
    step = 10.0 ** math.floor(math.log10(highest / count))
    step *= next(factor for factor in (1, 2, 5, 10) if highest / (step * factor) <= count)
    return [step * index for index in range(math.ceil(highest / step - 1e-9) + 1)]


class Canvas:
    """Shapes in pixels; `key` makes the ids within it the page's own."""

    def __init__(self, key: str, width: int) -> None:
        self.key, self.width = key, width
        self._parts: list[str] = []
        self._hatches: set[str] = set()

    def _add(self, tag: str, classes: str, tip: str | None = None, **attributes: float | str):
        shown = "".join(
            f' {name.replace("_", "-")}="{_number(value)}"' for name, value in attributes.items()
        )
        inner = f"><title>{escape(tip)}</title></{tag}>" if tip else "/>"
        self._parts.append(f'<{tag} class="{classes}"{shown}{inner}')

    def rect(self, classes: str, x: float, y: float, width: float, height: float, tip=None) -> None:
        self._add("rect", classes, tip, x=x, y=y, width=max(width, 0.5), height=height)

    def hatched(self, role: str, x: float, y: float, width: float, height: float, tip=None) -> None:
        """A rectangle in stripes of a role's colour."""
        self._hatches.add(role)
        fill = f"url(#{self.key}-{role})"
        self._add(
            "rect",
            f"outline-{role}",
            tip,
            x=x,
            y=y,
            width=max(width, 0.5),
            height=height,
            fill=fill,
        )

    def line(self, classes: str, x1: float, y1: float, x2: float, y2: float) -> None:
        self._add("line", classes, x1=x1, y1=y1, x2=x2, y2=y2)

    def path(self, classes: str, points: Sequence[tuple[float, float]], dash: str = "") -> None:
        joined = " ".join(f"{_number(x)},{_number(y)}" for x, y in points)
        extra = {"stroke_dasharray": dash} if dash else {}
        self._add("polyline", classes, points=joined, **extra)

    def circle(self, classes: str, x: float, y: float, radius: float, tip=None) -> None:
        self._add("circle", classes, tip, cx=x, cy=y, r=radius)

    def marker(self, classes: str, shape: int, x: float, y: float, tip=None) -> None:
        """Circle, square, triangle, diamond or triangle on its tip."""
        if shape % 5 == 0:
            self.circle(classes, x, y, 4, tip)
            return
        corners = {
            1: ((-3.6, -3.6), (3.6, -3.6), (3.6, 3.6), (-3.6, 3.6)),
            2: ((0, -4.6), (4.4, 3.4), (-4.4, 3.4)),
            3: ((0, -5), (5, 0), (0, 5), (-5, 0)),
            4: ((0, 4.6), (4.4, -3.4), (-4.4, -3.4)),
        }[shape % 5]
        joined = " ".join(f"{_number(x + dx)},{_number(y + dy)}" for dx, dy in corners)
        self._add("polygon", classes, tip, points=joined)

    def text(
        self, x: float, y: float, text: str, classes: str = "", *, anchor: str = "start"
    ) -> None:
        """With its base line at y."""
        where = "" if anchor == "start" else f' text-anchor="{anchor}"'
        named = f' class="{classes}"' if classes else ""
        self._parts.append(
            f'<text x="{_number(x)}" y="{_number(y)}"{where}{named}>{escape(text)}</text>'
        )

    def finish(self, height: float, label: str, classes: str) -> str:
        """The SVG element, a picture that a screen reader calls `label`."""
        patterns = "".join(
            f'<pattern id="{self.key}-{role}" width="6" height="6" patternUnits="userSpaceOnUse" '
            f'patternTransform="rotate(45)"><rect class="{role}" width="3" height="6"/></pattern>'
            for role in sorted(self._hatches)
        )
        defs = f"<defs>{patterns}</defs>" if patterns else ""
        return (
            f'<svg class="{classes}" role="img" aria-label="{escape(label)}" '
            f'viewBox="0 0 {self.width} {_number(height)}" width="{self.width}" '
            f'height="{_number(height)}">{defs}{"".join(self._parts)}</svg>'
        )


def _number(value: float | str) -> str:
    if isinstance(value, str):
        return escape(value)
    return f"{value:.1f}".rstrip("0").rstrip(".")
