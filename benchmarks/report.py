"""The report folder: ``report.json`` for machines; ``report.md``, ``index.html`` and ``front.svg`` for people.

``report.json`` is the only source: the other files are rendered from it and can be rendered again.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.machine import Machine
from benchmarks.row import BenchmarkRow
from benchmarks.view import LEVELS, View
from models.artifact import write_json
from models.errors import CheckpointError, RunFolderError, explain

if TYPE_CHECKING:
    from benchmarks.pictures import Picture

SCHEMA = 1
REPORT = "report.json"
#: What a report consists of; an interrupted one may hold some of these.
_OWN = (REPORT, "report.md", "index.html", "*.svg", "pictures", "*.part")


def write_report(
    out: Path,
    *,
    machine: Machine | Mapping[str, Any],
    recipe: Mapping[str, Any],
    rows: Sequence[BenchmarkRow],
    pictures: Sequence[Picture] = (),
    stages: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
    details: Mapping[str, Any] | None = None,
) -> Path:
    """Write the report folder.

    Args:
        out: Folder; made if needed. Files of an earlier report are replaced.
        machine: Where the latencies were measured.
        recipe: How the artifacts were made, JSON values.
        rows: One an artifact and device.
        pictures: Photos side by side; written as PNG files to ``out/pictures``.
        stages: What each stage did, JSON values: ``stage``, ``seconds``, ``note``, anything else.
        notes: Sentences that a reader must know, for example which student the distillation started from.
        details: ``Benchmark.details``: settings, photos with their values, the do-nothing baseline.

    Returns:
        The path of ``index.html``.

    Raises:
        RunFolderError: The folder cannot be written.
    """
    where = machine.to_json() if isinstance(machine, Machine) else dict(machine)
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "machine": where,
        "recipe": dict(recipe),
        "rows": [row.to_json() for row in rows],
        "stages": [dict(stage) for stage in stages],
        "notes": list(notes),
        "machines": {str(where.get("id", "")): where},
        **dict(details or {}),
        "pictures": _write_pictures(out / "pictures", pictures),
    }
    write_json(out / REPORT, content)
    return render_report(out, content)


def read_report(path: Path) -> dict[str, Any]:
    """Read ``report.json``, the folder that holds it, or a file of rows that ``benchmarks run`` wrote.

    Raises:
        CheckpointError: Missing, not a report, or of another schema.
    """
    candidates = [path / REPORT, path / "report" / REPORT] if path.is_dir() else [path]
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        fix = "pass the file or its folder"
        raise CheckpointError(explain("report", expected=f"file {candidates[0]}", got="no such file", fix=fix))
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        fix = "copy it again; it looks truncated"
        raise CheckpointError(explain(f"{file}", expected="JSON", got=error, fix=fix)) from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA or not isinstance(content.get("rows"), list):
        got = f"schema {content.get('schema')!r}" if isinstance(content, dict) else type(content).__name__
        fix = "pass a report.json that this version of Pare wrote"
        raise CheckpointError(explain(f"{file}", expected=f"schema {SCHEMA} with rows", got=got, fix=fix))
    return content


def rows_of(content: Mapping[str, Any]) -> list[BenchmarkRow]:
    """Return the rows of a report as objects, checked."""
    return [BenchmarkRow.from_json(row) for row in content["rows"]]


def check_report_folder(out: Path) -> None:
    """Raise RunFolderError when ``out`` is a file, or a folder of something else: a report is not mixed with it."""
    fix = "choose another --output"
    if out.is_file():
        raise RunFolderError(explain(f"{out}", expected="a folder", got="a file", fix=fix))
    if not out.is_dir() or (out / REPORT).is_file():
        return
    others = sorted(path.name for path in out.iterdir() if not any(path.match(name) for name in _OWN))
    if others:
        got = f"{others[0]!r} and {len(others) - 1} more" if len(others) > 1 else repr(others[0])
        raise RunFolderError(explain(f"{out}", expected="a new folder or a report", got=got, fix=fix))


def report_folder(path: Path) -> Path:
    """Return the folder in which the report that ``path`` names lies."""
    if path.is_file():
        return path.parent
    return path if (path / REPORT).is_file() else path / "report"


def render_report(out: Path, content: Mapping[str, Any], *, pictures_from: Path | None = None) -> Path:
    """Write ``report.md``, ``index.html`` and ``front.svg`` (``front-2.svg``, ... for further nets or machines).

    Where a run-time control was measured, ``levels.svg`` too.

    Args:
        out: Folder that they are written to.
        content: What ``read_report`` gave.
        pictures_from: Folder that the picture files are relative to; None: ``out``.

    Returns:
        The path of ``index.html``.
    """
    from benchmarks.markdown import markdown
    from benchmarks.page import page

    view = View(content, rows_of(content))
    for file, svg in view.plots():
        _write(out / file, svg)
    if (levels := view.level_plot()) is not None:
        _write(out / LEVELS, levels)
    _write(out / "report.md", markdown(view))
    _write(out / "index.html", page(view, pictures_from or out))
    return out / "index.html"


def copy_pictures(source: Path, target: Path) -> None:
    """Copy the pictures of a report to another folder, where that is another one."""
    if (source / "pictures").is_dir() and source.resolve() != target.resolve():
        try:
            shutil.copytree(source / "pictures", target / "pictures", dirs_exist_ok=True)
        except OSError as error:
            fix = "free disk space, or choose another --output"
            raise RunFolderError(
                explain(f"writing {target}", expected="a writable folder", got=error, fix=fix)
            ) from error


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        fix = "free disk space, or choose another --output"
        raise RunFolderError(explain(f"writing {path}", expected="a writable folder", got=error, fix=fix)) from error


def _write_pictures(folder: Path, pictures: Sequence[Picture]) -> list[dict[str, Any]]:
    """Write one PNG a tile and return what the report says of them."""
    if not pictures:
        return []
    from PIL import Image

    manifest = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.png"):
            old.unlink()
        for number, picture in enumerate(pictures, start=1):
            tiles = []
            for place, tile in enumerate(picture.tiles):
                name = f"{number}-{place:02d}-{_slug(tile.label)}.png"
                Image.fromarray(tile.image).save(folder / name, optimize=True)
                tiles.append(
                    {"label": tile.label, "file": f"{folder.name}/{name}", "lpips": tile.lpips, "also": list(tile.also)}
                )
            manifest.append({"photo": picture.photo, "why": picture.why, "tiles": tiles})
    except OSError as error:
        fix = "free disk space, or choose another --output"
        raise RunFolderError(explain(f"writing {folder}", expected="a writable folder", got=error, fix=fix)) from error
    return manifest


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "picture"
