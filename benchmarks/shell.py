"""What every page has around its content: head, style, title, footer, script; one self-contained HTML file."""

from __future__ import annotations

from html import escape
from pathlib import Path
from string import Template

_HERE = Path(__file__).parent


def wrap(main: str, *, brand: str, title: str, subtitle: str, footer: str, style: str = "") -> str:
    """Write a whole page; style and script are inside of it.

    Args:
        main: Content, markup already.
        brand: What kind of page, plain text.
        title: Heading, plain text.
        subtitle: The line below it, plain text.
        footer: The last line, markup already.
        style: CSS that this kind of page adds.
    """
    return Template((_HERE / "shell.html").read_text(encoding="utf-8")).substitute(
        brand=escape(brand),
        title=escape(title),
        subtitle=escape(subtitle),
        style=(_HERE / "page.css").read_text(encoding="utf-8") + style,
        main=main,
        footer=footer,
        script=(_HERE / "page.js").read_text(encoding="utf-8"),
    )
