"""The page's figures as PNG, for documents; drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...training.errors import UsageError
from . import gallery
from .figures import BASE, BOUND, OURS, PEER, Bars, Figure, Lines, Roofline
from .records import Results
from .svg_curves import limits, y_ticks
from .units import scaled

_COLOURS = {OURS: "#0b5cad", BASE: "#4d5560", PEER: "#8a939d"}
_PEERS = ("#b34d00", "#0b7a5c", "#8b3a86", "#766800", "#b3261e", "#00708c")
_MUTED, _GRID = "#57606a", "#d5dae0"
_STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _MUTED,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.labelcolor": _MUTED,
    "hatch.color": "white",
    "hatch.linewidth": 1.5,
}


def write(results: Results, folder: Path) -> list[Path]:
    """Every figure as DIR/KEY.png; makes the folder.

    Raises:
        UsageError: there is nothing to draw, or matplotlib is not installed.
    """
    figures = gallery.everything(results)
    if not figures:
        raise UsageError("the results must hold something to draw, got no measured case or profile")
    paths = []
    for figure in figures:
        paths.append(folder / f"{figure.key}.png")
        draw(figure, paths[-1])
    return paths


def draw(figure: Figure, path: Path) -> None:
    """Draw a figure as the PNG at `path`; makes its folder.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Sheet
    except ImportError as error:
        raise UsageError(f"pictures need matplotlib, in the extra 'plots': {error}") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(_STYLE):
        sheet = Sheet(figsize=(7.2, _height(figure)), layout="constrained")
        FigureCanvasAgg(sheet)
        axes = sheet.subplots()
        painters: dict[type, Callable[[Any, Any], None]] = {
            Bars: _bars, Lines: _lines, Roofline: _roofline,
        }  # fmt: skip
        painters[type(figure)](axes, figure)
        axes.set_title(figure.title)
        # no date and no version in the file: the same results give the same bytes
        sheet.savefig(path, dpi=120, metadata={"Software": None})


def _height(figure: Figure) -> float:
    if isinstance(figure, Bars):
        titles = sum(bool(title) for title, _ in figure.groups)
        return 0.25 * (len(figure.bars) + 1.2 * titles) + 1.1
    return 4.6 if isinstance(figure, Roofline) else 3.8


def _bars(axes: Any, figure: Bars) -> None:
    place, labels = 0.0, {}
    for title, group in figure.groups:
        if title:
            axes.text(0, place + 0.1, title, weight="bold", va="center", clip_on=False)
            place += 1
        scale = figure.highest(group)
        first = place - 0.5
        for bar in group:
            colour = _COLOURS.get(bar.role, "white")
            if figure.dots:
                face = "white" if bar.noisy else colour
                axes.plot(
                    bar.value / scale, place, "o", color=colour, markerfacecolor=face, zorder=3
                )
            else:
                style = {"color": colour, "hatch": "////" if bar.noisy else None}
                if bar.role == BOUND:
                    style = {"facecolor": "white", "edgecolor": _COLOURS[BASE], "linestyle": "--"}
                if bar.part is not None:
                    axes.barh(place, bar.part / scale, height=0.66, color=colour)
                    style["alpha"] = 0.4
                axes.barh(place, bar.value / scale, height=0.66, **style)
            if bar.low is not None and bar.high is not None:
                if not figure.dots:
                    axes.plot(
                        [bar.low / scale, bar.high / scale],
                        [place, place],
                        color="white",
                        linewidth=3.5,
                    )
                axes.plot(
                    [bar.low / scale, bar.high / scale],
                    [place, place],
                    color="#1c2128",
                    linewidth=1.4,
                )
            text = axes.annotate(
                bar.text, (1.01, place), xycoords=("axes fraction", "data"), va="center",
                annotation_clip=False,
            )  # fmt: skip
            text.set_in_layout(True)
            labels[place] = bar.label
            place += 1
        if figure.reference is not None:
            value = figure.reference[0] / scale
            axes.vlines(value, first, place - 0.5, color=_MUTED, linewidth=0.9, linestyle="--")
        place += 0.2
    axes.set_yticks(list(labels), list(labels.values()))
    axes.tick_params(left=False)
    axes.set_ylim(place - 0.4, -0.6)
    axes.set_xlim(0, 1.03)
    axes.set_xticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_xlabel(figure.axis)


def _lines(axes: Any, figure: Lines) -> None:
    markers = "^Dv"
    for line in figure.lines:
        xs, ys = zip(*line.points, strict=True)
        colour = _COLOURS.get(line.role, _PEERS[line.number % 6])
        style = {"marker": {OURS: "o", BASE: "s"}.get(line.role, markers[line.number % 3])}
        if line.role == BOUND:
            style, colour = {"linestyle": ":", "marker": "s"}, _COLOURS[BASE]
        elif line.role == PEER:
            colour = _PEERS[line.number % 6]
        elif line.number:
            style["linestyle"] = ("--", ":", "-.")[(line.number - 1) % 3]
        axes.plot(xs, ys, color=colour, label=line.label, linewidth=1.8, markersize=5, **style)
        noisy = [point for point, one in zip(line.points, line.noisy, strict=True) if one]
        if noisy:
            style = {"marker": style["marker"], "markerfacecolor": "white", "linestyle": "none"}
            axes.plot(*zip(*noisy, strict=True), color=colour, markersize=5, zorder=3, **style)
    if figure.doubling:
        axes.set_xscale("log", base=2)
        axes.minorticks_off()
    axes.set_xticks(figure.xs, [f"{x:g}" for x in figure.xs])
    ticks = y_ticks(figure, 5)
    axes.set_yticks(*zip(*ticks, strict=True))
    axes.set_ylim(0, ticks[-1][0])
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_xlabel(figure.x_axis)
    axes.set_ylabel(figure.y_axis)
    axes.legend(frameon=False, bbox_to_anchor=(1.01, 1), loc="upper left", fontsize=9)


def _roofline(axes: Any, figure: Roofline) -> None:
    xs, ys = limits(figure)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.plot(
        [xs[0], figure.ridge, xs[1]],
        [xs[0] * figure.bandwidth, figure.rate, figure.rate],
        color="#1c2128", linewidth=1.4,
    )  # fmt: skip
    for point in figure.points:
        area = 30 + 900 * point.share
        axes.scatter(point.intensity, point.rate, area, color=_COLOURS[OURS], alpha=0.55)
        axes.annotate(
            str(point.number), (point.intensity, point.rate), xytext=(0, 8),
            textcoords="offset points", ha="center", fontsize=8,
        )  # fmt: skip
    names = "\n".join(f"{point.number} {point.label}" for point in figure.points)
    axes.annotate(names, (1.02, 1), xycoords="axes fraction", va="top", fontsize=8)
    axes.set_xlim(*xs)
    axes.set_ylim(*ys)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    bandwidth, rate = scaled(figure.bandwidth, "B/s"), scaled(figure.rate, "flop/s")
    axes.set_xlabel(f"flop per byte; {figure.machine}: {bandwidth}, {rate}")
    axes.set_ylabel("flop/s")
