"""HTML from data; every text that is not markup is escaped here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def text(value: object) -> Markup:
    """Escaped, unless it is markup."""
    return value if isinstance(value, Markup) else Markup(escape(str(value)))


def join(parts: Iterable[object]) -> Markup:
    return Markup("".join(text(part) for part in parts))


def element(tag: str, *children: object, **attributes: str | None) -> Markup:
    """An element; attributes that are None are left out, `class_` is class."""
    shown = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{tag}{shown}>{join(children)}</{tag}>")


def slug(value: str) -> str:
    """An id: letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", value.lower()).strip("-")


def marked(value: str) -> Markup:
    """Text whose last word, "noisy", stands out where it is there."""
    body, word, rest = value.rpartition(" noisy")
    if not word or rest:
        return text(value)
    return join([body, " ", element("span", "noisy", class_="noisy")])


def table(
    caption: str,
    header: Sequence[str],
    groups: Iterable[tuple[str, Iterable[tuple[Sequence[object], str | None]]]],
    *,
    left: Sequence[int] = (),
    wrapped: Sequence[int] = (),
) -> Markup:
    """A table that scrolls in its own box.

    Args:
        groups: of rows under a heading, "" for none; a row is its cells and a CSS class or None.
        left: columns of text, beside the first.
        wrapped: columns of long text, whose lines break.
    """
    styles = {**dict.fromkeys(left, "text"), **dict.fromkeys(wrapped, "text reason")}
    columns = (
        element("th", name, scope="col", class_=styles.get(i)) for i, name in enumerate(header)
    )
    bodies = []
    for heading, rows in groups:
        lines = []
        if heading:
            title = element("th", heading, scope="rowgroup", colspan=str(len(header)))
            lines.append(element("tr", title))
        for cells, style in rows:
            first, *others = cells
            shown = [element("th", first, scope="row")]
            for i, cell in enumerate(others, 1):
                shown.append(element("td", cell, class_=styles.get(i)))
            lines.append(element("tr", *shown, class_=style))
        bodies.append(element("tbody", *lines))
    head = element("thead", element("tr", *columns))
    inner = element("table", element("caption", caption), head, *bodies)
    return element("div", inner, class_="scroll", tabindex="0", role="region", aria_label=caption)
