"""The table of a zoo for people: ``zoo.md`` and ``index.html``, rendered from ``zoo.json``, with a photo a model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from benchmarks.markdown import table
from benchmarks.markup import definitions, note, tag
from benchmarks.page_pictures import pictures
from benchmarks.page_tables import status
from benchmarks.pictures import DO_NOTHING
from benchmarks.report import REPORT
from benchmarks.row import STATUSES, TARGET_NAMES
from benchmarks.shell import wrap
from benchmarks.view import BUSY_LIMIT, number, short, times
from benchmarks.zoo_table import Engine, ZooRow
from export.registry import list_targets
from models.artifact import write_json
from models.errors import RunFolderError, explain

_HERE = Path(__file__).parent
_FOOTER = (
    "Made by <code>python -m benchmarks zoo</code>. "
    "The numbers are in <code>zoo.json</code>; each model has a report of its own."
)
_PRECISIONS = ("fp32", "fp16", "bf16", "int8")
_METRIC_NAMES = {"lpips": "LPIPS", "psnr": "PSNR dB", "ssim": "SSIM", "delta_e": "ΔE2000"}
_DIGITS = {"lpips": 4, "psnr": 2, "ssim": 4, "delta_e": 2}
_NOT_TIMED = {"built": "built", "unsupported": "no", "failed": "failed", "measured": "–"}
READING = (
    "Minutes is the training time, half of it the teacher's unless it ships trained. Where it is small, the numbers "
    "show that the path works, not what a network can reach.",
    "A -> B: the teacher, and the student that is shipped in its place after distillation, pruning and quantization.",
    "Times are medians of one call of the engine, of the shipped network in each precision. built: made and checked, "
    "not timed here; no: the target cannot do it; failed: the reason is listed; ~: noisy.",
    "Shipped is the artifact that stands for the model: the fastest of the INT8 ones that were judged.",
    "The metric is the first of the task. Gain is how much better than doing nothing it is, in the unit of the metric: "
    "positive is better. Where a task has no ground truth, values are distances to what the teacher renders.",
)


#: Target -> precisions.
Targets = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Cell:
    """A cell of the table: what it shows, and what it sorts by."""

    name: str
    text: str
    value: float | str | None = None
    more: bool = False


def write_zoo(root: Path, content: Mapping[str, Any]) -> Path:
    """Write ``zoo.json``, ``zoo.md``, ``index.html`` and ``pictures`` of a zoo.

    Args:
        root: Folder of the zoo; the reports of its models are below it.
        content: ``schema``, ``machine``, ``settings``, ``rows``.

    Returns:
        The path of ``index.html``.

    Raises:
        RunFolderError: The folder cannot be written.
    """
    rows = [ZooRow.from_json(row) for row in content["rows"]]
    try:
        shown = [picture for row in rows if (picture := _take_picture(root, row)) is not None]
        write_json(root / "zoo.json", {**content, "pictures": shown})
        (root / "zoo.md").write_text(markdown(content, rows, shown), encoding="utf-8")
        (root / "index.html").write_text(page(content, rows, shown, root), encoding="utf-8")
    except OSError as error:
        fix = "free disk space, or choose another --output"
        raise RunFolderError(explain(f"writing {root}", expected="a writable folder", got=error, fix=fix)) from error
    return root / "index.html"


def _take_picture(root: Path, row: ZooRow) -> dict[str, Any] | None:
    """Copy the middle photo of a model's report: input, doing nothing, teacher, shipped, ground truth."""
    if row.report is None or row.shipped is None:
        return None
    folder = (root / row.report).parent
    try:
        known = json.loads((folder / REPORT).read_text(encoding="utf-8"))["pictures"]
    except (OSError, ValueError, KeyError):
        return None
    if not known:
        return None
    picture = known[len(known) // 2]
    wanted = {"Input": "Input", DO_NOTHING: DO_NOTHING, "Teacher": "Teacher · PyTorch FP32", "Shipped": row.shipped}
    tiles = []
    (root / "pictures").mkdir(parents=True, exist_ok=True)
    for place, (label, name) in enumerate({**wanted, "Ground truth": "Ground truth"}.items()):
        tile = _tile(picture["tiles"], name) or (_tile(picture["tiles"], "Input") if label == DO_NOTHING else None)
        if tile is None or not (folder / tile["file"]).is_file():
            continue
        words = f"{row.model}-{place}-{label}".lower()
        file = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in words) + ".png"
        shutil.copyfile(folder / tile["file"], root / "pictures" / file)
        tiles.append({"label": label, "file": f"pictures/{file}", "lpips": tile["lpips"], "also": []})
    why = f"{row.task}; shipped: {row.shipped}; {picture['photo']}"
    return {"photo": row.model, "why": why, "tiles": tiles}


def _tile(tiles: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any] | None:
    return next((tile for tile in tiles if tile["label"] == name or name in tile["also"]), None)


def cells(row: ZooRow, targets: Targets) -> Iterator[Cell]:
    """Return the cells of a row behind the name of the model."""
    yield Cell("Task", row.task, row.task)
    yield Cell("Minutes", short(row.minutes), row.minutes)
    yield Cell("Params M", _arrow(row.teacher_params_m, row.params_m), row.params_m)
    yield Cell("GMACs", _arrow(row.teacher_gmacs, row.gmacs), row.gmacs)
    yield Cell("MB", _arrow(row.teacher_size_mb, row.size_mb), row.size_mb)
    eager = row.teacher_p50_ms.get("torch")
    yield Cell("Teacher, PyTorch ms", short(eager), eager)
    for target, precisions in targets.items():
        teacher = row.teacher_p50_ms.get(target)
        name = TARGET_NAMES.get(target, target)
        yield Cell(f"Teacher, {name} ms", short(teacher), teacher, more=True)
        engines = {engine.precision: engine for engine in row.engines if engine.target == target}
        best = min((engine.p50_ms for engine in engines.values() if engine.p50_ms is not None), default=None)
        shown = " / ".join(_time(engines.get(precision)) for precision in precisions) if engines else "–"
        yield Cell(f"{name} ms, {' / '.join(precisions)}", shown, best)
    yield Cell("Shipped", (row.shipped or "–").rpartition(" · ")[2], row.shipped or "")
    yield Cell("Speedup", times(row.speedup), row.speedup)
    net = f" {row.lpips_net}" if row.lpips_net else ""
    yield Cell("LPIPS to teacher", number(row.lpips_to_teacher, 4) + net, row.lpips_to_teacher)
    digits = _DIGITS.get(row.metric or "", 4)
    to_teacher = " to teacher" if row.metric_to == "teacher" else ""
    name = _METRIC_NAMES.get(row.metric or "", "–")
    yield Cell("Metric", name + to_teacher, name)
    yield Cell("Do nothing", number(row.idle_value, digits), row.idle_value)
    yield Cell("Teacher", number(row.teacher_value, digits), row.teacher_value)
    yield Cell("Shipped value", number(row.shipped_value, digits), row.shipped_value)
    yield Cell("Teacher's gain", number(row.teacher_margin, digits, sign=True), row.teacher_margin)
    yield Cell("Shipped gain", number(row.shipped_margin, digits, sign=True), row.shipped_margin)
    yield Cell("Teacher trained", row.teacher or "–", row.teacher or "", more=True)
    yield Cell("Stages", row.stages or "–", row.stages or "", more=True)
    yield Cell("Size", f"{row.height}x{row.width}" if row.height else "–", row.height, more=True)
    yield Cell("Photos", short(row.photos), row.photos, more=True)
    yield Cell("Seconds", short(row.seconds), row.seconds, more=True)


def targets_of(rows: Sequence[ZooRow]) -> Targets:
    """Return the targets that something was shipped for, in the order of their table, with the precisions of each."""
    there = {(engine.target, engine.precision) for row in rows for engine in row.engines}
    known = {name: [kind for kind in _PRECISIONS if (name, kind) in there] for name in list_targets()}
    return {name: kinds for name, kinds in known.items() if kinds}


def reasons(rows: Sequence[ZooRow]) -> list[tuple[str, str, str]]:
    """List what failed or could not be measured as (status, who, reason), those of one reason together."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.reason:
            found.setdefault((row.status if row.status == "failed" else "built", row.reason), []).append(row.model)
        for engine in row.engines:
            if engine.status != "measured" and engine.reason:
                who = f"{row.model} · {TARGET_NAMES.get(engine.target, engine.target)} {engine.precision.upper()}"
                found.setdefault((engine.status, engine.reason), []).append(who)
    order = ("failed", *(word for word in reversed(STATUSES) if word != "failed"))
    ranked = sorted(found.items(), key=lambda item: order.index(item[0][0]))
    return [(word, ", ".join(who), reason) for (word, reason), who in ranked]


def markdown(content: Mapping[str, Any], rows: Sequence[ZooRow], shown: Sequence[Mapping[str, Any]]) -> str:
    """Render ``zoo.md``."""
    targets = targets_of(rows)
    parts = [f"# {title(rows)}", subtitle(content) + ".", f"    {command(content)}"]
    parts += [f"> {text}" for text in notes(content, rows)]
    if rows:
        head = ["Model", "Status", *(cell.name for cell in cells(rows[0], targets) if not cell.more)]
        body = [[row.model, row.status, *(c.text for c in cells(row, targets) if not c.more)] for row in rows]
        parts.append(table(head, body))
    else:
        parts.append("No model is finished yet.")
    parts += ["\n".join(f"- {line}" for line in READING)]
    for picture in shown:
        tiles = picture["tiles"]
        images = " | ".join(f"![{tile['label']}]({tile['file']})" for tile in tiles)
        names = [f"{tile['label']}{_lpips(tile)}" for tile in tiles]
        lines = ["| " + " | ".join(names) + " |", "|" + ":-:|" * len(tiles), f"| {images} |"]
        parts += [f"**{picture['photo']}** ({picture['why']})", "\n".join(lines)]
    lines = [f"- **{who}** ({word}): {' '.join(reason.split())}" for word, who, reason in reasons(rows)]
    parts += ["## What failed or was not measured, and why", "\n".join(lines) or "Nothing."]
    facts = [f"- {name}: {value}" for name, value in content["machine"].items() if name in _FACTS]
    return "\n\n".join([*parts, "## Machine", "\n".join(facts)]) + "\n"


_FACTS = ("cpu", "cores_physical", "cores_available", "memory_gb", "gpus", "os", "python", "threads", "load_average")


def page(content: Mapping[str, Any], rows: Sequence[ZooRow], shown: Sequence[Mapping[str, Any]], root: Path) -> str:
    """Render ``index.html``; pictures, style and script are inside of the file."""
    targets = targets_of(rows)
    why = [
        tag("li", status(word), " ", tag("b", escape(who)), " ", escape(reason)) for word, who, reason in reasons(rows)
    ]
    main = Template((_HERE / "zoo.html").read_text(encoding="utf-8")).substitute(
        command=escape(command(content)),
        notes="".join(note(text) for text in notes(content, rows)),
        table=_html_table(rows, targets),
        pictures=pictures(shown, root),
        reasons=tag("ul", *why, class_="reasons") if why else note("Nothing."),
        reading="".join(tag("li", escape(line)) for line in READING),
        machine=definitions(content["machine"].items()),
        settings=definitions(content["settings"].items()),
    )
    style = (_HERE / "zoo.css").read_text(encoding="utf-8")
    return wrap(main, brand="Pare zoo", title=title(rows), subtitle=subtitle(content), footer=_FOOTER, style=style)


def title(rows: Sequence[ZooRow]) -> str:
    """The zoo in a line: how many models, and how many beat doing nothing once they are shipped."""
    done = [row for row in rows if row.status == "done"]
    better = [row for row in done if (row.shipped_margin or 0.0) > 0]
    return f"Zoo: {len(done)} of {len(rows)} models through the whole path, {len(better)} better than doing nothing"


def subtitle(content: Mapping[str, Any]) -> str:
    """What it was run on."""
    settings, machine = content["settings"], content["machine"]
    height, width = settings["input_size"]
    cores = machine.get("cores_available") or "?"
    where = f"{machine.get('cpu', 'unknown processor')}, {cores} {'core' if cores == 1 else 'cores'}"
    what = f"photos of {Path(settings['data']).name}" if settings["data"] else "the embedded sample photos"
    usual = "" if not settings["own_minutes"] else ", where the table says no other"
    return f"{settings['minutes']:g} minutes of training a model{usual}, inputs of {height}x{width}, {what}, {where}"


def notes(content: Mapping[str, Any], rows: Sequence[ZooRow]) -> list[str]:
    """What a reader must know first: rows of other machines, and machines that were busy."""
    said = []
    here = content["machine"].get("id")
    strangers = [row.model for row in rows if row.machine not in (None, here)]
    if strangers:
        said.append(f"Measured on another machine than the one named here: {', '.join(strangers)}.")
    busy = [f"{row.model} {row.interference:.0%}" for row in rows if (row.interference or 0.0) > BUSY_LIMIT]
    if busy:
        said.append(
            "While these were measured, other processes used the processors, so that their times are to be taken with "
            f"care: {', '.join(busy)}."
        )
    return said


def command(content: Mapping[str, Any]) -> str:
    """The command that runs it again."""
    given = content["settings"]
    words = ["python -m benchmarks zoo -o runs/zoo", f"--minutes {_minutes(given)}"]
    words += [f"--data {Path(given['data']).name}"] if given["data"] else []
    words += ["--input-size {} {}".format(*given["input_size"])]
    words += [f"--{name} {','.join(given[name])}" for name in ("models", "targets") if given[name]]
    words += [f"--{name} {given[name]}" for name in ("threads", "seed") if given[name]]
    words += ["--from-scratch"] if given["from_scratch"] else []
    return " ".join([*words, *(f"--set '{setting}'" for setting in given["settings"])])


def _minutes(given: Mapping[str, Any]) -> str:
    own = (f"{name}={minutes:g}" for name, minutes in given["own_minutes"].items())
    return ",".join([f"{given['minutes']:g}", *own])


def _html_table(rows: Sequence[ZooRow], targets: Targets) -> str:
    if not rows:
        return tag("thead", tag("tr", tag("th", tag("button", "Model", type="button")))) + tag("tbody")
    names = [("Model", False), ("Status", False), *((cell.name, cell.more) for cell in cells(rows[0], targets))]
    head = (
        tag("th", tag("button", escape(name), type="button"), scope="col", class_="more" if more else None)
        for name, more in names
    )
    return tag("thead", tag("tr", *head)) + tag("tbody", *(_html_row(row, targets) for row in rows))


def _html_row(row: ZooRow, targets: Targets) -> str:
    name = tag("a", escape(row.model), href=row.report) if row.report else escape(row.model)
    words = tag("div", tag("span", name, tag("small", escape(row.student or ""))))
    pill = status("measured" if row.status == "done" else "failed").replace(">measured<", ">done<")
    first = tag("th", words, scope="row", data_v=row.model)
    parts = [tag("td", pill, data_v=row.status, title=row.reason)]
    for cell in cells(row, targets):
        value = "" if cell.value is None else cell.value
        parts.append(tag("td", escape(cell.text), class_="more" if cell.more else None, data_v=value))
    return tag("tr", first, *parts)


def _time(engine: Engine | None) -> str:
    if engine is None:
        return "–"
    if engine.p50_ms is None:
        return _NOT_TIMED[engine.status]
    return short(engine.p50_ms) + ("~" if engine.is_noisy else "")


def _arrow(teacher: float | None, shipped: float | None) -> str:
    return short(shipped) if teacher is None else f"{short(teacher)} -> {short(shipped)}"


def _lpips(tile: Mapping[str, Any]) -> str:
    return "" if tile["lpips"] is None else f" {number(tile['lpips'], 3)}"
