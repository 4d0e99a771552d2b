"""Curves over a sweep, and the roofline, as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean

from .canvas import Canvas, nice_ticks, text_width
from .figures import BASE, BOUND, OURS, Line, Lines, Point, Roofline
from .units import digits, scaled

DASHES = ("", "7 3", "2 3", "9 3 2 3")
_LABEL_GAP = 16  # px between the base lines of labels


def looks(line: Line) -> tuple[str, int, str]:
    """CSS class of its colour, marker and dashes of a line."""
    if line.role == OURS:
        return "ours", 0, DASHES[line.number % len(DASHES)]
    if line.role in (BASE, BOUND):
        return "base", 1, "" if line.role == BASE else "1 4"
    return f"p{line.number % 6}", 2 + line.number % 3, DASHES[line.number // 6 % len(DASHES)]


def y_ticks(figure: Lines, count: int) -> list[tuple[float, str]]:
    """Round numbers from 0, with what is written beside them."""
    highest = max(y for line in figure.lines for _, y in line.points)
    if not figure.show(2.0**30).endswith("iB"):
        return [(tick, f"{tick:,g}") for tick in nice_ticks(highest, count)]
    unit, name = (2.0**30, "GiB") if highest >= 2.0**30 else (2.0**20, "MiB")
    return [(tick * unit, f"{tick:,g} {name}") for tick in nice_ticks(highest / unit, count)]


def lines(figure: Lines, key: str, width: int, classes: str) -> str:
    """Curves with their names at the right end; on a phone with a legend below."""
    canvas = Canvas(key, width)
    narrow = width < 500
    names = max(text_width(line.label) for line in figure.lines)
    ticks = y_ticks(figure, 4 if narrow else 5)
    left = max(text_width(label, 12) for _, label in ticks) + 10
    right = width - (12 if narrow else min(names + 24, 0.35 * width))
    top, bottom = 26.0, 240.0 if narrow else 290.0

    def place_x(x: float) -> float:
        return math.log2(x) if figure.doubling else x

    low, high = place_x(figure.xs[0]), place_x(figure.xs[-1])

    def at(x: float, y: float) -> tuple[float, float]:
        along = left + 10 + (place_x(x) - low) / (high - low) * (right - left - 20)
        return along, bottom - y / ticks[-1][0] * (bottom - top)

    canvas.text(0, 12, figure.y_axis, "small")
    for tick, label in ticks:
        y = at(figure.xs[0], tick)[1]
        canvas.line("grid", left, y, right, y)
        canvas.text(left - 6, y + 4, label, "small", anchor="end")
    _x_labels(canvas, [(at(x, 0)[0], f"{x:g}") for x in figure.xs], bottom)
    canvas.text((left + right) / 2, bottom + 36, figure.x_axis, "small", anchor="middle")
    ends = []
    for line in figure.lines:
        colour, shape, dash = looks(line)
        places = [at(*point) for point in line.points]
        canvas.path(f"curve stroke-{colour}", places, dash)
        for (x, y), noisy, place in zip(line.points, line.noisy, places, strict=True):
            style = f"hollow stroke-{colour}" if noisy else colour
            tip = f"{line.label}, {x:g}: {figure.show(y)}{', noisy' if noisy else ''}"
            canvas.marker(style, shape, *place, tip)
        ends.append(places[-1][1])
    height = bottom + 44
    if narrow:
        for line in figure.lines:
            height = _legend(canvas, line, height)
    else:
        places = spread(ends, _LABEL_GAP, top, bottom)
        for line, y in zip(figure.lines, places, strict=True):
            colour, shape, _ = looks(line)
            canvas.marker(colour, shape, right + 8, y)
            canvas.text(right + 18, y + 4.5, line.label)
        height = max(height, max(places) + 10)
    said = "; ".join(
        f"{line.label} " + ", ".join(f"{figure.show(y)} at {x:g}" for x, y in line.points)
        for line in figure.lines
    )
    return canvas.finish(height, f"{figure.title}, {figure.y_axis}. {said}.", classes)


def _legend(canvas: Canvas, line: Line, y: float) -> float:
    colour, shape, dash = looks(line)
    canvas.path(f"curve stroke-{colour}", [(0, y + 10), (24, y + 10)], dash)
    canvas.marker(colour, shape, 12, y + 10)
    canvas.text(32, y + 14.5, line.label)
    return y + 20


def _x_labels(canvas: Canvas, labels: Sequence[tuple[float, str]], y: float) -> None:
    free = -math.inf
    for x, label in labels:
        half = text_width(label, 12) / 2
        canvas.line("tick", x, y, x, y + 4)
        if x - half > free:
            canvas.text(x, y + 18, label, "small", anchor="middle")
            free = x + half + 6


def spread(wanted: Sequence[float], gap: float, top: float, bottom: float) -> list[float]:
    """Places in the order of the wanted ones and as near as can be, at least `gap` apart, between
    top and bottom (or beyond the bottom where there are too many)."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    # without the gaps they must ascend: neighbours that do not share their mean
    pools: list[list[float]] = []
    for place, index in enumerate(order):
        pools.append([wanted[index] - place * gap])
        while len(pools) > 1 and mean(pools[-2]) > mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    last = max(top, bottom - gap * (len(wanted) - 1))
    level = [min(max(mean(pool), top), last) for pool in pools for _ in pool]
    placed = [0.0] * len(wanted)
    for place, index in enumerate(order):
        placed[index] = level[place] + place * gap
    return placed


def roofline(figure: Roofline, key: str, width: int, classes: str) -> str:
    """Numbered operators under the roof, those that take most of the time by name."""
    canvas = Canvas(key, width)
    narrow = width < 500
    xs, ys = limits(figure)
    left, right, top = 76.0, width - 14.0, 26.0
    bottom = 300.0 if narrow else 390.0

    def at(intensity: float, rate: float) -> tuple[float, float]:
        along = math.log(intensity / xs[0]) / math.log(xs[1] / xs[0])
        up = math.log(rate / ys[0]) / math.log(ys[1] / ys[0])
        return left + along * (right - left), bottom - up * (bottom - top)

    canvas.text(0, 12, "flop/s", "small")
    for tick in decades(*ys):
        y = at(xs[0], tick)[1]
        canvas.line("grid", left, y, right, y)
        power, unit = scaled(tick, "flop/s").split()
        canvas.text(left - 6, y + 4, f"{float(power):g} {unit}", "small", anchor="end")
    _x_labels(canvas, [(at(x, ys[0])[0], _plain(x)) for x in decades(*xs)], bottom)
    canvas.text((left + right) / 2, bottom + 36, "flop per byte", "small", anchor="middle")
    start = max(xs[0], ys[0] / figure.bandwidth)
    roof = [(start, start * figure.bandwidth), (figure.ridge, figure.rate), (xs[1], figure.rate)]
    canvas.path("curve stroke-roof", [at(*point) for point in roof])
    taken = _roof_labels(canvas, figure, at, roof, right)
    for point in sorted(figure.points, key=lambda point: -point.share):
        x, y = at(point.intensity, point.rate)
        radius = size(point)
        tip = f"{point.number} {point.label}: {scaled(point.rate, 'flop/s')}, {point.share:.0%}"
        canvas.circle("ours operator", x, y, radius, tip)
        taken.append((x - radius, y - radius, x + radius, y + radius))
    named = 3 if narrow else 6
    for order, point in enumerate(sorted(figure.points, key=lambda point: -point.share)):
        x, y = at(point.intensity, point.rate)
        label = f"{point.number} {point.label}" if order < named else str(point.number)
        _name(canvas, label, x, y, size(point), taken, (left, top, right, bottom))
    return canvas.finish(bottom + 44, _roof_description(figure), classes)


def size(point: Point) -> float:
    """Radius in px: the area is the share of the time."""
    return 4 + 14 * math.sqrt(point.share)


def limits(figure: Roofline) -> tuple[tuple[float, float], tuple[float, float]]:
    """Ranges of both axes, with room around the operators and the ridge."""
    xs = [*(point.intensity for point in figure.points), figure.ridge]
    ys = [point.rate for point in figure.points]
    highest = max(figure.rate, *ys)
    return (min(xs) / 3, max(xs) * 4), (min(*ys, highest) / 3, highest * 2.5)


def decades(low: float, high: float) -> list[float]:
    """Powers of ten between two numbers."""
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    return [10.0**exponent for exponent in range(first, last + 1)]


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _roof_labels(canvas, figure: Roofline, at, roof, right: float) -> list[tuple]:
    x, y = at(*roof[1])
    rate = scaled(figure.rate, "flop/s")
    canvas.text(right, y - 8, rate, "small", anchor="end")
    start = at(*roof[0])
    middle = ((start[0] + x) / 2, (start[1] + y) / 2)
    bandwidth = scaled(figure.bandwidth, "B/s")
    end = max(middle[0] - 10, text_width(bandwidth, 12))
    canvas.text(end, middle[1] - 6, bandwidth, "small", anchor="end")
    width = text_width(bandwidth, 12)
    steps = [index / 40 for index in range(41)]
    slope = [(start[0] + (x - start[0]) * part, start[1] + (y - start[1]) * part) for part in steps]
    return [
        *((along - 3, up - 3, along + 3, up + 3) for along, up in slope),
        (x, y - 3, right, y + 3),
        (right - text_width(rate, 12), y - 20, right, y - 4),
        (end - width, middle[1] - 18, end, middle[1] - 2),
    ]


def _name(canvas: Canvas, label: str, x, y, radius, taken: list[tuple], area: tuple) -> None:
    """Beside, above or below its circle, where nothing is yet; to the right if nothing is free."""
    width = text_width(label, 12)
    gap = radius + 4
    places = [(x + gap, y + 4), (x - gap - width, y + 4), (x - width / 2, y - gap)]
    places += [(x - width / 2, y + gap + 10), (x + gap, y - 10), (x + gap, y + 18)]

    def box(place: tuple[float, float]) -> tuple[float, float, float, float]:
        return place[0], place[1] - 11, place[0] + width, place[1] + 3

    def inside(found: tuple) -> bool:
        return area[0] <= found[0] and found[2] <= area[2] and area[1] <= found[1]

    own = (x - radius, y - radius, x + radius, y + radius)
    others = [one for one in taken if one != own]
    free = [p for p in places if inside(box(p)) and not any(overlap(box(p), o) for o in others)]
    possible = free or [p for p in places if inside(box(p))] or places
    canvas.text(*possible[0], label, "small solid")
    taken.append(box(possible[0]))


def overlap(a: tuple, b: tuple) -> bool:
    """Of two boxes (left, top, right, bottom)."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _roof_description(figure: Roofline) -> str:
    said = "; ".join(
        f"{point.number} {point.label} {digits(point.intensity)} flop per byte, "
        f"{scaled(point.rate, 'flop/s')}"
        for point in figure.points
    )
    return (
        f"{figure.title} on {figure.machine}, {scaled(figure.bandwidth, 'B/s')} and "
        f"{scaled(figure.rate, 'flop/s')}. {said}."
    )
