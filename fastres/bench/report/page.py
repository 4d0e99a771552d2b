"""The page: what to know first, then section by section whatever the files hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..peers import EAGER, EAGER_GRAPH, FUSED, FUSED_GRAPH, OPTIMIZED
from ..timing import NOISY
from . import gallery, select, tables, units
from .environments import environments
from .figures import BOUND, Figure, Lines, Roofline
from .markup import Markup, element, join, marked, slug, text
from .records import Case, Profile, Results
from .style import CSS
from .svg import drawn

_MOST = 12  # headline ratios of a device
# what is shown only if it was measured: (heading, the command that measures it)
_MISSING = {
    "Training": "fastres bench train --model resnet50",
    "Inference": "fastres bench infer --model resnet50",
    "Blocks": "fastres bench block",
    "Operators": "fastres bench op",
    "Memory": "fastres bench memory --model resnet50",
    "Scaling": "fastres bench train --model resnet50 --batch 1..64",
    "Largest batch": "fastres bench memory --model resnet50 --largest",
    "Roofline": "fastres profile --model resnet50",
}
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(results: Results) -> str:
    """A document that needs nothing else: no script, no file, no network."""
    made = {
        "Training": _compared(results, "train", "Training", _TRAINING),
        "Inference": _compared(results, "infer", "Inference", _INFERENCE),
        "Blocks": _compared(results, "block", "Residual blocks", _PARTS),
        "Operators": _compared(results, "op", "Fused operators", _PARTS),
        "Memory": _memory(results),
        "Scaling": _per_device(results, _drawings(gallery.scaling)),
        "Largest batch": _per_device(results, _largest),
        "Roofline": _per_device(results, _profiles),
        "History": _per_device(results, _history),
        "Without a speed": _reasons(results),
        "Environment": environments(results),
    }
    missing = [name for name in _MISSING if not made[name]]
    present = {name: body for name, body in made.items() if body}
    if missing:
        present["Not in these files"] = _not_there(missing)
    links = [
        element("li", element("a", name, href=f"#{slug(name)}")) for name in present
    ]  # fmt: skip
    sections = [
        element("section", element("h2", name), body, id=slug(name))
        for name, body in present.items()
    ]
    files = ", ".join(results.files)
    header = element(
        "header",
        element("h1", "fastres, measured"),
        element("p", _lead(results), class_="lead"),
    )
    contents = element("nav", element("ul", *links), aria_label="Sections")
    footer = element("p", f"Made by fastres report from {files}.", class_="muted")
    body = [header, _headlines(results), contents, element("main", *sections)]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>fastres, measured: {text('; '.join(results.devices))}</title>\n"
        f'<link rel="icon" href="data:,">\n<style>{CSS}</style>\n</head>\n'
        f"<body>\n{join(body)}\n{element('footer', footer)}\n</body>\n</html>\n"
    )


def _lead(results: Results) -> str:
    return (
        f"On {'; '.join(results.devices)}. A ratio is how many times faster than PyTorch eager "
        "with channels_last: the median over rounds in which the implementations take turns, with "
        "the 95% interval of that median. Whatever computes something else gets no speed."
    )


def _headlines(results: Results) -> Markup:
    parts, noisy = [], False
    for device in results.devices:
        found = [
            case
            for kind in ("train", "infer")
            for case in select.representative(select.latest(results, kind, device))
        ]
        if not found:
            continue
        if len(results.devices) > 1:
            parts.append(element("h2", device, class_="device"))
        parts.append(element("ul", *map(_tile, found[:_MOST]), class_="ratios"))
        noisy = noisy or any(select.ours(case).ratio.noisy for case in found[:_MOST])
        more = len(found) - _MOST
        if more > 0:
            parts.append(element("p", f"{more} more are in the sections.", class_="muted"))
    if noisy:
        parts.append(element("p", _NOISY, class_="muted"))
    if not parts:
        return text("")
    return element("section", *parts, aria_label=f"Times faster than {EAGER}")


_NOISY = (
    f"Noisy: the middle half of the rounds' ratios spreads by more than {NOISY:.0%} to either "
    "side, so only the interval is told. Measure again on a quieter machine."
)


def _tile(case: Case) -> Markup:
    run = select.ours(case)
    ratio = run.ratio
    does = "inference" if case.kind == "infer" else "training"
    what = [f"{does} with SGD" if case.optimizer else does, f"batch {case.batch}"]
    if case.image_size is not None:
        what.append(f"{case.image_size}×{case.image_size}")
    interval = f"{ratio.low:.2f} to {ratio.high:.2f}"
    rounds = f"{run.rounds} rounds"
    lines: list[list[object]] = [[", ".join(what)]]
    if ratio.noisy:
        value = element("span", f"{interval}×", class_="value range")
        lines.append([element("span", "noisy", class_="noisy"), f", {rounds}"])
    else:
        value = element("span", f"{ratio.median:.2f}×", class_="value")
        lines.append([f"{interval}, {rounds}"])
    lines.append([f"{run.step} a step"])
    graph = case.runs.get(FUSED_GRAPH)
    both = graph.faster_than.get(EAGER_GRAPH) if graph is not None else None
    if both is not None:
        lines.append(["CUDA graphs of both: ", marked(str(both))])
    base = case.runs[EAGER].peak_bytes if EAGER in case.runs else None
    if run.peak_bytes and base:
        lines.append([f"{run.peak_bytes / base:.2f}× eager's memory"])
    return element(
        "li",
        value,
        element("span", f"{case.model} {case.dtype}", class_="what"),
        *(element("span", *line, class_="how") for line in lines),
        class_="unsure" if ratio.noisy else None,
    )


def figure(drawing: Figure) -> Markup:
    """A drawing under its title and how to read it."""
    caption = element("figcaption", element("strong", drawing.title), _reading(drawing))
    return element("figure", caption, Markup(drawn(drawing)))


def details(summary: str, *children: object) -> Markup:
    return element("details", element("summary", summary), *children)


_TRAINING = (
    "One step: forward, loss and backward pass, and the optimiser's where it says SGD. "
    f"{FUSED} is the network with fused=True."
)
_INFERENCE = (
    f"One forward pass in eval mode. {OPTIMIZED} folds batch norm and fuses what is left, {FUSED} "
    "is the training network in eval mode."
)
_PARTS = "Forward and backward pass of a part of a network by itself."


def _per_device(results: Results, make: Callable[[Results, str], Markup]) -> Markup:
    """What `make(results, device)` gives for each, under its name if there are several."""
    parts = []
    for device in results.devices:
        made = make(results, device)
        if made and len(results.devices) > 1:
            parts.append(element("h3", device))
        parts.append(made)
    return join(parts)


def _compared(results: Results, kind: str, title: str, note: str) -> Markup:
    def make(results: Results, device: str) -> Markup:
        found = select.latest(results, kind, device)
        if not found:
            return text("")
        drawings = [figure(one) for one in gallery.compared(results, kind, device)]
        rows = tables.cases(f"{title} on {device}", found)
        return join([*drawings, details("All numbers", rows)])

    return _with_note(note, _per_device(results, make))


def _with_note(note: str, body: Markup) -> Markup:
    return join([element("p", note), body]) if body else body


def _reading(drawing: Figure) -> str:
    """How to read it, as far as it does not say so itself."""
    if isinstance(drawing, Roofline):
        return "A circle's area is the operator's share of the time; numbers as in the table."
    if isinstance(drawing, Lines):
        return "Hollow: noisy." if drawing.noisy else ""
    said = f"{drawing.axis[0].upper()}{drawing.axis[1:]}."
    if drawing.noisy:
        said += f" {'Hollow' if drawing.dots else 'Striped'}: noisy."
    if any(bar.role == BOUND for bar in drawing.bars):
        said += " Outlined: a part of the work alone, as a bound; no implementation."
    return said


def _memory(results: Results) -> Markup:
    def make(results: Results, device: str) -> Markup:
        found = gallery.memory_cases(results, device)
        if not found:
            return text("")
        drawings = [figure(one) for one in gallery.memory(results, device)]
        measured = [case for case in found if case.kind == "memory"]
        if measured:  # the others have their table in their own section
            rows = tables.cases(f"Peak memory on {device}", measured)
            drawings.append(details("All numbers", rows))
        return join(drawings)

    note = (
        "What the steps bring along beyond weights and inputs: on a GPU allocated memory, on a CPU "
        "the growth of a fresh process, libraries' scratch memory included."
    )
    return _with_note(note, _per_device(results, make))


def _drawings(make: Callable[[Results, str], list[Figure]]) -> Callable[[Results, str], Markup]:
    return lambda results, device: join(figure(one) for one in make(results, device))


def _largest(results: Results, device: str) -> Markup:
    found = [one for one in results.largest if one.device == device]
    return tables.largest(found) if found else text("")


def _profiles(results: Results, device: str) -> Markup:
    parts = []
    for profile, drawings in gallery.profiles(results, device):
        parts += [figure(one) for one in drawings]
        parts.append(_profile_facts(profile))
        parts.append(details("All operators", tables.operators(profile)))
    return join(parts)


def _profile_facts(profile: Profile) -> Markup:
    said = []
    if profile.bandwidth and profile.rate:
        bandwidth, rate = (
            units.scaled(profile.bandwidth, "B/s"),
            units.scaled(profile.rate, "flop/s"),
        )
        said.append(f"The roof of {profile.machine}: {bandwidth} and {rate} ({profile.source}).")
    else:
        said.append("The file does not say what the machine can do, so there is no roof.")
    floors = [operator.floor_seconds for operator in profile.operators]
    if profile.step_seconds:
        said.append(f"The step took {units.duration(profile.step_seconds)}")
        plain = profile.plain_seconds
        said[-1] += f", without the profiler {units.duration(plain)}." if plain else "."
    if floors and None not in floors:
        said.append(f"The floors of its operators together: {units.duration(sum(floors))}.")
    if profile.trace:
        said.append(f"Trace: {profile.trace}.")
    return element("p", " ".join(said))


def _history(results: Results, device: str) -> Markup:
    groups = select.history(results, device)
    if not groups:
        return text("")
    changes = element("ul", *(element("li", line) for line in map(_change, groups)))
    return join([_drawings(gallery.history)(results, device), changes])


def _change(cases: Sequence[Case]) -> str:
    before, after = (select.ours(case).ratio for case in (cases[-2], cases[-1]))
    change = f"{cases[-1].title}: {before} before, {after} now"
    if after.high < before.low:
        return f"{change}: slower, the intervals do not meet"
    if after.low > before.high:
        return f"{change}: faster, the intervals do not meet"
    return f"{change}: the intervals overlap, no difference is shown"


def _reasons(results: Results) -> Markup:
    found = select.unmeasured(results)
    parts = [tables.reasons(found)] if found else []
    if results.not_reached:
        parts.append(tables.not_reached(results.not_reached))
    return join(parts)


def _not_there(missing: Sequence[str]) -> Markup:
    rows = [
        element("li", f"{name}: ", element("code", _MISSING[name])) for name in missing
    ]  # fmt: skip
    note = "These sections have no data here. What measures them:"
    return join([element("p", note), element("ul", *rows)])
