"""The README's table and picture of training steps, made from a results file and nothing else.

    python -m fastres.bench.readme benchmarks/results/DEVICE.json [README.md] [--picture FILE.png]

replaces what stands between the README's two marks. A test holds the README against the file.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from . import results
from .peers import EAGER, FUSED

BEGIN, END = "<!-- results: {name} -->", "<!-- end of results -->"
TRAINING = ("resnet50 fp32", "resnet50 bf16", "resnet18 fp32", "cifar resnet20 fp32")


def training_cases(content: dict[str, Any]) -> dict[str, Any]:
    """The measured training cases of a results file, by name.

    Raises:
        ValueError: there is none.
    """
    found = {
        name: case
        for name, case in content.get("cases", {}).items()
        if name in TRAINING and case["implementations"].get(FUSED, {}).get("status") == "measured"
    }
    if not found:
        raise ValueError("the results must hold a training case, got none that was measured")
    return {name: found[name] for name in TRAINING if name in found}


def table(content: dict[str, Any]) -> str:
    """Markdown of the training cases of a results file; errors as `training_cases`."""
    lines = [
        "| training step | batch | fused | over eager channels_last | peak memory |",
        "|---|---|---|---|---|",
    ]
    cases = training_cases(content)
    for name, case in cases.items():
        fused = case["implementations"][FUSED]
        row = [name, str(case["batch"]), f"{fused['seconds']['median'] * 1e3:.0f} ms"]
        row.append(_ratio(fused["times_faster_than"].get(EAGER)))
        row.append(_memory(fused, case["implementations"][EAGER]))
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join([*lines, "", _conditions(next(iter(cases.values()))["environment"])])


def picture(content: dict[str, Any], path: Path) -> None:
    """Draw the ratios of the table, with their 95% intervals, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = training_cases(content)
    figure, axes = pyplot.subplots(figsize=(7.2, 0.62 * len(cases) + 1.3), layout="constrained")
    for place, case in enumerate(cases.values()):
        ratio = case["implementations"][FUSED]["times_faster_than"][EAGER]
        axes.barh(place, ratio["median"], height=0.55, color="#1f6feb")
        axes.plot([ratio["low95"], ratio["high95"]], [place, place], color="#222222")
        axes.text(0.03, place, f"{ratio['median']:.2f}×", va="center", color="white")
    axes.axvline(1, color="#888888", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(cases)), list(cases))
    axes.invert_yaxis()
    axes.set_xlabel(
        "times faster than eager channels_last, one CPU training step (line: 95% interval)"
    )
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _ratio(ratio: dict[str, Any] | None) -> str:
    if ratio is None:
        return "–"
    return f"{ratio['median']:.2f}× ({ratio['low95']:.2f} to {ratio['high95']:.2f})"


def _memory(fused: dict[str, Any], eager: dict[str, Any]) -> str:
    peaks = [row.get("memory", {}).get("peak_bytes") for row in (fused, eager)]
    return "–" if None in peaks else f"{peaks[0] / peaks[1]:.2f}× eager's"


def _conditions(environment: dict[str, Any]) -> str:
    device = environment["device"]
    return (
        f"{device['name']}, {device['cpu']['threads']} threads, torch {environment['torch']}, "
        f"commit {environment['commit'][:12]}, {environment['date'][:10]}: "
        f"`{environment['command']}`"
    )


def replaced(readme: str, name: str, content: dict[str, Any]) -> str:
    """`readme` with the table of results file `name` between its marks.

    Raises:
        ValueError: the marks of this file are not there.
    """
    begin = BEGIN.format(name=name)
    pattern = re.escape(begin) + r"\n.*?" + re.escape(END)
    if not re.search(pattern, readme, re.DOTALL):
        raise ValueError(f"the README must hold {begin!r} and {END!r}, got neither or one")
    new = f"{begin}\n{table(content)}\n{END}"
    return re.sub(pattern, lambda _: new, readme, count=1, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("readme", type=Path, nargs="?", default=Path("README.md"))
    parser.add_argument("--picture", type=Path, help="also draw the ratios as this PNG")
    arguments = parser.parse_args()
    content = results.read(arguments.results)
    text = arguments.readme.read_text(encoding="utf-8")
    arguments.readme.write_text(replaced(text, arguments.results.name, content), encoding="utf-8")
    if arguments.picture is not None:
        picture(content, arguments.picture)


if __name__ == "__main__":
    main()
