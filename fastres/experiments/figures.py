"""The experiments' figures: errors over iterations as in the paper's figure 6, and figure 7."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from fastres.experiments.outcome import Outcome, data_words
from fastres.experiments.plan import Network, Plan
from fastres.experiments.responses import Response
from fastres.training.errors import TrainingError, UsageError

# told apart by people with any kind of colour vision (Okabe and Ito)
_COLOURS = ("#E69F00", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
_THIN, _BOLD = 1.0, 2.4


def draw_errors(plan: Plan, outcomes: Sequence[Outcome], path: Path) -> None:
    """Training error thin, test error bold, mean over the seeds with a band from least to greatest.

    One panel for each of the networks' panels, left to right. Raises UsageError without matplotlib.
    """
    figure, panels = _figure(plan)
    for axes, panel in panels:
        members = [network for network in plan.networks if network.panel == panel]
        for colour, network in zip(_colours(len(members)), members, strict=True):
            own = [outcome for outcome in outcomes if outcome.run.network == network]
            _errors_of(axes, network, own, colour)
        axes.set(title=panel, xlabel="iterations", xlim=(0, plan.recipe["iterations"]))
        _legend(axes, axes, -0.17)
    first = panels[0][0]
    first.set(ylabel="error (%)", ylim=(0, _ceiling(outcomes)))
    for axes, _ in panels:
        for milestone in plan.recipe["milestones"] or ():
            axes.axvline(milestone, color="0.85", linewidth=0.8, zorder=0)
    count = len(plan.seeds)
    band = f"mean of {count} seeds, band from least to greatest" if count > 1 else "one seed"
    _titles(
        figure,
        plan.title,
        data_words(plan),
        f"thin: training error, on augmented batches as trained; bold: test error; {band}",
    )
    _save(figure, path, f"{plan.title}. {data_words(plan)}")


def _errors_of(axes: Any, network: Network, outcomes: Sequence[Outcome], colour: str) -> None:
    iterations = [row["iteration"] for row in outcomes[0].curve]
    for column, width in (("train_error", _THIN), ("test_error", _BOLD)):
        seeds = zip(*([row[column] for row in o.curve] for o in outcomes), strict=True)
        points = list(seeds)
        axes.plot(
            iterations,
            [mean(values) for values in points],
            color=colour,
            linewidth=width,
            marker="o" if len(points) == 1 else None,
            label=network.line if width == _BOLD else None,
            zorder=2 if width == _BOLD else 3,
        )
        if len(outcomes) > 1:
            low, high = [min(values) for values in points], [max(values) for values in points]
            axes.fill_between(iterations, low, high, color=colour, alpha=0.15, linewidth=0)


def _ceiling(outcomes: Sequence[Outcome]) -> float:
    """The paper cuts its axis above the last errors, where nothing is compared."""
    final = max(max(o.errors["train_error"], o.errors["test_error"]) for o in outcomes)
    return min(100.0, max(10.0, 2.5 * final))


def draw_responses(
    title: str, subtitle: str, curves: Sequence[tuple[str, str, Sequence[Response]]], path: Path
) -> None:
    """Standard deviations of the layers' responses, by layer above and sorted below.

    `curves` holds (panel, line, responses); one column for each panel.
    """
    panels = list(dict.fromkeys(panel for panel, _, _ in curves))
    figure = _new_figure((max(7, 5.2 * len(panels)), 6.4))
    grid = figure.subplots(2, len(panels), sharex="col", sharey=True, squeeze=False)
    for column, panel in enumerate(panels):
        above, below = grid[0][column], grid[1][column]
        members = [(line, found) for name, line, found in curves if name == panel]
        for colour, (line, found) in zip(_colours(len(members)), members, strict=True):
            values = [response.std for response in found]
            index = range(1, len(values) + 1)
            above.plot(index, values, color=colour, linewidth=1.2, label=line)
            below.plot(index, sorted(values, reverse=True), color=colour, linewidth=1.2)
        above.set(title=panel)
        _legend(below, above, -0.24)
        above.set(xlabel="layer, in the network's order")
        below.set(xlabel="layer, sorted by magnitude")
    for row in grid:
        row[0].set(ylabel="standard deviation", ylim=(0, None))
    _clean([axes for row in grid for axes in row])
    _titles(figure, title, subtitle, "outputs of the 3x3 layers, after BN, before ReLU or addition")
    _save(figure, path, f"{title}. {subtitle}")


def _legend(axes: Any, of: Any, height: float) -> None:
    """The lines of a panel below it, where no curve runs, five in a row."""
    handles, labels = of.get_legend_handles_labels()
    axes.legend(
        handles,
        labels,
        frameon=False,
        loc="upper center",
        bbox_to_anchor=(0.5, height),
        ncols=min(5, len(labels)),
        fontsize=9,
        handlelength=1.2,
        columnspacing=1.0,
    )


def _figure(plan: Plan) -> tuple[Any, list[tuple[Any, str]]]:
    panels = list(dict.fromkeys(network.panel for network in plan.networks))
    figure = _new_figure((max(7, 5.2 * len(panels)), 4.6))
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    _clean(row)
    return figure, list(zip(row, panels, strict=True))


def _new_figure(size: tuple[float, float]) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(
            f"the figures need matplotlib: pip install 'fastres[plots]' ({error})"
        ) from None
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def check_matplotlib() -> None:
    """Raises UsageError now rather than after hours of training."""
    _new_figure((1, 1))


def _colours(count: int) -> list[str]:
    return [_COLOURS[index % len(_COLOURS)] for index in range(count)]


def _clean(panels: Sequence[Any]) -> None:
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.92", linewidth=0.8)
        axes.set_axisbelow(True)


def _titles(figure: Any, title: str, data: str, reading: str) -> None:
    figure.suptitle(f"{title}\n{data}", fontsize=11)
    figure.supxlabel(reading, fontsize=8.5, color="0.35")


def _save(figure: Any, path: Path, title: str) -> None:
    """Replaces the file in one step; the title is in its metadata as well."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        figure.savefig(temporary, dpi=150, format="png", metadata={"Title": title})
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise TrainingError(f"cannot write {path}: {error.strerror}") from None
