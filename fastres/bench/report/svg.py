"""Figures as inline SVG, each twice: for a wide page and for a phone; CSS shows one of them."""

from __future__ import annotations

from .canvas import Canvas, shortened, text_width
from .figures import BOUND, Bar, Bars, Figure, Lines, Roofline
from .svg_curves import lines, roofline

WIDE, NARROW = 840, 340
_BAR, _ROW, _HEAD = 16, 25, 30  # px: a bar, its row, a group's title


def drawn(figure: Figure) -> str:
    """Both drawings of a figure."""
    draw = {Bars: bars, Lines: lines, Roofline: roofline}[type(figure)]
    return draw(figure, f"{figure.key}-w", WIDE, "wide") + draw(
        figure, f"{figure.key}-n", NARROW, "narrow"
    )


def bars(figure: Bars, key: str, width: int, classes: str) -> str:
    """A row a bar: label to the left and value to the right of it, or above it on a phone."""
    canvas = Canvas(key, width)
    narrow = width < 500
    left, right = 0.0, float(width)
    if not narrow:
        left = min(max(text_width(bar.label) for bar in figure.bars) + 14, 0.42 * width)
        right = width - max(text_width(bar.text) for bar in figure.bars) - 12
    y = 0.0
    spans = []
    for title, group in figure.groups:
        if title:
            y += _HEAD
            canvas.text(0, y - 9, shortened(title, width), "strong")
        scale = (right - left) / (1.02 * figure.highest(group))
        for bar in group:
            if narrow:
                y = _bar_head(canvas, bar, y)
            _bar(canvas, figure, bar, left, y + (_ROW - _BAR) / 2, scale)
            if not narrow:
                middle = y + _ROW / 2 + 4.5
                canvas.text(0, middle, shortened(bar.label, left - 10))
                canvas.text(right + 12, middle, bar.text, "figure-number")
            spans.append((y, y + _ROW))
            y += _ROW
    if figure.reference is not None:
        value, label = figure.reference
        x = left + value * scale
        for top, bottom in spans:
            canvas.line("reference", x, top, x, bottom)
        half = text_width(label, 12) / 2
        canvas.text(min(max(x, half), width - half), y + 14, label, "small", anchor="middle")
        y += 20
    return canvas.finish(y + 4, description(figure), classes)


def _bar_head(canvas: Canvas, bar: Bar, y: float) -> float:
    """Label and value above a bar, on one line if they fit; returns where the bar starts."""
    canvas.text(0, y + 15, shortened(bar.label, canvas.width))
    if text_width(bar.label) + text_width(bar.text) + 12 > canvas.width:
        y += 17
        canvas.text(0, y + 15, shortened(bar.text, canvas.width), "small")
    else:
        canvas.text(canvas.width, y + 15, bar.text, "figure-number", anchor="end")
    return y + 17


def _bar(canvas: Canvas, figure: Bars, bar: Bar, left: float, y: float, scale: float) -> None:
    tip = f"{bar.label}: {bar.text}"
    x = left + bar.value * scale
    middle = y + _BAR / 2
    if not figure.dots:
        size = (left, y, bar.value * scale, _BAR)
        if bar.role == BOUND:
            canvas.rect("outline-bound", *size, tip)
        elif bar.noisy:
            canvas.hatched(bar.role, *size, tip)
        elif bar.part is not None:
            canvas.rect(f"{bar.role} light", *size, tip)
            canvas.rect(bar.role, left, y, bar.part * scale, _BAR, tip)
        else:
            canvas.rect(bar.role, *size, tip)
    if bar.low is not None and bar.high is not None:
        ends = (left + bar.low * scale, left + bar.high * scale)
        canvas.line("halo", ends[0], middle, ends[1], middle)
        canvas.line("interval", ends[0], middle, ends[1], middle)
        for end in ends:
            canvas.line("interval", end, middle - 4, end, middle + 4)
    if figure.dots:
        hollow = " hollow" if bar.noisy else ""
        canvas.circle(f"{bar.role}{hollow}", x, middle, 5, tip)


def description(figure: Bars) -> str:
    """All of a bar chart in words."""
    parts = []
    for title, group in figure.groups:
        values = "; ".join(f"{bar.label} {bar.text}" for bar in group)
        parts.append(f"{title}: {values}" if title else values)
    return f"{figure.title} ({figure.axis}). {'. '.join(parts)}."
