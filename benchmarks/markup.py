"""Writing HTML elements without a template engine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_VOID = frozenset(("img", "input", "br"))


def tag(name: str, *inner: str, **attributes: str | float | None) -> str:
    """Write an element. ``inner`` is markup already; attribute values are escaped, None leaves the attribute out.

    ``class_`` becomes ``class``, other underscores become hyphens.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{written}>" if name in _VOID else f"<{name}{written}>{''.join(inner)}</{name}>"


def note(text: str) -> str:
    """Write a highlighted sentence."""
    return tag("p", escape(text), class_="note")


def plain_table(head: Sequence[str], lines: Iterable[Sequence[str | None]]) -> str:
    """Write a table of texts; None becomes a dash."""
    header = tag("tr", *(tag("th", escape(name)) for name in head))
    rows = (tag("tr", *(tag("td", escape("–" if cell is None else cell)) for cell in line)) for line in lines)
    return tag("div", tag("table", tag("thead", header), tag("tbody", *rows), class_="plain"), class_="scroll")


def definitions(pairs: Iterable[tuple[str, object]]) -> str:
    """Write names with their values as a list."""
    items = (tag("dt", escape(name.replace("_", " "))) + tag("dd", escape(plain(value))) for name, value in pairs)
    return tag("dl", *items)


def plain(value: object) -> str:
    """Write a JSON value for people."""
    if value is None or value == "":
        return "not known"
    if value == []:
        return "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value)
    return str(value)
