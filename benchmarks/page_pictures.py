"""The pictures of the page: every photo as a strip, and two of them to wipe between."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.markup import note, tag
from benchmarks.view import number

_QUALITY = 92
_SAME = "Shown once: pictures in which no pixel differs by more than 3 of 255"


def pictures(manifest: Sequence[Mapping[str, Any]], folder: Path) -> str:
    """Write the section.

    Args:
        manifest: ``pictures`` of ``report.json``.
        folder: Folder that its files are relative to; a missing file leaves its tile out.
    """
    shown = [_loaded(picture, folder) for picture in manifest]
    shown = [picture for picture in shown if len(picture["tiles"]) > 1]
    if not shown:
        return note("No pictures in this report.")
    names = [{**picture, "tiles": [tile["label"] for tile in picture["tiles"]]} for picture in shown]
    data = json.dumps(names).replace("</", "<\\/")
    closer = tag("div", id="closer", hidden="") + tag("script", data, type="application/json", id="tiles")
    return closer + "".join(_strip(picture) for picture in shown) + _legend(shown[0]["tiles"])


def _loaded(picture: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    tiles = [
        {**tile, "src": _data_uri(folder / tile["file"])}
        for tile in picture["tiles"]
        if (folder / tile["file"]).is_file()
    ]
    return {"photo": picture["photo"], "why": picture["why"], "tiles": tiles}


def _data_uri(path: Path) -> str:
    """Return the picture as JPEG with full colour resolution, inside of a URI."""
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _strip(picture: Mapping[str, Any]) -> str:
    figures = []
    for tile in picture["tiles"]:
        value = "" if tile["lpips"] is None else tag("small", f"LPIPS {number(tile['lpips'], 4)}")
        image = tag("img", src=tile["src"], alt=tile["label"])
        figures.append(tag("figure", image, tag("figcaption", escape(tile["label"]), value)))
    title = tag("h3", escape(picture["photo"]), tag("span", escape(picture["why"])), class_="photo")
    return title + tag("div", *figures, class_="strip")


def _legend(tiles: Sequence[Mapping[str, Any]]) -> str:
    items = [
        tag("li", tag("b", escape(tile["label"])), " also stands for ", escape(", ".join(tile["also"])))
        for tile in tiles
        if tile["also"]
    ]
    return tag("details", tag("summary", _SAME), tag("ul", *items), class_="same") if items else ""
